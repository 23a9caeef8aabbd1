"""Tensor statistics over steps as maps: a colour for each layer and step, histograms that add exactly.

A row that counted the whole tensor, alone for its sample, counts as it stands; a first query proves that there are no
others, and only the columns that are needed are fetched. Where ranks wrote parts, or the same sample twice,
`Run.tensors` says what counts. Either way the same code pools what it is given: an engine that groups a million rows
into a million cells takes ten times as long as one that hands them over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchtrack.api.run import Run
from torchtrack.api.tensors import flat_buckets, one_stage
from torchtrack.histogram import NUM_BUCKETS
from torchtrack.server.answers import Answer
from torchtrack.server.axes import STEPS
from torchtrack.server.globs import glob_pattern
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import Placed, begins, lookup, several_attempts, shown

Stat = Literal["norm", "rms", "mean", "absmax", "zeros", "nonfinite"]
Norm = Literal["abs", "median"]
Pool = Literal["max", "mean"]
_FINITE: Final = "greatest(count - nans - pos_infs - neg_infs, 1)"
_STATS: Final[dict[str, str]] = {
    "norm": "sqrt(sum_sq)",
    "rms": f"sqrt(sum_sq / {_FINITE})",
    "mean": f"sum / {_FINITE}",
    "absmax": "greatest(abs(min), abs(max))",
    "zeros": "zeros / greatest(count, 1)",
    "nonfinite": "toFloat64(nans + pos_infs + neg_infs)",
}
NONFINITE, MISSING, POOLED = 1, 2, 4
"""Flags of a cell."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """Which tensors over which steps (half-open), in at most so many columns."""

    kind: str
    name: str = "*"
    stage: str | None = None
    start: int | None = None
    stop: int | None = None
    pixels: int = 500


MOST_ROWS: Final = 4_000_000
"""Rows that are fetched at once, so that memory does not grow with the run."""


MOST_LOTS: Final = 8
"""Ways in which tensors are hidden that the engine tells apart; if there are more, `Run.tensors` does."""


@dataclass(frozen=True)
class _Rows:
    """The rows of some tensors of a run that are not hidden, as far as the store can tell."""

    where: str
    parameters: dict[str, Any]
    told: bool
    """Whether it can."""


def _rows(store: MetricsStore, window: Window, streams: Sequence[Placed]) -> _Rows:
    wanted = "kind = {kind:String}"
    if window.name != "*":
        wanted += " AND (name = {name:String} OR match(name, {pattern:String}))"
    begin = begins(store, streams) if several_attempts(streams) and window.kind != "logged" else None
    about = {"kind": window.kind, "name": window.name, "pattern": glob_pattern(window.name)}
    seen = shown(store, "tensors", [streams], wanted, begin, **about)
    parts = [seen.sql]
    if window.stage is not None:
        parts.append("stage = {stage:String}")
    if window.start is not None:
        parts.append(f"step >= {int(window.start)}")
    if window.stop is not None:
        parts.append(f"step < {int(window.stop)}")
    parameters = {**seen.parameters, "stage": window.stage or ""}
    return _Rows("FROM tensors WHERE " + " AND ".join(parts), parameters, seen.lots <= MOST_LOTS)


@dataclass(frozen=True)
class _Survey:
    """What there is to draw: sorted names, steps, and whether rows count just as they stand.

    They do if each tells of a whole tensor, a tensor is written by one rank, a sample has one step on all ranks, and no
    (attempt, sample) comes twice.
    """

    names: list[str]
    low: int
    high: int
    rows: int
    plain: bool
    pixels: int

    @property
    def exponent(self) -> int:
        """Columns are 2 to this steps wide."""
        return STEPS.exponent(self.low, self.high, self.pixels)

    @property
    def columns(self) -> int:
        """How many columns there are from the first to the last, with those in which nothing is."""
        return (self.high >> self.exponent) - (self.low >> self.exponent) + 1

    def column(self, step: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The column of a step."""
        return (step >> self.exponent) - (self.low >> self.exponent)

    def starts(self, columns: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """The first step of columns."""
        starts: npt.NDArray[np.int64] = (columns + (self.low >> self.exponent)) << self.exponent
        return starts

    def windows(self, most: int) -> Iterator[tuple[int, int]]:
        """Steps, half-open, that end where columns do, of about so many rows each."""
        first, width = self.low >> self.exponent, max(1, most * self.columns // max(self.rows, 1))
        for start in range(first, first + self.columns, width):
            yield start << self.exponent, min(start + width, first + self.columns) << self.exponent


def _survey(store: MetricsStore, window: Window, streams: Sequence[Placed], seen: _Rows) -> _Survey:
    where, parameters = seen.where, seen.parameters
    attempt = f"{lookup('attempts')}, " if len({one.attempt for one in streams}) > 1 else ""
    several = len({one.rank for one in streams}) > 1
    ranks = f"uniqExact({lookup('ranks')})" if several else "1"
    rows = store.query(
        f"SELECT name, min(step) AS low, max(step) AS high, count() AS number, uniqExact({attempt}sample) AS samples, "
        f"countIf(count != numel) AS parts, {ranks} AS ranks {where} GROUP BY name",
        **parameters,
    ).to_pylist()
    if not rows:
        return _Survey([], 0, 0, 0, plain=True, pixels=window.pixels)
    plain = seen.told and all(
        row["number"] == row["samples"] and not row["parts"] and row["ranks"] == 1 for row in rows
    )
    if plain and several:
        same = f"uniqExact({attempt}sample) = uniqExact({attempt}sample, step)"
        plain = bool(store.query(f"SELECT {same} AS one {where}", **parameters)["one"].to_pylist()[0])
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    number = sum(row["number"] for row in rows)
    return _Survey(sorted(row["name"] for row in rows), low, high, number, plain, window.pixels)


def _pieces(store: MetricsStore, seen: _Rows, survey: _Survey, columns: str, most: int) -> Iterator[pa.Table]:
    """Columns of the rows that count as they stand, about so many rows at a time."""
    for start, stop in survey.windows(most):
        inside = "" if survey.rows <= most else f" AND step >= {start} AND step < {stop}"
        yield store.query(f"SELECT {columns} {seen.where}{inside}", **seen.parameters)
        if not inside:
            return


def heatmap(
    store: MetricsStore, run: Run, streams: Sequence[Placed], window: Window, stat: Stat, *, norm: Norm, pool: Pool
) -> Answer:
    """One statistic of each tensor over steps.

    Columns of the answer: `x` (f64, first step of each column), `cells` (f4, row by row, NaN where nothing was),
    `flags` (u1: 1 not finite, 2 missing, 4 pooled from several samples). The header names the rows, in the order of
    the model's modules.
    """
    seen = _rows(store, window, streams)
    survey = _survey(store, window, streams, seen)
    survey = replace(survey, names=in_model_order(run, survey.names))
    if survey.plain:
        columns = f"name, step, {_STATS[stat]} AS value, nans + pos_infs + neg_infs > 0 AS bad"
        pieces = _pieces(store, seen, survey, columns, MOST_ROWS)
    else:
        pieces = iter([_valued(_exact(run, window), stat)])
    cells = _Cells(survey, pool)
    for piece in pieces:
        cells.add(piece)
    return cells.answer(norm)


class _Cells:
    """A map that is filled piece by piece; what falls into one cell must be in one piece."""

    def __init__(self, survey: _Survey, pool: Pool) -> None:
        self._survey = survey
        self._pool = pool
        self._place = {name: at for at, name in enumerate(survey.names)}
        size = len(survey.names) * survey.columns
        self._value = np.full(size, np.nan)
        self._flags = np.full(size, MISSING, np.uint8)

    def add(self, rows: pa.Table) -> None:
        """Rows of name, step, value, bad."""
        if not rows.num_rows:
            return
        name = rows["name"].unify_dictionaries().combine_chunks()
        name = name if pa.types.is_dictionary(name.type) else name.dictionary_encode()
        place = np.array([self._place.get(each, -1) for each in name.dictionary.to_pylist()], np.int64)
        row, column = place[name.indices.to_numpy()], self._survey.column(rows["step"].to_numpy())
        value, bad = rows["value"].to_numpy(), rows["bad"].to_numpy().astype(np.bool_)
        known = (
            (row >= 0) & (column >= 0) & (column < self._survey.columns)
        )  # what came since the survey may lie outside
        if not known.all():
            row, column, value, bad = row[known], column[known], value[known], bad[known]
        cell = row * self._survey.columns + column
        samples = np.bincount(cell, minlength=len(self._value))
        there = samples > 0
        self._flags[there] = (samples[there] > 1) * np.uint8(POOLED)
        self._flags[cell[bad]] |= NONFINITE
        if samples.max(initial=0) <= 1:
            self._value[cell] = value
        elif self._pool == "mean":
            with np.errstate(all="ignore"):
                self._value[there] = np.bincount(cell, value, len(self._value))[there] / samples[there]
        else:
            self._value[there] = _furthest(cell, value, len(self._value))[there]

    def answer(self, norm: Norm) -> Answer:
        """The map, without columns in which nothing is."""
        shape = len(self._survey.names), self._survey.columns
        cells, flags = self._value.reshape(shape), self._flags.reshape(shape)
        there = np.flatnonzero((flags != MISSING).any(axis=0))
        if len(there) < shape[1]:
            cells, flags = cells[:, there], flags[:, there]
        cells = _against_median(cells) if norm == "median" else cells
        return _map(self._survey.names, self._survey.starts(there), cells, flags, 1 << self._survey.exponent)


def _furthest(cell: npt.NDArray[np.int64], value: Floats, size: int) -> Floats:
    """The value furthest from 0 of each cell; NaN only where there is no other."""
    high, low = np.full(size, np.nan), np.full(size, np.nan)
    np.fmax.at(high, cell, value)
    np.fmin.at(low, cell, value)
    furthest: Floats = np.where(np.abs(low) > np.abs(high), low, high)
    return furthest


def in_model_order(run: Run, names: Sequence[str]) -> list[str]:
    """Names of tensors and modules as the model lists them; those that it does not list come last, by name."""
    places: dict[str, int] = {}
    wanted = set(names)
    for event in run.events("model"):
        for module in event.data.get("modules", ()):
            path = str(module.get("name", ""))
            places.setdefault(path, len(places))
            for parameter in module.get("parameters", ()):
                places.setdefault(f"{path}.{parameter.get('name')}".lstrip("."), len(places))
        if wanted <= places.keys():  # each rank tells its part, most of them the same
            break
    return sorted(names, key=lambda name: (places.get(name, len(places)), name))


def _exact(run: Run, window: Window) -> pa.Table:
    """The rows that count, every element once."""
    return one_stage(run.tensors(window.kind, window.name, window.start, window.stop), window.stage)


def _valued(rows: pa.Table, stat: Stat) -> pa.Table:
    """Name, step, value, bad of rows that were combined first: what `_STATS` says in SQL."""
    column = {
        name: rows.column(name).to_numpy()
        for name in ("count", "nans", "pos_infs", "neg_infs", "sum", "sum_sq", "zeros", "min", "max")
    }
    bad = column["nans"] + column["pos_infs"] + column["neg_infs"]
    finite = np.maximum(column["count"] - bad, 1)
    value = {
        "norm": lambda: np.sqrt(column["sum_sq"]),
        "rms": lambda: np.sqrt(column["sum_sq"] / finite),
        "mean": lambda: column["sum"] / finite,
        "absmax": lambda: np.maximum(np.abs(column["min"]), np.abs(column["max"])),
        "zeros": lambda: column["zeros"] / np.maximum(column["count"], 1),
        "nonfinite": lambda: bad.astype(np.float64),
    }[stat]()
    names = rows["name"].cast(pa.string())
    return pa.table({"name": names, "step": rows["step"], "value": pa.array(value), "bad": pa.array(bad > 0)})


def _map(
    names: Sequence[str], x: npt.NDArray[np.int64], cells: Floats, flags: npt.NDArray[np.uint8], width: int
) -> Answer:
    def table() -> pa.Table:
        name = pa.array(np.repeat(np.arange(len(names), dtype=np.int32), len(x)))
        return pa.table(
            {
                "name": pa.DictionaryArray.from_arrays(name, pa.array(list(names), pa.string())),
                "step": pa.array(np.tile(x, len(names)), pa.int64()),
                "value": pa.array(cells.ravel()),
                "flags": pa.array(flags.ravel()),
            }
        )

    columns: dict[str, npt.NDArray[Any]] = {
        "x": x.astype(np.float64),
        "cells": cells.astype(np.float32).ravel(),
        "flags": flags.ravel(),
    }
    return Answer(columns, table, {"rows": list(names), "bucket": width, "shape": list(cells.shape)})


def _against_median(cells: Floats) -> Floats:
    """Octaves above each row's own median."""
    with np.errstate(all="ignore"):
        median = np.array(
            [[float(np.median(row[np.isfinite(row)])) if np.isfinite(row).any() else math.nan] for row in cells]
        )
        result: Floats = np.log2(np.abs(cells) / np.abs(median.reshape(len(cells), 1)))
    return result


def histogram(store: MetricsStore, run: Run, streams: Sequence[Placed], window: Window) -> Answer:
    """The histogram of all tensors that match, added exactly, over steps.

    Columns of the answer: `x` (f64), `counts` (u8, 328 buckets a column of the chart), `edges` are those of
    `torchtrack.histogram`.
    """
    seen = _rows(store, window, streams)
    survey = _survey(store, window, streams, seen)
    rows = _added(store, seen, survey) if survey.plain else _exact(run, window)
    column = survey.column(rows["step"].to_numpy())
    known = (column >= 0) & (column < survey.columns)  # what came since the survey may lie outside
    rows, column = rows.filter(pa.array(known)), column[known]
    cells = np.zeros(survey.columns * NUM_BUCKETS if survey.rows else 0, np.uint64)
    there = np.zeros(survey.columns, np.bool_)
    there[column] = True
    row, bucket, count = flat_buckets(rows)
    np.add.at(cells, column[row] * NUM_BUCKETS + bucket, count)
    kept = np.flatnonzero(there)
    return _counts(survey.starts(kept), cells.reshape(-1, NUM_BUCKETS)[kept], 1 << survey.exponent)


def _added(store: MetricsStore, seen: _Rows, survey: _Survey) -> pa.Table:
    """The rows that count as they stand, added by the engine: a row a column of the chart."""
    step = f"bitShiftLeft(bitShiftRight(step, {survey.exponent}), {survey.exponent})"
    cells = (
        f"SELECT {step} AS step, bucket, sum(number) AS number FROM (SELECT step, buckets, counts {seen.where}) "
        "LEFT ARRAY JOIN buckets AS bucket, counts AS number GROUP BY step, bucket"
    )
    sql = f"SELECT step, groupArray(bucket) AS buckets, groupArray(number) AS counts FROM ({cells}) GROUP BY step"
    return store.query(sql, **seen.parameters)


def _counts(x: npt.NDArray[np.int64], cells: npt.NDArray[np.uint64], width: int) -> Answer:

    def table() -> pa.Table:
        column, bucket = np.nonzero(cells)
        step = pa.array(x[column], pa.int64())
        return pa.table({"step": step, "bucket": pa.array(bucket), "count": pa.array(cells[column, bucket])})

    columns: dict[str, npt.NDArray[Any]] = {"x": x.astype(np.float64), "counts": cells.ravel()}
    return Answer(columns, table, {"bucket": width, "shape": list(cells.shape)})
