"""A loss far above that of the steps before it.

Reference: loss spikes of large runs (Chowdhery et al. 2022, section 5.1; Molybog et al. 2023), by a robust z-score.

Default: z >= 8 against the median of the last 64 values, of which there are at least 12. The spread is at least 2 % of
where the loss began, so ripples of a loss that is nearly zero are none. For
twenty steps after a learning rate jumped (rule `learning_rate`) half of that z is enough.
Evidence: the value, the median, z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import is_loss
from torchtrack.stability.rates import Rates
from torchtrack.stability.robust import Outlier
from torchtrack.stability.step import Step

_Z: Final = 8.0
_Z_OVER: Final = 4.0
_NEAR_JUMP: Final = 0.5
_FLOOR: Final = 0.02


class LossSpike:
    """The loss jumps up."""

    name = "loss_spike"
    patience = 1
    calm = 3
    causes = frozenset(
        {
            "non_finite",
            "loss_divergence",
            "gradient_spike",
            "exploding_trend",
            "update_ratio",
            "dead_layer",
            "loss_scale",
            "clip_saturation",
            "format_headroom",
        }
    )

    def __init__(self) -> None:
        self._losses: dict[str, Outlier] = {}
        self._rates = Rates()
        self._limit = 1.0
        self._began: dict[str, float] = {}

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each loss."""
        self._rates.look(step.scalars, step.step)
        self._limit = _NEAR_JUMP if self._rates.is_near(step.step) else 1.0
        return {
            name: self._look(name, value, step)
            for name, value in step.scalars.items()
            if is_loss(name) and math.isfinite(value)
        }

    def _look(self, name: str, value: float, step: Step) -> Sign | None:
        began = self._began.setdefault(name, abs(value))
        center, z = self._losses.setdefault(name, Outlier()).push(value, _FLOOR * began or 1e-12, _FLOOR)
        if z < self._limit * _Z_OVER:
            return None
        return Sign(
            why=f"{name} is {value:.4g} at step {step.step:,}, where its median was {center:.4g}.",
            look_at="The batch of this step, the learning rate, and which gradients rose.",
            value=z,
            names=(name,),
            evidence={"loss": value, "median": center, "z": round(z, 2)},
            opens=z >= self._limit * _Z,
        )
