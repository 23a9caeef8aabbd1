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
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchtrack.api.streams import OWN_PREFIXES
from torchtrack.server.answers import Answer
from torchtrack.server.axes import STEPS, Axis
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import Placed, arrays, begins, lookup, several_attempts, visible, without_hidden
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
    """All of the run."""
    start_us: int = 0
    """When the run began, in microseconds since the epoch: 0 of the relative axis."""
    apart: str | None = None
    """The metric that lies along x of it only at the steps that have both; of others the last value before counts."""

    @property
    def alone(self) -> bool:
        """Whether one rank's part of a value will do."""
        return self.rank != "mean"

    def own(self, streams: tuple[Placed, ...]) -> tuple[Placed, ...]:
        """The streams of its rank."""
        return tuple(one for one in streams if one.rank == self.rank) if self.alone else streams


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
    """With the streams it is of alone, and what is hidden of them."""
    along: tuple[Placed, ...]
    """The same with what is hidden of the metric that is the axis."""
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
    return charts(store, [items], span, surveys)[0]


def charts(
    store: MetricsStore, each: Sequence[Sequence[Item]], span: Span, surveys: Surveys | None = None
) -> list[Answer]:
    """Charts of one span, each on a grid of its own: what `series` gives of each, in as many passes as one takes."""
    lines = _planned(store, [item for items in each for item in items], surveys or Surveys(store), span.axis)
    extents = _extents(store, lines, span)
    ends = list(itertools.accumulate(map(len, each), initial=0))
    places = [range(*pair) for pair in itertools.pairwise(ends)]
    grids = [_grid([extents[i] for i in place], span) for place in places]
    parts: list[Columns] = [{}] * len(lines)
    for exponent in dict.fromkeys(exponent for _, exponent in grids):
        alike = [i for place, grid in zip(places, grids, strict=True) if grid[1] == exponent for i in place]
        found = _parts(store, [lines[i] for i in alike], span, exponent)
        for i, part in zip(alike, found, strict=True):
            parts[i] = part
    return [
        _answer(items, [parts[i] for i in place], span.axis, exponent, raw=raw)
        for items, place, (raw, exponent) in zip(each, places, grids, strict=True)
    ]


def _grid(extents: Sequence[_Extent], span: Span) -> tuple[bool, int | None]:
    """Whether a chart shows every value, and the width of its buckets as a power of two."""
    there = [extent for extent in extents if extent.points]
    if max((extent.points for extent in there), default=0) <= RAW_POINTS * span.pixels:
        return True, 0 if span.axis.whole else None
    low, high = min(extent.low for extent in there), max(extent.high for extent in there)
    return False, span.axis.exponent(low, high, span.pixels)


def _parts(store: MetricsStore, lines: Sequence[_Line], span: Span, exponent: int | None) -> list[Columns]:
    """The buckets of lines on one grid."""
    parts: list[Columns] = [{}] * len(lines)
    for lot in _lots(lines):
        for number, part in zip(lot, _together(store, [lines[i] for i in lot], span, exponent), strict=True):
            parts[number] = part
    for number, line in enumerate(lines):
        if not parts[number]:
            parts[number] = _one(store, line, span, exponent)
    return parts


def _planned(store: MetricsStore, items: Sequence[Item], surveys: Surveys, axis: Axis) -> list[_Line]:
    places = _Places(store, surveys, items, axis)
    lines = []
    for item in items:
        mine = replace(item, streams=places.of(item, item.metric))
        along = mine.streams if axis.metric is None else places.of(item, axis.metric)
        known = tuple((one, survey) for one in mine.streams if (survey := places.survey(one, item.metric)).points)
        lines.append(_Line(mine, along, axis.mode != "metric" and _is_single(mine, known), known))
    return lines


class _Places:
    """The streams of lines with what is hidden of them, each worked out once."""

    def __init__(self, store: MetricsStore, surveys: Surveys, items: Sequence[Item], axis: Axis) -> None:
        self._store = store
        self._runs = {id(item.streams): item.streams for item in items}
        self._several = {key for key, streams in self._runs.items() if several_attempts(streams)}
        wanted = [one for item in items for one in self._needed(item)]
        metrics = [item.metric for item in items]
        metrics += [axis.metric] if axis.metric is not None and self._several else []
        self._found = surveys.of(wanted, metrics)
        self._begins: dict[int, dict[int, int]] = {}
        self._seen: dict[tuple[int, str], tuple[Placed, ...]] = {}

    def _needed(self, item: Item) -> Sequence[Placed]:
        """The streams that say what a line is: all of the run where one may hide another."""
        return item.streams if id(item.streams) in self._several else item.own(item.streams)

    def survey(self, one: Placed, metric: str) -> Survey:
        """What is known of a metric of a stream."""
        return self._found[one.stream, metric]

    def of(self, item: Item, metric: str) -> tuple[Placed, ...]:
        """The streams of a line, with what is hidden of a metric."""
        run = id(item.streams)
        if run not in self._several:
            return item.own(item.streams)
        if (run, metric) not in self._seen:
            steps = {one.stream: self.survey(one, metric) for one in item.streams}
            spans = {stream: (each.low, each.high) for stream, each in steps.items() if each.points}
            begin = self._begins_of(run) if metric.startswith(OWN_PREFIXES) else None
            self._seen[run, metric] = tuple(without_hidden(item.streams, spans, begin))
        return item.own(self._seen[run, metric])

    def _begins_of(self, run: int) -> dict[int, int]:
        if run not in self._begins:
            self._begins[run] = begins(self._store, self._runs[run])
        return self._begins[run]


def _is_single(item: Item, surveys: Sequence[tuple[Placed, Survey]]) -> bool:
    """Whether no step comes twice, within a stream or in several, and no value is a part of one."""
    if not all(survey.single and (item.alone or not survey.partial) for _, survey in surveys):
        return False
    ends = [(one, survey.low, min(survey.high, one.stop - 1)) for one, survey in surveys if survey.low < one.stop]
    ranges = sorted((low, high) for _, low, high in ends if low < high)
    points = [low for one, low, high in ends if low == high and low not in one.holes]
    if len(set(points)) < len(points):
        return False
    if not all(before[1] < after[0] for before, after in itertools.pairwise(ranges)):
        return False
    replaced = [(low, high, one.holes) for one, low, high in ends if low < high]
    return not any(low <= step <= high and step not in holes for step in points for low, high, holes in replaced)


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


class _Extent(NamedTuple):
    """The first and last x of a line, and how many points it has."""

    low: float = 0
    high: float = 0
    points: int = 0


_EXTENT: Final = "min(x) AS low, max(x) AS high, count() AS points"


def _extents(store: MetricsStore, lines: Sequence[_Line], span: Span) -> list[_Extent]:
    """Of each line, in what is shown."""
    if span.axis.mode == "step" and span.start is None and span.stop is None and all(map(_shown, lines)):
        return [_surveyed(line) for line in lines]
    found = [_Extent()] * len(lines)
    for lot in _lots(lines):
        source, parameters = _rows([lines[i].item for i in lot], span)
        sql = f"SELECT owner, name, {_EXTENT} FROM ({source}) GROUP BY owner, name ORDER BY owner, name"
        rows = _by_line([lines[i].item for i in lot], store.query(sql, **parameters))
        for i, row in zip(lot, rows, strict=True):
            found[i] = _extent(row)
    for i, line in enumerate(lines):
        if not line.single:
            source, parameters = _combined(line, span)
            found[i] = _extent(store.query(f"SELECT {_EXTENT} FROM ({source})", **parameters))
    return found


def _surveyed(line: _Line) -> _Extent:
    known = [survey for _, survey in line.surveys]
    if not known:
        return _Extent()
    return _Extent(min(s.low for s in known), max(s.high for s in known), max(s.points for s in known))


def _extent(rows: pa.Table) -> _Extent:
    return next((_Extent(*(row[name] for name in _Extent._fields)) for row in rows.to_pylist()), _Extent())


def _shown(line: _Line) -> bool:
    """Whether all rows of a line count."""
    return all(survey.high < one.stop and not one.holes for one, survey in line.surveys)


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
    source = (
        f"SELECT {owner} AS owner, {name}, {x} AS x, step, value AS v, seq FROM scalars WHERE {visible(placed)} "
        f"AND scalars.name IN {{names:Array(String)}}{_range(x, span)}"
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
    trends: list[pa.Table | None] = [None] * len(lines)
    if span.tau:
        source, parameters = _rows(items, _before(span))
        sql = _smoothed(f"SELECT owner, name, x, step, v FROM ({source})", span, exponent, ("owner", "name"))
        trends = list(_by_line(items, store.query(sql, **parameters)))
    found = []
    for line, mine, trend in zip(lines, _by_line(items, rows), trends, strict=True):
        newest = max((survey.newest for _, survey in line.surveys), default=-1)
        late = mine.num_rows and int(mine["newest"].to_numpy().max()) > newest
        found.append({} if late else _columns(mine, span, exponent, trend))
    return found


def _by_line(items: Sequence[Item], rows: pa.Table) -> list[pa.Table]:
    """Rows in the order of owner and name, as those of each line."""
    owners, names = rows["owner"].to_numpy(), np.array(rows["name"].cast(pa.string()).to_pylist(), object)
    edges = np.flatnonzero((owners[1:] != owners[:-1]) | (names[1:] != names[:-1])) + 1
    starts = [0, *edges.tolist()] if rows.num_rows else []
    stops = [*edges.tolist(), rows.num_rows]
    place = {(int(owners[i]), names[i]): slice(i, stop) for i, stop in zip(starts, stops, strict=False)}
    of = _owners(items)
    return [rows[place.get((of[item.streams], item.metric), slice(0, 0))] for item in items]


def _one(store: MetricsStore, line: _Line, span: Span, exponent: int | None) -> Columns:
    """A line whose values must be combined first."""
    source, parameters = _combined(line, span)
    rows = store.query(
        f"SELECT {span.axis.bucket('x', exponent)} AS bucket, {_m4(span)} FROM ({source}) "
        "GROUP BY bucket ORDER BY bucket",
        **parameters,
    )
    trend = None
    if span.tau:
        source, parameters = _combined(line, _before(span))
        trend = store.query(_smoothed(source, span, exponent), **parameters)
    return _columns(rows, span, exponent, trend)


def _m4(span: Span) -> str:
    return _M4.format(order=_order(span))


def _order(span: Span) -> str:
    """SQL for what the values of a line are in the order of."""
    whole = "step" if span.axis.mode == "step" else "bitShiftLeft(toInt128(x), 64) + step"  # fast, where a tuple is not
    return whole if span.axis.whole else "(x, step)"


def _combined(line: _Line, span: Span) -> tuple[str, dict[str, Any]]:
    """SQL for one value a step, as `Run.history` has it: step, x, v; and its parameters."""
    item = line.item
    parameters = {"name": item.metric, "other": span.axis.metric or "", "start": item.start_us}
    parameters |= {**arrays(line.along, "along_"), **arrays(item.streams)}
    rows, wanted = visible(item.streams), _range("x", span)
    if span.axis.mode == "metric":
        both = (("name", rows), ("other", visible(line.along, "along_")))
        a, b = (f"(SELECT 1 AS one, * FROM ({_values(name, of, alone=item.alone)}))" for name, of in both)
        on = "ASOF INNER JOIN", "a.one = b.one AND a.step >= b.step"  # an epoch is logged once, before its losses
        join, same = ("INNER JOIN", "a.step = b.step") if item.apart == span.axis.metric else on
        source = f"SELECT a.step AS step, b.v AS x, a.v AS v FROM {a} AS a {join} {b} AS b ON {same}"
        return f"SELECT step, x, v FROM ({source}) WHERE isFinite(x){wanted}", parameters
    if span.axis.mode == "step":
        steps = _range("step", span)
        return f"SELECT step, step AS x, v FROM ({_values('name', rows + steps, alone=item.alone)})", parameters
    start = " - {start:Int64}" if span.axis.mode == "relative" else ""
    source = f"SELECT step, at{start} AS x, v FROM ({_values('name', rows, alone=item.alone)})"
    return f"SELECT step, x, v FROM ({source}) WHERE true{wanted}", parameters


def _values(name: str, rows: str, *, alone: bool) -> str:
    """SQL for step, v, and `at`: when the lowest rank said it."""
    by_rank = (
        f"SELECT step, {lookup('ranks')} AS r, argMax((value, reduce, partial, {lookup('worlds')}, time), "
        f"({lookup('orders')}, seq, row)) AS said FROM scalars WHERE {rows} AND name = {{{name}:String}} "
        "GROUP BY step, r"
    )
    whole = "" if alone else " HAVING n >= needed"
    return (
        "SELECT step, count() AS n, argMin(said.2, r) AS how, max(if(said.3, said.4, 0)) AS needed, "
        "argMin(said.5, r) AS at, multiIf(n = 1, any(said.1), how = 'sum', sum(said.1), how = 'min', min(said.1), "
        f"how = 'max', max(said.1), sum(said.1) / n) AS v FROM ({by_rank}) GROUP BY step{whole}"
    )


def _before(span: Span) -> Span:
    """What smoothing reads: what lies 8 tau back counts for less than 0.04 %."""
    return Span(None if span.start is None else span.start - 8 * (span.tau or 0), span.stop, 1, axis=span.axis)


def _smoothed(source: str, span: Span, exponent: int | None, of: Sequence[str] = ()) -> str:
    """SQL for the decayed mean at the last value of each bucket, of each line apart that the columns `of` tell."""
    tau, keys = (span.tau or 1.0) * span.axis.unit, ", ".join([*of, "bucket"])
    lines = f"PARTITION BY {', '.join(of)} " if of else ""
    last = f"argMax(s, {_order(span)}) AS smooth"
    return (
        f"SELECT {', '.join([*of, ''])}{span.axis.bucket('x', exponent)} AS bucket, {last} FROM (SELECT *, "
        f"exponentialTimeDecayedAvg({tau!r})(v, x) OVER ({lines}ORDER BY x ASC, step ASC) AS s "
        f"FROM ({source}) WHERE isFinite(v)) GROUP BY {keys} ORDER BY {keys}"
    )


def _columns(rows: pa.Table, span: Span, exponent: int | None, trend: pa.Table | None) -> Columns:
    column = {name: rows[name].to_numpy() for name in ("first", "low", "high", "last", "total", "number", "points")}
    number, points = column["number"], column["points"]
    x = span.axis.start(rows["bucket"].to_numpy(), exponent)
    none = number == 0
    with np.errstate(all="ignore"):
        mean = column["total"] / number
    smooth = np.full(len(x), np.nan)
    if trend is not None and trend.num_rows:
        at = span.axis.start(trend["bucket"].to_numpy(), exponent)
        place = np.minimum(np.searchsorted(at, x), len(at) - 1)
        smooth = np.where(at[place] == x, trend["smooth"].to_numpy()[place], np.nan)
    return {
        "x": x,
        "first": column["first"],
        "min": np.where(none, np.nan, column["low"]),
        "max": np.where(none, np.nan, column["high"]),
        "last": column["last"],
        "mean": mean,
        "smooth": smooth,
        "count": number.astype(np.uint32),
        "nonfinite": (points - number).astype(np.uint32),
    }


def _answer(items: Sequence[Item], parts: Sequence[Columns], axis: Axis, exponent: int | None, *, raw: bool) -> Answer:
    grid = np.unique(np.concatenate([np.zeros(0, np.int64), *(part["x"] for part in parts)]))
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
