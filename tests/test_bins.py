"""Foreign bins as our buckets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from torchtrack.bins import from_bins, from_edges
from torchtrack.histogram import UNDERFLOW_POS, ZERO, Histogram


def test_bins_that_are_ours_keep_every_count() -> None:
    rng = np.random.default_rng(0)
    ours = Histogram.of(rng.normal(0, 1e-2, 5000).astype(np.float32))
    back = from_edges(*ours.to_edges())

    assert back.counts.tolist() == ours.counts.tolist()


def test_a_bin_across_an_edge_is_shared_by_width_and_the_total_stays() -> None:
    made = from_bins([100], [1.0], [2.0])  # an edge of ours lies at 1.5

    assert made.count == 100
    assert sorted(made.sparse()[1].tolist()) == [50, 50]


@pytest.mark.parametrize("seed", range(5))
def test_no_element_is_lost_or_made_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, ends = np.histogram(rng.standard_cauchy(10_000), bins=64)

    made = from_edges(counts, ends)

    assert made.count == 10_000
    assert (made.min, made.max) == (ends[0], ends[-1])


def test_quantiles_stay_within_the_bins_of_the_source() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, 20_000)
    made = from_edges(*np.histogram(values, bins=512))

    for q in (0.01, 0.3, 0.5, 0.9):
        assert made.quantile(q) == pytest.approx(float(np.quantile(values, q)), abs=0.3)


def test_moments_that_the_source_tells_are_kept() -> None:
    made = from_bins([3, 2], [-math.inf, 0.5], [0.5, 4.0], total=7.25, squares=11.5, least=-1.0, most=3.0)

    assert (made.sum, made.sum_sq, made.min, made.max) == (7.25, 11.5, -1.0, 3.0)


def test_ends_that_are_infinite_are_cut_where_the_values_end() -> None:
    made = from_edges([2, 3], [-math.inf, 0.0, math.inf])

    assert (made.count, made.pos_infs, math.isfinite(made.min), math.isfinite(made.max)) == (5, 0, True, True)


def test_a_narrow_bin_around_zero_counts_as_zero() -> None:
    made = from_bins([5, 7], [-1e-12, 1e-12], [1e-12, 2e-12])

    assert made.counts[ZERO] == 5
    assert made.counts[ZERO + 1 : UNDERFLOW_POS + 200].sum() == 7


def test_values_that_are_all_equal_lie_in_their_bucket() -> None:
    assert from_bins([9], [0.1], [0.1]) == from_bins([9], [0.1], [0.1], total=0.9, squares=9 * 0.1**2)
    assert from_bins([9], [0.1], [0.1]).sparse()[0].tolist() == Histogram.of([0.1]).sparse()[0].tolist()


def test_an_empty_histogram_is_one() -> None:
    assert from_bins([0, 0], [0, 1], [1, 2]) == Histogram.empty()


@pytest.mark.parametrize(
    "wrong", [([-1], [0], [1]), ([math.nan], [0], [1]), ([1, 2], [0], [1]), ([1], [math.nan], [1])]
)
def test_what_is_no_histogram_is_refused(wrong: tuple[list[float], list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match=r"histogram|ends"):
        from_bins(*wrong)
