"""Curves and histograms out of characters."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BLOCKS: Final = " ▁▂▃▄▅▆▇"  # not the full block: bars of adjacent lines would touch
_BRAILLE: Final = 0x2800
_DOTS: Final = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_POSITIVE: Final = 165
_OCTAVES: Final = 80

Floats = npt.NDArray[np.float64]


def sparkline(values: Floats, width: int) -> str:
    """The mean of each of `width` stretches, in seven heights; a stretch that is not finite is `!`."""
    if not len(values):
        return " " * width
    parts = np.array_split(values, min(width, len(values)))
    means = np.array([_mean(part) for part in parts])
    low, high = _range(means)
    scaled = (means - low) / (high - low) if high > low else np.full(len(means), 0.5)
    return "".join("!" if math.isnan(x) else BLOCKS[1 + min(6, int(x * 7))] for x in scaled).ljust(width)


def _mean(part: Floats) -> float:
    part = part[np.isfinite(part)]
    return float(part.mean()) if len(part) else math.nan


def _range(values: Floats) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def with_spikes(low: Floats, mean: Floats, high: Floats) -> tuple[Floats, Floats]:
    """What to draw: the mean of each point, stretched to its smallest or largest value where that is far out."""
    below, above = mean - low, high - mean
    limit = 4 * np.nanmedian(np.concatenate([below, above])) if np.isfinite(mean).any() else 0.0
    return np.where(below > limit, low, mean), np.where(above > limit, high, mean)


def curve(step: Floats, low: Floats, high: Floats, *, first: float, last: float, width: int, height: int) -> list[str]:
    """A curve as lines of braille; in each dot column all between `low` and `high` is drawn.

    Args:
        step: x of each point.
        low: lower end of what to draw there; NaN for nothing.
        high: upper end.
        first: x of the left edge.
        last: x of the right edge.
        width: characters.
        height: lines.
    """
    columns, rows = 2 * width, 4 * height
    bottom, top = _range(np.concatenate([low, high]))
    scale = (rows - 1) / (top - bottom) if top > bottom else 0.0
    middle = 0 if scale else (rows - 1) // 2
    dots = np.zeros((rows, columns), np.bool_)
    x = np.clip((step - first) / (last - first + 1) * columns, 0, columns - 1)
    previous: tuple[int, int, int] | None = None
    for column, lowest, highest in zip(x, low, high, strict=True):
        if math.isnan(lowest) or math.isnan(highest):
            previous = None
            continue
        at, a, b = int(column), round((lowest - bottom) * scale) + middle, round((highest - bottom) * scale) + middle
        dots[a : b + 1, at] = True
        _join(dots, previous, (at, a, b))
        previous = (at, a, b)
    return _braille(dots[::-1], width, height)


def _join(dots: npt.NDArray[np.bool_], one: tuple[int, int, int] | None, two: tuple[int, int, int]) -> None:
    """Draw from one column to the next, so that the curve is one line."""
    if one is None or two[0] <= one[0]:
        return
    centre_one, centre_two = (one[1] + one[2]) / 2, (two[1] + two[2]) / 2
    span = two[0] - one[0]
    level = round(centre_one)
    for column in range(one[0] + 1, two[0] + 1):
        share = (column - one[0]) / span
        following = round(centre_one + share * (centre_two - centre_one))
        low, high = sorted((level, following))
        if column < two[0]:
            dots[low : high + 1, column] = True
        elif following > two[2]:
            dots[two[2] : high + 1, column] = True
        elif level > two[2]:
            dots[two[2] : level, column] = True
        elif level < two[1]:
            dots[level + 1 : two[1] + 1, column] = True
        level = following


def _braille(dots: npt.NDArray[np.bool_], width: int, height: int) -> list[str]:
    cells = dots.reshape(height, 4, width, 2).transpose(0, 2, 1, 3)
    codes = (cells * _DOTS).sum(axis=(2, 3))
    return ["".join(chr(_BRAILLE + int(code)) if code else " " for code in line) for line in codes]


def power(exponent: int) -> str:
    """A power of two as people write it."""
    return "2" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def octaves(counts: Any) -> Floats:
    """Elements by octave of their size, 2^-56 .. 2^24, both signs together; what lies outside goes to the ends."""
    counts = np.asarray(counts, np.float64)
    positive = counts[_POSITIVE : _POSITIVE + 2 * _OCTAVES]
    negative = counts[2 : 2 + 2 * _OCTAVES][::-1]
    total: Floats = (positive + negative).reshape(_OCTAVES, 2).sum(axis=1)
    total[0] += counts[162] + counts[164]
    total[-1] += counts[1] + counts[325]
    return total


def window(all_octaves: list[Floats], width: int) -> tuple[int, int]:
    """Which octaves to show for a list of tensors: all that hold anything worth seeing, at least `width` of them."""
    seen = np.zeros(_OCTAVES, np.bool_)
    for one in all_octaves:
        seen |= one > 0.001 * max(float(one.sum()), 1.0)
    places = np.flatnonzero(seen)
    low, high = (int(places[0]), int(places[-1]) + 1) if len(places) else (_OCTAVES // 2, _OCTAVES // 2 + 1)
    octaves_a_column = -(-(high - low) // width)
    wanted = octaves_a_column * width
    high = min(_OCTAVES, high + (wanted - (high - low)) // 2)
    low = max(0, high - wanted)
    return low, low + wanted


def bars(one: Floats, low: int, high: int, width: int) -> str:
    """The octaves `low` to `high` of a tensor as `width` bars; what lies outside is in the first and the last."""
    padded = np.zeros(max(high, _OCTAVES))
    padded[:_OCTAVES] = one
    padded[low] += padded[:low].sum()
    padded[high - 1] += padded[high:].sum()
    columns = padded[low:high].reshape(width, -1).sum(axis=1)
    most = columns.max()
    if not most:
        return " " * width
    return "".join(BLOCKS[math.ceil(7 * column / most)] for column in columns)
