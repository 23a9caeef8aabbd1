"""The gradient noise scale: from which batch size on more samples a step stop paying for themselves.

A rank's own gradient is the mean over its samples, so it is noisier than the average over ranks by what they differ.
The two squared norms tell noise and signal apart without bias (McCandlish et al. 2018, "An Empirical Model of
Large-Batch Training", appendix A.1), here with the batch of one rank as the unit:

    signal |G|^2 = (W big - small) / (W - 1)        small: mean over the W ranks of |own gradient|^2
    noise  tr S  = (small - big) / (1 - 1 / W)      big:   |averaged gradient|^2
    noise scale  = noise / signal                   in batches of one rank

The same holds for the part of a gradient that is one layer's: the sums over all layers are those of the whole.

The ratio of two noisy numbers is biased, and may have any sign at one step: numerator and denominator are averaged over
steps first, and the band is that of a ratio of means (Fieller 1954).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_Z: Final = 1.96
MIN_STEPS: Final = 8
"""With fewer the spread over steps says nothing."""


@dataclass(frozen=True)
class NoiseScale:
    """The noise scale over some steps, in batches of one rank.

    Attributes:
        signal: squared norm of the true gradient, mean over the steps; may be negative where noise hides it.
        noise: trace of the covariance of one rank's gradient, mean over the steps.
        steps: how many steps it rests on.
        low, high: the band that holds the true ratio in 95 of 100 cases; `high` is inf where the signal is not told
            apart from zero.
        samples: samples in the batch of one rank, if known.
    """

    signal: float
    noise: float
    steps: int
    low: float
    high: float
    samples: float | None = None

    @property
    def ratio(self) -> float:
        """Noise over signal; inf if no signal was seen."""
        return self.noise / self.signal if self.signal > 0 else math.inf

    @property
    def critical_batch_size(self) -> float | None:
        """The same in samples: about there a step on twice the samples begins to gain less than half of twice."""
        return None if self.samples is None else self.ratio * self.samples


def noise_scale(own: Any, averaged: Any, samples: float | None = None) -> NoiseScale | None:
    """The noise scale over some steps.

    Args:
        own: [steps, ranks] norms of each rank's own gradients. Ranks have batches of one size.
        averaged: [steps] norms of the averaged gradient.
        samples: samples in the batch of one rank, accumulated ones included.

    Returns:
        None with fewer than two ranks, or fewer than `MIN_STEPS` steps at which all norms are finite.

    Raises:
        ValueError: the shapes do not match.
    """
    local, mean = np.asarray(own, np.float64), np.asarray(averaged, np.float64)
    if local.ndim != 2 or mean.shape != local.shape[:1]:
        raise ValueError(f"noise_scale() takes [steps, ranks] and [steps], got {local.shape} and {mean.shape}")
    finite = np.isfinite(local).all(axis=1) & np.isfinite(mean)
    ranks, steps = local.shape[1], int(finite.sum())
    if ranks < 2 or steps < MIN_STEPS:
        return None
    small, big = np.square(local[finite]).mean(axis=1), np.square(mean[finite])
    signal = (ranks * big - small) / (ranks - 1)
    noise = (small - big) / (1 - 1 / ranks)
    low, high = _band(noise, signal)
    return NoiseScale(float(signal.mean()), float(noise.mean()), steps, low, high, samples)


def _band(noise: Floats, signal: Floats) -> tuple[float, float]:
    """The ratios r at which the mean of noise - r signal is not told apart from zero: a r^2 - 2 b r + c <= 0."""
    over = _Z * _Z / len(noise)
    (noise_var, both), (_, signal_var) = np.cov(noise, signal) * over
    top, bottom = float(noise.mean()), float(signal.mean())
    a, b, c = bottom * bottom - signal_var, top * bottom - both, top * top - noise_var
    root = math.sqrt(max(0.0, b * b - a * c))
    if a > 0 and bottom > 0:
        return max(0.0, (b - root) / a), (b + root) / a
    return (float((b - root) / a) if a < 0 < c else 0.0), math.inf  # the signal may be zero
