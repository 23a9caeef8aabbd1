"""A rank that the others wait for.

Reference: in synchronous training the time of a step is that of its slowest rank (Chen et al. 2016, "Revisiting
distributed synchronous SGD"). The step takes equally long everywhere: the slow rank is told by the phase in which it is
long and the others are not, for they are long where they wait. Waiting is done in collectives: in the backward pass,
with sharded parameters in the forward pass too, never while data is read.

Default: over the last 16 steps the rank's median surplus in a phase, over the median of the others, is 20 % of the step
and four standard errors, and seven steps of eight have at least a third of it: on a machine that others use too every
rank is slow now and then, and a median of such steps may lie anywhere, but between them the rank is as fast as the
others. Of several such phases the one that waits least often counts: data, then those you name, then
optimizer, forward, and backward never. Without `run.phase` there are the two that `watch` measures: `own`, and `sync`,
in which ranks wait. Ranks are compared that hold the same parameters and differ in data-parallel coordinates alone.
Evidence: seconds of the rank and of the others in this phase, the step, and where the others wait.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import phase_of
from torchtrack.stability.robust import SIGMA, Rings, Steps, quiet_median, rest_median
from torchtrack.stability.step import Floats, Step, comparable

_WINDOW: Final = 16
_LEAST: Final = 8
_SHARE: Final = 0.2
_SHARE_OVER: Final = 0.1
_ERRORS: Final = 4.0
_ERROR_OF_MEDIAN: Final = 1.25
_PERSISTS: Final = 1 / 3
_OFTEN: Final = 7 / 8
_WAITS: Final = {"data": 0, "optimizer": 2, "forward": 3}
_NAMED: Final = 1
_NEVER: Final = frozenset({"backward", "sync"})
_IN_WORDS: Final = {"own": "what it does by itself"}


class Straggler:
    """One rank is slow and the others wait."""

    name = "straggler"
    patience = 2
    calm = 8
    causes: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._shares: dict[tuple[str, str], Rings] = {}
        self._steps: dict[str, Steps] = {}

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at the phases of a step, by rank."""
        phases = {phase_of(name): values for name, values in step.ranks.items() if phase_of(name)}
        ranks = sorted(set.intersection(*map(set, phases.values()))) if phases else []
        whole = {rank: sum(own[rank] for own in phases.values()) for rank in ranks}
        looked: dict[str, Sign | None] = {}
        for peers, own in comparable(whole, step.facts.peers).items():
            looked |= self._look(peers, own, phases, step)
        return looked

    def _look(
        self, peers: str, wholes: Mapping[int, float], phases: Mapping[str, Mapping[int, float]], step: Step
    ) -> Mapping[str, Sign | None]:
        """Look at ranks that can be compared."""
        ranks = list(wholes)
        seconds = {phase: np.array([own[rank] for rank in ranks]) for phase, own in phases.items()}
        whole = float(np.median(list(wholes.values())))
        if not 0 < whole < math.inf:
            return {}
        names = tuple(map(str, ranks))
        steps = self._steps.setdefault(peers, Steps(_WINDOW))
        steps.push(step.step)
        slow: dict[int, list[tuple[int, str, float, int]]] = {}
        for phase, own in seconds.items():
            rings = self._shares.setdefault((peers, phase), Rings(_WINDOW)).push(
                names, (own - rest_median(own[:, None], np.ones(len(own), np.bool_))[:, 0]) / whole
            )
            if phase not in _NEVER:
                for i, share in _surplus(rings).items():
                    slow.setdefault(i, []).append(
                        (_WAITS.get(phase, _NAMED), phase, share, steps.since(rings[i], share / 2))
                    )
        return self._signs(ranks, slow, seconds, whole, step)

    def _signs(
        self,
        ranks: list[int],
        slow: Mapping[int, list[tuple[int, str, float, int]]],
        seconds: Mapping[str, Floats],
        whole: float,
        step: Step,
    ) -> Mapping[str, Sign | None]:
        """One sign for each rank that is slow by itself: not those that are long only where they wait for it."""
        looked: dict[str, Sign | None] = {str(rank): None for rank in ranks}
        first = min((min(found)[0] for found in slow.values()), default=0)
        for i, found in slow.items():
            place, phase, share, since = min(found)
            if place == first:
                looked[str(ranks[i])] = replace(_sign(ranks[i], i, phase, share, seconds, whole, step), since=since)
        return looked


def _surplus(rings: Floats) -> dict[int, float]:
    """Of each rank that is long in a phase its median surplus, in parts of a step."""
    medians = quiet_median(rings)
    known = np.isfinite(rings).sum(axis=1)
    spread = SIGMA * quiet_median(np.abs(rings - medians[:, None]))
    with np.errstate(invalid="ignore"):
        rare = known - np.ceil(_OFTEN * known).astype(np.int64)
        lasting = np.sort(rings, axis=1)[np.arange(len(rings)), np.minimum(rare, rings.shape[1] - 1)]
        sure = medians >= _ERRORS * _ERROR_OF_MEDIAN * spread / np.sqrt(np.maximum(known, 1))
        long = np.flatnonzero((known >= _LEAST) & (medians >= _SHARE_OVER) & sure & (lasting >= _PERSISTS * medians))
    return {i: float(medians[i]) for i in long.tolist()}


def _sign(
    rank: int, place: int, phase: str, share: float, seconds: Mapping[str, Floats], whole: float, step: Step
) -> Sign:
    others = {name: float(np.median(np.delete(own, place))) for name, own in seconds.items()}
    wait = max(seconds, key=lambda name: others[name] - float(seconds[name][place]))
    own = float(seconds[phase][place])
    where = "" if phase in _IN_WORDS else f" in {phase}"
    longer = _IN_WORDS.get(phase, phase)
    return Sign(
        why=f"Rank {rank} spends {share:.0%} of a step more in {longer} than the others ({own:.3g} s, they "
        f"{others[phase]:.3g} s), which wait for it in {wait}, at step {step.step:,}.",
        look_at=f"What rank {rank} does{where}: its data loader, its processors, other programs on its node.",
        value=share,
        names=(f"phase/{phase}_s",),
        ranks=(rank,),
        evidence={"own_s": own, "others_s": others[phase], "step_s": whole, "wait": wait},
        opens=share >= _SHARE,
    )
