"""A loss that jumps."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stability import steps
from tests.stability.steps import rules_of


def test_a_loss_that_jumps_and_comes_back_is_a_spike_alone() -> None:
    losses = [*np.linspace(2, 1, 60), *np.full(20, 1.0), 4.0, 3.0, *np.full(60, 1.0)]
    assert rules_of(steps.run(steps.scalars("loss", losses))) == ["loss_spike"]


def test_ripples_of_a_loss_near_zero_are_nothing() -> None:
    losses = [*np.geomspace(2, 1e-3, 100), *1e-3 * steps.noise(300, 1.0)]
    assert steps.run(steps.scalars("loss", losses)) == []


@pytest.mark.parametrize(("loss", "found"), [(1.15, False), (1.17, True)])
def test_a_spike_is_eight_times_the_spread_of_which_two_percent_of_the_first_loss_is_the_least(
    loss: float, found: bool
) -> None:
    losses = [*np.full(40, 1.0), loss, *np.full(10, 1.0)]
    assert rules_of(steps.run(steps.scalars("loss", losses))) == ["loss_spike"] * found


@pytest.mark.parametrize(("before", "found"), [(11, False), (12, True)])
def test_twelve_values_have_to_be_known(before: int, found: bool) -> None:
    assert bool(steps.run(steps.scalars("loss", [*np.full(before, 1.0), 9.0]))) == found
