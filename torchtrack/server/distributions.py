"""Tensor statistics over steps as maps, in SQL: a colour for each layer and step, histograms that add exactly.

A row that counted the whole tensor, alone for its sample, counts as it stands; a first query proves that there are no
others. Where ranks wrote parts, or the same sample twice, `Run.tensors` says what counts, and the same pooling is done
on its rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchtrack.api.run import Run
from torchtrack.api.tensors import flat_buckets, one_stage
from torchtrack.histogram import NUM_BUCKETS
from torchtrack.server.answers import Answer
from torchtrack.server.axes import bucket_width
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import VISIBLE, Placed, arrays, lookup

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


def _where(window: Window) -> str:
    parts = [VISIBLE, "kind = {kind:String}", "(name = {name:String} OR match(name, {pattern:String}))"]
    if window.stage is not None:
        parts.append("stage = {stage:String}")
    if window.start is not None:
        parts.append(f"step >= {int(window.start)}")
    if window.stop is not None:
        parts.append(f"step < {int(window.stop)}")
    return "FROM tensors WHERE " + " AND ".join(parts)


def _parameters(window: Window, streams: Sequence[Placed]) -> dict[str, Any]:
    return {
        "kind": window.kind,
        "name": window.name,
        "pattern": glob_pattern(window.name),
        "stage": window.stage or "",
        **arrays(streams),
    }


def glob_pattern(glob: str) -> str:
    """A regular expression for a pattern with `*`, `?` and `[...]` as fnmatch has them, in the engine's syntax."""
    parts, at = [], 0
    while at < len(glob):
        end = glob.find("]", at + 2 + glob.startswith("!", at + 1)) if glob[at] == "[" else -1
        if end > 0:
            parts.append(_one_of(glob[at + 1 : end]))
            at = end + 1
            continue
        parts.append({"*": ".*", "?": "."}.get(glob[at]) or _literal(glob[at]))
        at += 1
    return "(?s)^" + "".join(parts) + "$"


def _one_of(inside: str) -> str:
    """What stands in brackets; a range that runs backwards holds nothing."""
    negated, inside = inside.startswith("!"), inside.removeprefix("!")
    spans, at = [], 0
    while at < len(inside):
        low, is_range = inside[at], inside[at + 1 : at + 2] == "-" and at + 2 < len(inside)
        high = inside[at + 2] if is_range else low
        at += 3 if is_range else 1
        if low <= high:
            spans.append(f"{_literal(low)}-{_literal(high)}" if is_range else _literal(low))
    if not spans:
        return "." if negated else "[^\\x{0}-\\x{10FFFF}]"
    return f"[{'^' if negated else ''}{''.join(spans)}]"


def _literal(character: str) -> str:
    return character if character.isalnum() or character == "_" else f"\\x{{{ord(character):x}}}"


_BUCKET: Final = "toInt64(floor(step / {width:Int64})) AS bucket"


def _survey(store: MetricsStore, window: Window, parameters: dict[str, Any]) -> tuple[int | None, bool]:
    """The width of a column in steps, None if there are no rows; and whether the rows count just as they stand.

    They do if each tells of a whole tensor, a tensor is written by one rank, a sample has one step on all ranks, and no
    (attempt, sample) comes twice.
    """
    attempt = f"{_ATTEMPT}, " if len(set(parameters["attempts"])) > 1 else ""
    found = store.query(
        "SELECT min(first) AS low, max(final) AS high, sum(number) AS n, "
        "max(number > samples OR parts > 0 OR ranks > 1) AS odd FROM (SELECT name, min(step) AS first, "
        f"max(step) AS final, count() AS number, uniqExact({attempt}sample) AS samples, "
        f"countIf(count != numel) AS parts, uniqExact({lookup('ranks')}) AS ranks {_where(window)} GROUP BY name)",
        **parameters,
    ).to_pylist()[0]
    if not found["n"]:
        return None, True
    width = bucket_width(found["low"], found["high"], window.pixels)
    if found["odd"]:
        return width, False
    if len(set(parameters["ranks"])) == 1:
        return width, True
    steps = store.query(
        f"SELECT uniqExact({_ATTEMPT}, sample) = uniqExact({_ATTEMPT}, sample, step) AS one {_where(window)}",
        **parameters,
    )
    return width, bool(steps["one"].to_pylist()[0])


_ATTEMPT: Final = lookup("attempts")


def heatmap(
    store: MetricsStore, run: Run, streams: Sequence[Placed], window: Window, stat: Stat, *, norm: Norm, pool: Pool
) -> Answer:
    """One statistic of each tensor over steps.

    Columns of the answer: `x` (f64, first step of each column), `cells` (f4, row by row, NaN where nothing was),
    `flags` (u1: 1 not finite, 2 missing, 4 pooled from several samples). The header names the rows, sorted.
    """
    parameters = _parameters(window, streams)
    width, plain = _survey(store, window, parameters)
    if width is None:
        return _map([], np.zeros(0, np.int64), pa.table({}), 1, norm)
    aggregate = "argMax(v, abs(v))" if pool == "max" else "avg(v)"
    if not plain:
        rows = _pooled(_exact(run, window), stat, width, pool)
        return _map(sorted(rows["name"].unique().to_pylist()), np.unique(rows["bucket"].to_numpy()), rows, width, norm)
    rows = store.query(
        f"SELECT name, {_BUCKET}, {aggregate} AS value, count() AS samples, max(bad) AS bad "
        f"FROM (SELECT name, step, nans + pos_infs + neg_infs > 0 AS bad, "
        f"{_STATS[stat]} AS v {_where(window)}) GROUP BY name, bucket ORDER BY name, bucket",
        width=width,
        **parameters,
    )
    names = sorted(rows["name"].unique().to_pylist())
    return _map(names, np.unique(rows["bucket"].to_numpy()), rows, width, norm)


def _exact(run: Run, window: Window) -> pa.Table:
    """The rows that count, every element once."""
    return one_stage(run.tensors(window.kind, window.name, window.start, window.stop), window.stage)


def _pooled(rows: pa.Table, stat: Stat, width: int, pool: Pool) -> pa.Table:
    """The same as the query, of rows that were combined first."""
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
    cells: dict[tuple[str, int], list[int]] = {}
    for at, key in enumerate(zip(rows["name"].to_pylist(), (rows["step"].to_numpy() // width).tolist(), strict=True)):
        cells.setdefault(key, []).append(at)
    found = []
    for (name, bucket), places in sorted(cells.items()):
        values = value[places]
        chosen = values[np.argmax(np.abs(values))] if pool == "max" else values.mean()
        found.append((name, bucket, float(chosen), len(places), bool(bad[places].any())))
    columns = list(zip(*found, strict=True)) or [()] * 5
    kinds = [pa.string(), pa.int64(), pa.float64(), pa.int64(), pa.bool_()]
    names = ["name", "bucket", "value", "samples", "bad"]
    return pa.table([pa.array(c, k) for c, k in zip(columns, kinds, strict=True)], names=names)


def _map(names: Sequence[str], grid: npt.NDArray[np.int64], rows: pa.Table, width: int, norm: Norm) -> Answer:
    cells = np.full((len(names), len(grid)), np.nan)
    flags = np.full(cells.shape, MISSING, np.uint8)
    if rows.num_rows:
        encoded = rows["name"].combine_chunks()
        encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
        place = {name: at for at, name in enumerate(names)}
        row = np.array([place.get(name, -1) for name in encoded.dictionary.to_pylist()])[encoded.indices.to_numpy()]
        column = np.searchsorted(grid, rows["bucket"].to_numpy())
        cells[row, column] = rows["value"].to_numpy()
        bad = rows["bad"].to_numpy().astype(np.uint8)
        flags[row, column] = bad * NONFINITE + (rows["samples"].to_numpy() > 1) * np.uint8(POOLED)
    if norm == "median":
        cells = _against_median(cells)
    x = grid * width

    def table() -> pa.Table:
        name = pa.array(np.repeat(np.arange(len(names), dtype=np.int32), len(grid)))
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
    parameters = _parameters(window, streams)
    width, plain = _survey(store, window, parameters)
    if width is None:
        return _counts(np.zeros(0, np.int64), np.zeros((0, NUM_BUCKETS), np.uint64), 1)
    if plain:
        rows = store.query(
            f"SELECT {_BUCKET}, sumMap(buckets, counts) AS merged, merged.1 AS ids, merged.2 AS sums "
            f"{_where(window)} GROUP BY bucket ORDER BY bucket",
            width=width,
            **parameters,
        )
        grid, (ids, sums) = rows["bucket"].to_numpy(), (rows[name].combine_chunks() for name in ("ids", "sums"))
        row = np.repeat(np.arange(len(grid)), np.diff(ids.offsets.to_numpy()))
        bucket, count = ids.flatten().to_numpy(), sums.flatten().to_numpy()
    else:
        exact = _exact(run, window)
        at = exact["step"].to_numpy() // width
        grid = np.unique(at)
        owner, bucket, count = flat_buckets(exact)
        row = np.searchsorted(grid, at)[owner]
    cells = np.zeros((len(grid), NUM_BUCKETS), np.uint64)
    np.add.at(cells, (row, bucket), count)
    return _counts(grid, cells, width)


def _counts(grid: npt.NDArray[np.int64], cells: npt.NDArray[np.uint64], width: int) -> Answer:
    x = grid * width

    def table() -> pa.Table:
        column, bucket = np.nonzero(cells)
        step = pa.array(x[column], pa.int64())
        return pa.table({"step": step, "bucket": pa.array(bucket), "count": pa.array(cells[column, bucket])})

    columns: dict[str, npt.NDArray[Any]] = {"x": x.astype(np.float64), "counts": cells.ravel()}
    return Answer(columns, table, {"bucket": width, "shape": list(cells.shape)})
