"""Updates that rounding takes away."""

from __future__ import annotations

import pytest

from tests.stability import steps
from torchtrack.stability import Facts, Finding, Step

NARROW = Facts(formats={"a": "bf16"})


def found(lost: float, unchanged: float, facts: Facts | None = None, count: int = 12) -> list[Finding]:
    values = {"watch/update_lost_bf16": lost, "watch/update_unchanged": unchanged}
    return steps.run([Step(at, values, facts=facts or Facts()) for at in range(count)])


def test_weights_in_bf16_that_hardly_change_are_a_warning() -> None:
    (one,) = found(0.0, 0.95, NARROW)
    assert (one.rule, one.severity, one.names) == ("update_lost", "warning", ("watch/update_unchanged",))
    assert one.evidence["kept_in_it"] is True


def test_what_bf16_would_lose_of_wider_weights_is_a_note() -> None:
    (one,) = found(0.8, 0.95)
    assert (one.rule, one.severity, one.names) == ("update_lost", "info", ("watch/update_lost_bf16",))


@pytest.mark.parametrize("facts", [Facts(), NARROW])
def test_what_most_updates_survive_is_nothing(facts: Facts) -> None:
    assert found(0.7, 0.85, facts) == []


def test_a_few_samples_tell_nothing() -> None:
    assert found(1.0, 1.0, NARROW, count=7) == []
