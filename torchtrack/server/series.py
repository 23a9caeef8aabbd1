"""Long series as few points that keep every spike, in SQL: M4 on buckets that never move.

A bucket is 2^k steps wide and anchored at step 0, so points that arrive change the last bucket only. Each bucket keeps
the first, smallest, largest and last value, the mean of the finite ones, and how many there are of either kind.

Values mean what `Run.history` says they mean: combined over ranks, a later attempt hides an earlier one, of repeats the
last counts. Where a query finds that there is at most one value a step it has the answer in one pass; only where not,
values are combined first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchtrack.server.answers import Answer
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import VISIBLE, Placed, arrays, lookup

RAW_POINTS: Final = 2
"""A series of at most so many points a pixel is returned as it is."""
_M4: Final = """
    argMin(v, step) AS first, minOrNullIf(v, isFinite(v)) AS low, maxOrNullIf(v, isFinite(v)) AS high,
    argMax(v, step) AS last, avgOrNullIf(v, isFinite(v)) AS mean, countIf(isFinite(v)) AS number, count() AS total"""
VALUES: Final = ("first", "min", "max", "last", "mean", "smooth")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """One line of a chart."""

    run: str
    metric: str
    rank: int | Literal["mean"]
    streams: tuple[Placed, ...]

    @property
    def alone(self) -> bool:
        """Whether one rank's part of a value will do."""
        return self.rank != "mean"


@dataclass(frozen=True)
class Span:
    """The steps a chart shows: half-open, with so many pixels for them; smoothed over so many steps."""

    start: int | None
    stop: int | None
    pixels: int
    tau: float | None = None


def series(store: MetricsStore, items: Sequence[Item], span: Span) -> Answer:
    """The lines of a chart on one grid of steps.

    The answer's columns: `x` (f64, the first step of each bucket that any line has), then for the i-th line `first.i`,
    `min.i`, `max.i`, `last.i`, `mean.i`, `smooth.i` (f4, NaN where the line has nothing), `count.i` (finite values) and
    `nonfinite.i` (u4).
    """
    if not items:
        return _answer([], np.zeros(0, np.int64), [], 1, raw=True)
    low, high, points = _extent(store, items, span)
    raw = points <= RAW_POINTS * span.pixels
    width = 1 if raw else bucket_width(low, high, span.pixels)
    parts: list[dict[str, npt.NDArray[Any]]] = [{}] * len(items)
    for lot in _lots(items):
        for number, part in zip(lot, _lines(store, [items[i] for i in lot], span, width), strict=True):
            parts[number] = part
    grid = np.unique(np.concatenate([part["x"] for part in parts]))
    return _answer(items, grid, parts, width, raw=raw)


def _lots(items: Sequence[Item]) -> list[list[int]]:
    """The lines in as few queries as can be: in one query, each stream belongs to one set of streams."""
    lots: list[tuple[dict[int, tuple[Placed, ...]], list[int]]] = []
    for number, item in enumerate(items):
        fits = (
            lot for lot in lots if all(lot[0].get(one.stream, item.streams) == item.streams for one in item.streams)
        )
        lot = next(fits, None)
        if lot is None:
            lot = ({}, [])
            lots.append(lot)
        lot[0].update((one.stream, item.streams) for one in item.streams)
        lot[1].append(number)
    return [members for _, members in lots]


def bucket_width(low: int, high: int, pixels: int) -> int:
    """The smallest power of two that needs at most so many buckets for the steps from `low` to `high`."""
    width = 1
    while high // width - low // width + 1 > pixels:
        width *= 2
    return width


def _where(span: Span, *, before: float = 0) -> str:
    """SQL for the steps that are shown, and those before that smoothing needs."""
    start = "" if span.start is None else f" AND step >= {int(span.start - before)}"
    return start + ("" if span.stop is None else f" AND step < {int(span.stop)}")


def _extent(store: MetricsStore, items: Sequence[Item], span: Span) -> tuple[int, int, int]:
    """The first and last step there is of any line, and the points of the longest."""
    streams = list(dict.fromkeys(placed for item in items for placed in item.streams))
    found = store.query(
        f"SELECT stream, name, min(step) AS low, max(step) AS high, count() AS points FROM scalars "
        f"WHERE {VISIBLE} AND name IN {{names:Array(String)}}{_where(span)} GROUP BY stream, name",
        names=sorted({item.metric for item in items}),
        **arrays(streams),
    )
    if not found.num_rows:
        return 0, 0, 0
    return min(found["low"].to_pylist()), max(found["high"].to_pylist()), max(found["points"].to_pylist())


def _lines(store: MetricsStore, items: Sequence[Item], span: Span, width: int) -> list[dict[str, npt.NDArray[Any]]]:
    """Lines of which each stream belongs to one set of streams: one query, and one more for each that needs it."""
    sets = list(dict.fromkeys(item.streams for item in items))
    streams = [one for each in sets for one in each]
    rows = store.query(
        f"SELECT {lookup('sets')} AS owner, name, {_BUCKET} AS bucket, {_M4}, uniqExact(step) AS steps, "
        "countIf(partial) AS partials FROM (SELECT stream, name, step, value AS v, partial FROM scalars "
        f"WHERE {VISIBLE} AND name IN {{names:Array(String)}}{_where(span)}) "
        "GROUP BY owner, name, bucket ORDER BY owner, name, bucket",
        names=sorted({item.metric for item in items}),
        width=width,
        sets=[number for number, each in enumerate(sets) for _ in each],
        **arrays(streams),
    )
    names, owners = np.array(rows["name"].to_pylist(), object), rows["owner"].to_numpy()
    found = []
    for item in items:
        mine = rows.filter(pa.array((owners == sets.index(item.streams)) & (names == item.metric)))
        found.append(_line(store, item, span, width, mine))
    return found


def _line(store: MetricsStore, item: Item, span: Span, width: int, rows: pa.Table) -> dict[str, npt.NDArray[Any]]:
    parameters = {"name": item.metric, "width": width, **arrays(item.streams)}
    single = rows["total"].equals(rows["steps"]) and (item.alone or not any(rows["partials"].to_pylist()))
    if not single:
        source = _source(_where(span), single=False, alone=item.alone)
        rows = store.query(
            f"SELECT {_BUCKET} AS bucket, {_M4} FROM ({source}) GROUP BY bucket ORDER BY bucket", **parameters
        )
    line = _columns(rows, width)
    if span.tau:
        source = _source(_where(span, before=8 * span.tau), single=single, alone=item.alone)
        line["smooth"] = _smooth(store, source, line["x"], span.tau, parameters)
    return line


_FROM: Final = f"FROM scalars WHERE {VISIBLE} AND name = {{name:String}}"
_BUCKET: Final = "toInt64(floor(step / {width:Int64}))"


def _source(steps: str, *, single: bool, alone: bool) -> str:
    """SQL for one value a step, as `Run.history` has it."""
    if single:
        return f"SELECT step, value AS v {_FROM}{steps}"
    by_rank = (
        f"SELECT step, {lookup('ranks')} AS r, argMax((value, reduce, partial, {lookup('worlds')}), "
        f"({lookup('orders')}, seq, row)) AS said {_FROM}{steps} GROUP BY step, r"
    )
    whole = "" if alone else " HAVING n >= needed"
    return (
        "SELECT step, count() AS n, argMin(said.2, r) AS how, max(if(said.3, said.4, 0)) AS needed, "
        "multiIf(n = 1, any(said.1), how = 'sum', sum(said.1), how = 'min', min(said.1), how = 'max', max(said.1), "
        f"sum(said.1) / n) AS v FROM ({by_rank}) GROUP BY step{whole}"
    )


def _smooth(
    store: MetricsStore, source: str, x: npt.NDArray[np.int64], tau: float, parameters: dict[str, Any]
) -> Floats:
    """The time-decayed mean at the last step of each bucket; what lies 8 tau back counts for less than 0.04 %."""
    rows = store.query(
        f"SELECT {_BUCKET} AS bucket, argMax(s, step) AS smooth FROM (SELECT step, "
        f"exponentialTimeDecayedAvg({float(tau)!r})(v, step) OVER (ORDER BY step ASC) AS s "
        f"FROM ({source}) WHERE isFinite(v)) GROUP BY bucket",
        **parameters,
    )
    known = dict(
        zip((rows["bucket"].to_numpy() * parameters["width"]).tolist(), rows["smooth"].to_pylist(), strict=True)
    )
    return np.array([known.get(at, np.nan) for at in x.tolist()], np.float64)


def _columns(rows: pa.Table, width: int) -> dict[str, npt.NDArray[Any]]:
    number, total = rows["number"].to_numpy(), rows["total"].to_numpy()
    x = rows["bucket"].to_numpy() * width
    return {
        "x": x,
        "first": rows["first"].to_numpy(),
        "min": _floats(rows["low"]),
        "max": _floats(rows["high"]),
        "last": rows["last"].to_numpy(),
        "mean": _floats(rows["mean"]),
        "smooth": np.full(len(x), np.nan),
        "count": number.astype(np.uint32),
        "nonfinite": (total - number).astype(np.uint32),
    }


def _floats(column: pa.ChunkedArray) -> Floats:
    values: Floats = column.combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _answer(
    items: Sequence[Item],
    grid: npt.NDArray[np.int64],
    parts: Sequence[dict[str, npt.NDArray[Any]]],
    width: int,
    *,
    raw: bool,
) -> Answer:
    columns: dict[str, npt.NDArray[Any]] = {"x": grid.astype(np.float64)}
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
    header = {
        "items": [{"run": item.run, "metric": item.metric, "rank": item.rank} for item in items],
        "bucket": width,
        "raw": raw,
        "cursor": max((int(part["x"][-1]) for part in parts if len(part["x"])), default=None),
    }

    def table() -> pa.Table:
        lines = [_long(item, part) for item, part in zip(items, parts, strict=True)]
        return pa.concat_tables([_TABLE.empty_table(), *lines])

    return Answer(columns, table, header)


_TABLE: Final = pa.schema(
    [
        ("run", pa.string()),
        ("metric", pa.string()),
        ("rank", pa.string()),
        ("step", pa.int64()),
        *((name, pa.float64()) for name in VALUES),
        ("count", pa.uint32()),
        ("nonfinite", pa.uint32()),
    ]
)


def _long(item: Item, part: dict[str, npt.NDArray[Any]]) -> pa.Table:
    same = [[str(value)] * len(part["x"]) for value in (item.run, item.metric, item.rank)]
    columns = [*same, part["x"], *(part[name] for name in (*VALUES, "count", "nonfinite"))]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, _TABLE, strict=True)], schema=_TABLE)
