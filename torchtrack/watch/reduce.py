"""One all-reduce: samples of all ranks become one row a tensor, on a thread that training never waits for.

A sample goes one of two ways. Counted whole, or when anything is wrong with the other ranks, it is written as this
rank's own rows, which say what they cover. Counted under a plan, it takes a turn: MAX of a header and the extremes,
then SUM of the counts; the lowest rank writes the merged rows. Readers add what is disjoint and never count an element
twice, so a sample may take the first way on one rank and the second on another.

    no plan  --offers in the store agree-->  plan, private group  --turn--> --turn--> ...
       ^                                                             |
       +---- a peer is lost or late, or a tensor is new -------------+
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from torchtrack import forks, guard, records
from torchtrack.histogram import NUM_BUCKETS
from torchtrack.watch.compare import Comparison
from torchtrack.watch.device_group import DeviceGroup
from torchtrack.watch.group import FAILURES, Group, may_connect
from torchtrack.watch.layout import KINDS, Region, Summand
from torchtrack.watch.meeting import Meeting
from torchtrack.watch.offer import Offer, row_digests
from torchtrack.watch.packed import HEADER, Packed, Sums
from torchtrack.watch.plan import OWN_ELEMENTS, Plan, RowKey, base_name
from torchtrack.watch.rounding import shares
from torchtrack.watch.rows import Counted, tensors_batch
from torchtrack.watch.schedule import Schedule

if TYPE_CHECKING:
    from torchtrack.job import Job
    from torchtrack.recorder import Recorder
    from torchtrack.watch.sample import Sample

QUEUE_BYTES: Final = 32 << 20
TURN_TIMEOUT_S: Final = 10.0
_KEEP_DIGESTS: Final = 64
_FIRST_REPLAN: Final = 8
_RETAIN_S: Final = 1.0
_RETAIN_BYTES: Final = 16 << 20
_STORE_PAUSE_S: Final = 0.2
_MAX_FAILURES: Final = 3
_STEP_WITHIN_S: Final = 2.0
"""A sample waits so long for the log() whose step it carries; then it takes the current one, to reach the disk."""
_IDLE_S: Final = 0.05
_START_MARGIN: Final = 2
"""Samples between what the furthest rank has captured and the first under a new plan."""
logger = logging.getLogger("torchtrack")


class Merger:
    """The thread of one watch: takes samples in order, merges them over the ranks, writes rows.

    **Threads:** `submit` and `plan` belong to the training thread and never wait; all else runs on the merge thread.

    Args:
        recorder: where rows go.
        job: who the ranks are; None for a run of one process.
        ordinal: number of this watch in the run, the same on every rank.
        kinds: what is counted; only ranks that count the same merge.
        schedule: how often; only ranks with the same frequency or budget merge.
        device: where to merge with the backend that training uses; None for the host. Collective: all ranks or none.
    """

    def __init__(
        self,
        recorder: Recorder,
        job: Job | None,
        ordinal: int,
        kinds: Sequence[str] = KINDS,
        schedule: Schedule | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.plan: Plan | None = None
        self.dropped_samples = 0
        self.merged_samples = 0
        self.next_sample = 0
        self.comparison = Comparison()
        self._recorder = recorder
        self._job = job
        self._ordinal = ordinal
        self._schedule = schedule or Schedule(1)
        self._terms = f"{'+'.join(kinds)}/{self._schedule.terms}"
        self._queue: deque[Sample] = deque()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._deadline: float | None = None
        self._patience_s = 0.0
        self._waits_since = 0.0
        self._next_store = 0.0
        self._failures = 0
        self._awaiting: deque[tuple[Sample, list[Counted], bool]] = deque()
        self._retained: deque[tuple[float, Sample, Counted]] = deque()
        self._meeting: Meeting | None = None
        self._group: Group | DeviceGroup | None = None
        self._device_group = None if device is None else DeviceGroup(device, self._gives_up)
        self._digests: dict[int, dict[str, int]] = {}
        self._held: dict[str, Region] = {}
        self._summands: dict[str, Summand] = {}
        self._rows: dict[RowKey, None] = {}
        self._told: set[str] = set()
        """Whether this rank's own gradients were finite at the last sample that saw them."""
        self._telling = False
        """Whether what is remembered can tell replicas from tensors that are only equal so far."""
        self._thread = threading.Thread(target=self._main, name="torchtrack-watch", daemon=True)
        self._replan_at = 0
        self._replan_pause = _FIRST_REPLAN

    @property
    def alone(self) -> bool:
        """Whether there is no other rank to merge with, and will be none."""
        if self._job is None:
            return True
        identity = self._job.identity
        return identity.world_size < 2 and not identity.provisional

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    # -- the training thread ----------------------------------------------------------------------------------------

    def submit(self, sample: Sample) -> None:
        """Hand over a sample. When too much waits already, its rows are dropped and counted, never waited for."""
        size = sample.nbytes
        with self._lock:
            if self._queued_bytes and self._queued_bytes + size > QUEUE_BYTES:
                self.dropped_samples += 1
                sample.drop()
                size = 0
            self._queued_bytes += size
            self._queue.append(sample)
        self.next_sample = max(self.next_sample, sample.number + 1)
        self._wake.set()

    def end(self, within_s: float, patience_s: float) -> None:
        """Write what is there and end the thread, without waiting for it here.

        Args:
            within_s: after so long nothing is merged any more.
            patience_s: how long one turn may still wait for other ranks; its rows are then written unmerged.
        """
        self._waits_since = time.monotonic()
        self._patience_s = patience_s
        self._deadline = self._waits_since + within_s
        self._wake.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end. False if it is still at it."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the merge thread -------------------------------------------------------------------------------------------

    def _main(self) -> None:
        while self._deadline is None or self._queue:
            if not self._queue:
                self._wake.wait(_IDLE_S)
                self._wake.clear()
            guard.attempt("watch", self._step)
        guard.attempt("watch", self._finish)

    def _step(self) -> None:
        if self._group is None:
            self._meet()
        if self._queue and (self._queue[0].ready() or self._late()):
            sample = self._queue.popleft()
            with self._lock:
                self._queued_bytes -= sample.nbytes
            if not sample.ready():  # the run ends before the device got there
                self.dropped_samples += 1
                sample.drop()
            self._take(sample)
        elif self._queue:
            time.sleep(0.001)
        self._write()

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _ends(self) -> bool:
        """Whether no sample will come any more: then a group that does not stand yet is of no use."""
        return self._deadline is not None

    def _gives_up(self) -> bool:
        """Whether the turn under way should wait no longer for the others."""
        return self._deadline is not None and (self._late() or time.monotonic() > self._waits_since + self._patience_s)

    def _finish(self) -> None:
        self._disband(write_retained=False)
        self._recorder.stamp([sample.ticket for sample, _, _ in self._awaiting])
        self._write()

    def _take(self, sample: Sample) -> None:
        counted = sample.counted() if not sample.dropped else None
        if sample.plan is None and counted is not None:
            self._remember(sample, counted)
        self._schedule.sampled(sample.cost_s())
        if sample.plan is None or self._group is None or sample.plan is not self.plan:
            self._schedule.agree(self._schedule.wanted(), self._schedule.now)
            if counted is not None:
                self._emit(sample, [counted])
            return
        self._turn(sample, counted)

    # -- a turn -----------------------------------------------------------------------------------------------------

    def _turn(self, sample: Sample, counted: Counted | None) -> None:
        assert self.plan is not None  # noqa: S101  # _take checked it
        packed, sums = Packed(self.plan, counted), Sums(self.plan, self._rank(), sample)
        if sample.offered:
            packed.replan = 1.0
        try:
            header = self._align(sample, packed)
            if header is not None:
                packed.sums[self._rank()] = 0.0 if sample.dropped else 1.0
                occupied = packed.occupied()
                some = packed.sums[occupied]
                self._all_reduce(some, "sum")
                packed.sums[occupied] = some
                if sums.values.size:
                    self._all_reduce(sums.values, "sum")
        except FAILURES as error:
            logger.debug("torchtrack writes unmerged rows: %s", error)
            self._disband(write_retained=True)
            header = None
        if header is None:
            self._emit(sample, [counted] if counted else [])
            return
        self.merged_samples += 1
        self._schedule.agree(int(header[5]), int(header[6]))
        merged, rest = packed.merged(), [packed.rest] if packed.rest else []
        if merged is not None and sums.values.size and packed.all_present:
            merged = Counted.joined([merged, sums.counted()])
        if self._rank() == 0:
            self._emit(sample, [merged, *rest] if merged else rest)
        else:
            if merged is not None:
                self._retain(sample, merged)
            self._emit(sample, rest, norms=False)
        if header[7]:
            self._compare(sample, header[7])
        if header[4] and sample.number >= self._replan_at:
            # A tensor that no plan can hold would ask again and again: each time it is heard later.
            self._replan_at, self._replan_pause = sample.number + self._replan_pause, 2 * self._replan_pause
            self._disband(write_retained=False)

    def _compare(self, sample: Sample, asked: float) -> None:
        """Hold what should be equal on all ranks against each other. Its rows are merged by then, whatever happens."""
        assert self._group is not None  # noqa: S101
        place = self._group.rank, self._group.world_size
        try:
            sample.found = self.comparison.compare(sample.checks, asked, self._all_reduce, place, sample)
        except FAILURES as error:
            logger.debug("torchtrack did not compare the replicas: %s", error)
            self._disband(write_retained=True)

    def _retain(self, sample: Sample, merged: Counted) -> None:
        """Keep what rank 0 should have written by now: if that is lost, this rank writes it. Twice counts once."""
        now = time.monotonic()
        self._retained.append((now, sample, merged))
        room = _RETAIN_BYTES // merged.sums.nbytes if merged.sums.nbytes else 1
        while len(self._retained) > 1 and (self._retained[0][0] < now - _RETAIN_S or len(self._retained) > room):
            self._retained.popleft()

    def _align(self, sample: Sample, packed: Packed) -> np.ndarray[Any, Any] | None:
        """The header all ranks agree on, extremes merged. None: this sample is behind, or under another plan."""
        assert self.plan is not None  # noqa: S101
        own = packed.maxes.copy()
        while True:
            packed.maxes[:] = own
            header = packed.maxes[:HEADER]
            schedule = self._schedule.wanted(), self._schedule.now
            asks = self.comparison.asks(sample.checks)
            header[:] = (
                sample.number,
                -sample.number,
                self.plan.digest,
                -self.plan.digest,
                packed.replan,
                *schedule,
                asks,
            )
            self._all_reduce(packed.maxes, "max")
            if header[0] == -header[1]:
                return header if header[2] == -header[3] else None
            if sample.number < header[0]:
                return None

    def _all_reduce(self, array: np.ndarray[Any, Any], op: str) -> None:
        assert self._group is not None  # noqa: S101
        self._waits_since = time.monotonic()
        self._group.all_reduce(torch.from_numpy(array), op, TURN_TIMEOUT_S)

    def _rank(self) -> int:
        return self._group.rank if self._group else 0

    # -- agreeing ---------------------------------------------------------------------------------------------------

    def _remember(self, sample: Sample, counted: Counted) -> None:
        if self.alone or any(counted.planned):
            return
        self._held.update(sample.held)
        self._summands.update(sample.offered)
        self._rows.update(dict.fromkeys([*counted.keys, *sample.expected]))
        # Sums end in other bits where another kernel added them up; + 0.0 makes one zero of two.
        exact = np.hstack([counted.sums[:, :NUM_BUCKETS], counted.maxes]) + 0.0
        rows = {key: exact[i] for i, key in enumerate(counted.keys)}
        digests = row_digests(sorted({base_name(key) for key in rows} & sample.held.keys()), rows)
        kinds = {kind for kind, _ in rows}
        if not self._telling and (not kinds or ("parameter" in kinds and kinds <= {"parameter", *OWN_ELEMENTS})):
            # Models start out equal without being replicas: only what training has changed can tell.
            self._telling = digests != self._digests.get(next(iter(self._digests), -1), digests)
            self._digests = {} if self._telling else self._digests
        else:
            self._telling = True
        self._digests[sample.number] = digests
        wanted = self._meeting.wanted if self._meeting else set()
        for number in [number for number in self._digests if number not in wanted][:-_KEEP_DIGESTS]:
            del self._digests[number]

    def _meet(self) -> None:
        if self._job is None or not self._telling or self._deadline is not None:
            return
        if self._failures >= _MAX_FAILURES or not may_connect():
            return
        identity = self._job.identity
        if identity.provisional or identity.world_size < 2:
            return
        try:
            if self._meeting is None or self._meeting.attempt != identity.attempt:
                if time.monotonic() < self._next_store:
                    return
                self._next_store = time.monotonic() + _STORE_PAUSE_S
                self._meeting = Meeting.join(self._job, self._ordinal, self._terms)
            if self._meeting is None:
                return
            samples = dict(self._digests)
            offer = Offer(
                self.next_sample, tuple(self._rows), dict(self._held), samples, identity.node, dict(self._summands)
            )
            plan = self._meeting.agree(offer)
            if plan is not None:
                self._group, self.plan = self._begin(plan, self._meeting)
                self._failures = 0
        except FAILURES as error:
            self._failures += 1  # a store whose owner died does not come back
            logger.debug("torchtrack watch did not meet the other ranks: %s", error)
            group, self._group = self._group, None
            if group is not None:
                guard.attempt("watch", group.close)
            if self._meeting:
                self._meeting.failed()

    def _begin(self, plan: Plan, meeting: Meeting) -> tuple[Group | DeviceGroup, Plan]:
        """The group of a plan, and from which sample on the plan holds: one that no rank will have captured by then."""
        before = self.next_sample
        on_device = self._device_group is not None and not self._device_group.broken
        self._group = self._device_group if on_device else meeting.group(plan, self._gives_up, self._ends)
        missed = self.next_sample - before  # as many may pass while the ranks agree on the start
        start = np.array([float(self.next_sample + missed + _START_MARGIN)])
        self._all_reduce(start, "max")
        assert self._group is not None  # noqa: S101
        self.comparison.forget()
        return self._group, replace(plan, start=max(plan.start, int(start[0])))

    def _disband(self, *, write_retained: bool) -> None:
        """Leave the group: rows are counted whole again until the ranks have met anew."""
        self.plan = None
        for _, sample, merged in self._retained if write_retained else ():
            self._emit(sample, [merged])
        self._retained.clear()
        if self._group is not None:
            group, self._group = self._group, None
            guard.attempt("watch", group.close)
        if self._meeting:
            self._meeting.failed()

    # -- writing ----------------------------------------------------------------------------------------------------

    def _emit(self, sample: Sample, counted: list[Counted], *, norms: bool = True) -> None:
        self._awaiting.append((sample, counted, norms))

    def _write(self) -> None:
        oldest = time.monotonic() - _STEP_WITHIN_S
        self._recorder.stamp([sample.ticket for sample, _, _ in self._awaiting if sample.made_at < oldest])
        while self._awaiting and self._awaiting[0][0].ticket.step is not None:
            sample, counted, norms = self._awaiting.popleft()
            step = sample.ticket.step or 0
            for part in counted:
                with forks.at_work():
                    batch = tensors_batch(part, sample.number, step, sample.time_ns)
                if batch is not None:
                    self._recorder.put(records.Table.TENSORS, lambda batch=batch: batch, batch.nbytes)  # type: ignore[misc]
            self._write_local(sample, step)
            if sample.found is not None:
                sample.found.write(self._recorder, step, sample.time_ns, speaks=self._speaks())
            if not self._speaks():
                continue
            values = [(name, copy.value()) for name, copy in sample.scalars]
            sample.scalars = []
            if norms and counted:
                values += _norms(counted, sample.max_norm).items()
            several = dict(values)
            if len(several) == len(values):
                self._recorder.numbers(several, step)
            else:  # gradients were clipped more than once
                for name, value in values:
                    self._recorder.number(name, value, step)

    def _write_local(self, sample: Sample, step: int) -> None:
        """Of each rank: shares of its updates, its own gradients before the average, where these are not finite."""
        several, sample.rounded = sample.rounded, []
        if several and sample.finite:
            self._recorder.numbers(shares(several), step)
        local, sample.local = sample.local, None
        if local is None:
            return
        norm = local.norm()
        if norm is not None:
            of_layers = {f"{records.LOCAL_NORM}/{layer}": own for layer, own in local.by_layer().items()}
            self._recorder.numbers({records.LOCAL_NORM: norm, **of_layers}, step)
        for kind, found in (("nonfinite", local.nonfinite()), ("nonfinite_held", local.held_nonfinite())):
            if found is None:
                self._told.discard(kind)
            elif kind not in self._told:  # once, not at every sample of a model that is lost
                self._told.add(kind)
                event = {"time": sample.time_ns // 1000, "step": step, "type": kind}
                event["json"] = json.dumps(found | {"sample": sample.number})
                self._recorder.put(records.Table.EVENTS, lambda event=event: event)  # type: ignore[misc]

    def _speaks(self) -> bool:
        """Whether this rank logs what is one number for the whole job: the lowest does, and one that is alone."""
        return self._job is None or self._job.identity.rank == 0 or self._job.identity.provisional


def _norms(counted: list[Counted], max_norm: float | None) -> dict[str, float]:
    every = counted[0] if len(counted) == 1 else Counted.joined(counted)
    norms = {
        "watch/grad_norm": every.norm("gradient"),
        "watch/param_norm": every.norm("parameter"),
        "watch/update_ratio": every.update_ratio(),
    }
    known = {name: norm for name, norm in norms.items() if norm is not None}
    if max_norm is not None and "watch/grad_norm" in known:
        known["watch/clip_coef"] = min(1.0, max_norm / (known["watch/grad_norm"] + 1e-6))
    return known
