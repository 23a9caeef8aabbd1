"""A training loss that no longer falls.

Reference: what learning-rate schedulers call a plateau (`torch.optim.lr_scheduler.ReduceLROnPlateau`), on medians.

Default: in the last 512 values no median of 32 was lower than the best before them by 1 % of all that was won. Only a
note: every run that has converged ends on one.
Evidence: the best median, and since which step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import is_training_loss
from torchtrack.stability.step import Step

_BLOCK: Final = 32
_BLOCKS: Final = 16
_GAIN: Final = 0.01


@dataclass(slots=True)
class _Loss:
    block: list[float] = field(default_factory=list)
    first: float = math.nan
    best: float = math.inf
    best_step: int = 0
    idle: int = 0


class LossPlateau:
    """The loss stays where it is."""

    name = "loss_plateau"
    patience = 1
    calm = 1
    causes: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._losses: dict[str, _Loss] = {}

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at a training loss whenever a block of its values is full."""
        looked: dict[str, Sign | None] = {}
        for name, value in step.scalars.items():
            if is_training_loss(name) and math.isfinite(value):
                loss = self._losses.setdefault(name, _Loss())
                loss.block.append(value)
                if len(loss.block) == _BLOCK:
                    looked[name] = self._look(name, loss, step)
        return looked

    def _look(self, name: str, loss: _Loss, step: Step) -> Sign | None:
        median = float(np.median(loss.block))
        loss.block.clear()
        if math.isnan(loss.first):
            loss.first = median
        if not math.isfinite(loss.best) or median < loss.best - _GAIN * (loss.first - loss.best):
            loss.best, loss.best_step, loss.idle = median, step.step, 0
            return None
        loss.idle += 1
        if loss.idle < _BLOCKS:
            return None
        return Sign(
            why=f"{name} has not fallen below {loss.best:.4g} since step {loss.best_step:,}.",
            look_at="Whether the run is done, or the learning rate too high or too low.",
            value=float(loss.idle),
            severity="info",
            names=(name,),
            evidence={"best": loss.best, "best_step": loss.best_step, "median": median},
        )
