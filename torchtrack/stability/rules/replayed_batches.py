"""A rank that trains on the batches of another: its samples count twice, and others never.

Reference: in data parallel training the ranks' batches are disjoint (`torch.utils.data.DistributedSampler`); a sampler
without the rank, a seed that all share, or a reader that lags makes them equal, and no loss shows it.

Default: three batches in a row whose ids, in any order, are those that one other rank had, each as many steps before;
at most 256 steps. Where more than half of the ranks read what others had before, a new epoch began. Needs
`run.mark(batch=ids)`. Where two ranks have the same at the same step, the one whose ids left their course is named,
and both if neither or both did. Nothing is said while the rank meets its own batches again by chance, as single
samples of a small data set. Ranks that had the same from the start may hold parts of one model: that is a note,
unless the watched model says that all ranks average.
Evidence: whose batches, how many steps before, and how many in a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from torchtrack.batches import DIGEST, MIDDLE
from torchtrack.stability.finding import Sign
from torchtrack.stability.step import Step

_IN_A_ROW: Final = 3
_BACK: Final = 256
_MOST: Final = 1 << 16
"""Batches that are remembered, of all ranks together."""
_CHANCE: Final = 0.05
_RECENT: Final = 64
_COURSE: Final = 16
_LEAST: Final = 6
_LEFT: Final = 1.5

Way = tuple[int, int]
"""Whose batches, and how many marked steps before."""


@dataclass(slots=True)
class _Rank:
    """What a rank trained on."""

    ways: dict[Way, tuple[int, int]] = field(default_factory=dict)
    """Of each way in which the last batches are another's: since which step, and how many."""
    middles: deque[float] = field(default_factory=lambda: deque(maxlen=_COURSE))
    left: int | None = None
    """The step at which its ids last left their course."""
    own: frozenset[int] = frozenset()
    """How many steps before it had this batch itself,"""
    again: deque[bool] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """and of the last batches whether it had them at some time, but not the one before as long before: by chance."""


class ReplayedBatches:
    """Two ranks train on the same."""

    name = "replayed_batches"
    patience = 1
    calm = 3
    causes = frozenset({"rank_skew", "loss_spike", "gradient_spike"})

    def __init__(self) -> None:
        self._ranks: dict[int, _Rank] = {}
        self._seen: dict[float, dict[int, int]] = {}
        self._order: deque[tuple[int, float, int]] = deque()
        self._marked = 0
        self._first: int | None = None

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at the digests that the ranks recorded of their batches."""
        digests = step.ranks.get(DIGEST)
        if not digests:
            return {}
        self._first = step.step if self._first is None else self._first
        self._marked += 1
        for rank, middle in step.ranks.get(MIDDLE, {}).items():
            self._follow(rank, middle, step.step)
        ways = {rank: self._ways(rank, digest, digests) for rank, digest in digests.items()}
        late = sum(any(back for _, back in own) for own in ways.values())
        epoch = 2 * late > len(digests)
        looked: dict[str, Sign | None] = {}
        for rank, own in ways.items():
            known = self._ranks.setdefault(rank, _Rank())
            self._meet(rank, digests[rank], known)
            before = known.ways
            known.ways = {}
            for way in own:
                if not (epoch and way[1]):
                    since, count = before.get(way, (step.step, 0))
                    known.ways[way] = since, count + 1
        for rank in digests:
            looked[str(rank)] = self._sign(rank, step)
        self._remember(digests)
        return looked

    def _ways(self, rank: int, digest: float, digests: Mapping[int, float]) -> list[Way]:
        """In which ways this batch is another rank's."""
        same = [(other, 0) for other, theirs in digests.items() if other != rank and theirs == digest]
        earlier = self._seen.get(digest, {})
        return same + [(other, self._marked - at) for other, at in earlier.items() if other != rank]

    def _meet(self, rank: int, digest: float, known: _Rank) -> None:
        """Note whether a rank has its own batch again; all of an epoch again is no chance."""
        at = self._seen.get(digest, {}).get(rank)
        own = frozenset() if at is None else frozenset((self._marked - at,))
        known.again.append(bool(own) and not own & known.own)
        known.own = own

    def _remember(self, digests: Mapping[int, float]) -> None:
        for rank, digest in digests.items():
            self._seen.setdefault(digest, {})[rank] = self._marked
            self._order.append((self._marked, digest, rank))
        while self._order and (len(self._order) > _MOST or self._marked - self._order[0][0] >= _BACK):
            at, digest, rank = self._order.popleft()
            known = self._seen[digest]
            if known.get(rank) == at:
                del known[rank]
                if not known:
                    del self._seen[digest]

    def _follow(self, rank: int, middle: float, step: int) -> None:
        """Note whether the mean of a rank's ids goes on as it did: at the same pace, or about one place."""
        known = self._ranks.setdefault(rank, _Rank())
        known.middles.append(middle)
        bends = np.abs(np.diff(np.array(known.middles), 2))
        if len(bends) > _LEAST and bends[-1] > _LEFT * bends[:-1].max():
            known.left = step

    def _sign(self, rank: int, step: Step) -> Sign | None:
        known = self._ranks[rank]
        if sum(known.again) > _CHANCE * _RECENT:
            return None
        rows = [(since, back, other, count) for (other, back), (since, count) in known.ways.items()]
        found = min([row for row in rows if row[3] >= _IN_A_ROW], default=None)
        if found is None:
            return None
        since, back, other, _ = found
        if not back and known.left != since and self._ranks[other].left == since:
            return None  # the other one came to it
        always = since == self._first and not back
        return _sign(rank, found, step, note=always and not step.facts.data_parallel)


def _sign(rank: int, found: tuple[int, int, int, int], step: Step, *, note: bool) -> Sign:
    since, back, other, count = found
    when = f"each {back} step{'s' * (back > 1)} after it" if back else "at the same steps"
    maybe = " Ranks that hold parts of one model (tensor, pipeline, context parallel) are meant to." if note else ""
    return Sign(
        why=f"Rank {rank} has trained on the batches of rank {other} since step {since:,}, {when}: {count} in a row by "
        f"step {step.step:,}.{maybe}",
        look_at="The sampler's rank, its seed and epoch, and how the data is split between ranks and their workers.",
        value=float(count),
        severity="info" if note else "warning",
        names=("batch",),
        ranks=(rank,),
        evidence={"of": other, "back": back, "in_a_row": count},
        since=since,
    )
