"""Whether replicas are still equal: checksums of all ranks against each other, on the merge thread.

    0  SUM   by a hash of each tensor: how many ranks hold it; once, and when a new one comes
    1  SUM   of each rank and group of tensors: who holds the same, and one digest of all of its checksums
    2  MAX   of groups with unequal digests: of each checksum and its negative, so which tensors differ
    3  SUM   of those: the checksums of each rank, so who is the odd one

Healthy ranks make number 1 alone, 32 numbers a rank. All ranks take part in each, since all see the same result.

A tensor that differs is a finding if it was a replica: it was equal before, with an equal gradient; or its gradients
are equal, so that ranks average them; or DistributedDataParallel keeps it equal. Else it is each rank's own (experts),
and left alone. What was seen is kept by name for the whole run, whatever plans come and go.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from torchtrack import records
from torchtrack.watch.replicas import WRITTEN, Checks, Entry

if TYPE_CHECKING:
    from torchtrack.recorder import Recorder, Ticket

_GROUPS: Final = 8
"""Groups of a rank; what is more is compared as one."""
_DRILLED: Final = 4
"""Groups whose tensors are looked at one by one at one check."""
_NAMED: Final = 8
"""Tensors of a group that an event names."""
_HALF: Final = 1 << 32
_SLOTS: Final = 1 << 16
"""Of hashes of tensors. Two that share one are only compared less well, on all ranks alike."""
logger = logging.getLogger("torchtrack")
_Array = np.ndarray[Any, Any]
_Reduce = Callable[[_Array, str], None]


@dataclass(slots=True)
class _Known:
    """What was seen of a tensor.

    Attributes:
        equal: the step at which it was equal last; None if it never was.
        settled: it is a replica: its gradient was equal too.
        own: each rank has its own.
        differs: it should be equal, and is not.
    """

    equal: Ticket | None = None
    settled: bool = False
    own: bool = False
    differs: bool = False


class _Sample(Protocol):
    """What a comparison needs to know of the sample that the checksums are of."""

    number: int

    @property
    def ticket(self) -> Ticket:
        """The step it will carry."""

    @property
    def finite(self) -> bool:
        """Whether gradients say anything: where a scaler skips the step they may be NaN everywhere."""


class _Row(NamedTuple):
    """An entry with the checksums of tensor and gradient, and what is known of it."""

    entry: Entry
    value: int
    gradient: int
    known: _Known


@dataclass(slots=True)
class Differing:
    """A replica that is not equal any more.

    Attributes:
        kind: "parameter" or "buffer".
        name: of the tensor.
        reason: why it should be equal: "was equal", "gradients are equal", "DistributedDataParallel", or "nothing is
            equal": no parameter is, so that the ranks train models of their own.
        ranks: who holds it.
        odd: who has another than most; empty if there is no majority.
        equal: the step at which it was equal last.
    """

    kind: str
    name: str
    reason: str
    ranks: list[int]
    equal: Ticket | None
    odd: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Found:
    """The outcome of a check: how many replicas differ, in the whole job, and which of them this rank is to tell of."""

    count: int = 0
    compared: bool = False
    more: int = 0
    """Tensors that are not in `differing`."""
    warns: bool = False
    """Whether nothing differed before: a warning is one line of the run."""
    differing: list[Differing] = field(default_factory=list)

    def write(self, recorder: Recorder, step: int, time_ns: int, *, speaks: bool) -> None:
        """Write the event of what begins to differ, and the number of all that differ.

        Args:
            recorder: where it goes.
            step: of the sample.
            time_ns: of the sample.
            speaks: whether this rank logs what is one number for the whole job.
        """
        if self.compared and speaks:
            recorder.number("watch/replicas_differ", float(self.count), step)
        if self.differing:
            content = self.event()
            row = {"time": time_ns // 1000, "step": step, "type": "replica_divergence", "json": json.dumps(content)}
            recorder.put(records.Table.EVENTS, lambda: row)
            if self.warns:
                logger.warning("torchtrack watch at step %d: %s", step, content["text"])

    def event(self) -> dict[str, Any]:
        """The content of a "replica_divergence" event."""
        first, *_ = self.differing
        tensors = [
            {
                "tensor": one.name,
                "kind": one.kind,
                "ranks": one.ranks,
                "odd_ranks": one.odd,
                "reason": one.reason,
                "equal_last_step": None if one.equal is None else one.equal.step,
            }
            for one in self.differing
        ]
        return {**tensors[0], "text": _sentence(first, self.more + len(tensors)), "tensors": tensors, "more": self.more}


def _sentence(one: Differing, count: int) -> str:
    ranks = f"{len(one.ranks)} ranks" if one.odd or len(one.ranks) > _NAMED else f"ranks {_listed(one.ranks)}"
    who = f"on rank {_listed(one.odd)} of {ranks}" if one.odd else f"between {ranks}"
    others = f" and {count - 1} more" if count > 1 else ""
    since = f"equal last at step {one.equal.step}" if one.equal is not None else "never seen equal"
    return f"{one.kind} {one.name}{others} differs {who}, {since} ({one.reason})"


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


class Comparison:
    """Compares the checksums of all ranks and remembers what was equal.

    **Threads:** `settled` and `alone` may be read by any thread; all else runs on the merge thread.
    """

    def __init__(self) -> None:
        self.settled: frozenset[str] = frozenset()
        """Names of replicas: their gradients need not be read any more."""
        self.alone: frozenset[str] = frozenset()
        """Names of tensors that no other rank holds, or not the same part of."""
        self._known: dict[str, _Known] = {}
        self._holders = np.zeros(_SLOTS)
        self._warned = False

    def forget(self) -> None:
        """A new plan: what others hold may have changed."""
        self.alone, self._holders = frozenset(), np.zeros(_SLOTS)

    def asks(self, checks: Checks | None) -> float:
        """What this rank needs of the others: 0 nothing, 1 a comparison, 2 also who holds what."""
        if checks is None or not checks.entries:
            return 0.0
        return 2.0 if any(self._holders[_slot(entry)] == 0 for entry in checks.entries) else 1.0

    def compare(
        self, checks: Checks | None, asked: float, reduce: _Reduce, place: tuple[int, int], sample: _Sample
    ) -> Found:
        """Compare; collective over the ranks of the merge.

        Args:
            checks: of this rank; None if it has none this time.
            asked: the most that a rank `asks`.
            reduce: all-reduces a float64 array in place, by "sum" or "max"; what it raises passes.
            place: number of this rank, and how many there are.
            sample: whose step and gradients they are.
        """
        rank, world_size = place
        if asked > 1:
            self._count_holders(checks, reduce, world_size)
        signatures = {_signature(rows): rows for rows in self._groups(checks, sample)}
        table = np.zeros((world_size, _GROUPS, 4))
        for i, (signature, rows) in enumerate(signatures.items()):
            table[rank, i] = signature, len(rows), *_halves(_digest(rows))
        reduce(table.reshape(-1), "sum")
        held: dict[float, dict[int, tuple[float, ...]]] = {}
        for other in range(world_size):
            for signature, *rest in table[other].tolist():
                if rest[0]:
                    held.setdefault(signature, {})[other] = tuple(rest)
        several = {signature: ranks for signature, ranks in held.items() if len(ranks) > 1}
        unequal = sorted(signature for signature, ranks in several.items() if len(set(ranks.values())) > 1)
        for signature in several.keys() & signatures.keys() - set(unequal):
            for row in signatures[signature]:
                _was_equal(row, sample.ticket, same_gradient=True)
        found = Found(compared=bool(several))
        if unequal:
            unequal.sort(key=lambda signature: zlib.crc32(f"{signature} {sample.number}".encode()))  # each has its turn
            groups = []
            for signature in unequal[:_DRILLED]:
                ranks = sorted(several[signature])
                groups.append((signatures.get(signature, []), ranks, int(several[signature][ranks[0]][0])))
            self._drill(groups, reduce, place, sample.ticket, found)
        found.warns = bool(found.differing) and not self._warned
        self._warned |= found.warns
        self.settled = frozenset(name for name, known in self._known.items() if known.settled)
        return found

    def _count_holders(self, checks: Checks | None, reduce: _Reduce, world_size: int) -> None:
        """Learn how many ranks hold each tensor; nothing, if a rank has dropped its sample."""
        counts = np.zeros(_SLOTS + 1)
        if checks is not None:
            counts[[_slot(entry) for entry in checks.entries]] = 1
            counts[-1] = 1
        reduce(counts, "sum")
        if counts[-1] == world_size:
            self._holders = np.where(counts[:-1] > 0, counts[:-1], self._holders)
            self.alone |= {e.name for e in (checks.entries if checks else ()) if self._holders[_slot(e)] == 1}

    def _groups(self, checks: Checks | None, sample: _Sample) -> list[list[_Row]]:
        """Entries of this rank that others hold too, grouped so that each group is whole on every rank that has any."""
        groups: dict[tuple[str, str, float], list[_Row]] = {}
        for entry, (value, gradient) in zip(*((checks.entries, checks.numbers()) if checks else ((), ())), strict=True):
            holders = float(self._holders[_slot(entry)])
            if holders == 1:
                continue
            known = self._known.setdefault(entry.name, _Known())
            row = _Row(entry, value, gradient if sample.finite else 0, known)
            groups.setdefault((entry.key, entry.kind, holders), []).append(row)
        ordered = [rows for _, rows in sorted(groups.items())]
        first, rest = ordered[: _GROUPS - 1], ordered[_GROUPS - 1 :]
        return [*first, [row for rows in rest for row in rows]] if rest else first

    def _drill(
        self,
        groups: Sequence[tuple[list[_Row], list[int], int]],
        reduce: _Reduce,
        place: tuple[int, int],
        ticket: Ticket,
        found: Found,
    ) -> None:
        """Which tensors of these groups differ, and who is the odd one.

        Args:
            groups: rows of this rank, empty if it holds none of them; the ranks that hold them; how many rows.
            reduce: all-reduces.
            place: number of this rank, and how many there are.
            ticket: the step of the sample.
            found: is completed.
        """
        rank, world_size = place
        ends = np.cumsum([count for _, _, count in groups])
        extremes = np.full((int(ends[-1]), 8), -np.inf)
        for (rows, _, count), end in zip(groups, ends, strict=True):
            if rows:
                halves = np.array([[*_halves(row.value), *_halves(row.gradient)] for row in rows])
                extremes[end - count : end] = np.hstack([halves, -halves])
        reduce(extremes.reshape(-1), "max")
        values = np.zeros((len(groups), world_size, _NAMED, 3))
        counted = np.zeros(1)
        told: list[tuple[int, list[tuple[int, Differing]]]] = []
        for number, ((rows, ranks, count), end) in enumerate(zip(groups, ends, strict=True)):
            if not rows:
                continue
            same = extremes[end - count : end, :4] == -extremes[end - count : end, 4:]
            new = _judge(rows, ranks, same[:, :2].all(1), same[:, 2:].all(1), ticket)
            for slot, (index, _) in enumerate(new[:_NAMED]):
                values[number, rank, slot] = index + 1, *_halves(rows[index].value)
            if rank == ranks[0]:
                counted += sum(row.known.differs for row in rows)
                told.append((number, new))
        flat = np.concatenate([counted, values.reshape(-1)])
        reduce(flat, "sum")
        found.count = int(flat[0])
        by_group = flat[1:].reshape(values.shape)
        for number, new in told:
            for index, differing in new[:_NAMED]:
                differing.odd = _odd(by_group[number], index + 1)
                found.differing.append(differing)
            found.more += max(0, len(new) - _NAMED)


def _slot(entry: Entry) -> int:
    return zlib.crc32(f"{entry.key} {entry.identity}".encode()) % _SLOTS


def _signature(rows: Sequence[_Row]) -> float:
    """The same on ranks that hold the same, contents aside."""
    text = "\n".join(f"{row.entry.key} {row.entry.identity}" for row in rows)
    return float(int.from_bytes(hashlib.blake2s(text.encode(), digest_size=6).digest(), "little"))


def _digest(rows: Sequence[_Row]) -> int:
    """Of all checksums but those of tensors that each rank has its own of."""
    numbers = np.array([(0, 0) if row.known.own else (row.value, row.gradient) for row in rows], np.uint64)
    return int.from_bytes(hashlib.blake2s(numbers.tobytes(), digest_size=8).digest(), "little")


def _halves(number: int) -> tuple[float, float]:
    """A number of 64 bits as two that float64 holds exactly."""
    return float(number // _HALF), float(number % _HALF)


def _was_equal(row: _Row, ticket: Ticket, *, same_gradient: bool) -> None:
    known, is_buffer = row.known, row.entry.kind == "buffer"
    if is_buffer and row.value == WRITTEN:  # by all ranks: what was equal before says nothing about what is there now
        known.equal, known.settled = None, False
        return
    if known.own:
        return
    known.equal, known.differs = ticket, False
    known.settled |= is_buffer or (same_gradient and row.gradient != 0)


def _judge(
    rows: Sequence[_Row], ranks: list[int], same: _Array, same_gradient: _Array, ticket: Ticket
) -> list[tuple[int, Differing]]:
    """Update what is known of each row; the place of each that begins to differ, and how."""
    new = []
    shared = [row.gradient != 0 and bool(alike) for row, alike in zip(rows, same_gradient, strict=True)]
    fresh = all(_is_fresh(row) for row in rows)
    apart = fresh and not same.any() and not any(shared)
    for i, row in enumerate(rows):
        known = row.known
        if same[i]:
            known.own = False
            _was_equal(row, ticket, same_gradient=bool(same_gradient[i]))
            continue
        reason = "nothing is equal" if apart else _reason(row, same_gradient=bool(same_gradient[i]))
        if reason and not known.differs:
            new.append((i, Differing(row.entry.kind, row.entry.name, reason, ranks, known.equal)))
        known.differs |= reason != ""
        known.own |= not known.differs and (row.entry.kind == "buffer" or not same_gradient[i])
    return new


def _is_fresh(row: _Row) -> bool:
    """Whether this is a whole parameter of which nothing is known yet."""
    known, entry = row.known, row.entry
    return (entry.kind, entry.key) == ("parameter", "") and not known.own and not known.differs and known.equal is None


def _reason(row: _Row, *, same_gradient: bool) -> str:
    """Why a tensor that differs should be equal; "" if it need not be."""
    known, entry = row.known, row.entry
    if entry.promised:
        return "DistributedDataParallel"
    if known.settled or (known.equal is not None and same_gradient):
        return "was equal"
    return "gradients are equal" if entry.kind == "parameter" and same_gradient and row.gradient != 0 else ""


def _odd(values: _Array, number: int) -> list[int]:
    """The ranks whose checksum is not that of most; empty if there is no majority.

    Args:
        values: [rank, slot] number of a tensor, and the halves of its checksum.
        number: of the tensor.
    """
    by_rank = {
        rank: (high, low)
        for rank, slots in enumerate(values.tolist())
        for told, high, low in slots
        if int(told) == number
    }
    [(most, votes)] = Counter(by_rank.values()).most_common(1)
    return [rank for rank, value in by_rank.items() if value != most] if 2 * votes > len(by_rank) else []
