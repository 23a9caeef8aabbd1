"""Counted tensors as rows of the `tensors` table, without Python for each bucket."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from torchtrack import records
from torchtrack.histogram import NUM_BUCKETS

SUMS: Final = NUM_BUCKETS + 2
"""Columns merged by SUM: the bucket counts, sum, sum of squares."""
MAXES: Final = 2
"""Columns merged by MAX: max, -min."""
_KNOWN: Final = 8
"""So many sets of rows are remembered."""
_NEG_INF, _ZERO, _POS_INF, _NAN = 0, 163, 326, 327


@dataclass(slots=True)
class Counted:
    """What was counted of some tensors at one sample.

    Attributes:
        keys: (kind, name) a row.
        sums: float64 [rows, SUMS].
        maxes: float64 [rows, MAXES].
        numels: elements of each whole tensor.
        covers: the `covers` column of each row.
        stages: the `stage` column of each row.
        planned: whether the row is this rank's share under the plan.
        ranks: how many ranks are merged.
    """

    keys: list[tuple[str, str]]
    sums: np.ndarray[Any, Any]
    maxes: np.ndarray[Any, Any]
    numels: list[int]
    covers: list[str]
    stages: list[str]
    planned: list[bool]
    ranks: int = 1

    @classmethod
    def joined(cls, parts: Sequence[Counted]) -> Counted:
        """The rows of several, one after the other."""
        return cls(
            [key for part in parts for key in part.keys],
            np.concatenate([part.sums for part in parts]) if parts else np.zeros((0, SUMS)),
            np.concatenate([part.maxes for part in parts]) if parts else np.zeros((0, MAXES)),
            [numel for part in parts for numel in part.numels],
            [covers for part in parts for covers in part.covers],
            [stage for part in parts for stage in part.stages],
            [planned for part in parts for planned in part.planned],
            max((part.ranks for part in parts), default=1),
        )

    def added_up(self) -> Counted:
        """With one row a key: rows of the same are pieces of it (an activation of several micro-batches)."""
        first = {key: i for i, key in reversed(list(enumerate(self.keys)))}
        if len(first) == len(self.keys):
            return self
        keep = sorted(first.values())
        place = {self.keys[i]: row for row, i in enumerate(keep)}
        into = [place[key] for key in self.keys]
        result = self.select(keep)
        result.sums[:], result.maxes[:] = 0.0, -np.inf
        np.add.at(result.sums, into, self.sums)
        np.maximum.at(result.maxes, into, self.maxes)
        return result

    def select(self, rows: Sequence[int]) -> Counted:
        """Only these rows."""
        return Counted(
            [self.keys[i] for i in rows],
            self.sums[list(rows)],
            self.maxes[list(rows)],
            [self.numels[i] for i in rows],
            [self.covers[i] for i in rows],
            [self.stages[i] for i in rows],
            [self.planned[i] for i in rows],
            self.ranks,
        )

    def norm(self, kind: str) -> float | None:
        """The global norm over the rows of a kind, NaN or Inf if one is; None unless each was counted whole."""
        rows = [i for i, key in enumerate(self.keys) if key[0] == kind]
        return self._norm(rows) if rows and not any(self.covers[i] for i in rows) else None

    def update_ratio(self) -> float | None:
        """Norm of the updates over the norm of the same parameters, of all that were counted whole; None without."""
        updates = {name: i for i, (kind, name) in enumerate(self.keys) if kind == "update" and self._is_whole(i)}
        if not updates:
            return None
        parameters = {name: i for i, (kind, name) in enumerate(self.keys) if kind == "parameter" and name in updates}
        both = [(updates[name], i) for name, i in parameters.items() if self._is_whole(i)]
        below = self._norm([i for _, i in both])
        return self._norm([i for i, _ in both]) / below if below else None

    def _is_whole(self, row: int) -> bool:
        return not self.covers[row] and 0 < self.numels[row] == self.sums[row, :NUM_BUCKETS].sum()

    def _norm(self, rows: Sequence[int]) -> float:
        sums = self.sums[list(rows)]
        if sums[:, _NAN].any():
            return float("nan")
        if sums[:, [_NEG_INF, _POS_INF]].any():
            return float("inf")
        return float(np.sqrt(sums[:, NUM_BUCKETS + 1].sum()))


def tensors_batch(counted: Counted, sample: int, step: int, time_ns: int) -> pa.RecordBatch | None:
    """The rows of the `tensors` table; None if no element was counted. Rows that counted nothing are left out."""
    counts = counted.sums[:, :NUM_BUCKETS]
    totals = counts.sum(1)
    keep = np.flatnonzero(totals > 0)
    if not len(keep):
        return None
    part = counted if len(keep) == len(totals) else counted.select(keep.tolist())
    counts = part.sums[:, :NUM_BUCKETS]
    n = len(keep)
    labels = _labels(tuple(part.keys), tuple(part.stages))
    row, bucket = np.nonzero(counts)
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))]).astype(np.int32))
    integers = counts.astype(np.int64)
    columns = {
        "sample": np.full(n, sample),
        "step": np.full(n, step),
        "time": pa.array(np.full(n, time_ns // 1000)).view(pa.timestamp("us", tz="UTC")),
        "kind": labels[0],
        "name": labels[1],
        "stage": labels[2],
        "ranks": np.full(n, part.ranks, np.int32),
        "numel": part.numels,
        "covers": part.covers,
        "count": integers.sum(1),
        "sum": part.sums[:, NUM_BUCKETS],
        "sum_sq": part.sums[:, NUM_BUCKETS + 1],
        "min": -part.maxes[:, 1],
        "max": part.maxes[:, 0],
        "zeros": integers[:, _ZERO],
        "nans": integers[:, _NAN],
        "pos_infs": integers[:, _POS_INF],
        "neg_infs": integers[:, _NEG_INF],
        "buckets": pa.ListArray.from_arrays(offsets, pa.array(bucket.astype(np.uint16))),
        "counts": pa.ListArray.from_arrays(offsets, pa.array(counts[row, bucket].astype(np.uint64))),
    }
    arrays = [_array(columns[field.name], field.type) for field in records.TENSORS]
    return pa.RecordBatch.from_arrays(arrays, schema=records.TENSORS)


@functools.lru_cache(_KNOWN)
def _labels(keys: tuple[tuple[str, str], ...], stages: tuple[str, ...]) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Kinds, names and stages as columns: as a rule those of the sample before."""
    columns = {"kind": [kind for kind, _ in keys], "name": [name for _, name in keys], "stage": list(stages)}
    kinds, names, several = (_array(values, records.TENSORS.field(name).type) for name, values in columns.items())
    return kinds, names, several


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_dictionary(kind):
        encoded = pa.array(values, pa.string()).dictionary_encode()
        return encoded.cast(kind)
    return pa.array(values, kind)
