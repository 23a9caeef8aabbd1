"""Counts between edges of others, in our buckets: whole, and exact where the edges allow it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import torchtrack
from tests.runs import begin, finished
from torchtrack.histogram import Histogram
from torchtrack.records import Table

made: Any = torchtrack.Histogram  # with arguments that no type checker knows


def test_values_are_counted_exactly() -> None:
    values = np.array([0.5, -3.0, 0.0, np.nan])

    assert made(values) == Histogram.of(values)
    assert made(sequence=values.tolist()) == Histogram.of(values)


@pytest.mark.parametrize("values", [np.full(328, 0.5), np.full(328, -1), list(range(328))])
def test_as_many_values_as_there_are_buckets_are_values(values: Any) -> None:
    assert made(values) == Histogram.of(values)


def test_counts_of_our_buckets_stay_counts() -> None:
    counts = np.zeros(328, np.uint64)
    counts[163] = 7

    assert made(counts).zeros == 7


def test_an_inverse_of_to_edges_has_every_count_again() -> None:
    values = np.concatenate([np.geomspace(1e-6, 1e5, 400), -np.geomspace(1e-3, 1e3, 100)]).astype(np.float32)
    histogram = Histogram.of(values)
    again = made(np_histogram=histogram.to_edges())

    assert np.array_equal(again.counts, histogram.counts)


def test_no_count_is_lost_or_split_in_parts(rng: Any) -> None:
    values = np.array([rng.gauss(0, 10) for _ in range(1000)])
    histogram = made(np_histogram=np.histogram(values, bins=64))

    assert histogram.count == 1000
    assert math.isclose(histogram.mean, values.mean(), abs_tol=0.5)


def test_a_bin_is_spread_over_buckets_by_width() -> None:
    histogram = made(np_histogram=([8], [1.0, 3.0]))  # buckets of 1..1.5, 1.5..2, 2..3

    assert histogram.sparse()[1].tolist() == [2, 2, 4]


@pytest.mark.parametrize(
    ("counts", "edges"),
    [([1], [0.0]), ([-1], [0.0, 1.0]), ([0.5], [0.0, 1.0]), ([1], [1.0, 0.0]), ([1, 2], [0.0, 1.0])],
)
def test_what_is_no_histogram_is_refused(counts: Any, edges: Any) -> None:
    with pytest.raises(ValueError, match=r"edges|counts"):
        made(np_histogram=(counts, edges))


def test_ends_may_be_infinite() -> None:
    histogram = made(np_histogram=([2, 3], [-math.inf, 0.0, math.inf]))

    assert (histogram.count, histogram.finite, histogram.pos_infs) == (5, 5, 0)


def test_bins_that_are_asked_for_are_those_of_numpy_beside_the_buckets() -> None:
    values = np.array([[0.0, 1.0, 2.5], [10.0, np.inf, np.nan]])
    histogram = made(values, num_bins=5)
    counts, edges = np.histogram([0.0, 1.0, 2.5, 10.0], bins=5)

    assert histogram == Histogram.of(values)
    assert (histogram.histogram, histogram.bins) == (counts.tolist(), edges.tolist())
    assert [each.tolist() for each in histogram.to_edges()] == [counts.tolist(), edges.tolist()]
    assert not hasattr(histogram + histogram, "bins")


@pytest.mark.parametrize("number", [0, 513])
def test_there_are_1_to_512_bins(number: int) -> None:
    with pytest.raises(ValueError, match="1 to 512"):
        made([1.0], num_bins=number)


def test_bins_of_a_tensor_are_those_of_its_values() -> None:
    torch = pytest.importorskip("torch")

    assert made(torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16), num_bins=2).histogram == [1, 2]


def test_bins_are_recorded_with_the_histogram() -> None:
    run: Any = begin()
    run.log({"plain": made([1.0, 2.0]), "binned": made([1.0, 2.0, 2.0], num_bins=2)})
    recorded = finished(run)

    (event,) = recorded.events("bins")
    assert event.data == {"name": "binned", "step": 0, "counts": [1, 2], "low": 1.0, "high": 2.0}
    assert set(recorded.rows(Table.TENSORS).column("name").to_pylist()) == {"plain", "binned"}
