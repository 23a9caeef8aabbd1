"""Gradients too small for the format they are computed in.

Reference: Micikevicius et al. 2018, "Mixed precision training", section 3.2: values below the smallest number of fp16
become zero unless the loss is scaled. For fp8: Micikevicius et al. 2022, "FP8 formats for deep learning".

Default: at least a quarter of a gradient's non-zero elements are below 16 times the smallest number of the format,
after the loss scale: they become zero, or keep fewer than 4 of their bits. One sample is enough. Only for a format in
use: that of the parameter, or fp16 where a loss scale is logged. `Run.headroom` tells of any other, what if.
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
from torchtrack.stability.step import Step

_SHARE: Final = 0.25
_SHARE_OVER: Final = 0.1
_BITS: Final = 16.0
_FEWEST: Final = 16


class FormatHeadroom:
    """Underflow of gradients."""

    name = "format_headroom"
    patience = 1
    calm = 2
    causes = frozenset({"dead_layer", "loss_plateau"})

    def __init__(self) -> None:
        self._scale = math.nan

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each gradient that is held in a narrow format."""
        for name, value in step.scalars.items():
            if is_loss_scale(name) and 0 < value < math.inf:
                self._scale = value
        rows = step.tensors.get("gradient")
        if rows is None:
            return {}
        scaled, scale = not math.isnan(self._scale), 1.0 if math.isnan(self._scale) else self._scale
        formats = [step.facts.formats.get(name, "fp16" if scaled else "") for name in rows.names]
        looked: dict[str, Sign | None] = {}
        for narrow in sorted({*formats} - {""}):
            low, _ = headroom.underflow(rows, narrow, scale / _BITS)
            best = headroom.best_scale(rows, narrow)
            nonzero = rows.count - rows.zeros - rows.nonfinite
            for i in [i for i, own in enumerate(formats) if own == narrow]:
                name = rows.names[i]
                bad = low[i] >= _SHARE_OVER and nonzero[i] >= _FEWEST
                looked[name] = _sign(name, narrow, float(low[i]), scale, float(best[i]), step) if bad else None
        return looked


def _sign(name: str, narrow: str, share: float, scale: float, best: float, step: Step) -> Sign:
    power = int(np.log2(best)) if best > 0 else 0
    return Sign(
        why=f"{share:.0%} of the non-zero elements of the gradient {name} are too small for {narrow} at step "
        f"{step.step:,}: they become zero or keep fewer than 4 bits.",
        look_at=f"The loss scale, which is {scale:g}: 2^{power} would suit this tensor. bf16 has the range of float32.",
        value=share,
        kind="gradient",
        names=(name,),
        evidence={"share": share, "format": narrow, "scale": scale, "best_scale": best},
        opens=share >= _SHARE,
    )
