"""What a chart draws: few points of a long series that keep every spike, and histograms over steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchtrack.api.streams import Floats, Ints
from torchtrack.api.tensors import flat_buckets
from torchtrack.histogram import NUM_BUCKETS


@dataclass(frozen=True)
class Heatmap:
    """Histograms over steps. Adjacent samples that share a column are added exactly."""

    first_step: Ints
    """The first sampled step of each column."""
    last_step: Ints
    """The last one."""
    counts: npt.NDArray[np.uint64]
    """One row a column of the chart, 328 buckets each."""


def _starts(size: int, most: int) -> Ints:
    """Where each of at most `most` about equal stretches of `size` things begins."""
    columns = min(size, most)
    return np.arange(columns) * size // max(columns, 1)


def series(rows: pa.Table, max_points: int) -> pa.Table:
    """A history of one metric (its last column) in at most `max_points` buckets of steps.

    min, max and mean are over finite values (null if there are none); the others are counted in `nonfinite`.
    """
    rows = rows.filter(rows.column(-1).is_valid())
    step, value = rows.column("step").to_numpy(), rows.column(-1).to_numpy()
    leads = np.flatnonzero(np.diff(step, prepend=step[:1] - 1))
    starts = leads[_starts(len(leads), max_points)]
    names = ["step", "last_step", "min", "max", "mean", "count", "nonfinite"]
    if not len(starts):
        kinds = [pa.int64()] * 2 + [pa.float64()] * 3 + [pa.int64()] * 2
        return pa.schema(list(zip(names, kinds, strict=True))).empty_table()
    stops = np.append(starts[1:], len(step))
    finite = np.isfinite(value)
    number = np.add.reduceat(finite.astype(np.int64), starts)
    none = number == 0
    low = np.minimum.reduceat(np.where(finite, value, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, value, -np.inf), starts)
    with np.errstate(over="ignore"):
        mean = np.add.reduceat(np.where(finite, value, 0.0), starts) / np.maximum(number, 1)
    columns: list[Any] = [pa.array(step[starts]), pa.array(step[stops - 1])]
    columns += [pa.array(part, mask=none) for part in (low, high, mean)]
    columns += [pa.array(number), pa.array(stops - starts - number)]
    return pa.table(columns, names=names)


def heatmap(rows: pa.Table, max_columns: int) -> Heatmap:
    """The histograms of tensor rows (ordered by step) in at most `max_columns` columns."""
    step: Ints = rows.column("step").to_numpy()
    steps = np.unique(step)
    starts = _starts(len(steps), max_columns)
    counts = np.zeros((len(starts), NUM_BUCKETS), np.uint64)
    column = np.searchsorted(steps[starts], step, side="right") - 1
    row, bucket, count = flat_buckets(rows)
    np.add.at(counts, (column[row], bucket), count)
    return Heatmap(steps[starts], steps[np.append(starts[1:], len(steps)) - 1] if len(steps) else steps, counts)


def finite(values: Floats) -> Floats:
    """The finite ones."""
    kept: Floats = values[np.isfinite(values)]
    return kept
