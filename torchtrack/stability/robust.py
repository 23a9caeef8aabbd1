"""Medians of the recent past, of one metric or of many tensors at once: what is normal here."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import numpy as np

from torchtrack.stability.step import Bools, Floats, Ints

SIGMA: Final = 1.4826
"""The median absolute deviation of a normal distribution times this is its standard deviation."""
SIGMA_OF_MEAN: Final = 1.2533
"""The same of the mean absolute deviation, which says more where values are few, and is less robust."""


def center_and_scale(values: Floats) -> tuple[float, float]:
    """Median, and the standard deviation by the median absolute deviation, of values of which none is NaN."""
    center = _median(values)
    return center, SIGMA * _median(np.abs(values - center))


def _median(values: Floats) -> float:
    """What `np.median` gives, which takes ten times as long for a few values: replays ask millions of times."""
    half, odd = divmod(len(values), 2)
    ordered = np.sort(values)
    return float(ordered[half]) if odd else float((ordered[half - 1] + ordered[half]) / 2)


class Window:
    """The last `size` values of a metric. Median and spread are looked up anew after each sixteenth of new values."""

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self._fresh = 0
        self._known = (math.nan, math.nan)

    def __len__(self) -> int:
        return len(self._values)

    def push(self, value: float) -> None:
        """Add a value; one that is not finite is left out."""
        if math.isfinite(value):
            self._values.append(value)
            self._fresh += 1

    def normal(self) -> tuple[float, float]:
        """Median and standard deviation of the values but for outliers; NaN if there are none."""
        if self._values and self._fresh * 16 >= len(self._values):
            self._known = center_and_scale(self.array())
            self._fresh = 0
        return self._known

    def array(self) -> Floats:
        """The values, oldest first."""
        return np.array(self._values, np.float64)


class Outlier:
    """How far a metric is above its own recent past, by the robust z-score."""

    def __init__(self, size: int = 64, least: int = 12) -> None:
        self._window = Window(size)
        self._least = least

    def push(self, value: float, floor: float, share: float = 0.0) -> tuple[float, float]:
        """Take a value in. Returns the median before it and its z; z is -inf while too few are known.

        Args:
            value: the newest.
            floor: the least that counts as the spread of the others,
            share: and the least in parts of their median.
        """
        center, scale = self._window.normal()
        z = (value - center) / max(scale, floor, share * abs(center)) if len(self._window) >= self._least else -math.inf
        self._window.push(value)
        return center, z


class Rings:
    """The last `size` values of each of many tensors, NaN where there are none yet."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._places: dict[str, int] = {}
        self._last: tuple[tuple[str, ...], Ints] = ((), np.zeros(0, np.int64))
        self._values = np.full((0, size), np.nan)

    def push(self, names: tuple[str, ...], values: Floats) -> Floats:
        """Add a value a tensor. Returns all values of these tensors, [tensors, size], the newest last."""
        places = self._index(names)
        rings = np.roll(self._values[places], -1, axis=1)
        rings[:, -1] = values
        self._values[places] = rings
        return rings

    def _index(self, names: tuple[str, ...]) -> Ints:
        if names != self._last[0]:
            places = [self._places.setdefault(name, len(self._places)) for name in names]
            missing = len(self._places) - len(self._values)
            self._values = np.concatenate([self._values, np.full((missing, self._size), np.nan)])
            self._last = names, np.array(places, np.int64)
        return self._last[1]


class Steps:
    """The steps that the values of a ring are of."""

    def __init__(self, size: int) -> None:
        self._steps: deque[int] = deque(maxlen=size)

    def push(self, step: int) -> None:
        """Add a step."""
        self._steps.append(step)

    def since(self, ring: Floats, middle: float) -> int:
        """The step at which the values of a ring most likely rose: the change point of least squares.

        Args:
            ring: the values, the newest last; NaN where there is none.
            middle: half way between what they were and what they are.
        """
        steps = list(self._steps)
        above = np.nan_to_num(ring[len(ring) - len(steps) :] - middle)
        return steps[int(np.argmax(np.cumsum(above[::-1])[::-1]))]


def log2(values: Floats) -> Floats:
    """Base-2 logarithm; NaN for what is not positive and finite."""
    logs: Floats = np.full(len(values), np.nan)
    good = (values > 0) & np.isfinite(values)
    logs[good] = np.log2(values[good])
    return logs


def quiet_median(rings: Floats) -> Floats:
    """The median of each row without its NaNs; NaN for a row of NaNs."""
    counts = np.isfinite(rings).sum(axis=1)
    ordered = np.sort(rings, axis=1)  # NaNs come last
    rows = np.arange(len(rings))
    low, high = np.maximum(counts - 1, 0) // 2, np.minimum(counts // 2, rings.shape[1] - 1)
    medians: Floats = (ordered[rows, low] + ordered[rows, high]) / 2
    return medians


def rest_median(values: Floats, pool: Bools) -> Floats:
    """Of each value the median of those in its column that are in the pool, without itself.

    Args:
        values: [things, columns]; NaN where there is none.
        pool: [things]: which of them are compared with.

    Returns:
        [things, columns], NaN where there is nothing to compare with.
    """
    things, columns = values.shape
    pooled = np.where(pool[:, None], values, np.nan)
    ordered = np.concatenate([np.sort(pooled, axis=0), np.full((1, columns), np.nan)])  # NaNs come last
    place = np.argsort(np.argsort(pooled, axis=0, kind="stable"), axis=0, kind="stable")
    inside = np.isfinite(pooled)
    place = np.where(inside, place, things)  # one that is not in the pool takes nothing out of it
    rest = inside.sum(axis=0) - inside
    low, high = np.maximum(rest - 1, 0) // 2, rest // 2
    column = np.arange(columns)
    # without the value at `place` the sorted others are `ordered` with that place skipped
    medians: Floats = (ordered[low + (low >= place), column] + ordered[high + (high >= place), column]) / 2
    return np.where(rest > 0, medians, np.nan)
