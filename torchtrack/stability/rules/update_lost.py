"""Updates that rounding takes away: steps that are too small for the bits a weight is kept in.

Reference: Micikevicius et al. 2018, "Mixed precision training", section 3.1: an update that is small beside its weight
is lost when both are added in few bits, hence master weights in float32. For bf16: Zamirai et al. 2021, "Revisiting
BFloat16 training", where rounding to the nearest cancels most of the late updates, and stochastic rounding or Kahan
summation bring them back.

Default, as the median of the last 8 samples. Where parameters are kept in bf16, `watch/update_unchanged`: a warning
from 90 % on; it is an upper bound, since an element without a gradient does not change either. Where they are kept in
more bits nothing is lost: `watch/update_lost_bf16`, what bf16 weights would lose, is a note from 75 % on. Needs
"updates" in watch(log=).
Evidence: the median share, the newest, and the format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import UPDATE_LOST, UPDATE_UNCHANGED
from torchtrack.stability.robust import Window
from torchtrack.stability.step import Step

_WINDOW: Final = 8
_LOST: Final = 0.9
_LOST_OVER: Final = 0.8
_WOULD_BE: Final = 0.75
_WOULD_BE_OVER: Final = 0.6
_NARROW: Final = "bf16"


class UpdateLost:
    """Weights that stay as they are since their steps are too small to be added."""

    name = "update_lost"
    patience = 1
    calm = 4
    causes = frozenset({"loss_plateau"})

    def __init__(self) -> None:
        self._shares = {UPDATE_LOST: Window(_WINDOW), UPDATE_UNCHANGED: Window(_WINDOW)}

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at the share of what is, or would be, lost."""
        narrow = _NARROW in step.facts.formats.values()
        name = UPDATE_UNCHANGED if narrow else UPDATE_LOST
        value = step.scalars.get(name, math.nan)
        if not math.isfinite(value):
            return {}
        shares = self._shares[name]
        shares.push(value)
        if len(shares) < _WINDOW:
            return {}
        median = float(np.median(shares.array()))
        if median < (_LOST_OVER if narrow else _WOULD_BE_OVER):
            return {name: None}
        return {name: _sign(name, median, value, step, narrow=narrow)}


def _sign(name: str, median: float, newest: float, step: Step, *, narrow: bool) -> Sign:
    if narrow:
        why = (
            f"{median:.0%} of the weights stay as they are at a step, in the median of the last {_WINDOW} samples, at "
            f"step {step.step:,}: their updates are too small for bf16, or they have no gradient."
        )
        look_at = "Master weights in float32, stochastic rounding or Kahan summation; the learning rate."
    else:
        why = (
            f"Weights in bf16 would lose {median:.0%} of the updates, in the median of the last {_WINDOW} samples, at "
            f"step {step.step:,}; these have more bits and lose none of them."
        )
        look_at = "Nothing, as long as weights are kept in float32: they cannot be kept in bf16 alone from here on."
    return Sign(
        why=why,
        look_at=look_at,
        value=median,
        severity="warning" if narrow else "info",
        names=(name,),
        evidence={"median": median, "newest": newest, "format": _NARROW, "kept_in_it": narrow},
        opens=median >= (_LOST if narrow else _WOULD_BE),
    )
