"""A loss that no longer falls."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stability import steps


def test_a_loss_that_stays_is_a_note() -> None:
    losses = [*np.linspace(2, 1, 64), *steps.noise(700, 0.005)]
    assert [(one.rule, one.severity) for one in steps.run(steps.scalars("loss", losses))] == [("loss_plateau", "info")]


def test_a_loss_that_falls_slowly_has_no_plateau() -> None:
    assert steps.run(steps.scalars("loss", np.linspace(2, 1, 1500))) == []


@pytest.mark.parametrize(("blocks", "found"), [(16, False), (17, True)])
def test_sixteen_blocks_without_gain_are_a_plateau(blocks: int, found: bool) -> None:
    assert bool(steps.run(steps.scalars("loss", np.full(32 * blocks, 1.0)))) == found
