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

import hashlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from torchtrack import guard, records
from torchtrack.watch import layout
from torchtrack.watch.group import FAILURES, Group
from torchtrack.watch.rows import MAXES, SUMS, Counted, tensors_batch

if TYPE_CHECKING:
    from torchtrack.job import Job
    from torchtrack.recorder import Recorder
    from torchtrack.watch.sample import Sample

QUEUE_BYTES: Final = 32 << 20
TURN_TIMEOUT_S: Final = 30.0
_HEADER: Final = 5  # sample, -sample, plan, -plan, replan
_KEEP_DIGESTS: Final = 16
_RETAIN_S: Final = 1.0
_STAGES: Final = ("step", "pre_clip", "skipped")
MAX_COLUMNS: Final = MAXES + 1
_IDLE_S: Final = 0.05
logger = logging.getLogger("torchtrack")


class Merger:
    """The thread of one watch: takes samples in order, merges them over the ranks, writes rows.

    **Threads:** `submit` and `plan` belong to the training thread and never wait; all else runs on the merge thread.

    Args:
        recorder: where rows go.
        job: who the ranks are; None for a run of one process.
        ordinal: number of this watch in the run, the same on every rank.
    """

    def __init__(self, recorder: Recorder, job: Job | None, ordinal: int) -> None:
        self.plan: layout.Plan | None = None
        self.dropped_samples = 0
        self.merged_samples = 0
        self.next_sample = 0
        self._recorder = recorder
        self._job = job
        self._ordinal = ordinal
        self._queue: deque[Sample] = deque()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._deadline: float | None = None
        self._awaiting: deque[tuple[Sample, list[Counted], bool]] = deque()
        self._retained: deque[tuple[float, Sample, Counted]] = deque()
        self._meeting: _Meeting | None = None
        self._group: Group | None = None
        self._digests: dict[int, dict[str, str]] = {}
        self._numels: dict[str, int] = {}
        self._shares: tuple[layout.Plan | None, dict[str, tuple[int, int]]] = (None, {})
        self._thread = threading.Thread(target=self._main, name="torchtrack-watch", daemon=True)
        self._thread.start()

    # -- the training thread ----------------------------------------------------------------------------------------

    def submit(self, sample: Sample) -> None:
        """Hand over a sample. When too much waits already, its rows are dropped and counted, never waited for."""
        size = sample.nbytes
        with self._lock:
            if self._queued_bytes + size > QUEUE_BYTES:
                self.dropped_samples += 1
                sample.dropped, sample.picks, size = True, [], 0
            self._queued_bytes += size
            self._queue.append(sample)
        self.next_sample = sample.number + 1
        self._wake.set()

    def ranges(self, plan: layout.Plan | None) -> dict[str, tuple[int, int]]:
        """By name: the share of this rank under a plan; nothing in it is shared out without one."""
        if plan is None or self._job is None:
            return {}
        if self._shares[0] is not plan:
            self._shares = (plan, plan.ranges(self._job.identity.rank))
        return self._shares[1]

    def close(self, timeout_s: float) -> bool:
        """Write what is there and end the thread; turns that other ranks do not join in time are written unmerged."""
        self._deadline = time.monotonic() + max(timeout_s - 1.0, 0.1)
        self._wake.set()
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
            self._take(sample)
        elif self._queue:
            time.sleep(0.001)
        self._write()

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _finish(self) -> None:
        self._disband(write_retained=False)
        self._recorder.stamp()
        self._write()

    def _take(self, sample: Sample) -> None:
        counted = sample.counted() if not sample.dropped else None
        if sample.plan is None or counted is None:
            self._remember(sample, counted)
        if sample.plan is None or self._group is None or sample.plan is not self.plan:
            if counted is not None:
                self._emit(sample, [self._own(sample, counted)])
            return
        self._turn(sample, counted)

    def _own(self, sample: Sample, counted: Counted) -> Counted:
        """This rank's rows as they are; tensors that differ between ranks are parts of a larger whole."""
        distinct = sample.plan.distinct if sample.plan else {}
        if distinct and self._job is not None:
            key = f"rank{self._job.identity.rank}"
            for i, (_, name) in enumerate(counted.keys):
                if name in distinct and not counted.covers[i]:
                    counted.covers[i] = layout.format_covers(key, [(0, counted.numels[i])])
                    counted.numels[i] = distinct[name]
        return counted

    # -- a turn -----------------------------------------------------------------------------------------------------

    def _turn(self, sample: Sample, counted: Counted | None) -> None:
        assert self.plan is not None  # noqa: S101  # _take checked it
        packed = _Packed(self.plan, counted)
        try:
            header = self._align(sample, packed)
            if header is None:
                merged = None
            else:
                packed.sums[self._rank()] = 0.0 if sample.dropped else 1.0
                self._all_reduce(packed.sums, "sum")
                merged = packed.merged()
        except FAILURES as error:
            logger.debug("torchtrack writes unmerged rows: %s", error)
            self._disband(write_retained=True)
            merged = None
        rest = self._own(sample, packed.rest) if packed.rest else None
        if merged is None:
            self._emit(sample, [self._own(sample, counted)] if counted else [])
            return
        self.merged_samples += 1
        if self._rank() == 0:
            self._emit(sample, [part for part in (merged, rest) if part])
        else:
            self._retain(sample, merged)
            self._emit(sample, [rest] if rest else [], norms=False)
        if header is not None and header[4]:
            self._disband(write_retained=False)

    def _retain(self, sample: Sample, merged: Counted) -> None:
        """Keep what rank 0 should have written by now: if that is lost, this rank writes it. Twice counts once."""
        now = time.monotonic()
        self._retained.append((now, sample, merged))
        while len(self._retained) > 1 and self._retained[0][0] < now - _RETAIN_S:
            self._retained.popleft()

    def _align(self, sample: Sample, packed: _Packed) -> np.ndarray[Any, Any] | None:
        """The header all ranks agree on, extremes merged. None: this sample is behind, or under another plan."""
        assert self.plan is not None  # noqa: S101
        own = packed.maxes.copy()
        while True:
            packed.maxes[:] = own
            header = packed.maxes[:_HEADER]
            header[:] = sample.number, -sample.number, self.plan.digest, -self.plan.digest, packed.replan
            self._all_reduce(packed.maxes, "max")
            if header[0] == -header[1]:
                return header if header[2] == -header[3] else None
            if sample.number < header[0]:
                return None

    def _all_reduce(self, array: np.ndarray[Any, Any], op: str) -> None:
        import torch

        assert self._group is not None  # noqa: S101
        self._group.all_reduce(torch.from_numpy(array), op, TURN_TIMEOUT_S)

    def _rank(self) -> int:
        return self._group.rank if self._group else 0

    # -- agreeing ---------------------------------------------------------------------------------------------------

    def _remember(self, sample: Sample, counted: Counted | None) -> None:
        if self._job is None or counted is None or any(counted.covers):
            return
        numels = dict(zip((name for _, name in counted.keys), counted.numels, strict=True))
        rows = {key: counted.sums[i] for i, key in enumerate(counted.keys)}
        self._numels.update(numels)
        self._digests[sample.number] = layout.row_digests(list(numels), rows)
        wanted = self._meeting.wanted if self._meeting else set()
        for number in [number for number in self._digests if number not in wanted][:-_KEEP_DIGESTS]:
            del self._digests[number]

    def _meet(self) -> None:
        identity = self._job.identity if self._job else None
        if (
            self._job is None
            or identity is None
            or identity.provisional
            or identity.world_size < 2
            or not self._digests
        ):
            return
        if self._deadline is not None:
            return
        try:
            if self._meeting is None or self._meeting.attempt != identity.attempt:
                self._meeting = _Meeting.join(self._job, self._ordinal)
            if self._meeting is None:
                return
            offer = layout.Offer(self.next_sample, dict(self._numels), dict(self._digests))
            plan = self._meeting.agree(offer)
            if plan is not None:
                self._group = self._meeting.group(self._late)
                self.plan = plan
        except FAILURES as error:
            logger.debug("torchtrack watch did not meet the other ranks: %s", error)
            self._group = None
            if self._meeting:
                self._meeting.failed()

    def _disband(self, *, write_retained: bool) -> None:
        """Leave the group: rows are counted whole again until the ranks have met anew."""
        self.plan = None
        self._digests.clear()
        self._numels.clear()
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
        while self._awaiting and self._awaiting[0][0].ticket.step is not None:
            sample, counted, norms = self._awaiting.popleft()
            step = self._awaiting_step(sample)
            for part in counted:
                batch = tensors_batch(part, sample.number, step, sample.time_ns)
                if batch is not None:
                    self._recorder.put(records.Table.TENSORS, lambda batch=batch: batch, batch.nbytes)  # type: ignore[misc]
            values = {name: copy.value() for name, copy in sample.scalars}
            sample.scalars = []
            if norms and counted:
                values |= _norms(counted)
            for name, value in values.items():
                self._recorder.number(name, value, step)

    @staticmethod
    def _awaiting_step(sample: Sample) -> int:
        step = sample.ticket.step
        return 0 if step is None else step


def _norms(counted: list[Counted]) -> dict[str, float]:
    every = counted[0]
    if len(counted) > 1:
        every = Counted(
            [key for part in counted for key in part.keys],
            np.concatenate([part.sums for part in counted]),
            np.concatenate([part.maxes for part in counted]),
            [numel for part in counted for numel in part.numels],
            [covers for part in counted for covers in part.covers],
            [stage for part in counted for stage in part.stages],
        )
    norms = {"watch/grad_norm": every.norm("gradient"), "watch/param_norm": every.norm("parameter")}
    return {name: norm for name, norm in norms.items() if norm is not None}


class _Packed:
    """A sample as the buffers of a turn; their size follows from the plan alone, so that it is the same on all ranks.

    sums: [world size] who is present, then rows x (328 counts, sum, sum of squares).
    maxes: the header, then rows x (max, -min, number of the stage).
    """

    def __init__(self, plan: layout.Plan, counted: Counted | None) -> None:
        self._plan = plan
        self._keys = [(kind, name) for kind in layout.KINDS for name in plan.names]
        rows = {key: i for i, key in enumerate(self._keys)}
        self.sums = np.zeros(plan.world_size + len(rows) * SUMS)
        self.maxes = np.full(_HEADER + len(rows) * MAX_COLUMNS, -np.inf)
        self.rest: Counted | None = None
        self.replan = 0.0
        if counted is None:
            return
        shared = [i for i, key in enumerate(counted.keys) if key in rows]
        alone = [i for i, key in enumerate(counted.keys) if key not in rows]
        into = [rows[counted.keys[i]] for i in shared]
        self._sums()[into] = counted.sums[shared]
        self._maxes()[into, :MAXES] = counted.maxes[shared]
        self._maxes()[into, MAXES] = [_STAGES.index(counted.stages[i]) for i in shared]
        if alone:
            self.rest = counted.select(alone)
            self.replan = float(any(name not in plan.distinct for _, name in self.rest.keys))

    def _sums(self) -> np.ndarray[Any, Any]:
        return self.sums[self._plan.world_size :].reshape(-1, SUMS)

    def _maxes(self) -> np.ndarray[Any, Any]:
        return self.maxes[_HEADER:].reshape(-1, MAX_COLUMNS)

    def merged(self) -> Counted:
        """The merged rows after both all-reduces."""
        present = np.flatnonzero(self.sums[: self._plan.world_size] > 0).tolist()
        whole = len(present) == self._plan.world_size
        maxes = self._maxes()
        return Counted(
            list(self._keys),
            self._sums(),
            maxes[:, :MAXES],
            list(self._plan.numels) * len(layout.KINDS),
            ["" if whole else self._plan.covers(name, present) for _, name in self._keys],
            [_STAGES[int(max(stage, 0))] for stage in maxes[:, MAXES]],
            len(present),
        )


class _Meeting:
    """Ranks of one watch meet in the store: offers by round, then a group; a new generation after every failure."""

    def __init__(self, store: Any, prefix: str, rank: int, world_size: int, attempt: int) -> None:
        self.attempt = attempt
        self.wanted: set[int] = set()
        """Samples that other ranks have offered: worth keeping until this rank has counted them too."""
        self._store, self._prefix = store, prefix
        self._rank, self._world_size = rank, world_size
        self._generation = 0
        self._round = 0
        self._offered: layout.Offer | None = None
        self._next_look = 0.0
        self._pause = 0.01

    @classmethod
    def join(cls, job: Job, ordinal: int) -> _Meeting | None:
        """A meeting over the job's store; None while there is none."""
        store, identity = job.store(), job.identity
        if store is None:
            return None
        prefix = f"torchtrack/{identity.uid}/{identity.attempt}/watch{ordinal}"
        return cls(store, prefix, identity.rank, identity.world_size, identity.attempt)

    def agree(self, offer: layout.Offer) -> layout.Plan | None:
        """Publish an offer once a round; the plan when all offers are there and agree, else None. Never waits."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        if self._offered is None:
            self._publish(offer)
        others = [self._key(rank) for rank in range(self._world_size)]
        if not self._store.check(others):
            self._next_look, self._pause = now + self._pause, min(self._pause * 1.5, 1.0)
            return None
        assert self._offered is not None  # noqa: S101
        headers = [json.loads(self._store.get(key)) for key in others]
        plan = self._decide(headers)
        if plan is None and max(self._offered.samples) < offer.next_sample - 1:
            self._round, self._offered, self._pause = self._round + 1, None, 0.01
        return plan

    def group(self, give_up: Callable[[], bool]) -> Group:
        """The private group of this generation."""
        from torch.distributed.distributed_c10d import PrefixStore

        store = PrefixStore(f"{self._prefix}/{self._generation}/group", self._store)
        return Group(store, self._rank, self._world_size, give_up)

    def failed(self) -> None:
        """Begin a new generation."""
        self._generation += 1
        self._round, self._offered, self._pause = 0, None, 0.01

    def _key(self, rank: int, what: str = "offer") -> str:
        return f"{self._prefix}/{self._generation}/{self._round}/{what}/{rank}"

    def _publish(self, offer: layout.Offer) -> None:
        """The whole offer, and before it a short one that is enough when all ranks hold replicas of everything."""
        self._offered = offer
        short = {number: _fingerprint([offer.numels, digests]) for number, digests in offer.samples.items()}
        self._store.set(self._key(self._rank, "whole"), offer.encode())
        self._store.set(self._key(self._rank), json.dumps([offer.next_sample, list(short.items())]))

    def _decide(self, headers: list[Any]) -> layout.Plan | None:
        assert self._offered is not None  # noqa: S101
        shorts = [dict(samples) for _, samples in headers]
        common = set(shorts[0]).intersection(*shorts[1:])
        if not common:
            self.wanted = {max(short) for short in shorts}
            return None
        if len({short[max(common)] for short in shorts}) == 1:
            offers = [
                layout.Offer(next_sample, self._offered.numels, {max(common): self._offered.samples[max(common)]})
                for next_sample, _ in headers
            ]
        else:
            whole = [self._store.get(self._key(rank, "whole")) for rank in range(self._world_size)]
            offers = [layout.Offer.decode(bytes(data)) for data in whole]
        return layout.agree(offers)


def _fingerprint(content: Any) -> str:
    return hashlib.blake2s(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
