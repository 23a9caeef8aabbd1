"""Gradients too small for the format they are computed in.

Reference: Micikevicius et al. 2018, "Mixed precision training", section 3.2: values below the smallest number of fp16
become zero unless the loss is scaled. For fp8: Micikevicius et al. 2022, "FP8 formats for deep learning".

Default: at least a quarter of a gradient's non-zero elements are below 16 times the smallest number of the format,
after the loss scale: they become zero, or keep fewer than 4 of their bits. Where most gradients lose so, elements that
were not zero in the median of the samples before count as lost too, and so do gradients that are nothing but zeros
everywhere. One sample is enough. Only for a format in use: that of the parameter, or fp16 where a loss scale is
recorded. `Run.headroom` tells of any other, what if.
Evidence: the share, the scale, and the power of two that would lose least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from torchtrack.stability import headroom
from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import is_loss_scale
from torchtrack.stability.robust import Rings, quiet_median
from torchtrack.stability.step import Bools, Floats, Step, Tensors

_SHARE: Final = 0.25
_SHARE_OVER: Final = 0.1
_BITS: Final = 16.0
_FEWEST: Final = 16
_SAMPLES: Final = 32


class FormatHeadroom:
    """Underflow of gradients."""

    name = "format_headroom"
    patience = 1
    calm = 2
    causes = frozenset({"dead_layer", "loss_plateau"})

    def __init__(self) -> None:
        self._scale = math.nan
        self._zeros = Rings(_SAMPLES)

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each gradient that is held in a narrow format."""
        for name, value in step.scalars.items():
            if is_loss_scale(name) and 0 < value < math.inf:
                self._scale = value
        rows = step.tensors.get("gradient")
        if rows is None:
            return {}
        scaled, scale = not math.isnan(self._scale), 1.0 if math.isnan(self._scale) else self._scale
        formats = np.array([step.facts.formats.get(name, "fp16" if scaled else "") for name in rows.names])
        zeros = self._zeros.push(rows.names, rows.zeros / np.maximum(rows.count, 1.0))
        looked: dict[str, Sign | None] = {}
        for narrow in sorted({*formats.tolist()} - {""}):
            held = formats == narrow
            lost, enough = _lost(rows, headroom.underflow(rows, narrow, scale / _BITS)[0], zeros, held)
            best = headroom.best_scale(rows, narrow)
            for i in np.flatnonzero(held).tolist():
                name = rows.names[i]
                bad = lost[i] >= _SHARE_OVER and enough[i]
                looked[name] = _sign(name, narrow, float(lost[i]), scale, float(best[i]), step) if bad else None
        return looked


def _lost(rows: Tensors, low: Floats, zeros: Floats, held: Bools) -> tuple[Floats, Bools]:
    """Share of each gradient's elements that is lost, and whether these are enough elements to tell.

    Args:
        rows: the gradients.
        low: share of the elements that are not zero which are too small.
        zeros: [gradients, samples] share of zeros, the newest last.
        held: which of them are in the format.
    """
    now, usual = zeros[:, -1], quiet_median(zeros[:, :-1])
    rest = rows.count - rows.zeros - rows.nonfinite
    if not rest[held].any():  # nothing but zeros, in every one
        return np.ones_like(low), rows.count >= _FEWEST
    known = np.isfinite(usual) & (usual < 1)
    before = np.where(known, usual, now)
    fresh = np.maximum(now - before, 0.0) * rows.count
    lost = (fresh + low * rest) / np.maximum(fresh + rest, 1.0)
    if (lost[held] >= _SHARE_OVER).mean() > 0.5:
        return lost, fresh + rest >= _FEWEST
    return low, rest >= _FEWEST


def _sign(name: str, narrow: str, share: float, scale: float, best: float, step: Step) -> Sign:
    power = int(np.log2(best)) if best > 0 else 0
    suits = f": 2^{power} would suit this tensor" if share < 1 else ""
    return Sign(
        why=f"{share:.0%} of the elements of the gradient {name} that should not be zero are too small for {narrow} at "
        f"step {step.step:,}: they become zero or keep fewer than 4 bits.",
        look_at=f"The loss scale, which is {scale:g}{suits}. bf16 has the range of float32.",
        value=share,
        kind="gradient",
        names=(name,),
        evidence={"share": share, "format": narrow, "scale": scale, "best_scale": best},
        opens=share >= _SHARE,
    )
