"""What the training thread hands over: one sample of one optimizer step, counted but perhaps still on its device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from torchtrack.histogram import ZERO
from torchtrack.watch.plan import format_covers
from torchtrack.watch.rows import SUMS, Counted

if TYPE_CHECKING:
    from torchtrack.recorder import Ticket
    from torchtrack.watch.compare import Found
    from torchtrack.watch.drain import HostCopy, Known
    from torchtrack.watch.layout import Region, Summand
    from torchtrack.watch.local import LocalNorms
    from torchtrack.watch.place import Place
    from torchtrack.watch.plan import Plan, RowKey
    from torchtrack.watch.replicas import Checks
    from torchtrack.watch.rounding import Rounded


@dataclass(slots=True)
class Part:
    """The result of one kernel call.

    Attributes:
        stage: pre_clip | step.
        rows: of each, (kind, name) and what of it was counted.
        implied_zeros: by row, zeros of a sparse tensor that are not stored.
        counts: [rows, 328] on its way to the host.
        moments: [rows, 4] sum, sum of squares, min, max.
    """

    stage: str
    rows: list[tuple[RowKey, Place]] = field(default_factory=list)
    implied_zeros: dict[int, int] = field(default_factory=dict)
    counts: HostCopy = field(init=False)
    moments: HostCopy = field(init=False)

    @property
    def is_here(self) -> bool:
        """Whether the numbers never were anywhere else than on the host."""
        return self.counts.is_here and self.moments.is_here

    def ready(self) -> bool:
        """Whether the numbers are on the host."""
        return self.counts.ready() and self.moments.ready()

    def counted(self, rows: Sequence[int]) -> Counted:
        """The rows with these indices."""
        index = list(rows)
        chosen = [self.rows[i] for i in index]
        counts, moments = self.counts.numpy()[index], self.moments.numpy()[index]
        zeros = np.array([self.implied_zeros.get(i, 0) for i in index], np.int64)
        counts[:, ZERO] += zeros
        sums = np.concatenate([counts, moments[:, :2]], 1)
        maxes = np.stack([moments[:, 3], -moments[:, 2]], 1)
        maxes[zeros > 0] = maxes[zeros > 0].clip(min=0.0)
        return Counted(
            [key for key, _ in chosen],
            sums,
            maxes,
            [place.numel for _, place in chosen],
            [_covers(place) for _, place in chosen],
            [self.stage] * len(index),
            [place.planned for _, place in chosen],
        )


def _covers(place: Place) -> str:
    _, lo, hi = place.span
    return "" if hi - lo == place.numel else format_covers([place.span])


@dataclass(slots=True)
class Sample:
    """One sample: rows of some parts, the plan they were counted under, and what came with them.

    Attributes:
        number: the count of optimizer steps before it.
        ticket: the step its rows will carry.
        plan: whose shares its rows are; None if every tensor was counted whole.
        picks: which rows of which parts.
        held: by parameter, which part of it this rank holds; of a sample without a plan.
        expected: (kind, name) of rows that it may lack and other samples have.
        summands: by parameter, stage and elements of a gradient that the plan wants added up before it is counted.
        offered: by parameter, such a gradient that no plan knows of yet.
        scalars: metrics that come with it.
        max_norm: the norm that gradients were clipped to, where the coefficient has to be told from the merged norm.
        local: this rank's own gradients, before they were averaged.
        rounded: what rounding takes away of the updates.
        found_inf: whether the scaler will leave the step out.
        checks: checksums of what ranks should hold alike; None at most samples.
        found: what their comparison has shown.
        host_s: how long counting held up the training thread.
        events: on the device, before and behind each kernel, where they are timed.
    """

    number: int
    ticket: Ticket
    plan: Plan | None
    picks: list[tuple[Part, list[int]]] = field(default_factory=list)
    held: dict[str, Region] = field(default_factory=dict)
    expected: list[RowKey] = field(default_factory=list)
    summands: dict[str, tuple[str, HostCopy]] = field(default_factory=dict)
    offered: dict[str, Summand] = field(default_factory=dict)
    scalars: list[tuple[str, HostCopy | Known]] = field(default_factory=list)
    max_norm: float | None = None
    local: LocalNorms | None = None
    rounded: list[Rounded] = field(default_factory=list)
    found_inf: HostCopy | None = None
    checks: Checks | None = None
    found: Found | None = None
    skipped: bool = False
    dropped: bool = False
    host_s: float = 0.0
    events: list[tuple[Any, Any]] = field(default_factory=list)
    time_ns: int = field(default_factory=time.time_ns)
    made_at: float = field(default_factory=time.monotonic)

    @property
    def nbytes(self) -> int:
        """About the memory it keeps until it is written."""
        return sum(len(part.rows) for part, _ in self.picks) * SUMS * 8

    def add(self, parts: Iterable[Part]) -> None:
        """All rows of these parts too."""
        self.picks += [(part, list(range(len(part.rows)))) for part in parts]

    def drop(self) -> None:
        """Let go of all that was counted: a turn goes on with zeros in its place."""
        self.dropped, self.picks, self.summands, self.scalars = True, [], {}, []
        self.found_inf, self.checks, self.local, self.rounded, self.events = None, None, None, [], []

    @property
    def finite(self) -> bool:
        """Whether the scaler lets the step be; once `ready`."""
        return not self.skipped and (self.found_inf is None or self.found_inf.value() == 0)

    def cost_s(self) -> float:
        """What it cost: the time of the training thread or that of the device, whichever is longer; once `ready`."""
        device_ms = sum(float(before.elapsed_time(behind)) for before, behind in self.events)
        return max(self.host_s, device_ms / 1e3)

    def ready(self) -> bool:
        """Whether everything is on the host."""
        return (
            all(part.ready() for part, _ in self.picks)
            and all(copy.ready() for _, copy in (*self.scalars, *self.summands.values()))
            and (self.found_inf is None or self.found_inf.ready())
            and (self.local is None or self.local.ready())
            and all(each.ready() for each in self.rounded)
            and (self.checks is None or self.checks.ready())
        )

    def counted(self) -> Counted:
        """All rows, on the host; what was counted in several pieces is added up."""
        parts = [part.counted(rows) for part, rows in self.picks if rows]
        counted = Counted.joined(parts).added_up()
        if not self.finite:
            counted.stages = ["skipped"] * len(counted.keys)
        return counted
