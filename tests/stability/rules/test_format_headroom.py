"""Gradients too small for their format."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stability import steps
from tests.stability.steps import WEIGHT, rules_of, samples
from torchtrack.stability import Facts, Step


@pytest.mark.parametrize(("scale", "found"), [(1.0, False), (2.0**-20, True)])
def test_gradients_too_small_for_their_format_are_found_in_one_sample(scale: float, found: bool) -> None:
    facts = Facts(formats={"a": "fp16"})
    rows = samples("gradient", [{"a": WEIGHT * scale, "b": WEIGHT * scale}], facts)
    assert [(one.rule, one.names) for one in steps.run(rows)] == [("format_headroom", ("a",))] * found


def test_a_loss_scale_lifts_gradients_out_of_underflow() -> None:
    rows = {"gradient": steps.tensors({"a": WEIGHT * 2.0**-20})}
    assert rules_of(steps.run([Step(0, {"loss_scale": 1.0}, tensors=rows)])) == ["format_headroom"]
    assert steps.run([Step(0, {"loss_scale": 65536.0}, tensors=rows)]) == []


@pytest.mark.parametrize(("share", "found"), [(0.2, False), (0.3, True)])
def test_a_quarter_has_to_be_too_small(share: float, found: bool) -> None:
    small = np.where(np.arange(400) < 400 * share, 2.0**-24, 1.0)
    rows = samples("gradient", [{"a": small}], Facts(formats={"a": "fp16"}))
    assert rules_of(steps.run(rows)) == ["format_headroom"] * found


def test_elements_that_became_zero_in_a_narrow_format_are_lost_in_one_sample() -> None:
    gone = [{"a": WEIGHT, "b": WEIGHT}] * 3 + [{"a": WEIGHT * 0, "b": WEIGHT * 0}]
    (one,) = steps.run(samples("gradient", gone, Facts(formats={"a": "fp16", "b": "fp16"})))
    assert (one.rule, one.first_step, one.names) == ("format_headroom", 3, ("a", "b"))
    assert steps.run(samples("gradient", gone, Facts(formats={"a": "fp16"}))[:3]) == []


def test_one_layer_of_zeros_beside_others_is_no_underflow() -> None:
    rows = [{"a": WEIGHT, "b": WEIGHT, "c": WEIGHT * (at < 10)} for at in range(12)]
    (one,) = steps.run(samples("gradient", rows, Facts(formats=dict.fromkeys("abc", "fp16"))))
    assert (one.rule, one.names) == ("dead_layer", ("c",))
