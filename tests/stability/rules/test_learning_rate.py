"""A learning rate that jumps, and what is looked at harder after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.stability import steps
from torchtrack.stability import Step


@pytest.mark.parametrize("jumps", [False, True])
def test_after_a_learning_rate_that_jumped_spikes_are_found_sooner_and_it_is_noted(jumps: bool) -> None:
    rates = [*np.linspace(1e-5, 1e-3, 20), *np.full(20, 0.1 if jumps else 1e-3)]
    norms = [*np.full(22, 1.0), *np.full(3, 2.5), *np.full(15, 1.0)]
    rows = [Step(at, {"lr": lr, "grad_norm": norm}) for at, (lr, norm) in enumerate(zip(rates, norms, strict=True))]
    found = [(one.rule, one.severity, one.first_step) for one in steps.run(rows)]
    assert found == [("learning_rate", "info", 20), ("gradient_spike", "warning", 22)] * jumps


@pytest.mark.parametrize(
    "rates", [np.tile(np.geomspace(1e-3, 1e-8, 30), 3), np.geomspace(1e-7, 1e-2, 30), [0, 1e-3] * 9]
)
def test_warm_restarts_and_warm_up_are_no_jumps(rates: Any) -> None:
    assert steps.run(steps.scalars("lr", rates)) == []
