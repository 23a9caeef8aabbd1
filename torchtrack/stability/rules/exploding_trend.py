"""Gradients that grow from sample to sample, long before anything overflows.

Reference: exploding gradients (Pascanu, Mikolov and Bengio 2013): growth that compounds is a line on a log scale.

Default: over the last 24 samples of a tensor the line through the logarithm of its norm rises by a factor of 16 or more
and explains 90 % of the variance, and the norm is above all it was before. Each tensor by itself.
Evidence: the factor, the share explained, norm then and now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.robust import Rings, log2
from torchtrack.stability.step import Bools, Floats, Step

_WINDOW: Final = 24
_RISE: Final = 4.0
_RISE_OVER: Final = 3.0
_EXPLAINED: Final = 0.9


class ExplodingTrend:
    """Norms that grow like compound interest."""

    name = "exploding_trend"
    patience = 2
    calm = 4
    causes = frozenset(
        {
            "non_finite",
            "gradient_spike",
            "loss_spike",
            "loss_divergence",
            "update_ratio",
            "loss_scale",
            "clip_saturation",
        }
    )

    def __init__(self) -> None:
        self._norms = Rings(_WINDOW)
        self._peaks: dict[str, float] = {}

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each gradient of a sample."""
        rows = step.tensors.get("gradient")
        if rows is None:
            return {}
        logs = self._norms.push(rows.names, log2(rows.norm))
        rise, explained = _line(logs)
        looked: dict[str, Sign | None] = dict.fromkeys(rows.names)
        for i in np.flatnonzero((rise >= _RISE_OVER) & (explained >= _EXPLAINED)).tolist():
            name, then, now = rows.names[i], 2.0 ** float(logs[i, 0]), float(rows.norm[i])
            looked[name] = Sign(
                why=f"The norm of the gradient {name} has grown steadily from {then:.3g} to {now:.3g} over the last "
                f"{_WINDOW} samples, at step {step.step:,}.",
                look_at="The learning rate, the initialisation and normalisation of this layer, and clipping.",
                value=float(rise[i]),
                kind="gradient",
                names=(name,),
                evidence={"factor": 2.0 ** float(rise[i]), "explained": float(explained[i]), "from": then, "to": now},
                opens=bool(rise[i] >= _RISE and logs[i, -1] >= self._peaks.get(name, -np.inf)),
            )
        self._remember(rows.names, logs[:, 0])
        return looked

    def _remember(self, names: tuple[str, ...], oldest: Floats) -> None:
        """The highest norm that has left the window: what a tensor had before is no explosion."""
        for i in np.flatnonzero(np.isfinite(oldest)).tolist():
            self._peaks[names[i]] = max(self._peaks.get(names[i], -np.inf), float(oldest[i]))


def _line(logs: Floats) -> tuple[Floats, Floats]:
    """Rise of the least-squares line over the window, and the share of the variance it explains; 0 where unknown."""
    known: Bools = np.asarray(np.isfinite(logs).all(axis=1))
    values = np.where(known[:, None], logs, 0.0)
    x = np.arange(_WINDOW) - (_WINDOW - 1) / 2
    centred = values - values.mean(axis=1, keepdims=True)
    slope = centred @ x / (x @ x)
    variance = (centred**2).sum(axis=1)
    explained = np.where(variance > 0, slope**2 * (x @ x) / np.where(variance > 0, variance, 1.0), 0.0)
    rise: Floats = slope * (_WINDOW - 1)
    return rise, explained
