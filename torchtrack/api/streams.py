"""One journal stream as tables: polls the journal, decodes a table when it is first asked for, keeps what was decoded.

Scalars become plain columns with interned names, so that a history is numpy all the way. A frame that does not decode
is a damage of the run, never an exception.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from torchtrack import records
from torchtrack.errors import JournalError
from torchtrack.journal import wellformed
from torchtrack.journal.frame import Kind
from torchtrack.journal.reader import Damage, Frame, Stream
from torchtrack.stability.metrics import MEMORY

OWN_PREFIXES: Final = ("watch/", "system/", "_tt/")
REDUCES: Final = ("mean", "sum", "min", "max")
PARTIAL: Final = 4
"""Added to the index of a reduction where the value is one rank's part of a whole that all ranks together have."""
BACKGROUND: Final = ("system/", "_tt/")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Span = tuple[int, int]
"""The first and the last step of some rows."""
Named = tuple[str, str]
"""Kind and name of a tensor; of a text or a file the table and the name."""


def merged(spans: Iterable[Span]) -> Span | None:
    """From the first step of all to the last; None without any."""
    every = list(spans)
    return (min(low for low, _ in every), max(high for _, high in every)) if every else None


class Names:
    """Metric names as small integers, shared by all streams of a source."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.names: list[str] = []

    def intern(self, names: list[str]) -> Ints:
        """The code of each name."""
        for name in names:
            if name not in self.codes:
                self.codes[name] = len(self.names)
                self.names.append(name)
        return np.array([self.codes[name] for name in names], np.int64)


@dataclass(frozen=True)
class Points:
    """Values of one metric in the order they were written; wall time orders nothing, clocks are set back."""

    step: Ints
    time: Ints  # microseconds since the epoch, UTC
    value: Floats
    reduce: npt.NDArray[np.int8]  # index into REDUCES, + PARTIAL

    def __len__(self) -> int:
        return len(self.step)

    def where(self, keep: npt.NDArray[np.bool_] | Ints) -> Points:
        """Some of them."""
        return Points(self.step[keep], self.time[keep], self.value[keep], self.reduce[keep])

    @classmethod
    def concat(cls, parts: list[Points]) -> Points:
        """Several stretches as one."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*((p.step, p.time, p.value, p.reduce) for p in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


class Scalars:
    """The scalars of one stream, a column each, and split by metric on demand."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._parts: list[tuple[Ints, Points]] = []
        self._by_code: dict[int, Points] | None = None
        self._spans: dict[int, Span] = {}  # of the metrics of which points were let go of
        self.forgot = False
        """Whether points were let go of that were not told of the machine."""

    def __len__(self) -> int:
        return sum(len(code) for code, _ in self._parts)

    def add(self, rows: pa.Table) -> None:
        """Append rows in one chunk. Rows without step, time or name are not ours and are left out."""
        if any(rows.column(name).null_count for name in ("step", "time", "name")):
            rows = rows.filter(_all_valid(rows, ("step", "time", "name")))
        if not rows.num_rows:
            return
        code = self._codes(rows.column("name").chunk(0))
        reduce = rows.column("reduce").chunk(0)
        known = np.array(
            [REDUCES.index(r) if r in REDUCES else 0 for r in reduce.dictionary.to_pylist()] + [0], np.int8
        )
        points = Points(
            rows.column("step").to_numpy(),
            rows.column("time").chunk(0).cast(pa.int64()).to_numpy(),
            rows.column("value").chunk(0).to_numpy(zero_copy_only=False),
            known[reduce.indices.fill_null(-1).to_numpy(zero_copy_only=False)],
        )
        partial = rows.column("partial").chunk(0)
        if partial.true_count:
            points.reduce[pc.is_in(partial, pa.array([True])).to_numpy(zero_copy_only=False)] += PARTIAL
        self._parts.append((code, points))
        self._by_code = None

    def _codes(self, column: pa.DictionaryArray) -> Ints:
        codes: Ints = self._names.intern(column.dictionary.to_pylist())[column.indices.to_numpy()]
        return codes

    def by_code(self) -> dict[int, Points]:
        """The points of each metric."""
        if self._by_code is None:
            if len(self._parts) > 1:
                code = np.concatenate([part[0] for part in self._parts])
                self._parts = [(code, Points.concat([points for _, points in self._parts]))]
            self._by_code = _split(*self._parts[0]) if self._parts else {}
        return self._by_code

    def places(self, code: int) -> Ints:
        """Where each point of a metric stands among all rows of the stream."""
        known = code in self.by_code()
        return np.flatnonzero(self._parts[0][0] == code) if known else np.zeros(0, np.int64)

    def span(self, code: int) -> Span | None:
        """The first and the last step of a metric, with those of points that were let go of."""
        points = self.by_code().get(code)
        held = [] if points is None else [(int(points.step.min()), int(points.step.max()))]
        return merged([*held, *([self._spans[code]] if code in self._spans else [])])

    @property
    def codes(self) -> set[int]:
        """The metrics that have a span."""
        return {*self.by_code(), *self._spans}

    def _without(self, prefixes: tuple[str, ...]) -> Span | None:
        """The first and the last step of all metrics whose names do not begin so."""
        names = self._names.names
        mine = (code for code in self.codes if not names[code].startswith(prefixes))
        return merged(span for code in mine if (span := self.span(code)) is not None)

    @property
    def first_step(self) -> int | None:
        """The first step of the user's own metrics: the steps of ours say nothing on a rank that never logs."""
        span = self._without(OWN_PREFIXES)
        return None if span is None else span[0]

    @property
    def told(self) -> Span | None:
        """The first and the last step of the user's metrics and those of `watch`."""
        return self._without(BACKGROUND)

    def foreground(self) -> Iterator[tuple[int, Points]]:
        """The points that are held of each metric, but for what is told of the machine."""
        names = self._names.names
        return ((code, points) for code, points in self.by_code().items() if not _is_background(names[code]))

    def forget(self, step: int) -> None:
        """Let go of the points below a step and of what is told of the machine; first and last steps stay known."""
        self._spans |= {code: span for code in self.by_code() if (span := self.span(code)) is not None}
        if not self._parts:
            return
        ((code, points),) = self._parts  # `by_code` has made them one
        background = np.array(list(map(_is_background, self._names.names)), np.bool_)[code]
        keep = (points.step >= step) & ~background
        self.forgot |= not (keep | background).all()
        self._parts = [(code[keep], points.where(keep))] if keep.any() else []
        self._by_code = None


def _is_background(name: str) -> bool:
    """Whether this is told of the machine, and no rule looks at it."""
    return name.startswith(BACKGROUND) and name not in MEMORY


def _split(code: Ints, points: Points) -> dict[int, Points]:
    """Rows grouped by code, each group in its old order."""
    narrow = code.astype(np.uint16) if int(code.max(initial=0)) < 1 << 16 else code  # 16 bits sort by radix
    order = np.argsort(narrow, kind="stable")
    codes, starts = np.unique(code[order], return_index=True)
    bounds = [*starts.tolist(), len(order)]
    groups = zip(codes.tolist(), bounds, bounds[1:], strict=False)
    return {c: points.where(order[lo:hi]) for c, lo, hi in groups}


def _all_valid(rows: pa.Table, names: tuple[str, ...]) -> pa.Array:
    valid = np.ones(rows.num_rows, np.bool_)
    for name in names:
        valid &= rows.column(name).is_valid().to_numpy()
    return pa.array(valid)


class Rows:
    """A stream and its rows so far, wherever they come from: what the records say is read the same way.

    A subclass fills in the attributes below, and says what `poll` and `_fresh` do.
    """

    def __init__(self, path: Path, names: Names) -> None:
        self.path = path
        """Of the first journal file; relative to the folder of runs if it lies on a server."""
        self.version = 0
        """Grows with every change."""
        self.elder: Rows | None = None
        """Of a forked child: the stream of the rank itself, which says where this one belongs."""
        self._placed: tuple[int, dict[str, Any]] = (-1, {})  # the place as of a version
        self.more = False
        """Whether the last poll stopped before the end of what was there."""
        self._names = names
        self._forget_rows()

    def _forget_rows(self) -> None:
        self.scalars = Scalars(self._names)
        self._tables: dict[records.Table, pa.Table] = {}
        self.remembered: dict[str, int] = {}
        """First steps of rows that were let go of, by what `facts` calls them."""
        self.spans: dict[Named, Span] = {}
        """First and last steps of tensors, texts and files of which rows were let go of."""

    def poll(self) -> None:
        """Take what was written since the last poll."""
        raise NotImplementedError

    def release(self) -> None:
        """Forget rows that can be had again; here there are none."""

    def _fresh(self, table: records.Table) -> list[pa.Table]:
        """Rows of a table that were not asked for before, in the order written."""
        raise NotImplementedError

    # -- what the records say: a subclass has these --------------------------------------------------------------------

    @property
    def opening(self) -> dict[str, Any]:
        """The opening record; empty while it has not been read."""
        raise NotImplementedError

    @property
    def joined(self) -> dict[str, Any] | None:
        """The newest record of where the stream belongs, if there is one."""
        raise NotImplementedError

    @property
    def ended(self) -> dict[str, Any] | None:
        """The record of how the process ended, if it wrote one."""
        raise NotImplementedError

    @property
    def seal(self) -> dict[str, Any] | None:
        """The seal, if the writer closed the stream."""
        raise NotImplementedError

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """What the writer says it dropped."""
        raise NotImplementedError

    @property
    def damages(self) -> list[Damage]:
        """What the journal found damaged, and frames that did not decode."""
        raise NotImplementedError

    @property
    def exits(self) -> list[dict[str, Any]]:
        """Of a node's stream: how processes ended."""
        raise NotImplementedError

    @property
    def heartbeats(self) -> list[dict[str, Any]]:
        """Of a node's stream: the newest heartbeat."""
        raise NotImplementedError

    @property
    def last_mono_ns(self) -> int | None:
        """The writer's monotonic clock at the newest frame."""
        raise NotImplementedError

    # -- what follows from them ----------------------------------------------------------------------------------------

    def load_scalars(self) -> Scalars:
        """The scalars, decoded up to the last poll."""
        fresh = self._fresh(records.Table.SCALARS)
        if fresh:
            self.scalars.add(pa.concat_tables(fresh).unify_dictionaries().combine_chunks())
        return self.scalars

    def table(self, table: records.Table) -> pa.Table:
        """All rows of a table other than scalars, with their dictionaries unified."""
        fresh = self._fresh(table)
        if table not in self._tables:
            self._tables[table] = records.SCHEMAS[table].empty_table()
        if fresh:
            self._tables[table] = pa.concat_tables([self._tables[table], *fresh]).unify_dictionaries().combine_chunks()
        return self._tables[table]

    def keep(self, table: records.Table, rows: npt.NDArray[np.bool_] | None = None) -> None:
        """Let go of the rows of a table, other than scalars, but for these; without any of all."""
        held = self.table(table)
        if rows is None:
            self._tables[table] = held.slice(0, 0)
        elif not rows.all():
            self._tables[table] = held.filter(pa.array(rows))

    @property
    def dropped_rows(self) -> int:
        """Rows the writer says it dropped."""
        return sum(int(gap.get("rows", 0)) for gap in self.gaps)

    def last_value(self, name: str) -> float:
        """The newest value of a counter; 0 if it was never written."""
        points = self.load_scalars().by_code().get(self._names.codes.get(name, -1))
        value = float(points.value[-1]) if points is not None and len(points) else 0.0
        return value if value == value else 0.0

    @property
    def known(self) -> bool:
        """Whether the opening has been read: without it nothing says where the rows belong."""
        return bool(self.opening)

    @property
    def unread(self) -> bool:
        """Whether there is a file of which nothing could be read."""
        return not self.known and self.path.is_file() and self.path.stat().st_size > 0

    @property
    def loose(self) -> bool:
        """Whether a record may still come that moves this stream to another run."""
        return self.role == "rank" and self.joined is None and self.seal is None

    @property
    def place(self) -> dict[str, Any]:
        """uid, attempt, rank, world_size: the newest joined record, over the opening; a child's are its rank's."""
        stream = self.elder or self
        if stream._placed[0] != stream.version:
            stream._placed = stream.version, {**stream.opening, **(stream.joined or {})}
        return stream._placed[1]

    @property
    def attempt(self) -> int:
        """The attempt these rows are of."""
        return int(self.place.get("attempt") or 1)

    @property
    def from_step(self) -> int | None:
        """The step from which on its attempt takes back what earlier ones recorded, if the user said so."""
        step: int | None = self.opening.get("from_step")
        return step

    @property
    def rank(self) -> int:
        """The rank that wrote them."""
        return int(self.place.get("rank") or 0)

    @property
    def uid(self) -> str:
        """The run they belong to."""
        return str(self.place.get("uid", ""))

    @property
    def role(self) -> str:
        """Whose stream it is: `rank` or `node`."""
        return str(self.opening.get("role", "rank"))

    @property
    def key(self) -> str:
        """The stream's number as records of other streams name it."""
        return str(self.opening.get("stream", ""))

    @property
    def parent(self) -> str:
        """Of a forked child: the number of its parent's stream; else empty."""
        return str(self.opening.get("parent") or "")

    @property
    def opened(self) -> tuple[str, int]:
        """What orders the streams of a machine by their opening: its boot, and the monotonic clock since."""
        return str(self.opening.get("boot_id") or ""), int(self.opening.get("start_mono_ns") or 0)

    @property
    def uids(self) -> set[str]:
        """The uid and, if it was provisional at first, that one too."""
        return {str(self.opening.get("uid", "")), self.uid}

    @property
    def start_ns(self) -> int:
        """Wall time of the opening."""
        return int(self.opening.get("start_time_ns", 0))

    @property
    def last_ns(self) -> int:
        """Wall time of the newest frame, by the writer's monotonic clock."""
        if self.last_mono_ns is None:
            return self.start_ns
        return self.start_ns + max(0, self.last_mono_ns - int(self.opening.get("start_mono_ns", 0)))


class StreamRows(Rows):
    """A stream that is read from its journal files: polled, and a table decoded when it is first asked for."""

    def __init__(self, path: Path, names: Names, piece_bytes: int | None = None) -> None:
        self._stream = Stream(path)
        self._piece_bytes = piece_bytes
        super().__init__(path, names)
        self._start_over()

    def _start_over(self) -> None:
        self._forget_rows()
        self._exits: list[dict[str, Any]] = []
        self._heartbeats: list[dict[str, Any]] = []
        self._waiting: dict[records.Table, list[tuple[int, bytes]]] = {}
        self._damages: list[Damage] = []
        self._last_seq = -1
        self._last_mono_ns: int | None = None

    def poll(self) -> None:
        """Take what was written since the last poll; nothing follows a seal."""
        if self._stream.seal is not None:
            return
        try:
            frames = self._read()
        except (OSError, JournalError) as error:
            if not self._damages or self._damages[-1].reason != str(error):
                self._damage(0, str(error))
                self.version += 1
            return
        if frames and frames[0].seq <= self._last_seq:  # the file was replaced, and is read from its start again
            self._start_over()
        for frame in frames:
            self._last_seq, self._last_mono_ns = frame.seq, frame.mono_ns
            if frame.kind is Kind.DATA:
                self._keep(frame.table, frame.seq, frame.payload)
            elif frame.kind in (Kind.META, Kind.HEARTBEAT) and self.role == "node":
                self._node_record(frame.seq, frame.kind, frame.payload)
        self.version += bool(frames)

    def _read(self) -> list[Frame]:
        """What is new, at most a piece of it."""
        frames: list[Frame] = []
        room = math.inf if self._piece_bytes is None else self._piece_bytes
        each = self._stream.each()
        for frame in each:
            frames.append(frame)
            room -= len(frame.payload)
            if room <= 0:
                break
        each.close()
        self.more = room <= 0
        return frames

    def _keep(self, table: int, seq: int, payload: bytes) -> None:
        try:
            self._waiting.setdefault(records.Table(table), []).append((seq, payload))
        except ValueError:
            self._damage(seq, f"unknown table {table}")

    def _node_record(self, seq: int, kind: int, payload: bytes) -> None:
        try:
            record = json.loads(payload)
        except ValueError:
            self._damage(seq, "a record is no JSON")
            return
        if not isinstance(record, dict) or wellformed.problem(record):
            return  # the journal has noted it
        if kind == Kind.HEARTBEAT:
            self._heartbeats[:] = [record]  # only the newest counts
        elif record.get("type") == "exit":
            self._exits.append(record)

    def _damage(self, seq: int, reason: str) -> None:
        self._damages.append(Damage(self.path, 0, 0, seq, seq, reason))

    def _fresh(self, table: records.Table) -> list[pa.Table]:
        decoded = []
        for seq, payload in self._waiting.pop(table, ()):
            try:
                decoded.append(records.decode(table, payload))
            except (ValueError, pa.ArrowException, OSError) as error:
                self._damage(seq, f"a {table.name.lower()} frame does not decode: {error}")
        return decoded

    @property
    def opening(self) -> dict[str, Any]:
        """The opening record."""
        return self._stream.opening

    @property
    def joined(self) -> dict[str, Any] | None:
        """The newest record of where the stream belongs."""
        return self._stream.joined

    @property
    def ended(self) -> dict[str, Any] | None:
        """The record of how the process ended, if it wrote one."""
        return self._stream.ended

    @property
    def seal(self) -> dict[str, Any] | None:
        """The seal, if the writer closed the stream."""
        return self._stream.seal

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """What the writer says it dropped."""
        return self._stream.gaps

    @property
    def damages(self) -> list[Damage]:
        """What the journal found damaged, and frames that did not decode."""
        return [*self._stream.damages, *self._damages]

    @property
    def exits(self) -> list[dict[str, Any]]:
        """Of a node's stream: how processes ended."""
        return self._exits

    @property
    def heartbeats(self) -> list[dict[str, Any]]:
        """Of a node's stream: the newest heartbeat."""
        return self._heartbeats

    @property
    def last_mono_ns(self) -> int | None:
        """The writer's monotonic clock at the newest frame."""
        return self._last_mono_ns
