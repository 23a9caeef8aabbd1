"""What narrow formats lose, against the elements themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stability import steps
from torchtrack.histogram import FORMATS
from torchtrack.stability.headroom import headroom

RNG = np.random.default_rng(0)
VALUES = {
    "wide": RNG.normal(size=4000) * np.exp2(RNG.uniform(-40, 20, 4000)),
    "small": RNG.normal(size=4000) * 2.0**-22,
    "large": RNG.normal(size=4000) * 2.0**16,
    "some": np.append(RNG.normal(size=1000), np.zeros(1000)),
}


@pytest.mark.parametrize("narrow", FORMATS)
@pytest.mark.parametrize("scale", [1.0, 64.0, 2.0**-8])
def test_the_bounds_hold_the_shares_of_elements_out_of_range(narrow: str, scale: float) -> None:
    smallest, largest = FORMATS[narrow]
    for found in headroom(steps.tensors(VALUES), narrow, scale):
        sizes = np.abs(VALUES[found.name].astype(np.float32).astype(np.float64)) * scale
        sizes = sizes[sizes > 0]
        below, above = (sizes < smallest).mean(), (sizes > largest).mean()
        assert found.underflow[0] - 1e-12 <= below <= found.underflow[1] + 1e-12, found
        assert found.overflow[0] - 1e-12 <= above <= found.overflow[1] + 1e-12, found


@pytest.mark.parametrize("narrow", FORMATS)
def test_no_power_of_two_loses_less_than_the_best(narrow: str) -> None:
    smallest, largest = FORMATS[narrow]
    for found in headroom(steps.tensors(VALUES), narrow):
        sizes = np.abs(VALUES[found.name].astype(np.float32).astype(np.float64))
        sizes = sizes[sizes > 0]

        def lost(scale: float, sizes: np.ndarray[tuple[int], np.dtype[np.float64]] = sizes) -> tuple[int, int]:
            return int((sizes * scale > largest).sum()), int((sizes * scale < smallest).sum())

        assert lost(found.best_scale) <= min(lost(2.0**power) for power in range(-40, 65)), found
