"""Rows of plain numbers: how the training thread packs them, and how they become Arrow columns again.

A row is one struct in a bytearray: order, step, time, then one double a metric. Rows with the same metric names and
types share a `Layout`, so a whole buffer is split into columns by numpy, without Python for each value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from torchtrack import records

VALUES_PER_FRAME: Final = 1 << 18
_HEAD: Final = 3  # order, step, time
_LARGEST_EXACT_INT: Final = 1 << 53
_EXACT: Final = frozenset(
    {
        float,
        bool,
        np.float64,
        np.float32,
        np.float16,
        np.bool_,
        np.int8,
        np.int16,
        np.int32,
        np.uint8,
        np.uint16,
        np.uint32,
    }
)
_INTEGERS: Final = frozenset({int, np.int64, np.uint64})
PLAIN: Final = _EXACT | _INTEGERS
"""Types whose values are float64 values already; integers only up to 2^53 in size."""


class Layout:
    """The names of a row and the buffer of the rows that have them."""

    __slots__ = ("buffer", "integers", "names", "pack", "partial", "reduce", "row_bytes")

    def __init__(
        self, names: Sequence[str], reduce: str, integers: Sequence[int] = (), *, partial: bool = False
    ) -> None:
        packer = struct.Struct(f"={_HEAD}q{len(names)}d")
        self.names = tuple(names)
        self.reduce = reduce
        self.partial = partial
        self.integers = tuple(integers)
        self.pack: Callable[..., bytes] = packer.pack
        self.row_bytes = packer.size
        self.buffer = bytearray()

    @classmethod
    def of(cls, metrics: Mapping[str, Any], reduce: str) -> Layout | None:
        """The layout of a row, or None if it holds anything but plain numbers."""
        kinds = [type(value) for value in metrics.values()]
        if not kinds or not PLAIN.issuperset(kinds) or not all(type(name) is str for name in metrics):
            return None
        return cls(list(metrics), reduce, [i for i, kind in enumerate(kinds) if kind in _INTEGERS])


def is_exact(value: Any) -> bool:
    """Whether float64 holds this integer exactly."""
    return bool(-_LARGEST_EXACT_INT <= value <= _LARGEST_EXACT_INT)


Rows = list[tuple[Layout, np.ndarray[Any, Any]]]
"""Layouts with their rows: int64 [rows, 3 + metrics], the values as the bits of float64."""


def columns(layout: Layout, buffer: bytearray) -> np.ndarray[Any, Any]:
    """The rows of a buffer as int64 [rows, 3 + metrics], without a copy."""
    return np.frombuffer(buffer, np.int64).reshape(-1, _HEAD + len(layout.names))


def frames(rows: Rows) -> Iterable[Rows]:
    """What goes into one frame each: at most about VALUES_PER_FRAME values, in the order they were logged."""
    if len(rows) > 1 and sum(len(table) * len(layout.names) for layout, table in rows) <= VALUES_PER_FRAME // 2:
        yield rows
        return
    if len(rows) > 1:
        yield from _windows(rows)
        return
    for layout, table in rows:
        stride = max(1, VALUES_PER_FRAME // len(layout.names))
        for start in range(0, len(table), stride):
            yield [(layout, table[start : start + stride])]


def _windows(rows: Rows) -> Iterable[Rows]:
    """Cut buffers of several layouts at common points of their order: each frame holds a bounded stretch of it."""
    widths = np.concatenate([np.full(len(table), len(layout.names)) for layout, table in rows])
    orders = np.concatenate([table[:, 0] for _, table in rows])
    by = np.argsort(orders, kind="stable")
    orders, widths = orders[by], widths[by]
    frame = (np.cumsum(widths) - widths) // max(VALUES_PER_FRAME - int(widths.max()), VALUES_PER_FRAME // 2)
    starts = orders[np.flatnonzero(np.diff(frame, prepend=-1))]
    for start, stop in zip(starts, [*starts[1:], orders[-1] + 1], strict=True):
        cuts = [(layout, table, *np.searchsorted(table[:, 0], (start, stop))) for layout, table in rows]
        yield [(layout, table[lo:hi]) for layout, table, lo, hi in cuts if lo < hi]


def _spread(values: np.ndarray[Any, Any], rows: int, width: int) -> np.ndarray[Any, Any]:
    """One column a value: by assignment, which lets go of the interpreter where numpy's repeat and tile hold it."""
    column = np.empty((rows, width), values.dtype)
    column[...] = values
    return column.reshape(-1)


def scalars_batch(rows: Rows) -> pa.RecordBatch:
    """The scalars table of some buffers, in the order the rows were logged.

    Args:
        rows: layout and int64 array [rows, 3 + metrics]: order, step, time in ns, then the bits of the float64 values.
    """
    names = list(dict.fromkeys(name for layout, _ in rows for name in layout.names))
    reduces = list(dict.fromkeys(layout.reduce for layout, _ in rows))
    code = {name: i for i, name in enumerate(names)}
    columns: list[tuple[np.ndarray[Any, Any], ...]] = []
    for layout, table in rows:
        width, n = len(layout.names), len(table)
        columns.append(
            (
                _spread(table[:, 0, None], n, width),
                _spread(table[:, 1, None], n, width),
                _spread(table[:, 2, None] // 1000, n, width),
                _spread(np.array([[code[name] for name in layout.names]], np.int32), n, width),
                np.ascontiguousarray(table[:, _HEAD:]).reshape(-1).view(np.float64),
                np.full(n * width, reduces.index(layout.reduce), np.int32),
                np.full(n * width, layout.partial),
            )
        )
    order, step, stamp, name, value, reduce, partial = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    if len(rows) > 1:
        by = np.argsort(order, kind="stable")
        step, stamp, name, value, reduce, partial = (part[by] for part in (step, stamp, name, value, reduce, partial))
    arrays = [
        pa.array(step),
        pa.array(stamp).view(pa.timestamp("us", tz="UTC")),
        pa.DictionaryArray.from_arrays(pa.array(name), pa.array(names, pa.string())),
        pa.array(value),
        pa.DictionaryArray.from_arrays(pa.array(reduce), pa.array(reduces, pa.string())),
        pa.array(partial),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=records.SCALARS)
