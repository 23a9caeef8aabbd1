"""Clipping that cuts every step far down: the limit, and not the gradient, then sets the size of a step.

Reference: clipping as normalised gradient descent (Pascanu et al. 2013; Zhang et al. 2020, "Why gradient clipping
accelerates training").

Default: of the last 32 clippings 95 % were active, and the median one multiplied by 0.1 or less. A note; a warning from
0.01 down.
Evidence: the median coefficient and the share of active clippings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.robust import Window
from torchtrack.stability.step import Step

_METRIC: Final = "watch/clip_coef"
_WINDOW: Final = 32
_ACTIVE: Final = 0.95
_COEFFICIENT: Final = 0.1
_OVER: Final = 0.2
_GRAVE: Final = 0.01


class ClipSaturation:
    """Nearly all of the gradient is clipped away, all the time."""

    name = "clip_saturation"
    patience = 1
    calm = 4
    causes: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._coefficients = Window(_WINDOW)

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at the coefficient of each clipping that was sampled."""
        value = step.scalars.get(_METRIC, math.nan)
        if not math.isfinite(value):
            return {}
        self._coefficients.push(value)
        if len(self._coefficients) < _WINDOW:
            return {}
        values = self._coefficients.array()
        median, active = float(np.median(values)), float((values < 1).mean())
        if active < _ACTIVE or median > _OVER:
            return {_METRIC: None}
        sign = Sign(
            why=f"Clipping multiplied the gradient by {median:.3g} in the median of the last {_WINDOW} samples, at "
            f"step {step.step:,}: its limit sets the size of every step.",
            look_at="The clipping limit against watch/grad_norm, and the scale of the loss.",
            value=1 / max(median, 1e-30),
            severity="warning" if median <= _GRAVE else "info",
            names=(_METRIC,),
            evidence={"median": median, "active": active},
            opens=median <= _COEFFICIENT,
        )
        return {_METRIC: sign}
