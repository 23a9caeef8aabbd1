"""What an alert rule waits for, value by value."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from torchtrack.server.rules import Line, When

NAN = float("nan")


def held(when: When, values: list[tuple[int, float]]) -> list[int]:
    """The steps at which it holds; a step is a second."""
    line = Line(attempt=1)
    return [step for step, value in values if line.take(when, step, step * 1_000_000, value)]


@pytest.mark.parametrize(
    ("when", "values", "steps"),
    [
        ({"kind": "above", "value": 1}, [(0, 1.0), (1, 1.1), (2, NAN), (3, float("inf"))], [1, 3]),
        ({"kind": "below", "value": 1}, [(0, 1.0), (1, 0.9), (2, NAN)], [1]),
        ({"kind": "not_finite"}, [(0, 1.0), (1, NAN), (2, float("-inf")), (3, 0.0)], [1, 2]),
        ({"kind": "above", "value": 1, "for_steps": 2}, [(5, 2.0), (6, 2.0), (7, 2.0), (8, 2.0)], [7, 8]),
        ({"kind": "above", "value": 1, "for_steps": 2}, [(5, 2.0), (6, 0.0), (7, 2.0), (8, 2.0)], []),
        ({"kind": "above", "value": 1, "for_steps": 20}, [(0, 2.0), (10, 2.0), (20, 2.0)], [20]),
        ({"kind": "above", "value": 1, "for_s": 3}, [(0, 2.0), (2, 2.0), (3, 2.0)], [3]),
        ({"kind": "above", "value": 1, "for_s": 100, "for_steps": 1}, [(0, 2.0), (1, 2.0)], [1]),
    ],
)
def test_it_holds_as_long_as_it_says(when: dict[str, Any], values: list[tuple[int, float]], steps: list[int]) -> None:
    assert held(When(metric="loss", **when), values) == steps


def test_where_a_process_ended_another_goes_on() -> None:
    when = When(kind="above", metric="loss", value=1, for_steps=100)
    line = Line.resumed(when, attempt=1, step=500, time_us=0)

    assert line.take(when, 501, 1_000_000, 2.0)
    assert not line.take(when, 502, 2_000_000, 0.0)
    assert not line.take(when, 503, 3_000_000, 2.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "above", "metric": "loss"}, "'above' takes `metric`, `value`; got `metric`"),
        ({"kind": "ended", "metric": "loss"}, "'ended' takes neither `metric` nor `value`; got `metric`"),
        ({"kind": "absent", "metric": "loss"}, "after how long a metric is missed"),
        ({"kind": "not_finite", "metric": "loss", "for_s": 3}, "holds at once"),
        ({"kind": "above", "metric": "loss", "value": NAN}, "finite number"),
        ({"kind": "above", "metric": "loss", "value": 1, "for_steps": 0}, "greater than or equal to 1"),
        ({"kind": "ended", "least": "info"}, "`least` goes with 'finding'"),
        ({"kind": "sideways"}, "'matches'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("(", r"\(")):
        When(**wrong)


def test_a_condition_is_told_in_words() -> None:
    assert str(When(kind="above", metric="loss", value=1e6, for_steps=3, for_s=90)) == (
        "loss is above 1e+06 for 3 steps or 90 s"
    )
    assert str(When(kind="finding")) == "a finding is critical"
