"""A layer whose gradient has gone: exactly zero, or a vanishing part of what it was while the others kept theirs.

Reference: vanishing gradients (Hochreiter 1991; Glorot and Bengio 2010) and dying rectifiers (Lu et al. 2019).

Default, each for two samples in a row: dead is a gradient or an activation of zeros only, after one that was not;
vanished is a gradient's norm below 1/4096 of its own median over 32 samples, relative to how the median tensor changed.
Evidence: the norm now and the layer's own median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.robust import Rings, log2, quiet_median
from torchtrack.stability.step import Step, Tensors

_WINDOW: Final = 32
_LEAST: Final = 4
_VANISHED: Final = -12.0
_VANISHED_OVER: Final = -10.0
_LOOK_AT: Final = "Whether the layer is frozen, detached or left out, its activations, and what scales its output."


class DeadLayer:
    """Gradients that vanish, gradients and activations that are zero."""

    name = "dead_layer"
    patience = 2
    calm = 2
    causes = frozenset(
        {
            "dead_layer",
            "loss_plateau",
            "update_ratio",
            "loss_spike",
            "loss_divergence",
            "gradient_spike",
            "format_headroom",
        }
    )

    def __init__(self) -> None:
        self._norms = Rings(_WINDOW)
        self._alive: set[tuple[str, str]] = set()

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each gradient and activation of a sample."""
        looked: dict[str, Sign | None] = {}
        for kind in ("gradient", "activation"):
            rows = step.tensors.get(kind)
            if rows is not None:
                looked.update({f"{kind}:{name}": None for name in rows.names})
                self._zeros(kind, rows, step, looked)
                if kind == "gradient":
                    self._vanished(rows, step, looked)
        return looked

    def _zeros(self, kind: str, rows: Tensors, step: Step, looked: dict[str, Sign | None]) -> None:
        dead = (rows.zeros == rows.count) & (rows.count > 0)
        self._alive.update((kind, rows.names[i]) for i in np.flatnonzero(~dead).tolist())
        for i in np.flatnonzero(dead).tolist():
            name = rows.names[i]
            if (kind, name) in self._alive:
                looked[f"{kind}:{name}"] = Sign(
                    why=f"All {int(rows.count[i]):,} elements of the {kind} {name} are zero at step {step.step:,}; "
                    "before, they were not.",
                    look_at=_LOOK_AT,
                    value=math.inf,
                    kind=kind,
                    names=(name,),
                    evidence={"elements": int(rows.count[i]), "zeros": int(rows.zeros[i])},
                )

    def _vanished(self, rows: Tensors, step: Step, looked: dict[str, Sign | None]) -> None:
        logs = self._norms.push(rows.names, log2(rows.norm))
        usual = quiet_median(logs[:, :-1])
        change = logs[:, -1] - usual
        enough = np.isfinite(logs[:, :-1]).sum(axis=1) >= _LEAST
        known = change[np.isfinite(change)]
        change = change - (np.median(known) if len(known) else 0.0)
        with np.errstate(invalid="ignore"):
            low = np.flatnonzero(enough & (change <= _VANISHED_OVER))
        for i in low.tolist():
            name = rows.names[i]
            looked[f"gradient:{name}"] = Sign(
                why=f"The norm of the gradient {name} is {rows.norm[i]:.3g} at step {step.step:,}; its median was "
                f"{2.0 ** usual[i]:.3g}, and the other gradients kept theirs.",
                look_at=_LOOK_AT,
                value=float(-change[i]),
                kind="gradient",
                names=(name,),
                evidence={"norm": float(rows.norm[i]), "median": float(2.0 ** usual[i])},
                opens=bool(change[i] <= _VANISHED),
            )
