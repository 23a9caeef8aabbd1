"""A loss that has risen from its best and stays there.

Reference: the drop that training had won is the measure of what was lost again (Wortsman et al. 2023, "Small-scale
proxies for large-scale transformer training instabilities", call a run unstable by its loss, not by its gradients).

Default: the median of the last 16 values lies above the best such median by half of all that was won since the start,
and by six standard errors. Critical where the training loss is higher than at its start; else a warning.
Evidence: the best, the present and the first median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import is_loss, is_training_loss
from torchtrack.stability.robust import Window, center_and_scale
from torchtrack.stability.step import Step

_WINDOW: Final = 16
_LOST: Final = 0.5
_LOST_OVER: Final = 0.25
_LEAST: Final = 0.1
_ERRORS: Final = 6.0
_ERROR_OF_MEDIAN: Final = 1.25 / math.sqrt(_WINDOW)
_ABOVE_START: Final = 1.2


@dataclass(slots=True)
class _Loss:
    window: Window = field(default_factory=lambda: Window(_WINDOW))
    seen: int = 0
    first: float = math.nan
    best: float = math.inf
    best_step: int = 0
    spread: float = 0.0


class LossDivergence:
    """The loss goes up for good."""

    name = "loss_divergence"
    patience = 4
    calm = 8
    causes = frozenset(
        {
            "non_finite",
            "loss_spike",
            "gradient_spike",
            "exploding_trend",
            "update_ratio",
            "dead_layer",
            "loss_plateau",
            "loss_scale",
            "clip_saturation",
            "format_headroom",
        }
    )

    def __init__(self) -> None:
        self._losses: dict[str, _Loss] = {}

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each loss."""
        return {
            name: self._look(name, value, step)
            for name, value in step.scalars.items()
            if is_loss(name) and math.isfinite(value)
        }

    def _look(self, name: str, value: float, step: Step) -> Sign | None:
        loss = self._losses.setdefault(name, _Loss())
        loss.window.push(value)
        loss.seen += 1
        if loss.seen < _WINDOW:
            return None
        now, spread = center_and_scale(loss.window.array())
        if math.isnan(loss.first):
            loss.first = now
        if now < loss.best:
            loss.best, loss.best_step, loss.spread = now, step.step, spread
        noise = _ERRORS * _ERROR_OF_MEDIAN * max(spread, loss.spread)
        won = max(loss.first - loss.best, _LEAST * max(abs(loss.first), abs(loss.best)))
        lost = (now - loss.best) / max(won, 1e-30)  # a loss that has been zero all the time
        if lost < _LOST_OVER or now - loss.best < noise:
            return None
        above = is_training_loss(name) and now > loss.first + noise and now > _ABOVE_START * loss.first
        return Sign(
            why=f"{name} has risen from {loss.best:.4g} at step {loss.best_step:,} to {now:.4g} at step {step.step:,}"
            f"{', above where it began' if above else ''}.",
            look_at=f"What changed after step {loss.best_step:,}; a checkpoint from before it, with smaller steps.",
            value=lost,
            severity="critical" if above else "warning",
            names=(name,),
            evidence={"best": loss.best, "best_step": loss.best_step, "median": now, "first": loss.first},
            opens=lost >= _LOST,
        )
