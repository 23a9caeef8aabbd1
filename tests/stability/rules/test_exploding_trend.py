"""Norms that compound."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stability import steps
from tests.stability.steps import WEIGHT, rules_of, samples


def test_gradients_that_compound_are_a_trend_and_warm_up_is_none() -> None:
    growing = [{"a": WEIGHT * factor} for factor in [*steps.noise(20), *np.geomspace(1, 1e4, 40)]]
    assert rules_of(steps.run(samples("gradient", growing))) == ["exploding_trend"]
    assert steps.run(samples("gradient", [{"a": WEIGHT * min(at / 8, 1.0)} for at in range(1, 60)])) == []


@pytest.mark.parametrize(("factor", "found"), [(12, False), (20, True)])
def test_the_rise_has_to_be_of_sixteen_times_in_a_window(factor: float, found: bool) -> None:
    growing = [{"a": WEIGHT * float(size)} for size in np.geomspace(1, factor**2, 47)]  # two windows of 24
    assert rules_of(steps.run(samples("gradient", growing))) == ["exploding_trend"] * found
