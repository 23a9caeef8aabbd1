"""Long series as few points that keep every spike, in SQL: M4 on buckets that never move.

A bucket is 2^k wide and anchored at 0 (see `axes`), so points that arrive change the last bucket only. Each keeps the
first, smallest, largest and last value, the mean of the finite ones, and how many there are of either kind.

Values mean what `Run.history` says they mean: combined over ranks, a later attempt hides an earlier one, of repeats the
last counts. Where it is known that there is at most one value a step (see `surveys`), all lines are one pass over their
rows; only where not, values are combined first, line by line.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchtrack.server.answers import Answer
from torchtrack.server.axes import STEPS, Axis
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import FOREVER, VISIBLE, Placed, arrays, lookup
from torchtrack.server.surveys import Survey, Surveys

RAW_POINTS: Final = 2
"""A series of at most so many points a pixel is returned as it is."""
_M4: Final = """argMin(v, {order}) AS first, argMax(v, {order}) AS last, count() AS points,
    minIf(v, isFinite(v)) AS low, maxIf(v, isFinite(v)) AS high, sumIf(v, isFinite(v)) AS total,
    countIf(isFinite(v)) AS number"""
VALUES: Final = ("first", "min", "max", "last", "mean", "smooth")

Floats = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Item:
    """One line of a chart."""

    run: str
    metric: str
    rank: int | Literal["mean"]
    streams: tuple[Placed, ...]
    start_us: int = 0
    """When the run began, in microseconds since the epoch: 0 of the relative axis."""

    @property
    def alone(self) -> bool:
        """Whether one rank's part of a value will do."""
        return self.rank != "mean"


@dataclass(frozen=True)
class Span:
    """What a chart shows of its axis: half-open, with so many pixels for it; smoothed over `tau` of its units."""

    start: float | None
    stop: float | None
    pixels: int
    tau: float | None = None
    axis: Axis = STEPS

    @property
    def inside(self) -> tuple[float | None, float | None]:
        """Start and stop as the store has them."""
        start, stop = ((None if edge is None else self.axis.inside(edge)) for edge in (self.start, self.stop))
        return start, stop


@dataclass(frozen=True)
class _Line:
    """A line, and whether its rows have at most one value a step as they stand."""

    item: Item
    single: bool
    surveys: tuple[tuple[Placed, Survey], ...]


def series(store: MetricsStore, items: Sequence[Item], span: Span, surveys: Surveys | None = None) -> Answer:
    """The lines of a chart on one grid.

    The answer's columns: `x` (f64, where each bucket starts that any line has), then for the i-th line `first.i`,
    `min.i`, `max.i`, `last.i`, `mean.i`, `smooth.i` (f4, NaN where the line has nothing), `count.i` (finite values) and
    `nonfinite.i` (u4).

    Args:
        store: where the rows are.
        items: the lines.
        span: what is shown.
        surveys: what is known of the rows already.
    """
    lines = _planned(items, surveys or Surveys(store), span.axis)
    low, high, points = _extent(store, lines, span)
    raw = points <= RAW_POINTS * span.pixels
    exponent = (0 if span.axis.whole else None) if raw else span.axis.exponent(low, high, span.pixels)
    parts: list[Columns] = [{}] * len(items)
    for lot in _lots(lines):
        for number, part in zip(lot, _together(store, [lines[i] for i in lot], span, exponent), strict=True):
            parts[number] = part
    for number, line in enumerate(lines):
        if not parts[number]:
            parts[number] = _one(store, line.item, span, exponent)
        if span.tau:
            parts[number]["smooth"] = _smooth(store, line, span, exponent, parts[number]["x"])
    grid = np.unique(np.concatenate([np.zeros(0, np.int64), *(part["x"] for part in parts)]))
    return _answer(items, grid, parts, span.axis, exponent, raw=raw)


def _planned(items: Sequence[Item], surveys: Surveys, axis: Axis) -> list[_Line]:
    found = surveys.of([one for item in items for one in item.streams], [item.metric for item in items])
    lines = []
    for item in items:
        mine = tuple((one, found[one.stream, item.metric]) for one in item.streams)
        mine = tuple((one, survey) for one, survey in mine if survey.points)
        lines.append(_Line(item, axis.mode != "metric" and _is_single(item, mine), mine))
    return lines


def _is_single(item: Item, surveys: Sequence[tuple[Placed, Survey]]) -> bool:
    """Whether no step comes twice, within a stream or in several, and no value is a part of one."""
    if not all(survey.single and (item.alone or not survey.partial) for _, survey in surveys):
        return False
    ranges = sorted((survey.low, min(survey.high, one.stop - 1)) for one, survey in surveys if survey.low < one.stop)
    return all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


def _lots(lines: Sequence[_Line]) -> list[list[int]]:
    """The lines that are one pass, in as few as can be: in a pass, each stream belongs to one set of streams."""
    lots: list[tuple[dict[int, tuple[Placed, ...]], list[int]]] = []
    for number, line in enumerate(lines):
        if not line.single:
            continue
        streams = line.item.streams
        fits = (lot for lot in lots if all(lot[0].get(one.stream, streams) == streams for one in streams))
        lot = next(fits, None)
        if lot is None:
            lot = ({}, [])
            lots.append(lot)
        lot[0].update((one.stream, streams) for one in streams)
        lot[1].append(number)
    return [members for _, members in lots]


_EXTENT: Final = "min(x) AS low, max(x) AS high, count() AS points"


def _extent(store: MetricsStore, lines: Sequence[_Line], span: Span) -> tuple[float, float, int]:
    """The first and last x there is of any line, and the points of the longest."""
    if span.axis.mode == "step" and span.start is None and span.stop is None and all(map(_shown, lines)):
        known = [survey for line in lines for _, survey in line.surveys]
        points = max((survey.points for survey in known), default=0)
        return min((s.low for s in known), default=0), max((s.high for s in known), default=0), points
    found: list[dict[str, Any]] = []
    for lot in _lots(lines):
        source, parameters = _rows([lines[i].item for i in lot], span)
        group = "min(x) AS low, max(x) AS high, count() AS points"
        found += store.query(
            f"SELECT owner, name, {group} FROM ({source}) GROUP BY owner, name", **parameters
        ).to_pylist()
    for line in lines:
        if not line.single:
            source, parameters = _combined(line.item, span)
            found += store.query(f"SELECT {_EXTENT} FROM ({source})", **parameters).to_pylist()
    found = [row for row in found if row["points"]]
    if not found:
        return 0, 0, 0
    return min(row["low"] for row in found), max(row["high"] for row in found), max(row["points"] for row in found)


def _shown(line: _Line) -> bool:
    """Whether all rows of a line count."""
    return all(survey.high < one.stop for one, survey in line.surveys)


def _rows(items: Sequence[Item], span: Span) -> tuple[str, dict[str, Any]]:
    """SQL for rows that are values as they stand: owner (see `_owners`), name, x, step, v, seq; and its parameters."""
    streams = {one.stream: (one, item) for item in items for one in item.streams}
    placed = [one for one, _ in streams.values()]
    parameters: dict[str, Any] = {"names": sorted({item.metric for item in items}), **arrays(placed)}
    if _by_stream(items):
        owner = "stream"
    else:
        owners = _owners(items)
        owner = lookup("owners")
        parameters["owners"] = [owners[item.streams] for _, item in streams.values()]
    x = {"step": "step", "time": "time", "relative": f"time - {lookup('starts')}"}[span.axis.mode]
    if span.axis.mode == "relative":
        parameters["starts"] = [item.start_us for _, item in streams.values()]
    name = "name" if len(parameters["names"]) > 1 else "{names:Array(String)}[1] AS name"
    hidden = f" AND step < {lookup('stops')}" if any(one.stop != FOREVER for one in placed) else ""
    source = (
        f"SELECT {owner} AS owner, {name}, {x} AS x, step, value AS v, seq FROM scalars WHERE stream IN "
        f"{{streams:Array(UInt64)}} AND scalars.name IN {{names:Array(String)}}{hidden}{_range(x, span)}"
    )
    return source, parameters


def _by_stream(items: Sequence[Item]) -> bool:
    """Whether each line is one stream's."""
    return all(len(item.streams) == 1 for item in items)


def _owners(items: Sequence[Item]) -> dict[tuple[Placed, ...], int]:
    """What tells lines of different streams apart in a pass."""
    if _by_stream(items):
        return {item.streams: item.streams[0].stream for item in items}
    return {streams: number for number, streams in enumerate(dict.fromkeys(item.streams for item in items))}


def _range(x: str, span: Span) -> str:
    """SQL for what is shown."""
    start, stop = span.inside
    first = "" if start is None else f" AND {x} >= {start!r}"
    return first + ("" if stop is None else f" AND {x} < {stop!r}")


def _together(store: MetricsStore, lines: Sequence[_Line], span: Span, exponent: int | None) -> list[Columns]:
    """Lines whose values are rows as they stand, in one pass; nothing for one of which newer rows came meanwhile."""
    items = [line.item for line in lines]
    source, parameters = _rows(items, span)
    rows = store.query(
        f"SELECT owner, name, {span.axis.bucket('x', exponent)} AS bucket, {_m4(span)}, max(seq) AS newest "
        f"FROM ({source}) GROUP BY owner, name, bucket ORDER BY owner, name, bucket",
        **parameters,
    )
    owners, names = rows["owner"].to_numpy(), np.array(rows["name"].to_pylist(), object)
    of, found = _owners(items), []
    for line in lines:
        here = owners == of[line.item.streams]
        mine = rows.filter(pa.array(here if len(parameters["names"]) == 1 else here & (names == line.item.metric)))
        newest = max((survey.newest for _, survey in line.surveys), default=-1)
        late = mine.num_rows and int(mine["newest"].to_numpy().max()) > newest
        found.append({} if late else _columns(mine, span, exponent))
    return found


def _one(store: MetricsStore, item: Item, span: Span, exponent: int | None) -> Columns:
    """A line whose values must be combined first."""
    source, parameters = _combined(item, span)
    rows = store.query(
        f"SELECT {span.axis.bucket('x', exponent)} AS bucket, {_m4(span)} FROM ({source}) "
        "GROUP BY bucket ORDER BY bucket",
        **parameters,
    )
    return _columns(rows, span, exponent)


def _m4(span: Span) -> str:
    whole = "step" if span.axis.mode == "step" else "bitShiftLeft(toInt128(x), 64) + step"  # fast, where a tuple is not
    return _M4.format(order=whole if span.axis.whole else "(x, step)")


def _combined(item: Item, span: Span) -> tuple[str, dict[str, Any]]:
    """SQL for one value a step, as `Run.history` has it: step, x, v; and its parameters."""
    parameters = {"name": item.metric, "other": span.axis.metric or "", "start": item.start_us, **arrays(item.streams)}
    wanted = _range("x", span)
    if span.axis.mode == "metric":
        both = f"({_values('name', alone=item.alone)}) AS a INNER JOIN ({_values('other', alone=item.alone)}) AS b"
        source = f"SELECT a.step AS step, b.v AS x, a.v AS v FROM {both} ON a.step = b.step"
        return f"SELECT step, x, v FROM ({source}) WHERE isFinite(x){wanted}", parameters
    if span.axis.mode == "step":
        steps = _range("step", span)
        return f"SELECT step, step AS x, v FROM ({_values('name', steps, alone=item.alone)})", parameters
    start = " - {start:Int64}" if span.axis.mode == "relative" else ""
    source = f"SELECT step, at{start} AS x, v FROM ({_values('name', alone=item.alone)})"
    return f"SELECT step, x, v FROM ({source}) WHERE true{wanted}", parameters


def _values(name: str, steps: str = "", *, alone: bool) -> str:
    """SQL for step, v, and `at`: when the lowest rank said it."""
    by_rank = (
        f"SELECT step, {lookup('ranks')} AS r, argMax((value, reduce, partial, {lookup('worlds')}, time), "
        f"({lookup('orders')}, seq, row)) AS said FROM scalars WHERE {VISIBLE} AND name = {{{name}:String}}{steps} "
        "GROUP BY step, r"
    )
    whole = "" if alone else " HAVING n >= needed"
    return (
        "SELECT step, count() AS n, argMin(said.2, r) AS how, max(if(said.3, said.4, 0)) AS needed, "
        "argMin(said.5, r) AS at, multiIf(n = 1, any(said.1), how = 'sum', sum(said.1), how = 'min', min(said.1), "
        f"how = 'max', max(said.1), sum(said.1) / n) AS v FROM ({by_rank}) GROUP BY step{whole}"
    )


def _smooth(
    store: MetricsStore, line: _Line, span: Span, exponent: int | None, x: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """The decayed mean at the last value of each bucket; what lies 8 tau back counts for less than 0.04 %."""
    tau = (span.tau or 1.0) * span.axis.unit
    wider = Span(None if span.start is None else span.start - 8 * (span.tau or 0), span.stop, 1, axis=span.axis)
    source, parameters = _rows([line.item], wider) if line.single else _combined(line.item, wider)
    rows = store.query(
        f"SELECT {span.axis.bucket('x', exponent)} AS bucket, argMax(s, (x, step)) AS smooth FROM (SELECT step, x, "
        f"exponentialTimeDecayedAvg({tau!r})(v, x) OVER (ORDER BY x ASC, step ASC) AS s "
        f"FROM ({source}) WHERE isFinite(v)) GROUP BY bucket",
        **parameters,
    )
    at = span.axis.start(rows["bucket"].to_numpy(), exponent)
    known = dict(zip(at.tolist(), rows["smooth"].to_pylist(), strict=True))
    return np.array([known.get(each, np.nan) for each in x.tolist()], np.float64)


def _columns(rows: pa.Table, span: Span, exponent: int | None) -> Columns:
    column = {name: rows[name].to_numpy() for name in ("first", "low", "high", "last", "total", "number", "points")}
    number, points = column["number"], column["points"]
    x = span.axis.start(rows["bucket"].to_numpy(), exponent)
    none = number == 0
    with np.errstate(all="ignore"):
        mean = column["total"] / number
    return {
        "x": x,
        "first": column["first"],
        "min": np.where(none, np.nan, column["low"]),
        "max": np.where(none, np.nan, column["high"]),
        "last": column["last"],
        "mean": mean,
        "smooth": np.full(len(x), np.nan),
        "count": number.astype(np.uint32),
        "nonfinite": (points - number).astype(np.uint32),
    }


def _answer(
    items: Sequence[Item],
    grid: npt.NDArray[Any],
    parts: Sequence[Columns],
    axis: Axis,
    exponent: int | None,
    *,
    raw: bool,
) -> Answer:
    columns: Columns = {"x": axis.outside(grid)}
    for number, part in enumerate(parts):
        where = np.searchsorted(grid, part["x"])
        for name in VALUES:
            column = np.full(len(grid), np.nan, np.float32)
            with np.errstate(over="ignore"):
                column[where] = part[name]
            columns[f"{name}.{number}"] = column
        for name in ("count", "nonfinite"):
            counts = np.zeros(len(grid), np.uint32)
            counts[where] = part[name]
            columns[f"{name}.{number}"] = counts
    last = max((part["x"][-1].item() for part in parts if len(part["x"])), default=None)
    width = 0 if exponent is None else 2.0**exponent / axis.unit
    header = {
        "items": [{"run": item.run, "metric": item.metric, "rank": item.rank} for item in items],
        "axis": {"mode": axis.mode, "metric": axis.metric},
        "bucket": int(width) if axis.mode == "step" else width,
        "raw": raw,
        "cursor": last if last is None or axis.mode == "step" else float(axis.outside(np.array(last))),
    }

    def table() -> pa.Table:
        lines = [_long(item, part, axis) for item, part in zip(items, parts, strict=True)]
        return pa.concat_tables([_schema(axis).empty_table(), *lines])

    return Answer(columns, table, header)


def _schema(axis: Axis) -> pa.Schema:
    return pa.schema(
        [
            ("run", pa.string()),
            ("metric", pa.string()),
            ("rank", pa.string()),
            (axis.column, pa.int64() if axis.mode == "step" else pa.float64()),
            *((name, pa.float64()) for name in VALUES),
            ("count", pa.uint32()),
            ("nonfinite", pa.uint32()),
        ]
    )


def _long(item: Item, part: Columns, axis: Axis) -> pa.Table:
    same = [[str(value)] * len(part["x"]) for value in (item.run, item.metric, item.rank)]
    x = part["x"] if axis.mode == "step" else axis.outside(part["x"])
    columns = [*same, x, *(part[name] for name in (*VALUES, "count", "nonfinite"))]
    schema = _schema(axis)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
