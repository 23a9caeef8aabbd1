"""A loss that rises for good."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stability import steps
from tests.stability.steps import rules_of


def test_a_loss_that_rises_for_good_above_its_start_is_critical() -> None:
    losses = [*np.linspace(2, 1, 100), *np.linspace(1, 6, 100)]
    found = steps.run(steps.scalars("train/loss", losses))
    assert [(one.rule, one.severity) for one in found] == [("loss_divergence", "critical")]


def test_a_part_of_a_loss_may_go_either_way() -> None:
    assert steps.run(steps.scalars("d_loss", [*np.linspace(2, 1, 100), *np.linspace(1, 6, 100)])) == []


def test_overfitting_is_never_critical() -> None:
    found = steps.run(steps.scalars("val/loss", [*np.linspace(2, 1, 100), *np.linspace(1, 6, 100)]))
    assert [(one.rule, one.severity) for one in found] == [("loss_divergence", "warning")]


@pytest.mark.parametrize(("end", "found"), [(1.4, False), (1.6, True)])
def test_half_of_what_was_won_has_to_be_lost(end: float, found: bool) -> None:
    losses = [*np.linspace(2, 1, 100), *np.linspace(1, end, 60), *np.full(40, end)]
    assert rules_of(steps.run(steps.scalars("loss", losses)), "warning") == ["loss_divergence"] * found


def test_a_loss_that_is_always_zero_is_nothing() -> None:
    assert steps.run(steps.scalars("loss", np.zeros(100))) == []
