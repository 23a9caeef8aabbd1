"""A gradient scaler that falls and falls: every step overflows, or holds a NaN that no scale removes.

Reference: dynamic loss scaling (Micikevicius et al. 2018, "Mixed precision training"): a halving now and then is how it
works, many in a row are not.

Default: the scale is below 1/256 of the largest of its last 128 values. Critical below 1, where it makes things worse.
Metrics: any whose name ends in loss_scale, grad_scale, amp_scale, or scaler/scale.
Evidence: the scale, and what it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import is_loss_scale
from torchtrack.stability.robust import Window
from torchtrack.stability.step import Step

_WINDOW: Final = 128
_FALL: Final = 256.0
_FALL_OVER: Final = 32.0


class LossScale:
    """The scale collapses."""

    name = "loss_scale"
    patience = 1
    calm = 4
    causes = frozenset({"non_finite", "loss_plateau", "dead_layer", "format_headroom"})

    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each scale."""
        return {
            name: self._look(name, value, step)
            for name, value in step.scalars.items()
            if is_loss_scale(name) and math.isfinite(value)
        }

    def _look(self, name: str, value: float, step: Step) -> Sign | None:
        window = self._windows.setdefault(name, Window(_WINDOW))
        window.push(value)
        most = float(window.array().max())
        fall = most / max(value, 1e-30)
        if fall < _FALL_OVER or most <= 0:
            return None
        return Sign(
            why=f"{name} has fallen from {most:g} to {value:g} at step {step.step:,}.",
            look_at="Which gradients are not finite in the skipped steps; a NaN in the loss is not cured by a scale.",
            value=fall,
            severity="critical" if value < 1 else "warning",
            names=(name,),
            evidence={"scale": value, "was": most},
            opens=fall >= _FALL,
        )
