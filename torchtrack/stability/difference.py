"""Where two runs part: the first sample at which a tensor is distributed otherwise, whatever the layout of each.

Distance is the Wasserstein distance on the logarithm of the magnitude, in octaves: how far, on average, elements would
have to move for one histogram to become the other. It needs nothing but the buckets, which are the same in all runs.
Elements below 2**-20 of the largest count as equally small: what is that small is rounding.

**What counts as equal.** Parameters at the first sample of both, before anything was computed: equal counts. After
that a layout changes the order of sums, and training amplifies rounding: a distance and a norm ratio within the
tolerance. A tensor whose gradient is a millionth of the largest is rounding alone (a bias before a normalisation, for
one), and is left out from there on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from torchtrack.histogram import ZERO
from torchtrack.stability.step import Bools, Floats, Tensors

TOLERANCE: Final = 0.02
_EXACT: Final = 1e-5
_ROUNDING: Final = 1e-6
_FINITE: Final = 163
_FLOOR: Final = 40
_OCTAVES_A_COLUMN: Final = 0.5
_ORDER: Final = ("parameter", "activation", "gradient", "update", "optimizer")
"""In which the kinds of a sample come about; rows of parameters are from before the update."""

Samples = Mapping[tuple[int, int], Mapping[str, Tensors]]
"""By step, and number of the sample on this step: the rows of each kind."""


@dataclass(frozen=True)
class Parting:
    """How far two runs are apart in one tensor at one sample."""

    step: int
    kind: str
    name: str
    distance: float
    """In octaves; infinite where only one run holds NaN or Inf."""
    norm_ratio: float
    """Norm in the second run over norm in the first."""


@dataclass(frozen=True)
class Difference:
    """Where two runs part."""

    parted: tuple[Parting, ...]
    """The tensors that differ at the first sample where any does, of the first kind that does, the furthest first."""
    last_step: int | None
    """The last step up to which all that both recorded is the same; None if nothing is."""
    samples: int
    """How many samples were compared and the same."""
    tensors: int
    """How many tensors were compared."""
    furthest: Parting | None
    """The largest distance that was within the tolerance."""
    only_first: tuple[str, ...]
    """Tensors that the first run alone recorded,"""
    only_second: tuple[str, ...]
    """and those of the second."""
    rounding: tuple[str, ...]
    """Tensors that were left out since their gradients are rounding."""


def difference(first: Samples, second: Samples, tolerance: float = TOLERANCE) -> Difference:
    """Compare two runs at the samples that both have.

    Raises:
        ValueError: they have no sample or no tensor in common, or the tolerance is not positive.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}: it is a positive number of octaves, such as {TOLERANCE}")
    starts = {min((at for at, _ in side), default=None) for side in (first, second)}
    first, second = _from_the_last(first), _from_the_last(second)
    own, others = _names(first), _names(second)
    common = sorted(first.keys() & second.keys())
    if not common or not own & others:
        what = f"tensor: one has {_few(own)}, the other {_few(others)}" if common else "sampled step"
        raise ValueError(f"the runs have no {what} in common; watch both with the same log= and log_freq=")
    rounding: set[str] = set()
    furthest: Parting | None = None
    last: int | None = None
    compared = 0
    parted: list[Parting] = []
    for at in common:
        noise = _rounding(first[at], second[at])
        rounding |= noise
        for found, limit in _compare(at[0], first[at], second[at], rounding, tolerance, exact={at[0]} == starts):
            parted = [part for part in found if _apart(part, limit)]
            if parted:
                break
            furthest = max([part for part in (furthest, *found) if part], key=_size, default=None)
        if parted:
            break
        last, compared = at[0], compared + 1
    return Difference(
        tuple(sorted(parted, key=_size, reverse=True)),
        last,
        compared,
        len(own & others),
        furthest,
        tuple(sorted(own - others)),
        tuple(sorted(others - own)),
        tuple(sorted(rounding)),
    )


def _from_the_last(samples: Samples) -> Samples:
    """The last sample on a step is number 0, the one before it -1: the last is of the step itself.

    So a run that logs at every other step, or left one out, is compared with one that logs at each.
    """
    last: dict[int, int] = {}
    for step, number in samples:
        last[step] = max(last.get(step, 0), number)
    return {(step, number - last[step]): rows for (step, number), rows in samples.items()}


def _compare(
    step: int,
    first: Mapping[str, Tensors],
    second: Mapping[str, Tensors],
    without: set[str],
    tolerance: float,
    *,
    exact: bool,
) -> Iterator[tuple[list[Parting], float]]:
    """Each kind of a sample: how far all its tensors are apart, and how far they may be."""
    for kind in [kind for kind in _ORDER if kind in first and kind in second]:
        limit = _EXACT if exact and kind == "parameter" else tolerance
        yield _distances(step, kind, first[kind], second[kind], without), limit


def _distances(step: int, kind: str, first: Tensors, second: Tensors, without: set[str]) -> list[Parting]:
    place = {name: i for i, name in enumerate(second.names)}
    pairs = [(i, place[n]) for i, n in enumerate(first.names) if n in place and not _is_of(n, without)]
    if not pairs:
        return []
    own, other = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    distance = np.maximum(
        _wasserstein(first.magnitudes[own], second.magnitudes[other]), _signs(first, second, own, other)
    )
    distance[(first.nonfinite[own] > 0) != (second.nonfinite[other] > 0)] = math.inf
    norms = zip(first.norm[own].tolist(), second.norm[other].tolist(), strict=True)
    ratios = [1.0 if a == b else b / a if a else math.inf for a, b in norms]
    names = [first.names[i] for i in own.tolist()]
    return [Parting(step, kind, *part) for part in zip(names, distance.tolist(), ratios, strict=True)]


def _wasserstein(first: Floats, second: Floats) -> Floats:
    """Distance of each pair of rows of magnitudes, in octaves."""
    first, second = first[:, :_FINITE].copy(), second[:, :_FINITE].copy()
    column = np.arange(_FINITE)
    top = np.where((first > 0) | (second > 0), column, 0).max(axis=1)
    floor = np.maximum(top - _FLOOR, 0)
    small = column < floor[:, None]
    for counts in (first, second):
        counts[np.arange(len(counts)), floor] += np.where(small, counts, 0.0).sum(axis=1)
        counts[small] = 0.0
        counts /= np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    distance: Floats = np.abs(np.cumsum(first - second, axis=1)).sum(axis=1) * _OCTAVES_A_COLUMN
    return distance


def _signs(first: Tensors, second: Tensors, own: np.ndarray, other: np.ndarray) -> Floats:
    """By how much the shares of positive elements differ."""
    shares: Floats = np.abs(_positive(first)[own] - _positive(second)[other])
    return shares


def _positive(rows: Tensors) -> Floats:
    positive: Bools = rows.bucket > ZERO
    counts = np.bincount(rows.row[positive], rows.counts[positive], len(rows.names))
    shares: Floats = counts / np.maximum(rows.count, 1.0)
    return shares


def _rounding(first: Mapping[str, Tensors], second: Mapping[str, Tensors]) -> set[str]:
    """Tensors whose gradients are rounding in both runs."""
    found = []
    for rows in (first.get("gradient"), second.get("gradient")):
        if rows is None or not len(rows.names):
            return set()
        small = (rows.norm < _ROUNDING * rows.norm.max()) & (rows.norm > 0)
        found.append({rows.names[i] for i in np.flatnonzero(small).tolist()})
    return found[0] & found[1]


def _is_of(name: str, without: set[str]) -> bool:
    """Whether this is one of these parameters, or a moment of one."""
    return bool(without) and (name in without or name.rpartition(".")[0] in without)


def _apart(part: Parting, limit: float) -> bool:
    return part.distance > limit or not abs(part.norm_ratio - 1) <= limit


def _size(part: Parting) -> float:
    ratio = abs(part.norm_ratio - 1)
    return max(part.distance, ratio if math.isfinite(ratio) else math.inf)


def _names(samples: Samples) -> set[str]:
    kinds = itertools.chain.from_iterable(sample.values() for sample in samples.values())
    return {name for rows in kinds for name in rows.names}


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "") or "none"
