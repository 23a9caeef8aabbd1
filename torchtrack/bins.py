"""Histograms of others as ours: their bins are cut at our edges, and the counts of a bin spread evenly over its width.

What is exact: the number of elements, and sum, squares, min and max where the source tells them. What is not: where in
its bin an element lay, so that a bin that crosses our edges is shared out by width, in whole numbers that add up. A bin
around zero that is no wider than `ZERO_WIDTH` counts as zero, since that is what others count there. NaN and infinities
are in no bin of others; they left them out before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from torchtrack.histogram import NUM_BUCKETS, ZERO, Histogram, bucket_ids, edges

ZERO_WIDTH: Final = 2.0**-36
SPREAD: Final = "histograms: counts are spread over torchtrack's buckets, evenly within each bin"
MOMENTS: Final = "histograms without moments: their sum and squares are those of the middles of bins"
"""What is not exact, as losses."""

_HUGE: Final = float(np.finfo(np.float64).max) / 4
"""Where an end that is infinite is taken to lie, unless the source tells the smallest and the largest value."""

_Floats = npt.NDArray[np.float64]


class Binned(Histogram):
    """A histogram that has bins of equal width beside the buckets. Sums have the buckets alone.

    Attributes:
        histogram: how many values lie in each bin.
        bins: the edges, one more.
    """

    __slots__ = ("bins", "histogram")
    bins: list[float]
    histogram: list[int]

    @classmethod
    def beside(cls, counted: Histogram, counts: Sequence[int], low: float, high: float) -> Binned:
        """A histogram, and the counts of bins of equal width.

        Args:
            counted: the histogram.
            counts: of each bin.
            low: lower end of the first bin.
            high: upper end of the last.
        """
        made: Binned = cls(counted.counts, counted.sum, counted.sum_sq, counted.min, counted.max)
        object.__setattr__(made, "histogram", list(map(int, counts)))
        object.__setattr__(made, "bins", np.linspace(low, high, len(counts) + 1).tolist())
        return made

    def to_edges(self) -> tuple[npt.NDArray[np.uint64], _Floats]:
        """The bins of its own as (counts, edges)."""
        return np.asarray(self.histogram, np.uint64), np.asarray(self.bins, np.float64)


def from_bins(
    counts: Sequence[float] | npt.NDArray[Any],
    low: Sequence[float] | npt.NDArray[Any],
    high: Sequence[float] | npt.NDArray[Any],
    *,
    total: float | None = None,
    squares: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Histogram:
    """Counts of bins as a histogram.

    Args:
        counts: of each bin; rounded if they are no whole numbers.
        low: lower end of each bin.
        high: upper end of each bin.
        total: the sum of the values, if the source tells it; else that of the middles of the pieces of bins.
        squares: the same of their squares.
        least: the smallest value, if the source tells it; else the lower end of the first bin that is not empty.
        most: the largest.

    Raises:
        ValueError: a count is negative or not finite, or there are not as many ends as counts.
    """
    n, lo, hi = (np.asarray(values, np.float64) for values in (counts, low, high))
    if not (n.ndim == 1 and n.shape == lo.shape == hi.shape):
        raise ValueError(f"{n.size} counts, {lo.size} lower and {hi.size} upper ends do not go together")
    if not (np.isfinite(n).all() and (n >= 0).all()) or np.isnan(lo).any() or np.isnan(hi).any():
        raise ValueError("counts of a histogram are numbers of elements and its ends numbers")
    whole = np.rint(n).astype(np.int64)
    some = whole > 0
    whole, lo, hi = whole[some], np.clip(lo[some], -_HUGE, _HUGE), np.clip(hi[some], -_HUGE, _HUGE)
    if not whole.size:
        return Histogram.empty()
    least = float(lo.min()) if least is None or not math.isfinite(least) else least
    most = float(hi.max()) if most is None or not math.isfinite(most) else most
    lo, hi = np.clip(lo, least, most), np.clip(hi, least, most)
    pieces = [_pieces(int(each), low, high) for each, low, high in zip(whole, lo.tolist(), hi.tolist(), strict=True)]
    share, middle, bucket = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    dense = np.bincount(bucket, share, NUM_BUCKETS)
    with np.errstate(over="ignore"):
        total = float(share @ middle) if total is None else total
        squares = float(share @ middle**2) if squares is None else squares
    return Histogram(dense, total, squares, least, most)


def from_edges(counts: Sequence[float] | npt.NDArray[Any], ends: Sequence[float] | npt.NDArray[Any]) -> Histogram:
    """The histogram of counts and one more edge than counts, as numpy and wandb have it.

    Raises:
        ValueError: there are not as many edges, or they or the counts are no numbers.
    """
    ends = np.asarray(ends, np.float64)
    return from_bins(counts, ends[:-1], ends[1:])


def from_limits(histo: Any) -> Histogram:
    """The histogram of TensorBoard's older form: upper ends of bins, their counts, and the exact moments.

    Raises:
        ValueError: there are not as many ends as counts, or they are no numbers.
    """
    high = np.asarray(histo.bucket_limit, np.float64)
    low = np.concatenate([[-np.inf], high[:-1]])[: high.size]
    moments = {"total": histo.sum, "squares": histo.sum_squares, "least": histo.min, "most": histo.max}
    return from_bins(np.asarray(histo.bucket, np.float64), low, high, **(moments if histo.num > 0 else {}))


def _pieces(count: int, low: float, high: float) -> tuple[_Floats, _Floats, npt.NDArray[np.int64]]:
    """How many elements of a bin go where: counts, middles and buckets of its pieces between our edges."""
    if low <= 0 <= high and max(-low, high) <= ZERO_WIDTH:
        return np.array([float(count)]), np.zeros(1), np.array([ZERO])
    ours = edges()
    inside = ours[np.searchsorted(ours, low, "right") : np.searchsorted(ours, high, "left")]
    inside = inside[np.isfinite(inside)]
    ends = np.concatenate([[low], inside, [high]])
    middle = ends[:-1] / 2 + ends[1:] / 2
    width = high / 2 - low / 2  # of two that are far apart the difference may be infinite
    upto = (ends[1:] / 2 - low / 2) / width if width > 0 else np.ones(1)
    share = np.diff(np.rint(upto * count), prepend=0.0)
    return share, middle, bucket_ids(middle).astype(np.int64)
