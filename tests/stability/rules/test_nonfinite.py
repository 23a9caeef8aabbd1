"""NaN and infinite values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.stability import steps
from tests.stability.steps import WEIGHT, samples
from torchtrack.stability import Facts, Step
from torchtrack.stability.step import Seen


def test_a_nan_names_the_last_layer_of_the_forward_pass_first() -> None:
    broken = np.where(np.arange(400) == 7, np.nan, WEIGHT)
    order = Facts(order=("a", "b", "c"))
    rows = [{"a": WEIGHT, "b": WEIGHT, "c": WEIGHT}, {"a": broken, "b": broken, "c": WEIGHT}]
    (one,) = steps.run(samples("gradient", rows, order))
    assert (one.rule, one.severity, one.first_step, one.names) == ("non_finite", "critical", 1, ("b", "a"))
    assert one.evidence["elements"] == {"b": 1, "a": 1}


def test_a_step_that_a_scaler_left_out_is_a_note() -> None:
    rows = samples("gradient", [{"a": WEIGHT + np.inf}], stage="skipped")
    assert [one.severity for one in steps.run(rows)] == ["info"]


def test_a_loss_that_is_nan_is_critical_and_names_the_rank() -> None:
    (one,) = steps.run([Step(3, {"loss": math.nan}, {"loss": {0: 1.0, 1: math.nan}})])
    assert (one.rule, one.severity, one.first_step, one.ranks) == ("non_finite", "critical", 3, (1,))


def test_a_nan_is_blamed_on_the_rank_that_had_it_before_the_average() -> None:
    bad = {"a": np.full(4, math.nan), "b": np.full(4, math.nan), "c": WEIGHT}
    seen = [Seen(3, "nonfinite", {"kind": "gradient", "first": "b", "names": ["b"], "count": 1})]
    (one,) = steps.run([Step(5, tensors={"gradient": steps.tensors(bad)}, seen=seen)])

    assert (one.rule, one.first_step, one.ranks) == ("non_finite", 5, (3,))
    assert one.names[0] == "b"
    assert "before the average they came from rank 3" in one.why


def test_large_values_are_numbers() -> None:
    assert steps.run(samples("gradient", [{"a": WEIGHT * 1e30}] * 3)) == []
    assert steps.run([Step(3, {"loss": 1e300})]) == []


def test_a_step_that_was_left_out_between_two_samples_is_a_warning_and_one_that_was_stopped_is_critical() -> None:
    rows = samples("gradient", [{"a": WEIGHT, "b": WEIGHT}] * 4)
    for action, severity in (("skip", "warning"), ("raise", "critical")):
        seen = [Seen(0, "nonfinite_step", {"action": action, "first": "b", "names": ["b"], "count": 1, "ranks": [1]})]
        (one,) = steps.run([*rows, Step(5, seen=seen)])
        told = (one.rule, one.severity, one.first_step, one.names, one.ranks)
        assert told == ("non_finite", severity, 5, ("b",), (1,))


@pytest.mark.parametrize(("tellers", "named"), [([2], (2,)), ([1, 2, 3], (1, 2, 3)), ([0, 1, 2, 3], None)])
def test_a_nan_that_some_ranks_alone_hold_after_the_average_is_blamed_on_them(tellers: list[int], named: Any) -> None:
    said = {"kind": "gradient", "first": "b", "names": ["b"], "count": 1}
    rows = {"gradient": steps.tensors({"a": WEIGHT, "b": WEIGHT})}
    of_all = {"loss": dict.fromkeys(range(4), 1.0)}
    seen = [Seen(rank, "nonfinite_held", said) for rank in tellers]
    found = steps.run([Step(7, {}, of_all, tensors=rows, seen=seen)])
    assert [(one.severity, one.names, one.ranks) for one in found] == ([("critical", ("b",), named)] if named else [])


def test_what_the_black_box_saw_between_two_samples_has_its_step_and_tensor_and_blames_no_rank() -> None:
    rows = samples("gradient", [{"a": WEIGHT, "b": WEIGHT}] * 4)
    said = {"kind": "gradient", "first": "b", "names": ["b", "a"], "count": 2}
    seen = [Seen(rank, "nonfinite_boxed", said) for rank in range(2)]
    lost = {"loss": math.nan}
    (one,) = steps.run([*rows, Step(5, seen=seen), Step(6, lost, {"loss": {0: math.nan, 1: math.nan}})])
    assert (one.rule, one.severity, one.first_step, one.names[:2], one.ranks) == (
        "non_finite",
        "critical",
        5,
        ("b", "a"),
        (),
    )


def test_a_nan_after_a_spike_that_is_over_is_a_finding_of_its_own_with_tensor_and_rank() -> None:
    broken = np.where(np.arange(400) == 7, np.nan, WEIGHT)
    norms = [1.0 + 0.01 * (at % 3) + 500.0 * (at == 30) for at in range(60)]
    rows = [
        Step(at, {"watch/grad_norm": norm}, tensors={"gradient": steps.tensors({"a": WEIGHT})})
        for at, norm in enumerate(norms)
    ]
    said = Seen(2, "nonfinite", {"kind": "gradient", "first": "a", "names": ["a"], "count": 1})
    rows.append(
        Step(60, {"watch/grad_norm": math.nan}, tensors={"gradient": steps.tensors({"a": broken})}, seen=[said])
    )
    spike, nan = steps.run(rows)
    assert (spike.rule, spike.severity, spike.consequences) == ("gradient_spike", "warning", ())
    assert (nan.rule, nan.severity, nan.first_step, nan.names, nan.ranks) == (
        "non_finite",
        "critical",
        60,
        ("a",),
        (2,),
    )


def test_a_nan_that_a_growing_norm_ends_in_is_folded_into_the_spike() -> None:
    rows = scalars_of([1.0 + 0.01 * (at % 3) for at in range(30)] + [1e3, 1e6, 1e12, math.nan, math.nan])
    (one,) = steps.run(rows)
    assert (one.rule, one.severity, one.first_step) == ("gradient_spike", "critical", 30)
    assert [(part["rule"], part["first_step"]) for part in one.consequences] == [("non_finite", 33)]


def test_nans_of_other_tensors_at_other_times_are_findings_of_their_own_and_what_follows_from_one_is_not() -> None:
    broken = np.where(np.arange(400) == 7, np.nan, WEIGHT)
    sound = {"a": WEIGHT, "b": WEIGHT}
    bad = {10: {**sound, "a": broken}, 40: {**sound, "b": broken}, 50: {**sound, "b": broken}}
    rows = samples("gradient", [bad.get(at, sound) for at in range(60)])
    rows = [Step(at, {"loss": math.nan if at == 11 else 1.0}, tensors=row.tensors) for at, row in enumerate(rows)]
    found = steps.run(rows)
    assert [(one.first_step, one.last_step, one.names) for one in found] == [(10, 11, ("a", "loss")), (40, 50, ("b",))]


def scalars_of(norms: list[float]) -> list[Step]:
    return steps.scalars("watch/grad_norm", norms)
