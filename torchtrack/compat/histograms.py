"""`wandb.Histogram`: values, or counts between edges of their own."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from torchtrack.bins import Binned, from_edges
from torchtrack.histogram import Histogram

MOST_BINS: Final = 512
"""As there."""


def make(sequence: Any = None, np_histogram: Any = None, num_bins: int | None = None) -> Histogram:
    """What `wandb.Histogram` is called with, as a histogram of ours.

    Args:
        sequence: values, of any shape; counted exactly.
        np_histogram: (counts, edges) as numpy.histogram returns them.
        num_bins: how many bins of equal width, at most 512, are counted beside the buckets that all histograms
            share: `bins` and `histogram` of what is returned. None without.

    Raises:
        TypeError: neither is given, both are, or the values are no numbers.
        ValueError: the counts and edges do not fit together.
    """
    if (sequence is None) == (np_histogram is None):
        raise TypeError("Histogram() takes values, or np_histogram=(counts, edges)")
    if np_histogram is None:
        counted = Histogram.of(sequence)
        return counted if num_bins is None else _binned(counted, sequence, num_bins)
    if not isinstance(np_histogram, (tuple, list)) or len(np_histogram) != 2:
        raise ValueError("np_histogram= takes (counts, edges) as numpy.histogram returns them")
    counts, edges = (np.asarray(each, np.float64) for each in np_histogram)
    if counts.ndim != 1 or edges.shape != (counts.size + 1,) or (np.diff(edges) < 0).any():
        raise ValueError(f"n counts go with n + 1 ascending edges, got the shapes {counts.shape} and {edges.shape}")
    if not (counts == np.floor(counts)).all():
        raise ValueError("counts are whole numbers >= 0; a density cannot be added to other histograms")
    return from_edges(counts, edges)


def _binned(counted: Histogram, sequence: Any, num_bins: int) -> Binned:
    if not 1 <= num_bins <= MOST_BINS:
        raise ValueError(f"Histogram(num_bins=) takes 1 to {MOST_BINS}, got {num_bins!r}")
    values = np.asarray(sequence.detach().cpu().double() if hasattr(sequence, "detach") else sequence, np.float64)
    counts, edges = np.histogram(values[np.isfinite(values)], bins=num_bins)
    return Binned.beside(counted, counts.tolist(), float(edges[0]), float(edges[-1]))
