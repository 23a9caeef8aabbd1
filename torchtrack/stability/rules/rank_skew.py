"""A rank whose loss or gradients differ from those of the others, step after step.

Reference: in data parallel training all ranks draw from one distribution, so their losses differ by chance alone: the
median of many log ratios is then zero within its standard error.

Default: over the last 16 steps the median ratio of a rank to the median of the others is 1.4 or more (1.5 or more for a
norm, and with three ranks and more also so much less), and five standard errors from 1. Of two ranks the larger is
named. Metrics: training losses and norms of gradients that more than one rank logs, `watch/local_grad_norm` too.
A note only: tokens or samples of a step that differ by 1.25 times, and memory of which a rank has twice what the others
have (the stages of a pipeline may, by design). Memory is compared in rounds: ranks sample it at times of their own.
Ranks are compared that hold the same parameters and differ in data-parallel coordinates alone.
Evidence: the ratio, its standard error, the rank's value and that of the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import LOCAL_NORM, MEMORY, is_amount, is_gradient_norm, is_training_loss
from torchtrack.stability.robust import SIGMA, SIGMA_OF_MEAN, Rings, Steps, log2, quiet_median, rest_median
from torchtrack.stability.step import Bools, Floats, Step, comparable

_WINDOW: Final = 16
_LEAST: Final = 10
_LOSS: Final = math.log2(1.4)
_NORM: Final = math.log2(1.5)
_AMOUNT: Final = math.log2(1.25)
_MEMORY: Final = 1.0
_OVER: Final = 0.6
_ERRORS: Final = 5.0
_ERROR_OF_MEDIAN: Final = 1.25
_LOWER: Final = 0.8
"""Of ranks that are equally far apart the higher one is called odd."""
_ROUNDS: Final = 8


@dataclass(slots=True)
class _Compared:
    """What is known of a metric on ranks that are compared."""

    logs: Rings = field(default_factory=lambda: Rings(_WINDOW))
    steps: Steps = field(default_factory=lambda: Steps(_WINDOW))
    last: dict[int, int] = field(default_factory=dict)
    """Of each rank the number of the look at which it had a value."""
    looks: int = 0

    def is_complete(self, values: Mapping[int, float]) -> bool:
        """Whether all have a value but for those that have had none for a window."""
        self.looks += 1
        self.last.update(dict.fromkeys(values, self.looks))
        return not any(0 < self.looks - at < _WINDOW for at in self.last.values())


class RankSkew:
    """One rank trains on something else, or on more."""

    name = "rank_skew"
    patience = 4
    calm = 8
    causes = frozenset({"rank_skew", "loss_spike", "gradient_spike", "loss_divergence"})

    def __init__(self) -> None:
        self._compared: dict[tuple[str, str], _Compared] = {}
        self._told: dict[str, dict[int, float]] = {}

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each metric of which there are values by rank."""
        looked: dict[str, Sign | None] = {}
        for name, values in step.ranks.items():
            limit = _limit(name)
            if not math.isfinite(limit):
                continue
            if name in MEMORY:
                values = self._round(name, values)
            for peers, own in comparable(values, step.facts.peers).items():
                self._look((name, peers), limit, own, step, looked)
        return looked

    def _round(self, name: str, values: Mapping[int, float]) -> Mapping[int, float]:
        """What ranks told since one of them told last: a round is over when one tells again; nothing before that."""
        told = self._told.setdefault(name, {})
        over = {} if told.keys().isdisjoint(values) else dict(sorted(told.items()))
        if over:
            told.clear()
        told.update(values)
        return over

    def _look(
        self,
        key: tuple[str, str],
        limit: float,
        values: Mapping[int, float],
        step: Step,
        looked: dict[str, Sign | None],
    ) -> None:
        name, _ = key
        compared = self._compared.setdefault(key, _Compared())
        if not compared.is_complete(values):
            return
        compared.steps.push(step.step)
        ranks = list(compared.last)
        own = np.array([values.get(rank, math.nan) for rank in ranks], np.float64)
        window = compared.logs.push(tuple(map(str, ranks)), log2(own))
        found, known = _odd(window, limit)
        for i, rank in enumerate(ranks):
            if rank not in values or not known[i]:
                continue
            looked[f"{name}:{rank}"] = None
            if i in found:
                ratios, error = found[i]
                median = float(np.nanmedian(ratios))
                if median < 0 and name in MEMORY:
                    continue
                since = compared.steps.since(ratios * math.copysign(1.0, median), abs(median) / 2)
                rest = float(own[i] / 2.0 ** ratios[-1])
                evidence = {"ratio": 2.0**median, "error": error, "own": float(own[i]), "others": rest}
                looked[f"{name}:{rank}"] = _sign(name, rank, evidence, step, since, opens=abs(median) >= limit)


def _odd(window: Floats, limit: float) -> tuple[dict[int, tuple[Floats, float]], Bools]:
    """The rows that differ from the others.

    What differs most is found first and no longer compared with: the median of two others, of which one is odd, would
    lie in the middle between them, and every sound one below.

    Args:
        window: [ranks, steps] of logarithms, NaN where a rank had no value.
        limit: how far off a rank is odd; of two ranks the higher is.

    Returns:
        Of each odd one its log ratios to the sound ones and the standard error of their median; and who was judged.
    """
    sound = np.ones(len(window), np.bool_)
    for _ in range(_ROUNDS):
        ratios, medians, errors = _compared(window, sound)
        sizes = np.abs(medians) if len(window) > 2 else medians
        with np.errstate(invalid="ignore"):
            odd = sound & (sizes >= np.maximum(_OVER * limit, _ERRORS * errors))
        if not odd.any() or sound.sum() == 2 < len(window):
            break
        weights = np.where(odd, np.where(medians < 0, _LOWER, 1.0) * sizes, 0.0)
        sound &= ~(odd & (np.sign(medians) == np.sign(medians[np.argmax(weights)])))
    ratios, _, errors = _compared(window, sound)
    found = {i: (ratios[i], float(errors[i])) for i in np.flatnonzero(~sound).tolist()}
    return found, np.isfinite(window).sum(axis=1) >= _LEAST


def _compared(window: Floats, sound: Bools) -> tuple[Floats, Floats, Floats]:
    """Log ratios of all rows to the sound ones, their medians, and the standard errors of these; NaN of too few."""
    ratios = window - rest_median(window, sound)
    known = np.isfinite(ratios).sum(axis=1)
    medians = np.where(known >= _LEAST, quiet_median(ratios), np.nan)
    apart = np.abs(ratios - medians[:, None])
    usual = quiet_median(apart[sound].reshape(1, -1))  # one window may be narrow by chance
    mean = np.nansum(apart, axis=1) / np.maximum(known, 1)
    spreads = np.fmax(SIGMA * np.fmax(quiet_median(apart), usual), SIGMA_OF_MEAN * mean)
    return ratios, medians, _ERROR_OF_MEDIAN * spreads / np.sqrt(np.maximum(known, 1))


@functools.lru_cache(maxsize=4096)
def _limit(name: str) -> float:
    """The log2 of the ratio from which on a metric's ranks differ; infinite where ranks are not compared."""
    if is_training_loss(name):
        return _LOSS
    if is_gradient_norm(name) or name == LOCAL_NORM:
        return _NORM
    return _MEMORY if name in MEMORY else _AMOUNT if is_amount(name) else math.inf


def _sign(name: str, rank: int, evidence: Mapping[str, float], step: Step, since: int, *, opens: bool) -> Sign:
    ratio = evidence["ratio"]
    return Sign(
        why=f"{name} of rank {rank} has been {ratio:.2f} times that of the other ranks over the last {_WINDOW} steps, "
        f"at step {step.step:,}.",
        look_at=_look_at(name),
        value=max(ratio, 1 / ratio),
        severity="info" if name in MEMORY or is_amount(name) else "warning",
        names=(name,),
        ranks=(rank,),
        evidence=evidence,
        since=since,
        opens=opens,
    )


def _look_at(name: str) -> str:
    if name in MEMORY:
        return (
            "What only this rank keeps: a cache, a loader's workers, graphs that are not freed; or its pipeline stage."
        )
    if is_amount(name):
        return "How batches are packed or split; gradients that are averaged over ranks weigh each rank the same."
    return "The data this rank reads, what its loss is divided by, and its hardware."
