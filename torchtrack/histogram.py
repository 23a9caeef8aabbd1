"""Histograms that add: one fixed set of 328 buckets for every tensor, rank, dtype, step and run.

A bucket is read off the bits of a number (sign, exponent, top mantissa bit), so there is no range to agree on, and the
counts of shards, ranks, steps and layers add exactly, in any order. Ids ascend with value:

    0 -Inf | 1 overflow- | 2..161 negative | 162 underflow- | 163 zero | 164 underflow+ | 165..324 positive
    | 325 overflow+ | 326 +Inf | 327 NaN

There are two buckets an octave. With e(k) = 2**(k // 2 - 56) * (1.5 if k is odd else 1), k = 0..160,

    positive bucket 165 + k   e(k) <= x < e(k + 1)        k = 0..159, from 2**-56 to 2**24
    negative bucket 161 - k   -e(k + 1) < x <= -e(k)      an edge belongs to the bucket further from zero
    overflow                  2**24 <= |x| < Inf
    underflow                 2**-127 <= |x| < 2**-56
    zero                      |x| < 2**-127

Every edge is exact in float32. Two codes are shared: zero holds the numbers below 2**-127, and the two Inf buckets hold
NaNs whose top mantissa bit is clear (arithmetic makes none). Numbers are classed as float32; a float64 by its own bits,
never by rounding: what float32 cannot hold is overflow, or zero.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NUM_BUCKETS: Final = 328
NEG_INF: Final = 0
OVERFLOW_NEG: Final = 1
UNDERFLOW_NEG: Final = 162
ZERO: Final = 163
UNDERFLOW_POS: Final = 164
OVERFLOW_POS: Final = 325
POS_INF: Final = 326
NAN: Final = 327

MIN_EXPONENT: Final = -56
MAX_EXPONENT: Final = 24
_OF_CHUNK = 1 << 20
# The smallest positive and the largest number of the narrow formats.
FORMATS: Final = {
    "fp16": (2.0**-24, 65504.0),
    "bf16": (2.0**-133, (2.0 - 2.0**-7) * 2.0**127),
    "e4m3": (2.0**-9, 448.0),
    "e5m2": (2.0**-16, 57344.0),
}

_Floats = npt.NDArray[np.float64]


def _code_table(exponent_bits: int) -> npt.NDArray[np.uint16]:
    """Code (sign, exponent, top mantissa bit of an IEEE number) -> bucket."""
    bias = 2 ** (exponent_bits - 1) - 1
    half = 2 ** (exponent_bits + 1)
    code = np.arange(half)
    regular = code - 2 * (bias + MIN_EXPONENT)
    table = np.clip(UNDERFLOW_POS + 1 + regular, UNDERFLOW_POS, OVERFLOW_POS)
    table[: max(1, 2 * (bias - 127))] = ZERO
    table[half - 2 :] = POS_INF, NAN
    mirrored = np.where(table == NAN, NAN, 2 * ZERO - table)
    return np.concatenate([table, mirrored]).astype(np.uint16)


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.setflags(write=False)
    return array


CODE_TO_BUCKET: Final[npt.NDArray[np.uint16]] = _frozen(_code_table(exponent_bits=8))
"""The top ten bits of a float32 (sign, exponent, top mantissa bit) -> bucket; uint16[1024], read-only."""

_CODE_TO_BUCKET_64 = _frozen(_code_table(exponent_bits=11))
_k = np.arange(2 * (MAX_EXPONENT - MIN_EXPONENT) + 1)
_MAGNITUDES = np.ldexp(np.where(_k % 2, 1.5, 1.0), _k // 2 + MIN_EXPONENT)
_EDGES = _frozen(np.concatenate([[-np.inf], -_MAGNITUDES[::-1], [-(2.0**-127), 2.0**-127], _MAGNITUDES, [np.inf]]))


def edges() -> _Floats:
    """The 326 ascending edges of the buckets 1..325: bucket b lies between `edges()[b - 1]` and `edges()[b]`."""
    return _EDGES


def _flat(values: Any) -> npt.NDArray[np.float32] | _Floats:
    """Any array, tensor or list of real numbers, flat, as float32 where that is exact for its type, else float64."""
    if hasattr(values, "detach") and hasattr(values, "is_floating_point"):
        values = values.detach().cpu()
        if not values.is_complex():
            wide = not values.is_floating_point() or values.element_size() == 8
            values = (values.double() if wide else values.float()).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(
            f"a histogram counts real numbers of at most 64 bits, got {array.dtype}; "
            "pass an array, a tensor or a list of floats or integers"
        )
    narrow = array.dtype.kind == "f" and array.dtype.itemsize < 8
    return array.astype(np.float32 if narrow else np.float64, order="C", copy=False).reshape(-1)


def bucket_ids(values: Any) -> npt.NDArray[np.uint16]:
    """The bucket of each element, flat, in C order.

    Args:
        values: an array, a torch tensor on any device, or a (nested) list of numbers.

    Raises:
        TypeError: the elements are not real numbers of at most 64 bits.
    """
    array = _flat(values)
    wide = array.dtype == np.float64
    codes = array.view(np.uint64) >> np.uint64(51) if wide else array.view(np.uint32) >> np.uint32(22)
    ids: npt.NDArray[np.uint16] = (_CODE_TO_BUCKET_64 if wide else CODE_TO_BUCKET)[codes]
    return ids


class _Counting(type):
    """`Histogram(values)` and `Histogram(np_histogram=...)`, as scripts written for wandb have it, count."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        foreign = kwargs.keys() - {"counts", "sum", "sum_sq", "min", "max"}
        if foreign or (len(args) == 1 and not kwargs and not _are_counts(args[0])):
            return importlib.import_module("torchtrack.compat.histograms").make(*args, **kwargs)
        return super().__call__(*args, **kwargs)


def _are_counts(given: Any) -> bool:
    """Whether an argument without a name is meant as counts: an array of 328 whole numbers, none below 0."""
    if not isinstance(given, np.ndarray) or given.shape != (NUM_BUCKETS,) or given.dtype.kind not in "uif":
        return False
    return given.dtype.kind == "u" or bool(np.all((given >= 0) & (given == np.floor(given))))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Histogram(metaclass=_Counting):
    """Counts of the 328 buckets and the moments of the finite values; immutable, and `a + b` is exact in the counts.

    A single argument that is no array of 328 whole numbers is taken as values and counted, as by `Histogram.of`.

    `counts` is uint64[328], a read-only copy of what was passed (whole numbers of any type). `sum`, `sum_sq` (of
    squares), `min` and `max` are those of the finite values; without any, `min` is +inf and `max` -inf.
    """

    counts: npt.NDArray[Any]
    sum: float = 0.0
    sum_sq: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    def __post_init__(self) -> None:
        given = np.asarray(self.counts)
        if given.shape != (NUM_BUCKETS,):
            raise ValueError(f"counts has the shape {given.shape}, expected ({NUM_BUCKETS},)")
        if given.dtype.kind not in "uif":
            raise TypeError(f"counts are whole numbers, got {given.dtype}")
        if given.dtype.kind != "u" and not bool(np.all((given >= 0) & (given == np.floor(given)))):
            raise ValueError("counts are whole numbers >= 0, got negative, fractional or NaN ones")
        object.__setattr__(self, "counts", _frozen(given.astype(np.uint64)))
        for name in ("sum", "sum_sq", "min", "max"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def empty(cls) -> Histogram:
        """The histogram of nothing: `h + Histogram.empty() == h`."""
        return cls(np.zeros(NUM_BUCKETS, np.uint64))

    @classmethod
    def of(cls, values: Any) -> Histogram:
        """Count what `bucket_ids` takes; a tensor on an accelerator is waited for."""
        array = _flat(values)
        parts = [cls._of_part(array[at : at + _OF_CHUNK]) for at in range(0, array.size, _OF_CHUNK)]
        return cls.empty().merge(*parts)

    @classmethod
    def _of_part(cls, array: npt.NDArray[np.float32] | _Floats) -> Histogram:
        counts = np.bincount(bucket_ids(array), minlength=NUM_BUCKETS)
        # Signalling NaNs raise the invalid flag when widened, and squares of large float64 may overflow to inf.
        with np.errstate(over="ignore", invalid="ignore"):
            wide = array.astype(np.float64)
            finite = wide[np.isfinite(wide)]
            total, squares = finite.sum(), np.square(finite).sum()
        return cls(counts, total, squares, finite.min(initial=math.inf), finite.max(initial=-math.inf))

    @classmethod
    def from_sparse(
        cls,
        buckets: Sequence[int] | npt.NDArray[Any],
        counts: Sequence[int] | npt.NDArray[Any],
        sum: float,  # noqa: A002  # the column names of the table
        sum_sq: float,
        min: float,  # noqa: A002
        max: float,  # noqa: A002
    ) -> Histogram:
        """The inverse of `sparse`: ids of non-empty buckets and their counts.

        Raises:
            ValueError: an id is no bucket or comes twice, or the two sequences differ in length.
        """
        ids, given = np.asarray(buckets, np.int64), np.asarray(counts, np.uint64)
        if ids.ndim != 1 or ids.shape != given.shape:
            raise ValueError(f"buckets and counts are flat and of one length, got {ids.shape} and {given.shape}")
        if ids.size and not (ids.min() >= 0 and ids.max() < NUM_BUCKETS):
            raise ValueError(f"bucket ids lie in 0..{NUM_BUCKETS - 1}, got {ids.min()}..{ids.max()}")
        if np.unique(ids).size != ids.size:
            raise ValueError("a bucket id comes twice; add its counts first")
        dense = np.zeros(NUM_BUCKETS, np.uint64)
        dense[ids] = given
        return cls(dense, sum, sum_sq, min, max)

    def sparse(self) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint64]]:
        """The ids of the non-empty buckets, ascending, and their counts."""
        ids = np.flatnonzero(self.counts)
        return ids.astype(np.uint16), self.counts[ids]

    @property
    def count(self) -> int:
        """All elements."""
        return int(self.counts.sum())

    @property
    def finite(self) -> int:
        """Elements that are neither infinite nor NaN."""
        return int(self.counts[OVERFLOW_NEG : OVERFLOW_POS + 1].sum())

    @property
    def zeros(self) -> int:
        """Elements with |x| < 2**-127."""
        return int(self.counts[ZERO])

    @property
    def nans(self) -> int:
        """NaNs."""
        return int(self.counts[NAN])

    @property
    def pos_infs(self) -> int:
        """Elements that are +Inf."""
        return int(self.counts[POS_INF])

    @property
    def neg_infs(self) -> int:
        """Elements that are -Inf."""
        return int(self.counts[NEG_INF])

    @property
    def mean(self) -> float:
        """Mean of the finite values; NaN if there are none."""
        return self.sum / self.finite if self.finite else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the finite values (divided by their number); NaN if there are none."""
        variance = self.sum_sq / self.finite - self.mean**2 if self.finite else math.nan
        return math.sqrt(variance) if variance > 0 or math.isnan(variance) else 0.0

    @property
    def norm(self) -> float:
        """L2 norm of the finite values."""
        return math.sqrt(self.sum_sq)

    @property
    def rms(self) -> float:
        """Root of the mean square of the finite values; NaN if there are none."""
        return math.sqrt(self.sum_sq / self.finite) if self.finite else math.nan

    @property
    def absmax(self) -> float:
        """Largest magnitude of the finite values; NaN if there are none."""
        return max(abs(self.min), abs(self.max)) if self.finite else math.nan

    def merge(self, *others: Histogram) -> Histogram:
        """The histogram of all elements of all of them.

        Counts, min and max do not depend on the order; the sums do in the last bits of a float64 only.
        """
        parts = (self, *others)
        return Histogram(
            np.stack([part.counts for part in parts]).sum(axis=0, dtype=np.uint64),
            sum(part.sum for part in parts),
            sum(part.sum_sq for part in parts),
            min(part.min for part in parts),
            max(part.max for part in parts),
        )

    def __add__(self, other: object) -> Histogram:
        return self.merge(other) if isinstance(other, Histogram) else NotImplemented

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        mine, theirs = ((h.sum, h.sum_sq, h.min, h.max) for h in (self, other))
        return mine == theirs and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]  # it holds an array

    def __repr__(self) -> str:
        special = {"zeros": self.zeros, "nans": self.nans, "pos_infs": self.pos_infs, "neg_infs": self.neg_infs}
        values = {"mean": self.mean, "std": self.std, "min": self.min, "max": self.max} if self.finite else {}
        parts = [f"count={self.count}", *(f"{name}={value:.4g}" for name, value in values.items())]
        return f"Histogram({', '.join(parts + [f'{name}={n}' for name, n in special.items() if n])})"

    def _bounds(self) -> tuple[_Floats, _Floats]:
        """Lower and upper end of the buckets 1..325, no wider than [min, max]; the zero bucket is the point 0."""
        low, high = _EDGES[:-1].copy(), _EDGES[1:].copy()
        low[ZERO - 1] = high[ZERO - 1] = 0.0
        return np.clip(low, self.min, self.max), np.clip(high, self.min, self.max)

    def quantile(self, q: float) -> float:
        """The value below which the share q of the finite values lies, interpolated inside its bucket.

        The estimate lies in the bucket of the true quantile (the ceil(q * finite)-th smallest value) and within
        [min, max], so for 2**-56 <= |true| < 2**24 it is off by less than |true| / 2; for smaller ones by less than
        2**-56. q = 0 and q = 1 are exact. NaN if no value is finite.

        Raises:
            ValueError: q is not in [0, 1].
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q is a share in [0, 1], got {q!r}")
        finite = self.finite
        if not finite:
            return math.nan
        place = max(math.ceil(q * finite), 1)
        if place == 1 or place >= finite:
            return self.min if place == 1 else self.max
        counts = self.counts[OVERFLOW_NEG : OVERFLOW_POS + 1]
        below = np.cumsum(counts)
        at = int(np.searchsorted(below, np.uint64(place)))
        inside = (place - 0.5 - (int(below[at]) - int(counts[at]))) / int(counts[at])
        low, high = self._bounds()
        return float(min(low[at] + (high[at] - low[at]) * inside, high[at]))

    def cdf(self, x: float) -> float:
        """The share of the finite values that are <= x, interpolated inside the bucket of x; NaN if there are none."""
        finite = self.finite
        if not finite or math.isnan(x):
            return math.nan
        if x < self.min or x >= self.max:
            return 0.0 if x < self.min else 1.0
        counts = self.counts[OVERFLOW_NEG : OVERFLOW_POS + 1].astype(np.float64)
        low, high = self._bounds()
        width = np.where(high > low, high - low, 1.0)
        inside = np.where(high > low, np.clip((x - low) / width, 0.0, 1.0), x >= low)
        return float(np.dot(counts, inside)) / finite

    def to_edges(self) -> tuple[npt.NDArray[np.uint64], _Floats]:
        """The finite part as (counts, edges) with one more edge than counts, as numpy and matplotlib have it.

        One bin [-2**-56, 2**-56] holds zero and underflow. Overflow, if there is any, gets outer bins that end at min
        and max. What is not finite is in `nans`, `pos_infs` and `neg_infs`.
        """
        inner = int(self.counts[UNDERFLOW_NEG : UNDERFLOW_POS + 1].sum())
        counts = [self.counts[2:UNDERFLOW_NEG], np.array([inner], np.uint64), self.counts[165:OVERFLOW_POS]]
        ends = [-_MAGNITUDES[::-1], _MAGNITUDES]
        last = _MAGNITUDES[-1]
        if self.counts[OVERFLOW_NEG]:
            counts.insert(0, self.counts[OVERFLOW_NEG : OVERFLOW_NEG + 1])
            ends.insert(0, np.array([min(self.min, np.nextafter(-last, -np.inf))]))
        if self.counts[OVERFLOW_POS]:
            counts.append(self.counts[OVERFLOW_POS : OVERFLOW_POS + 1])
            ends.append(np.array([max(self.max, np.nextafter(last, np.inf))]))
        return np.concatenate(counts), np.concatenate(ends)

    def underflow_share(self, dtype: str, scale: float = 1.0) -> tuple[float, float]:
        """Bounds of the share of the finite non-zero values with |x * scale| below the smallest number of a format.

        Such a value becomes zero or, from half of the smallest number on, that number. What the histogram counts as
        zero is left out. The bounds are equal where the limit is a bucket edge: for fp16, e4m3 and e5m2 with a scale
        that is a power of two, if limit / scale lies in 2**-56 .. 2**24.

        Args:
            dtype: "fp16", "bf16", "e4m3" (float8_e4m3fn) or "e5m2".
            scale: what the values are multiplied by first, such as the scale of a GradScaler.

        Raises:
            ValueError: no such format, or the scale is not finite and > 0.
        """
        limit = _limit(dtype, scale, largest=False)
        counts, low, high = self._magnitudes()
        return _shares(counts, high <= limit, low < limit)

    def overflow_share(self, dtype: str, scale: float = 1.0) -> tuple[float, float]:
        """Bounds of the share of the finite non-zero values with |x * scale| above the largest number of a format.

        Arguments and errors are those of `underflow_share`. No format's largest number is a bucket edge: the bounds
        differ by the share of the bucket that holds it, except where min and max already decide.
        """
        limit = _limit(dtype, scale, largest=True)
        if not self.absmax > limit:
            return 0.0, 0.0
        counts, low, high = self._magnitudes()
        return _shares(counts, low > limit, high > limit)

    def _magnitudes(self) -> tuple[_Floats, _Floats, _Floats]:
        """Counts of underflow, the regular buckets and overflow, both signs together, with their ends."""
        counts = self.counts[UNDERFLOW_POS : OVERFLOW_POS + 1] + self.counts[OVERFLOW_NEG : UNDERFLOW_NEG + 1][::-1]
        ends = _EDGES[UNDERFLOW_POS - 1 :]
        return counts.astype(np.float64), ends[:-1], ends[1:]


def _limit(dtype: str, scale: float, *, largest: bool) -> float:
    if dtype not in FORMATS:
        raise ValueError(f"unknown format {dtype!r}; one of {', '.join(map(repr, FORMATS))}")
    if not (0.0 < scale < math.inf):
        raise ValueError(f"scale is finite and > 0, got {scale!r}")
    return FORMATS[dtype][largest] / scale


def _shares(counts: _Floats, surely: npt.NDArray[np.bool_], maybe: npt.NDArray[np.bool_]) -> tuple[float, float]:
    total = float(counts.sum())
    return (float(counts[surely].sum()) / total, float(counts[maybe].sum()) / total) if total else (0.0, 0.0)
