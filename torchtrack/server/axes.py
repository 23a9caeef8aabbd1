"""What a chart's x axis may be, and its buckets: steps, time since the run's start, time of day, or another metric.

A bucket is 2^k wide and starts at a multiple of its width, on every axis, so points that arrive never move one. Times
are counted in whole microseconds inside, and are seconds outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Mode = Literal["step", "relative", "time", "metric"]
FINEST: Final = -1000
"""The narrowest bucket of a metric as an axis is 2 to this."""


@dataclass(frozen=True)
class Axis:
    """An x axis; `metric` names the metric that is one."""

    mode: Mode = "step"
    metric: str | None = None

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers inside: steps, or microseconds."""
        return self.mode != "metric"

    @property
    def unit(self) -> float:
        """How many of the numbers inside are one outside."""
        return 1e6 if self.mode in ("relative", "time") else 1

    @property
    def column(self) -> str:
        """What the axis is called in a table."""
        return "step" if self.mode == "step" else "x"

    def inside(self, value: float) -> float:
        """A number from outside; fractions of a step or microsecond count up, since ranges are half-open."""
        return math.ceil(value * self.unit) if self.whole else float(value)

    def outside(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Numbers for the chart: f64."""
        return np.asarray(x, np.float64) / self.unit

    def exponent(self, low: float, high: float, pixels: int) -> int:
        """The smallest k for which buckets 2^k wide from `low` to `high` are at most so many, or two around 0."""
        if self.whole:
            return bucket_width(int(low), int(high), pixels).bit_length() - 1
        pixels = _at_least(low, high, pixels)
        span = high / pixels - low / pixels
        if span <= 0:
            return 0
        k = max(FINEST, math.frexp(span)[1] - 1)
        while math.floor(math.ldexp(high, -k)) - math.floor(math.ldexp(low, -k)) + 1 > pixels:
            k += 1
        return k

    def bucket(self, x: str, exponent: int | None) -> str:
        """SQL for the bucket of `x`; without an exponent each value of a metric is one."""
        if self.whole:
            return f"bitShiftRight({x}, {exponent or 0})"
        return f"{x} + 0." if exponent is None else f"floor({x} * {math.ldexp(1.0, -exponent)!r}) + 0."

    def start(self, bucket: npt.NDArray[Any], exponent: int | None) -> npt.NDArray[Any]:
        """Where buckets start."""
        starts: npt.NDArray[Any] = (
            np.left_shift(bucket, exponent or 0) if self.whole else np.ldexp(bucket, exponent or 0)
        )
        return starts


STEPS: Final = Axis()


def bucket_width(low: int, high: int, pixels: int) -> int:
    """The smallest power of two that needs at most so many buckets, or two around 0, from `low` to `high`."""
    width, pixels = 1, _at_least(low, high, pixels)
    while high // width - low // width + 1 > pixels:
        width *= 2
    return width


def _at_least(low: float, high: float, pixels: int) -> int:
    """Buckets that are needed however wide they are: 0 is an edge of all."""
    return max(pixels, 2 if low < 0 <= high else 1)
