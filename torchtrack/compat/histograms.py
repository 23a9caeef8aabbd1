"""Histograms as others have them: counts between edges of their own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from torchtrack.compat.said import no_effect
from torchtrack.histogram import NUM_BUCKETS, Histogram, bucket_ids, edges

_HUGE = float(np.finfo(np.float64).max) / 4


def make(sequence: Any = None, np_histogram: Any = None, num_bins: int | None = None) -> Histogram:
    """What `wandb.Histogram` is called with, as a histogram of ours.

    Args:
        sequence: values, of any shape; counted exactly.
        np_histogram: (counts, edges) as numpy.histogram returns them.
        num_bins: no effect: the buckets are fixed.

    Raises:
        TypeError: neither is given, both are, or the values are no numbers.
        ValueError: the counts and edges do not fit together.
    """
    no_effect("Histogram", num_bins=num_bins)
    if (sequence is None) == (np_histogram is None):
        raise TypeError("Histogram() takes values, or np_histogram=(counts, edges)")
    if np_histogram is None:
        return Histogram.of(sequence)
    if not isinstance(np_histogram, (tuple, list)) or len(np_histogram) != 2:
        raise ValueError("np_histogram= takes (counts, edges) as numpy.histogram returns them")
    return from_edges(*np_histogram)


def from_edges(counts: Any, between: Any, moments: dict[str, float] | None = None) -> Histogram:
    """Spread counts between edges over the fixed buckets: whole counts, by width, none lost.

    A count is exact where its bin lies in one bucket; the values in a bin are taken to lie evenly in it. Without
    `moments`, sum and sum of squares are those of the middles of the bins, and min and max the outermost edges of bins
    that hold something.

    Args:
        counts: of shape (n,), whole numbers; densities are refused.
        between: of shape (n + 1,), ascending; the outer ones may be infinite.
        moments: sum, sum_sq, min and max where they are known.

    Raises:
        ValueError: the shapes do not fit, the edges do not ascend, or a count is negative or no whole number.
    """
    held, ends = np.asarray(counts, np.float64), np.asarray(between, np.float64)
    if held.ndim != 1 or ends.shape != (held.size + 1,):
        raise ValueError(f"n counts go with n + 1 edges, got the shapes {held.shape} and {ends.shape}")
    if np.isnan(ends).any() or (np.diff(ends) < 0).any():
        raise ValueError("edges ascend")
    if not (np.isfinite(held).all() and (held >= 0).all() and (held == np.floor(held)).all()):
        raise ValueError("counts are whole numbers >= 0; a density cannot be added to other histograms")
    known = moments or {}
    full = np.flatnonzero(held)
    low = known.get("min", float(ends[full[0]]) if full.size else math.inf)
    high = known.get("max", float(ends[full[-1] + 1]) if full.size else -math.inf)
    finite = np.clip(ends, *((low, high) if full.size else (0.0, 0.0)))
    finite = np.clip(np.nan_to_num(finite), -_HUGE, _HUGE)
    result = np.zeros(NUM_BUCKETS, np.uint64)
    for i in full:
        _spread(int(held[i]), float(finite[i]), float(finite[i + 1]), result, last=i == full[-1])
    middles = finite[:-1] / 2 + finite[1:] / 2
    with np.errstate(over="ignore"):
        total, squares = float(held @ middles), float(held @ np.square(middles))
    return Histogram(result, known.get("sum", total), known.get("sum_sq", squares), low, high)


def _spread(count: int, low: float, high: float, result: np.ndarray[Any, Any], *, last: bool) -> None:
    """Add `count` values that lie evenly in [low, high), or in [low, high] for the last bin."""
    first, final = (int(each) for each in bucket_ids(np.array([low, high])))
    if high > low and not last:
        final = int(bucket_ids(np.array([np.nextafter(high, -np.inf)]))[0])
    if first == final or low == high:
        result[first] += np.uint64(count)
        return
    inner = edges()[first:final]  # between the buckets first..final
    cuts = np.concatenate([[low], np.clip(inner, low, high), [high]])
    share = np.diff(cuts) / (high - low)
    exact = share / share.sum() * count
    whole = np.floor(exact)
    rest = int(count - whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:rest]] += 1
    result[first : final + 1] += whole.astype(np.uint64)
