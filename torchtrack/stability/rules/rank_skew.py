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
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import LOCAL_NORM, MEMORY, is_amount, is_gradient_norm, is_training_loss
from torchtrack.stability.robust import SIGMA, Rings, Steps, quiet_median
from torchtrack.stability.step import Floats, Step

_WINDOW: Final = 16
_LEAST: Final = 10
_LOSS: Final = math.log2(1.4)
_NORM: Final = math.log2(1.5)
_AMOUNT: Final = math.log2(1.25)
_MEMORY: Final = 1.0
_OVER: Final = 0.6
_ERRORS: Final = 5.0
_ERROR_OF_MEDIAN: Final = 1.25


class RankSkew:
    """One rank trains on something else, or on more."""

    name = "rank_skew"
    patience = 4
    calm = 8
    causes = frozenset({"rank_skew", "loss_spike", "gradient_spike", "loss_divergence"})

    def __init__(self) -> None:
        self._ratios: dict[tuple[str, str], tuple[Rings, Steps]] = {}
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
            for peers, own in _comparable(values, step.facts.peers).items():
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
        own = np.array(list(values.values()), np.float64)
        rest = others_median(own)
        with np.errstate(all="ignore"):
            logs = np.log2(own / rest)
        logs[~np.isfinite(logs) | (own <= 0) | (rest <= 0)] = np.nan
        ratios, steps = self._ratios.setdefault(key, (Rings(_WINDOW), Steps(_WINDOW)))
        steps.push(step.step)
        rings = ratios.push(tuple(map(str, values)), logs)
        spreads = SIGMA * quiet_median(np.abs(rings - quiet_median(rings)[:, None]))
        spread = float(np.nanmax(np.append(spreads, 0.0)))  # of the widest: one window may be narrow by chance
        for i, rank in enumerate(values):
            thing = f"{name}:{rank}"
            known = rings[i][np.isfinite(rings[i])]
            if len(known) < _LEAST:
                continue
            median = float(np.median(known))
            error = _ERROR_OF_MEDIAN * spread / math.sqrt(len(known))
            size = abs(median) if len(values) > 2 and name not in MEMORY else median
            looked[thing] = None
            if size >= _OVER * limit and size >= _ERRORS * error:
                since = steps.since(rings[i] * math.copysign(1.0, median), size / 2)
                evidence = {"ratio": 2.0**median, "error": error, "own": float(own[i]), "others": float(rest[i])}
                looked[thing] = _sign(name, rank, evidence, step, since, opens=size >= limit)


def _comparable(values: Mapping[int, float], peers: Mapping[int, str]) -> dict[str, dict[int, float]]:
    """The values of ranks that can be compared, where there is more than one; all, where that is not known of each."""
    known = values.keys() <= peers.keys()
    groups: dict[str, dict[int, float]] = {}
    for rank, value in values.items():
        groups.setdefault(peers[rank] if known else "", {})[rank] = value
    return {key: own for key, own in groups.items() if len(own) > 1}


@functools.lru_cache(maxsize=4096)
def _limit(name: str) -> float:
    """The log2 of the ratio from which on a metric's ranks differ; infinite where ranks are not compared."""
    if is_training_loss(name):
        return _LOSS
    if is_gradient_norm(name) or name == LOCAL_NORM:
        return _NORM
    return _MEMORY if name in MEMORY else _AMOUNT if is_amount(name) else math.inf


def others_median(values: Floats) -> Floats:
    """Of each value the median of all the others."""
    ordered = np.sort(values)
    place = np.searchsorted(ordered, values)
    # without the value at `place` the sorted others are `ordered` with that place skipped
    low, high = (len(values) - 2) // 2, (len(values) - 1) // 2
    medians: Floats = (ordered[low + (low >= place)] + ordered[high + (high >= place)]) / 2
    return medians


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
