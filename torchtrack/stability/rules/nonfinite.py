"""Values that are NaN or infinite: which tensor had them first.

Reference: IEEE 754, and the order in which a backward pass runs: a NaN that arises in the gradient of a layer is handed
to every layer before it, so of the gradients that hold one at the first bad step, the last of the forward pass is where
it arose. In parameters, activations and updates the first of the forward pass is.

Default: a single element is enough. A step that a gradient scaler left out is only noted: scalers probe for overflow.
One that `watch(on_nonfinite=)` left out is a warning, also between two samples.
A finding of its own, unless one that leads to it is still going on (a gradient that explodes), or the same tensor of
the same ranks was not finite shortly before.
Evidence: how many elements of which tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from torchtrack.stability.finding import Sign
from torchtrack.stability.metrics import is_gradient_norm, is_loss
from torchtrack.stability.step import Seen, Step, Tensors

_KINDS: Final = ("activation", "gradient", "update", "optimizer", "parameter")
"""In the order in which a step computes them; rows of parameters are from before the update."""
_BROUGHT: Final = "nonfinite"
_HELD: Final = "nonfinite_held"
_BOXED: Final = "nonfinite_boxed"
_MOST: Final = 16
_LOOK_AT: Final = (
    "The batch of this step and the operations of this layer (division, log, sqrt, exp, a mask that hides all); "
    "torch.autograd.detect_anomaly shows the line."
)


class NonFinite:
    """Any element that is no number, or an infinite one."""

    name = "non_finite"
    patience = 1
    calm = 3
    distinct = True
    causes = frozenset(
        {
            *("non_finite", "loss_scale", "gradient_spike", "loss_spike", "loss_divergence", "exploding_trend"),
            *("dead_layer", "update_ratio", "rank_skew", "format_headroom", "clip_saturation", "loss_plateau"),
            "replica_divergence",  # of what one rank alone holds after the average
        }
    )

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at all rows, then at losses and gradient norms: a job that samples rarely sees these first."""
        looked: dict[str, Sign | None] = {}
        broken = [kind for kind in _KINDS if kind in step.tensors and step.tensors[kind].nonfinite.any()]
        if "parameter" in broken:  # they were bad before this step's pass, whose values follow from them
            broken.remove("parameter")
            broken.insert(0, "parameter")
        for kind in broken:
            looked[kind] = _sign(kind, step.tensors[kind], step)
        for kind in {str(seen.data.get("kind")): None for seen in step.seen if seen.type in (_BROUGHT, _HELD)}:
            if kind not in looked and (ranks := _blamed(kind, step)):
                looked[kind] = _of_ranks(kind, ranks, step)
        boxed = [seen for seen in step.seen if seen.type == _BOXED]
        if boxed and "gradient" not in looked:
            looked["gradient"] = _of_ranks("gradient", boxed, step)
        for seen in step.seen:
            if seen.type == "nonfinite_step":
                looked["gradient"] = _stopped(seen, step)
        for kind in step.tensors:
            looked.setdefault(kind, None)
        for name, value in step.scalars.items():
            if is_loss(name) or is_gradient_norm(name):
                looked[name] = None if math.isfinite(value) else _of_metric(name, value, step)
        return dict(_alone(looked))


def _alone(looked: Mapping[str, Sign | None]) -> Iterator[tuple[str, Sign | None]]:
    """Tensors before metrics, whose names add nothing to theirs."""
    tensors = any(sign is not None and sign.kind for sign in looked.values())
    for key, sign in looked.items():
        yield key, None if tensors and sign is not None and not sign.kind else sign


def _sign(kind: str, rows: Tensors, step: Step) -> Sign:
    bad = np.flatnonzero(rows.nonfinite).tolist()
    order = {name: place for place, name in enumerate(step.facts.order)}
    backward = kind == "gradient"
    if order:
        bad.sort(key=lambda i: order.get(rows.names[i], len(order)), reverse=backward)
    blamed = _blamed(kind, step)
    firsts = {str(seen.data.get("first")) for seen in blamed}
    bad.sort(key=lambda i: rows.names[i] not in firsts)
    names = tuple(rows.names[i] for i in bad)
    skipped = bool(rows.skipped[bad].all())
    count = int(rows.nonfinite[bad[0]])
    ranks = tuple(sorted({seen.rank for seen in blamed}))
    which = ", the first of the backward pass" if backward and (order or blamed) and len(names) > 1 else ""
    others = f", and {len(names) - 1} more {kind}s hold such" if len(names) > 1 else ""
    on = _on(ranks, after=any(seen.type == _HELD for seen in blamed))
    why = (
        f"{count:,} of {int(rows.count[bad[0]]):,} elements of the {kind} {names[0]}{which}, are NaN or infinite at "
        f"step {step.step:,}{others}{on}{'; a gradient scaler left the step out' if skipped else ''}."
    )
    return Sign(
        why=why.replace(f"{names[0]},", names[0]) if not which else why,
        look_at="Nothing, unless it goes on: a scaler probes for overflow." if skipped else _LOOK_AT,
        value=float(rows.nonfinite.sum()),
        severity="info" if skipped else "critical",
        kind=kind,
        names=names[:_MOST],
        ranks=ranks,
        evidence={"elements": {rows.names[i]: int(rows.nonfinite[i]) for i in bad[:_MOST]}, "tensors": len(names)},
    )


def _stopped(seen: Seen, step: Step) -> Sign:
    """A step that was judged as it happened, sampled or not."""
    left_out = seen.data.get("action") == "skip"
    names = (str(seen.data.get("first")), *map(str, seen.data.get("names", ())))
    ranks = tuple(map(int, seen.data.get("ranks", ())))
    count = int(seen.data.get("count", 1))
    return Sign(
        why=f"The gradient of {names[0]}, the first of the backward pass, is NaN or infinite at step {step.step:,}"
        f"{_on(ranks, after=False)}; {'the step was left out' if left_out else 'training was stopped'}.",
        look_at=_LOOK_AT,
        value=float(count),
        severity="warning" if left_out else "critical",
        kind="gradient",
        names=tuple(dict.fromkeys(names)),
        ranks=ranks,
        evidence={"action": str(seen.data.get("action")), "stage": str(seen.data.get("stage")), "tensors": count},
    )


def _blamed(kind: str, step: Step) -> list[Seen]:
    """The ranks' own words on who brought it: before the average, else those that alone hold it after."""
    said = [seen for seen in step.seen if seen.data.get("kind") == kind]
    brought = [seen for seen in said if seen.type == _BROUGHT]
    held = [seen for seen in said if seen.type == _HELD]
    if brought or not held:
        return brought
    ranks = set().union(*step.ranks.values()) if step.ranks else set()
    return held if not ranks <= {seen.rank for seen in held} else []


def _of_ranks(kind: str, blamed: list[Seen], step: Step) -> Sign:
    """Of values that a rank holds and no row does: of a replica, which rows have from another rank.

    Or of a step that was no sample, which the black box saw after the average: who brought them is not known.
    """
    names = tuple(dict.fromkeys(str(name) for seen in blamed for name in (seen.data.get("names") or ())))
    ranks = tuple(sorted({seen.rank for seen in blamed if seen.type != _BOXED}))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Sign(
        why=f"Elements of the {kind} {names[0] if names else '(unnamed)'}{more} are NaN or infinite at step "
        f"{step.step:,}{_on(ranks, after=any(seen.type == _HELD for seen in blamed))}.",
        look_at=_LOOK_AT,
        value=float(len(names)),
        severity="critical",
        kind=kind,
        names=names[:_MOST],
        ranks=ranks,
        evidence={"tensors": max(int(seen.data.get("count") or 0) for seen in blamed)},
    )


def _on(ranks: tuple[int, ...], *, after: bool) -> str:
    """Whose they are, if it is known."""
    if not ranks:
        return ""
    named = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
    return f"; after the average {named} alone held them" if after else f"; before the average they came from {named}"


def _of_metric(name: str, value: float, step: Step) -> Sign:
    ranks = tuple(rank for rank, own in step.ranks.get(name, {}).items() if not math.isfinite(own))
    every = len(ranks) == len(step.ranks.get(name, {}))
    return Sign(
        why=f"{name} is {value} at step {step.step:,}.",
        look_at=_LOOK_AT,
        value=0.0,
        severity="critical",
        names=(name,),
        ranks=() if every else ranks,
        evidence={"value": str(value)},
    )
