"""The histogram: its buckets against a search in the table of edges, and the algebra of `merge`."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchtrack.histogram import CODE_TO_BUCKET, NUM_BUCKETS, Histogram, bucket_ids, edges
from torchtrack.testing.kernels import DTYPES, mixed, specials

Floats = npt.NDArray[np.float64]

any_floats = hnp.arrays(np.float64, st.integers(0, 60), elements=st.floats(width=64))
# Sums of these are exact, so that merging in any order gives equal sums.
quarters = hnp.arrays(np.float64, st.integers(0, 60), elements=st.integers(-(2**20), 2**20).map(lambda n: n / 4))
finite = hnp.arrays(np.float64, st.integers(1, 80), elements=st.floats(-(2.0**23), 2.0**23))


def searched(x: Floats) -> npt.NDArray[np.int64]:
    """Buckets by search: an edge belongs to the bucket further from zero."""
    table = edges()
    ids = np.where(x > 0, np.searchsorted(table, x, side="right"), np.searchsorted(table, x, side="left"))
    ids = np.where(np.isinf(x), np.where(x > 0, 326, 0), ids)
    return np.where(np.isnan(x), 327, ids)


def counted(ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.bincount(ids, minlength=NUM_BUCKETS)


def test_the_edges_follow_their_formula() -> None:
    table = edges()
    magnitudes = [2.0 ** (k // 2 - 56) * (1.5 if k % 2 else 1.0) for k in range(161)]
    tiny = 2.0**-127
    assert table.tolist() == [-math.inf, *[-m for m in reversed(magnitudes)], -tiny, tiny, *magnitudes, math.inf]
    assert not table.flags.writeable


def test_every_code_of_float32_has_the_bucket_of_its_numbers() -> None:
    codes = np.arange(1024, dtype=np.uint32)
    inside = (codes << np.uint32(22)) | np.uint32(1)  # not exactly zero, and a NaN where the exponent is full
    with np.errstate(invalid="ignore"):  # signalling NaNs
        numbers = inside.view(np.float32).astype(np.float64)
    expected = searched(numbers)
    expected[[510, 1022]] = 326, 0  # NaNs with a clear top bit share the code of Inf
    assert np.array_equal(CODE_TO_BUCKET, expected)
    assert CODE_TO_BUCKET.dtype == np.uint16


def test_the_special_numbers_have_the_buckets_of_the_format() -> None:
    numbers = [-math.inf, -1e39, -1.0, -1e-20, -1e-39, -0.0, 0.0, 1e-39, 1e-20, 1.0, 1e39, math.inf, math.nan]
    assert bucket_ids(numbers).tolist() == [0, 1, 49, 162, 163, 163, 163, 163, 164, 277, 325, 326, 327]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_edge_and_its_neighbours_fall_where_a_search_puts_them(dtype: torch.dtype) -> None:
    tensor = specials().to(dtype)
    assert np.array_equal(bucket_ids(tensor), searched(tensor.double().numpy()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_number_of_a_narrow_format_falls_where_a_search_puts_it(dtype: torch.dtype) -> None:
    integer, words = (torch.uint8, 256) if dtype.itemsize == 1 else (torch.int16, 1 << 16)
    tensor = torch.arange(words).to(integer).view(dtype)
    tensor = tensor[~tensor.double().isnan()]
    assert np.array_equal(bucket_ids(tensor), searched(tensor.double().numpy()))


@given(any_floats)
def test_float64_falls_where_a_search_puts_it(x: Floats) -> None:
    assert np.array_equal(bucket_ids(x), searched(x))


@given(hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_nan=False)))
def test_float32_falls_where_a_search_puts_it(x: npt.NDArray[np.float32]) -> None:
    assert np.array_equal(bucket_ids(x), searched(x.astype(np.float64)))


def test_float64_just_below_an_edge_is_not_rounded_up() -> None:
    at = edges()[164:325]
    below = np.nextafter(at, 0.0)
    assert np.array_equal(below.astype(np.float32), at)
    assert np.array_equal(bucket_ids(below) + 1, bucket_ids(at))


def test_a_nan_is_a_nan_whatever_its_lower_bits() -> None:
    bits = np.array([0x7FC00000, 0xFFC00001, 0x7FFFFFFF, 0x7FA00000, 0xFF800001], np.uint32)
    assert bucket_ids(bits.view(np.float32)).tolist() == [327, 327, 327, 326, 0]


@given(any_floats, st.integers(0, 60))
def test_an_array_split_anywhere_and_merged_is_the_whole(x: Floats, at: int) -> None:
    whole, parts = Histogram.of(x), Histogram.of(x[:at]) + Histogram.of(x[at:])
    assert np.array_equal(whole.counts, parts.counts)
    assert (whole.min, whole.max) == (parts.min, parts.max)
    with np.errstate(over="ignore"):
        exact = x[np.isfinite(x)]
        assert parts.sum_sq == pytest.approx(whole.sum_sq, rel=1e-12)
        scale = np.abs(exact).sum()
    assert not math.isfinite(scale) or abs(whole.sum - parts.sum) <= 1e-12 * scale


@given(quarters, quarters, quarters)
def test_merging_is_associative_and_commutative_and_has_an_identity(x: Floats, y: Floats, z: Floats) -> None:
    a, b, c = map(Histogram.of, (x, y, z))
    assert (a + b) + c == a + (b + c) == a.merge(b, c) == Histogram.of(np.concatenate([x, y, z]))
    assert a + b == b + a
    assert a + Histogram.empty() == a == Histogram.empty() + a


def test_an_array_longer_than_a_chunk_is_counted_whole() -> None:
    x = np.random.default_rng(0).standard_normal((1 << 20) + 7)
    histogram = Histogram.of(x)
    assert np.array_equal(histogram.counts, counted(searched(x)))
    assert (histogram.min, histogram.max, histogram.count) == (x.min(), x.max(), x.size)
    assert histogram.sum_sq == pytest.approx(math.fsum(x * x), rel=1e-12)


def test_moments_are_those_of_the_finite_values() -> None:
    histogram = Histogram.of([3.0, -4.0, 0.0, 0.0, math.nan, math.inf, math.inf, -math.inf])
    assert (histogram.count, histogram.finite, histogram.zeros) == (8, 4, 2)
    assert (histogram.nans, histogram.pos_infs, histogram.neg_infs) == (1, 2, 1)
    assert (histogram.sum, histogram.sum_sq, histogram.min, histogram.max) == (-1.0, 25.0, -4.0, 3.0)
    assert (histogram.mean, histogram.norm, histogram.rms, histogram.absmax) == (-0.25, 5.0, 2.5, 4.0)
    assert histogram.std == pytest.approx(np.std([3.0, -4.0, 0.0, 0.0]))


def test_a_constant_has_no_spread() -> None:
    assert Histogram.of([0.1] * 1000).std == pytest.approx(0.0, abs=1e-8)


def test_without_finite_values_the_moments_are_not_numbers() -> None:
    histogram = Histogram.of([math.nan])
    assert (histogram.min, histogram.max, histogram.norm) == (math.inf, -math.inf, 0.0)
    derived = [histogram.mean, histogram.std, histogram.rms, histogram.absmax, histogram.quantile(0.5)]
    assert all(map(math.isnan, [*derived, histogram.cdf(0.0)]))


@given(finite, st.floats(0.0, 1.0))
def test_a_quantile_is_within_its_bucket_of_the_true_one(x: Floats, q: float) -> None:
    histogram = Histogram.of(x)
    estimate = histogram.quantile(q)
    true = np.sort(x)[min(max(math.ceil(q * x.size), 1), x.size) - 1]
    assert abs(estimate - true) <= max(abs(true) / 2, 2.0**-56)
    assert histogram.min <= estimate <= histogram.max


@given(finite)
def test_quantiles_ascend_from_min_to_max(x: Floats) -> None:
    histogram = Histogram.of(x)
    values = [histogram.quantile(q) for q in np.linspace(0.0, 1.0, 30)]
    assert (values[0], values[-1]) == (x.min(), x.max())
    assert values == sorted(values)


@given(finite, st.floats(-(2.0**24), 2.0**24))
def test_a_cdf_lies_between_those_of_the_ends_of_the_bucket(x: Floats, at: float) -> None:
    share = Histogram.of(x).cdf(at)
    ids, here = bucket_ids(x).astype(int), int(bucket_ids([at])[0])
    assert (ids < here).mean() - 1e-12 <= share <= (ids <= here).mean() + 1e-12


def test_a_cdf_is_exact_at_edges_and_outside() -> None:
    histogram = Histogram.of([-3.0, -1.1, 0.0, 0.6, 1.1, 5.0])
    assert [histogram.cdf(x) for x in (-4.0, -1.0, 1.0, 5.0, 9.0)] == pytest.approx([0, 2 / 6, 4 / 6, 1, 1])


def test_to_edges_agrees_with_numpy_away_from_the_edges() -> None:
    x = np.concatenate([np.random.default_rng(0).standard_normal(10_000) * 1e-3, [0.0, 1e-20, -1e-30, math.nan]])
    counts, table = Histogram.of(x).to_edges()
    assert np.array_equal(counts, np.histogram(x[~np.isnan(x)], bins=table)[0])
    assert (counts.size, table[160], table[161]) == (321, -(2.0**-56), 2.0**-56)


def test_to_edges_gives_overflow_outer_bins_that_end_at_min_and_max() -> None:
    counts, table = Histogram.of([-1e10, -(2.0**24), 1.0, 2.0**24]).to_edges()
    assert (counts[0], counts[-1], counts.sum()) == (2, 1, 4)
    assert (table[0], table[1], table[-2]) == (-1e10, -(2.0**24), 2.0**24)
    assert (np.diff(table) > 0).all()
    assert table.size == counts.size + 1


@pytest.mark.parametrize(("dtype", "smallest"), [("fp16", 2.0**-24), ("e4m3", 2.0**-9), ("e5m2", 2.0**-16)])
@pytest.mark.parametrize("scale", [1.0, 1024.0, 2.0**-3])
def test_the_underflow_share_is_exact_for_scales_that_are_powers_of_two(
    dtype: str, smallest: float, scale: float
) -> None:
    x = np.random.default_rng(0).standard_normal(5000) * smallest * 2 / scale
    x[:100] = 0.0
    low, high = Histogram.of(x).underflow_share(dtype, scale)
    true = (np.abs(x[100:] * scale) < smallest).mean()
    assert 0 < low == high == true < 1


@given(finite, st.sampled_from(["fp16", "bf16", "e4m3", "e5m2"]), st.floats(2.0**-40, 2.0**40))
@settings(max_examples=200)
def test_the_shares_bound_the_true_ones(x: Floats, dtype: str, scale: float) -> None:
    x = x[(np.abs(x) >= 2.0**-127)]
    smallest, largest = {
        "fp16": (2.0**-24, 65504.0),
        "bf16": (2.0**-133, float(torch.finfo(torch.bfloat16).max)),
        "e4m3": (2.0**-9, 448.0),
        "e5m2": (2.0**-16, 57344.0),
    }[dtype]
    histogram, size = Histogram.of(x), max(1, x.size)
    low, high = histogram.underflow_share(dtype, scale)
    assert low - 1e-12 <= (np.abs(x) < smallest / scale).sum() / size <= high + 1e-12
    low, high = histogram.overflow_share(dtype, scale)
    assert low - 1e-12 <= (np.abs(x) > largest / scale).sum() / size <= high + 1e-12


def test_the_overflow_share_is_bounded_by_the_bucket_of_the_largest_number() -> None:
    x = [1.0, 50_000.0, 65_504.0, 65_536.0, 1e9, 0.0, math.inf]
    assert Histogram.of(x).overflow_share("fp16") == (2 / 5, 4 / 5)
    assert Histogram.of(x[:3]).overflow_share("fp16") == (0.0, 0.0)
    assert Histogram.of([1.0, 3.0]).overflow_share("e4m3", scale=300.0) == (0.5, 1.0)


def test_shares_of_nothing_are_zero() -> None:
    assert Histogram.of([0.0, math.nan]).underflow_share("fp16") == (0.0, 0.0)
    assert Histogram.empty().overflow_share("e5m2") == (0.0, 0.0)


@given(any_floats)
def test_sparse_and_back_is_the_same(x: Floats) -> None:
    histogram = Histogram.of(x)
    buckets, counts = histogram.sparse()
    assert [buckets.dtype.name, counts.dtype.name] == ["uint16", "uint64"]
    assert (counts > 0).all()
    again = Histogram.from_sparse(
        buckets.tolist(), counts.tolist(), histogram.sum, histogram.sum_sq, histogram.min, histogram.max
    )
    assert np.array_equal(again.counts, histogram.counts)
    assert (again.min, again.max) == (histogram.min, histogram.max)


def test_a_histogram_cannot_be_changed() -> None:
    histogram = Histogram.of([1.0])
    with pytest.raises(ValueError, match="read-only"):
        histogram.counts[0] = 1
    with pytest.raises(AttributeError):
        histogram.sum = 0.0  # type: ignore[misc]


def test_a_histogram_keeps_a_copy_of_its_counts() -> None:
    counts = np.zeros(NUM_BUCKETS)
    histogram = Histogram(counts)
    counts[5] = 1.0
    assert histogram == Histogram.empty()


def test_lists_integers_booleans_and_nested_tensors_are_counted() -> None:
    assert Histogram.of([[1, 2], [3, 4]]).sum == 10.0
    assert Histogram.of(np.array([True, False])).zeros == 1
    assert Histogram.of(torch.ones(2, 3, requires_grad=True)).count == 6
    assert Histogram.of(torch.arange(3)).max == 2.0
    assert Histogram.of(np.array([6e-8], np.float16)).counts[bucket_ids([2.0**-24])[0]] == 1
    assert Histogram.of(5.0).count == 1


def test_the_repr_tells_what_stands_out() -> None:
    assert repr(Histogram.of([1.0, 3.0, math.nan])) == "Histogram(count=3, mean=2, std=1, min=1, max=3, nans=1)"
    assert repr(Histogram.empty()) == "Histogram(count=0)"


def test_equality_is_of_counts_and_moments() -> None:
    assert Histogram.of([1.0]) != Histogram.of([1.01])
    assert Histogram.of([1.0]) != 1.0


@pytest.mark.parametrize("values", [np.array([1j]), ["a"], torch.tensor([1j]), np.array([None]), "text"], ids=repr)
def test_what_is_not_real_is_refused(values: Any) -> None:
    with pytest.raises(TypeError, match="real numbers of at most 64 bits, got"):
        Histogram.of(values)


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        (np.zeros(327), ValueError, r"the shape \(327,\), expected \(328,\)"),
        (np.full(NUM_BUCKETS, -1), ValueError, "negative"),
        (np.full(NUM_BUCKETS, 0.5), ValueError, "fractional"),
        (np.full(NUM_BUCKETS, math.nan), ValueError, "NaN"),
        (np.full(NUM_BUCKETS, "1"), TypeError, "whole numbers, got <U1"),
    ],
)
def test_wrong_counts_are_refused(counts: npt.NDArray[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Histogram(counts=counts)


@pytest.mark.parametrize(
    ("buckets", "counts", "message"),
    [
        ([328], [1], r"0\.\.327, got 328\.\.328"),
        ([-1], [1], "got -1"),
        ([1, 1], [1, 1], "twice"),
        ([1], [], "one length"),
    ],
)
def test_wrong_sparse_counts_are_refused(buckets: list[int], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Histogram.from_sparse(buckets, counts, 0.0, 0.0, 0.0, 0.0)


def test_wrong_questions_are_refused() -> None:
    histogram = Histogram.of([1.0])
    with pytest.raises(ValueError, match=r"q is a share in \[0, 1\], got 50"):
        histogram.quantile(50)
    with pytest.raises(ValueError, match="unknown format 'fp8'; one of 'fp16', 'bf16', 'e4m3', 'e5m2'"):
        histogram.underflow_share("fp8")
    with pytest.raises(ValueError, match="scale is finite and > 0, got 0"):
        histogram.overflow_share("fp16", scale=0)
    with pytest.raises(TypeError):
        histogram + 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_counts_as_its_numbers_do(dtype: torch.dtype) -> None:
    tensor = mixed(2000, dtype)
    histogram = Histogram.of(tensor)
    numbers = tensor.double()
    assert np.array_equal(histogram.counts, counted(searched(numbers.numpy())))
    exact = numbers[numbers.isfinite()]
    assert (histogram.min, histogram.max) == (exact.min().item(), exact.max().item())


def test_the_module_never_imports_torch() -> None:
    code = "import sys, torchtrack.histogram; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
