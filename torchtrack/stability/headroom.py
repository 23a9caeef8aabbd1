"""What a tensor would lose in a narrow format, at any scale, from its histogram: bounds, as `Histogram` has them.

The same as `Histogram.underflow_share` and `overflow_share`, of all tensors of a sample at once, and the power of two
that loses least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from torchtrack.histogram import FORMATS, UNDERFLOW_POS, edges
from torchtrack.stability.step import Floats, Tensors

_FIRST, _LAST = 1, 163
_ENDS: Final = edges()[UNDERFLOW_POS - 1 :]
"""Ends of the columns 1..162 of `Tensors.magnitudes`: underflow, the regular buckets, overflow."""
_POWERS: Final = np.arange(-40, 65)


@dataclass(frozen=True)
class Headroom:
    """What one tensor would lose in a format; shares are of its finite elements that are not zero."""

    name: str
    format: str
    scale: float
    underflow: tuple[float, float]
    """Share of elements below the smallest number: at least, at most."""
    overflow: tuple[float, float]
    """Share of elements above the largest."""
    best_scale: float
    """The power of two at which least is lost, to either side."""


def headroom(rows: Tensors, narrow: str, scale: float = 1.0) -> list[Headroom]:
    """What each tensor of a sample would lose.

    Args:
        rows: the tensors.
        narrow: "fp16", "bf16", "e4m3" or "e5m2".
        scale: what the values are multiplied by first.

    Raises:
        ValueError: no such format, or the scale is not finite and > 0.
    """
    below, above, best = underflow(rows, narrow, scale), overflow(rows, narrow, scale), best_scale(rows, narrow)
    return [
        Headroom(
            name,
            narrow,
            scale,
            (float(below[0][i]), float(below[1][i])),
            (float(above[0][i]), float(above[1][i])),
            float(best[i]),
        )
        for i, name in enumerate(rows.names)
    ]


def underflow(rows: Tensors, narrow: str, scale: float = 1.0) -> tuple[Floats, Floats]:
    """Bounds of the share below the smallest number of a format, of each tensor."""
    limit = _limits(narrow, scale)[0]
    return _share(rows, _ENDS[1:] <= limit), _share(rows, _ENDS[:-1] < limit)


def overflow(rows: Tensors, narrow: str, scale: float = 1.0) -> tuple[Floats, Floats]:
    """Bounds of the share above the largest number of a format, of each tensor."""
    limit = _limits(narrow, scale)[1]
    some = np.nan_to_num(rows.absmax, nan=0.0) > limit
    return np.where(some, _share(rows, _ENDS[:-1] > limit), 0.0), np.where(some, _share(rows, _ENDS[1:] > limit), 0.0)


def best_scale(rows: Tensors, narrow: str) -> Floats:
    """The power of two at which least is lost: nothing overflows, then least underflows; the one nearest to 1."""
    smallest, largest = _limits(narrow, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.floor(np.log2(largest / rows.absmax))
    room = np.nan_to_num(room, nan=0.0, posinf=0.0)
    lowest = np.array([_lowest_edge(row) for row in rows.magnitudes[:, _FIRST:_LAST]])
    with np.errstate(divide="ignore"):
        needed = np.ceil(np.log2(smallest / lowest))
    power = np.where(needed <= 0, np.minimum(0, room), np.minimum(needed, room))
    best: Floats = np.exp2(np.clip(power, _POWERS[0], _POWERS[-1]))
    return best


def _lowest_edge(counts: Floats) -> float:
    """The lower end of the smallest bucket that is not empty; infinite without any."""
    some = np.flatnonzero(counts)
    return float(_ENDS[some[0]]) if len(some) else math.inf


def _limits(narrow: str, scale: float) -> tuple[float, float]:
    if narrow not in FORMATS:
        raise ValueError(f"unknown format {narrow!r}; one of {', '.join(map(repr, FORMATS))}")
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale is finite and > 0, got {scale!r}")
    smallest, largest = FORMATS[narrow]
    return smallest / scale, largest / scale


def _share(rows: Tensors, chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Floats:
    counts = rows.magnitudes[:, _FIRST:_LAST]
    total = counts.sum(axis=1)
    shares: Floats = counts @ chosen.astype(np.float64) / np.maximum(total, 1.0)
    return shares
