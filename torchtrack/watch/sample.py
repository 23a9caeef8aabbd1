"""What the training thread hands over: one sample of one optimizer step, counted but perhaps still on its device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from torchtrack.histogram import ZERO
from torchtrack.watch.rows import SUMS, Counted

if TYPE_CHECKING:
    from torchtrack.recorder import Ticket
    from torchtrack.watch.drain import HostCopy
    from torchtrack.watch.layout import Plan


@dataclass(slots=True)
class Part:
    """The result of one kernel call: rows in the order of `keys`.

    Attributes:
        stage: pre_clip | step.
        plan: whose shares these are; None if every tensor was counted whole.
        keys: (kind, name).
        ranges: [lo, hi) of the flat tensor, None if all of it was counted.
        numels: elements of each whole tensor.
        implied_zeros: zeros of a sparse tensor that are not stored.
        counts: [rows, 328] on its way to the host.
        moments: [rows, 4] sum, sum of squares, min, max.
    """

    stage: str
    plan: Plan | None
    keys: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[tuple[int, int] | None] = field(default_factory=list)
    numels: list[int] = field(default_factory=list)
    implied_zeros: list[int] = field(default_factory=list)
    counts: HostCopy = field(init=False)
    moments: HostCopy = field(init=False)

    def ready(self) -> bool:
        """Whether the numbers are on the host."""
        return self.counts.ready() and self.moments.ready()

    def counted(self, rows: Sequence[int]) -> Counted:
        """The rows with these indices."""
        index = list(rows)
        counts, moments = self.counts.numpy()[index], self.moments.numpy()[index]
        zeros = np.array(self.implied_zeros, np.int64)[index]
        counts[:, ZERO] += zeros
        sums = np.concatenate([counts, moments[:, :2]], 1)
        maxes = np.stack([moments[:, 3], -moments[:, 2]], 1)
        maxes[zeros > 0] = maxes[zeros > 0].clip(min=0.0)
        return Counted(
            [self.keys[i] for i in index],
            sums,
            maxes,
            [self.numels[i] for i in index],
            ["" if (part := self.ranges[i]) is None else f":{part[0]}-{part[1]}" for i in index],
            [self.stage] * len(index),
        )


@dataclass(slots=True)
class Sample:
    """One sample: rows of one or two parts, the plan they were counted under, and what came with them."""

    number: int
    ticket: Ticket
    plan: Plan | None
    picks: list[tuple[Part, list[int]]] = field(default_factory=list)
    scalars: list[tuple[str, HostCopy]] = field(default_factory=list)
    found_inf: HostCopy | None = None
    skipped: bool = False
    dropped: bool = False
    time_ns: int = field(default_factory=time.time_ns)
    made_at: float = field(default_factory=time.monotonic)

    @property
    def nbytes(self) -> int:
        """About the memory it keeps until it is written."""
        return sum(len(part.keys) for part, _ in self.picks) * SUMS * 8

    def drop(self) -> None:
        """Let go of all that was counted: a turn goes on with zeros in its place."""
        self.dropped, self.picks, self.scalars, self.found_inf = True, [], [], None

    def ready(self) -> bool:
        """Whether everything is on the host."""
        return (
            all(part.ready() for part, _ in self.picks)
            and all(copy.ready() for _, copy in self.scalars)
            and (self.found_inf is None or self.found_inf.ready())
        )

    def counted(self) -> Counted:
        """All rows, on the host."""
        parts = [part.counted(rows) for part, rows in self.picks if rows]
        stage = "skipped" if self.skipped or (self.found_inf is not None and self.found_inf.value() > 0) else None
        return Counted(
            [key for part in parts for key in part.keys],
            np.concatenate([part.sums for part in parts]) if parts else np.zeros((0, SUMS)),
            np.concatenate([part.maxes for part in parts]) if parts else np.zeros((0, 2)),
            [numel for part in parts for numel in part.numels],
            [covers for part in parts for covers in part.covers],
            [stage or own for part in parts for own in part.stages],
        )
