"""A gradient norm far above those before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.stability import steps
from tests.stability.steps import WEIGHT, rules_of
from torchtrack.stability import Step


@pytest.mark.parametrize("name", ["watch/grad_norm", "grad_norm", "train/grad_norm"])
def test_a_gradient_norm_eight_times_its_median_is_a_spike(name: str) -> None:
    norms = [*steps.noise(40), 8.0, *steps.noise(10)]
    (one,) = steps.run(steps.scalars(name, norms))
    assert (one.rule, one.first_step, one.is_open) == ("gradient_spike", 40, False)


@pytest.mark.parametrize("factors", [steps.noise(200, 0.3), np.linspace(1, 0.01, 200), np.geomspace(0.1, 2, 200)])
def test_a_norm_that_is_noisy_falls_or_warms_up_is_no_spike(factors: Any) -> None:
    assert steps.run(steps.scalars("watch/grad_norm", factors)) == []


def test_a_spike_names_the_tensors_that_rose_most() -> None:
    rows = [
        Step(at, {"watch/grad_norm": 50.0 if at == 30 else 1.0}, tensors={"gradient": steps.tensors(held)})
        for at in range(32)
        for held in [{"a": WEIGHT, "b": WEIGHT * (50.0 if at == 30 else 1.0), "c": WEIGHT}]
    ]
    (one,) = steps.run(rows)
    assert one.names == ("b",)


@pytest.mark.parametrize(("factor", "found"), [(3.5, False), (4.5, True)])
def test_nothing_below_a_factor_of_four_is_a_spike(factor: float, found: bool) -> None:
    norms = [*np.full(40, 1.0), factor, *np.full(10, 1.0)]
    assert rules_of(steps.run(steps.scalars("grad_norm", norms))) == ["gradient_spike"] * found


def test_the_norm_of_one_rank_before_the_average_is_no_global_norm() -> None:
    assert steps.run(steps.scalars("watch/local_grad_norm", [*np.full(40, 1.0), 50.0])) == []
