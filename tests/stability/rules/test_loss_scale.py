"""A scale that collapses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.stability import steps


@pytest.mark.parametrize(("low", "severity"), [(2.0**14, None), (2.0**4, "warning"), (2.0**-4, "critical")])
def test_a_loss_scale_that_collapses_is_found(low: float, severity: str | None) -> None:
    falling = 2.0 ** np.arange(16, math.log2(low) - 1, -1)
    found = steps.run(steps.scalars("amp/loss_scale", [*np.full(50, 2.0**16), *falling]))
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_a_scale_that_halves_and_doubles_is_how_it_works() -> None:
    assert steps.run(steps.scalars("amp/loss_scale", 2.0 ** (12 + np.arange(300) % 4))) == []
