"""Learning rates that jump to where they never were: what rules look harder after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from torchtrack.stability.metrics import is_learning_rate

_FACTOR: Final = 30.0
_LEAST: Final = 4
_NEAR: Final = 20


class Jump(NamedTuple):
    """A rate that rose by a factor of 30 or more, to as much over all it was before."""

    value: float
    last: float
    most: float


@dataclass(slots=True)
class _Rate:
    seen: int = 0
    last: float = 0.0
    most: float = 0.0


class Rates:
    """The learning rates of a run so far. Warm restarts go back to what was there, and are no jumps."""

    def __init__(self) -> None:
        self._rates: dict[str, _Rate] = {}
        self._jumped: int | None = None

    def look(self, scalars: Mapping[str, float], step: int) -> dict[str, Jump | None]:
        """Of each learning rate of a step the jump it made."""
        found: dict[str, Jump | None] = {}
        for name, value in scalars.items():
            if not is_learning_rate(name) or not 0 <= value < math.inf:
                continue
            rate = self._rates.setdefault(name, _Rate())
            jumps = rate.seen >= _LEAST and 0 < _FACTOR * rate.most <= value
            found[name] = Jump(value, rate.last, rate.most) if jumps else None
            rate.seen, rate.last, rate.most = rate.seen + 1, value, max(rate.most, value)
            self._jumped = step if jumps else self._jumped
        return found

    def is_near(self, step: int) -> bool:
        """Whether a rate jumped in the last twenty steps."""
        return self._jumped is not None and step - self._jumped <= _NEAR
