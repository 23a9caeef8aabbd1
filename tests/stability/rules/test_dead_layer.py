"""Gradients and activations that are gone."""

from __future__ import annotations

import pytest

from tests.stability import steps
from tests.stability.steps import WEIGHT, samples


@pytest.mark.parametrize("kind", ["gradient", "activation"])
def test_a_layer_that_goes_to_zero_is_dead_after_two_samples(kind: str) -> None:
    rows = [{"a": WEIGHT, "b": WEIGHT * (at < 10)} for at in range(12)]
    (one,) = steps.run(samples(kind, rows))
    assert (one.rule, one.first_step, one.names, one.kind) == ("dead_layer", 10, ("b",), kind)
    assert steps.run(samples(kind, rows[:-1])) == []


def test_a_layer_that_never_had_a_gradient_is_not_dead() -> None:
    assert steps.run(samples("gradient", [{"a": WEIGHT, "b": WEIGHT * 0} for _ in range(12)])) == []


def test_a_gradient_that_vanishes_beside_others_is_found_and_one_that_all_share_is_not() -> None:
    alone = [{"a": WEIGHT, "b": WEIGHT, "c": WEIGHT * (1.0 if at < 10 else 1e-5)} for at in range(14)]
    (one,) = steps.run(samples("gradient", alone))
    assert (one.rule, one.names) == ("dead_layer", ("c",))
    everywhere = [dict.fromkeys("abc", WEIGHT * (1.0 if at < 10 else 1e-05)) for at in range(14)]
    assert steps.run(samples("gradient", everywhere)) == []
