"""Steps that are too large or too small for the weights they change: norm of the update over norm of the parameter.

Reference: the rule of thumb of about 1e-3 (Karpathy 2022, "Building makemore", part 3), and layer-wise rates (You et
al. 2017, "Large batch training of convolutional networks"), whose trust ratio it is.

Default: a note where the median of a tensor's last 4 samples lies outside 1e-4 .. 1e-2, a warning above 1e-1; a single
ratio above 1e-1 that is 8 times the median before it counts at once. Only tensors of 256 elements or more whose rms is
at least 1e-3: what starts at zero has no ratio yet. Needs "updates" and "parameters" in watch(log=).
Evidence: the ratio and the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.robust import Rings, log2, quiet_median
from torchtrack.stability.step import Floats, Step, Tensors

_LOW: Final = 1e-4
_HIGH: Final = 1e-2
_GRAVE: Final = 1e-1
_JUMP: Final = 3.0
_HYSTERESIS: Final = 1.5
_SAMPLES: Final = 4
_ELEMENTS: Final = 256
_RMS: Final = 1e-3


class UpdateRatio:
    """Steps of the wrong size."""

    name = "update_ratio"
    patience = 1
    calm = 3
    causes = frozenset(
        {
            "loss_spike",
            "gradient_spike",
            "loss_divergence",
            "exploding_trend",
            "non_finite",
            "dead_layer",
            "clip_saturation",
            "format_headroom",
        }
    )

    def __init__(self) -> None:
        self._ratios = Rings(_SAMPLES)

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each tensor that has both rows in this sample."""
        updates, parameters = step.tensors.get("update"), step.tensors.get("parameter")
        if updates is None or parameters is None:
            return {}
        names, ratio = _ratios(updates, parameters)
        if not names:
            return {}
        logs = self._ratios.push(names, log2(ratio))
        known = np.isfinite(logs).sum(axis=1)
        median, before = 2.0 ** quiet_median(logs), quiet_median(logs[:, :-1])
        with np.errstate(invalid="ignore"):
            jump = (ratio >= _GRAVE) & (logs[:, -1] - before >= _JUMP)
            settled = known >= _SAMPLES
            outside = settled & ((median < _LOW * _HYSTERESIS) | (median > _HIGH / _HYSTERESIS))
        looked: dict[str, Sign | None] = dict.fromkeys(names)
        for i in np.flatnonzero(outside | jump).tolist():
            value = float(ratio[i] if jump[i] else median[i])
            looked[names[i]] = _sign(names[i], value, step, jumped=bool(jump[i]))
        return looked


def _ratios(updates: Tensors, parameters: Tensors) -> tuple[tuple[str, ...], Floats]:
    """Names and ratios of the tensors that were counted whole and are large enough to have one."""
    place = {name: i for i, name in enumerate(parameters.names)}
    pairs = [(i, place[name]) for i, name in enumerate(updates.names) if name in place]
    of_update, of_parameter = (np.array(side, np.int64) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    count, norm = parameters.count[of_parameter], parameters.norm[of_parameter]
    keep = (count >= _ELEMENTS) & (count == updates.count[of_update]) & (norm >= _RMS * np.sqrt(count))
    of_update, norm = of_update[keep], norm[keep]
    return tuple(updates.names[i] for i in of_update.tolist()), updates.norm[of_update] / norm


def _sign(name: str, ratio: float, step: Step, *, jumped: bool) -> Sign:
    low = ratio < 2 * _LOW
    size = "smaller" if low else "larger"
    return Sign(
        why=f"Steps of {name} {'are' if jumped else 'have been'} {ratio:.2g} of its norm at step {step.step:,}, {size} "
        f"than the usual {_LOW:.0e} to {_HIGH:.0e}.",
        look_at="The learning rate of this tensor's group, warm-up, weight decay and its initial scale.",
        value=_LOW / max(ratio, 1e-30) if low else ratio / _HIGH,
        severity="warning" if ratio >= _GRAVE else "info",
        kind="update",
        names=(name,),
        evidence={"ratio": ratio, "low": _LOW, "high": _HIGH},
        opens=jumped or not _LOW <= ratio <= _HIGH,
    )
