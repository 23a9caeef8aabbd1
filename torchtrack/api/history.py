"""Scalars of many ranks and attempts as one table: `Run.history` says what comes out, the arithmetic is here.

Works one metric and one rank at a time on whole columns: rows are placed on the axis of steps by index, so the cost is
a few passes over the data and the memory that of the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchtrack.api.streams import PARTIAL, REDUCES, Floats, Ints, Points, Scalars

if TYPE_CHECKING:
    from torchtrack.api.hiding import Hides

_MEAN, _SUM, _MIN, _MAX = range(4)
_NEVER: Final = np.iinfo(np.int64).max
_OPERATIONS: Final = {_MEAN: np.add, _SUM: np.add, _MIN: np.minimum, _MAX: np.maximum}
_TIME: Final = pa.timestamp("us", tz="UTC")
_NAME: Final = pa.dictionary(pa.int32(), pa.string())
OWN_COLUMNS: Final = ("step", "time", "rank", "attempt")
"""What a table says of each row; not all of them are in every table."""
LONG: Final = pa.schema(
    [
        ("step", pa.int64()),
        ("time", _TIME),
        ("name", _NAME),
        ("value", pa.float64()),
        ("reduce", _NAME),
        ("rank", pa.int64()),
        ("attempt", pa.int64()),
    ]
)

Bools = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Part:
    """What one rank logged in one attempt of so many ranks; `streams` in the order they were opened."""

    attempt: int
    rank: int
    streams: tuple[Scalars, ...]
    world_size: int

    def points(self, code: int) -> Points | None:
        """The values of one metric."""
        found = [points for stream in self.streams if (points := stream.by_code().get(code)) is not None]
        return Points.concat(found) if found else None

    def places(self, code: int) -> Ints:
        """Where each of these values stands among all that the rank wrote."""
        starts = itertools.accumulate(map(len, self.streams), initial=0)
        return np.concatenate([s.places(code) + start for s, start in zip(self.streams, starts, strict=False)])


@dataclass(frozen=True)
class Window:
    """Which steps are wanted: half-open, without what a later attempt hides."""

    start: int | None = None
    stop: int | None = None
    hides: Hides | None = None

    def inside(self, steps: Ints) -> Bools:
        """Which steps lie between start and stop."""
        keep = np.ones(len(steps), np.bool_)
        if self.start is not None:
            keep &= steps >= self.start
        if self.stop is not None:
            keep &= steps < self.stop
        return keep

    def clip(self, attempt: int, steps: Ints, code: int) -> Bools | None:
        """Which steps of a metric are wanted; None for all of them."""
        keep = self.inside(steps)
        if self.hides is not None:
            keep &= self.hides.metric(code)[attempt].shows(steps)
        return None if bool(keep.all()) else keep


class Axis:
    """The distinct steps of an answer, and where a step lies among them."""

    def __init__(self, columns: Sequence[Ints]) -> None:
        columns = [column for column in columns if len(column)]
        self._lookup: Ints | None = None
        self._low = min((int(column.min()) for column in columns), default=0)
        span = max((int(column.max()) for column in columns), default=-1) - self._low + 1
        if span <= 8 * sum(map(len, columns)) + 1024:
            present = np.zeros(span, np.bool_)
            for column in columns:
                present[column - self._low] = True
            self.steps: Ints = np.flatnonzero(present) + self._low
            self._lookup = np.cumsum(present) - 1
        else:
            self.steps = np.unique(np.concatenate(columns))

    def __len__(self) -> int:
        return len(self.steps)

    def index(self, steps: Ints) -> Index:
        """The place of each step."""
        if self._lookup is not None:
            return self._lookup[steps - self._low]
        return np.searchsorted(self.steps, steps)


class _Cells:
    """One metric combined over ranks, a cell a step. Ranks are added in ascending order."""

    def __init__(self, size: int) -> None:
        self.value = np.zeros(size)
        self.count = np.zeros(size, np.int32)
        self.reduce = np.zeros(size, np.int8)
        self.needed = np.zeros(size, np.int32)

    def add(self, where: Index, value: Floats, reduce: npt.NDArray[np.int8], ranks: npt.NDArray[np.int32]) -> None:
        """Combine another rank's values, at most one a cell. The lowest rank's `reduce` decides a cell.

        `ranks` says of how many ranks a value is one part if it is partial.
        """
        part = reduce >= PARTIAL
        if part.any():
            at = where[part]
            self.needed[at] = np.maximum(self.needed[at], ranks[part])
            reduce = reduce % PARTIAL
        new = self.count[where] == 0
        self.value[where[new]] = value[new]
        self.reduce[where[new]] = reduce[new]
        self.count[where] += 1
        if new.all():
            return
        where, value = where[~new], value[~new]
        kind = self.reduce[where]
        for code in range(len(REDUCES)):
            chosen = kind == code
            if chosen.any():
                at = where[chosen]
                self.value[at] = _OPERATIONS[code](self.value[at], value[chosen])

    def column(self, *, parts: bool) -> pa.Array:
        """Float64, null where nothing was logged or, unless `parts` will do, some part of a partial value is missing.

        A value that one rank alone logged keeps its bits.
        """
        several = (self.count > 1) & (self.reduce == _MEAN)
        self.value[several] /= self.count[several]
        return column(self.value, self.count > 0 if parts else self.count >= np.maximum(self.needed, 1))


def column(values: Floats, valid: Bools) -> pa.Array:
    """A float64 column that keeps the bits of its NaNs."""
    bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(pa.float64(), len(values), [bitmap, pa.py_buffer(np.ascontiguousarray(values))])


def combined(parts: Sequence[Part], keys: Sequence[tuple[str, int]], window: Window) -> pa.Table:
    """One row a step over all ranks: step, time, keys. A value of which a rank's part is missing is null.

    Args:
        parts: the scalars of every rank.
        keys: name and code of each column.
        window: which steps.
    """
    return _combined(parts, keys, window, parts_do=False)


def alone(parts: Sequence[Part], keys: Sequence[tuple[str, int]], window: Window) -> pa.Table:
    """The same of one rank; of a partial value its own part."""
    return _combined(parts, keys, window, parts_do=True)


def _combined(parts: Sequence[Part], keys: Sequence[tuple[str, int]], window: Window, *, parts_do: bool) -> pa.Table:
    """A step must belong to one attempt; where several have it the newest wins, rank by rank."""
    ranks = sorted({part.rank for part in parts})
    found = {(rank, code): _visible(parts, rank, code, window) for rank in ranks for _, code in keys}
    axis = Axis([points.step for points, _ in found.values()])
    cells = {code: _Cells(len(axis)) for _, code in keys}
    time = np.full(len(axis), _NEVER, np.int64)
    with np.errstate(all="ignore"):
        for rank in ranks:
            stamp = np.full(len(axis), -_NEVER, np.int64)
            for code, cell in cells.items():
                points, of_ranks = found[rank, code]
                if len(points):
                    where, last = _last(axis.index(points.step), len(axis))
                    cell.add(where, points.value[last], points.reduce[last], of_ranks[last])
                    stamp[where] = np.maximum(stamp[where], points.time[last])
            time = np.where((time == _NEVER) & (stamp != -_NEVER), stamp, time)
        columns = [cells[code].column(parts=parts_do) for _, code in keys]
    return pa.table([pa.array(axis.steps), pa.array(time).cast(_TIME), *columns], names=["step", "time", *_names(keys)])


def column_name(metric: str) -> str:
    """The column of a metric; one that is named as a column of the table's own lies under `logged/`."""
    return f"logged/{metric}" if metric in OWN_COLUMNS else metric


def _names(keys: Sequence[tuple[str, int]]) -> list[str]:
    return [column_name(name) for name, _ in keys]


_NOTHING: Final = Points(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int8))
_NO_RANKS: Final = np.zeros(0, np.int32)


def _visible(parts: Sequence[Part], rank: int, code: int, window: Window) -> tuple[Points, npt.NDArray[np.int32]]:
    """The wanted values of one metric of one rank, each attempt's in the order written, and its attempt's ranks."""
    chosen, ranks = [_NOTHING], [_NO_RANKS]
    for part in parts:
        points = part.points(code) if part.rank == rank else None
        if points is not None:
            keep = window.clip(part.attempt, points.step, code)
            chosen.append(points if keep is None else points.where(keep))
            ranks.append(np.broadcast_to(np.int32(part.world_size), len(chosen[-1])))
    if len(chosen) < 3:
        return chosen[-1], ranks[-1]
    return Points.concat(chosen), np.concatenate(ranks)


def _last(index: Index, size: int) -> tuple[Index, Index | slice]:
    """Cells that have a value, and the position of the last value of each."""
    if len(index) < 2 or bool((index[1:] > index[:-1]).all()):
        return index, slice(None)
    last = np.full(size, -1, np.intp)
    last[index] = np.arange(len(index))  # numpy leaves the last of repeated assignments
    where = np.flatnonzero(last >= 0)
    return where, last[where]


def by_rank(parts: Sequence[Part], keys: Sequence[tuple[str, int]], window: Window) -> pa.Table:
    """One row a step and rank: step, time, rank, keys."""
    tables = []
    for rank in sorted({part.rank for part in parts}):
        rows = alone([part for part in parts if part.rank == rank], keys, window)
        tables.append(rows.add_column(2, "rank", pa.array(np.full(rows.num_rows, rank, np.int64))))
    if not tables:
        return combined([], keys, window).add_column(2, "rank", pa.array([], pa.int64()))
    return _sorted_by(pa.concat_tables(tables), "step")


def by_attempt(tables: Iterable[tuple[int, pa.Table]]) -> pa.Table:
    """The tables of several attempts below each other, with a column `attempt` before the metrics."""
    tagged = []
    for attempt, rows in tables:
        at = 3 if "rank" in rows.column_names[:3] else 2
        tagged.append(rows.add_column(at, "attempt", pa.array(np.full(rows.num_rows, attempt, np.int64))))
    return pa.concat_tables(tagged).combine_chunks()


def _sorted_by(rows: pa.Table, name: str) -> pa.Table:
    order = np.argsort(rows.column(name).to_numpy(), kind="stable")
    return rows.take(pa.array(order)).combine_chunks()


def raw(parts: Sequence[Part], keys: Sequence[tuple[str, int]], window: Window) -> pa.Table:
    """Every value as it was written: step, time, rank, attempt, keys; nothing combined, nothing left out.

    A row holds what one rank logged at one step and moment; a metric logged twice there makes a second row. Rows are
    ordered by attempt, rank and where they stand in the journal.
    """
    tables = [_raw_part(part, keys, window) for part in sorted(parts, key=lambda part: (part.attempt, part.rank))]
    head = [("step", pa.int64()), ("time", _TIME), ("rank", pa.int64()), ("attempt", pa.int64())]
    schema = pa.schema([*head, *((name, pa.float64()) for name in _names(keys))])
    return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()


def _raw_part(part: Part, keys: Sequence[tuple[str, int]], window: Window) -> pa.Table:
    found: list[tuple[Points, Ints]] = []
    places = [_NOTHING.step]
    for _, code in keys:
        points, place = part.points(code) or _NOTHING, part.places(code)
        keep = window.clip(part.attempt, points.step, code)
        points, place = (points, place) if keep is None else (points.where(keep), place[keep])
        found.append((points, _occurrence(points)))
        places.append(place)
    time = np.concatenate([_NOTHING.time, *(points.time for points, _ in found)])
    step = np.concatenate([_NOTHING.step, *(points.step for points, _ in found)])
    nth = np.concatenate([_NOTHING.step, *(occurrence for _, occurrence in found)])
    row, first = _groups(time, step, nth, np.concatenate(places))
    size, at, arrays = len(first), 0, []
    for points, _ in found:
        values, valid = np.zeros(size), np.zeros(size, np.bool_)
        where = row[at : at + len(points)]
        values[where], valid[where] = points.value, True
        arrays.append(column(values, valid))
        at += len(points)
    head = [step[first], time[first], np.full(size, part.rank, np.int64), np.full(size, part.attempt, np.int64)]
    return pa.table(
        [pa.array(head[0]), pa.array(head[1]).cast(_TIME), pa.array(head[2]), pa.array(head[3]), *arrays],
        names=["step", "time", "rank", "attempt", *_names(keys)],
    )


def long(parts: Sequence[Part], names: Sequence[str]) -> pa.Table:
    """Every value as it was written, a row each: step, time, name, value, reduce, rank, attempt."""
    tables = [LONG.empty_table()]
    known = pa.array(list(names), pa.string())
    reduces = pa.array(REDUCES)
    for part in sorted(parts, key=lambda part: (part.attempt, part.rank)):
        codes = sorted({code for stream in part.streams for code in stream.by_code()})
        columns = [(np.full(len(points), code, np.int32), points) for code in codes if (points := part.points(code))]
        if not columns:
            continue
        order = np.argsort(np.concatenate([part.places(code) for code in codes]))
        code = np.concatenate([column for column, _ in columns])[order]
        points = Points.concat([points for _, points in columns]).where(order)
        place = [pa.array(np.full(len(points), number, np.int64)) for number in (part.rank, part.attempt)]
        arrays = [
            pa.array(points.step),
            pa.array(points.time).cast(_TIME),
            pa.DictionaryArray.from_arrays(pa.array(code), known),
            column(points.value, np.ones(len(points), np.bool_)),
            pa.DictionaryArray.from_arrays(pa.array((points.reduce % PARTIAL).astype(np.int32)), reduces),
            *place,
        ]
        tables.append(pa.table(arrays, schema=LONG))
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _groups(time: Ints, step: Ints, nth: Ints, place: Ints) -> tuple[Index, Index]:
    """The row of each value, and the first value of each row; rows ordered by the place of that."""
    order = np.lexsort((place, nth, step, time))
    moved = np.zeros(len(order), np.bool_)
    for values in (time[order], step[order], nth[order]):
        moved[1:] |= values[1:] != values[:-1]
    group = np.cumsum(moved)
    moved[:1] = True
    first = order[moved]
    by = np.argsort(place[first])
    number = np.empty(len(by), np.intp)
    number[by] = np.arange(len(by))
    row = np.empty(len(order), np.intp)
    row[order] = number[group]
    return row, first[by]


def _occurrence(points: Points) -> Ints:
    """How often the same metric was logged before at the same step and microsecond."""
    order = np.lexsort((points.step, points.time))
    step, time = points.step[order], points.time[order]
    fresh = np.ones(len(order), np.bool_)
    fresh[1:] = (step[1:] != step[:-1]) | (time[1:] != time[:-1])
    starts = np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0)) if len(order) else order
    nth = np.empty(len(order), np.int64)
    nth[order] = np.arange(len(order)) - starts
    return nth
