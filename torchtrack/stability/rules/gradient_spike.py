"""A gradient norm far above that of the steps before it.

Reference: the robust z-score (Iglewicz and Hoaglin 1993) on the logarithm of the norm, since norms of gradients spread
over orders of magnitude (Zhang et al. 2020, "Why are adaptive methods good for attention models?").

Default: z >= 8 against the median of the last 64 values, of which there are at least 12. The spread is at least 0.25
(in powers of two), so nothing below a factor of four is a spike; falls are none.
For twenty steps after a learning rate jumped (rule `learning_rate`) half of that is enough.
Evidence: the norm, the median, z, and the tensors that rose most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import is_gradient_norm
from torchtrack.stability.rates import Rates
from torchtrack.stability.robust import Outlier, Rings, log2, quiet_median
from torchtrack.stability.step import Step

_Z: Final = 8.0
_Z_OVER: Final = 4.0
_NEAR_JUMP: Final = 0.5
_FLOOR: Final = 0.25
_TENSORS: Final = 32
_NAMED: Final = 5
_CALLED_HIGH: Final = 1.0


class GradientSpike:
    """The global norm jumps."""

    name = "gradient_spike"
    patience = 1
    calm = 2
    causes = frozenset(
        {
            "non_finite",
            "loss_spike",
            "loss_divergence",
            "exploding_trend",
            "update_ratio",
            "dead_layer",
            "loss_scale",
            "clip_saturation",
            "format_headroom",
        }
    )

    def __init__(self) -> None:
        self._norms: dict[str, Outlier] = {}
        self._tensors = Rings(_TENSORS)
        self._rates = Rates()
        self._limit = 1.0

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each metric that is a norm of gradients."""
        self._rates.look(step.scalars, step.step)
        self._limit = _NEAR_JUMP if self._rates.is_near(step.step) else 1.0
        risen = self._risen(step)
        looked: dict[str, Sign | None] = {}
        for name, value in step.scalars.items():
            if is_gradient_norm(name) and 0 < value < math.inf:
                looked[name] = self._look(name, value, risen, step)
        return looked

    def _look(self, name: str, value: float, risen: tuple[str, ...], step: Step) -> Sign | None:
        center, z = self._norms.setdefault(name, Outlier()).push(math.log2(value), _FLOOR)
        if z < self._limit * _Z_OVER:
            return None
        usual = 2.0**center
        where = f", most of all in {', '.join(risen)}" if risen else ""
        return Sign(
            why=f"{name} is {value:.3g} at step {step.step:,}, {value / usual:.3g} times its median {usual:.3g}"
            f"{where}.",
            look_at="The batch of this step, the learning rate before it, and whether clipping held it.",
            value=z,
            kind="gradient" if risen else "",
            names=risen or (name,),
            evidence={"norm": value, "median": usual, "z": round(z, 2), "metric": name},
            opens=z >= self._limit * _Z,
        )

    def _risen(self, step: Step) -> tuple[str, ...]:
        """The tensors whose norm rose most over their own median."""
        rows = step.tensors.get("gradient")
        if rows is None:
            return ()
        logs = self._tensors.push(rows.names, log2(rows.norm))
        rise = logs[:, -1] - quiet_median(logs[:, :-1])
        rise[np.isnan(rise)] = -math.inf
        most = np.argsort(-rise, kind="stable")[:_NAMED]
        return tuple(rows.names[i] for i in most if rise[i] >= _CALLED_HIGH)
