"""The rules, one file each; yours come in by the entry point `torchtrack.rules`."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Final

from torchtrack import guard
from torchtrack.stability.monitor import Rule
from torchtrack.stability.rules.clip_saturation import ClipSaturation
from torchtrack.stability.rules.dead_layer import DeadLayer
from torchtrack.stability.rules.exploding_trend import ExplodingTrend
from torchtrack.stability.rules.format_headroom import FormatHeadroom
from torchtrack.stability.rules.gradient_spike import GradientSpike
from torchtrack.stability.rules.learning_rate import LearningRate
from torchtrack.stability.rules.loss_divergence import LossDivergence
from torchtrack.stability.rules.loss_plateau import LossPlateau
from torchtrack.stability.rules.loss_scale import LossScale
from torchtrack.stability.rules.loss_spike import LossSpike
from torchtrack.stability.rules.nonfinite import NonFinite
from torchtrack.stability.rules.rank_skew import RankSkew
from torchtrack.stability.rules.replayed_batches import ReplayedBatches
from torchtrack.stability.rules.replica_divergence import ReplicaDivergence
from torchtrack.stability.rules.straggler import Straggler
from torchtrack.stability.rules.update_lost import UpdateLost
from torchtrack.stability.rules.update_ratio import UpdateRatio

ENTRY_POINT: Final = "torchtrack.rules"
_OWN: Final[tuple[type[Rule], ...]] = (
    NonFinite,
    ReplicaDivergence,
    ReplayedBatches,
    Straggler,
    RankSkew,
    LearningRate,
    DeadLayer,
    FormatHeadroom,
    UpdateRatio,
    UpdateLost,
    LossScale,
    GradientSpike,
    LossSpike,
    LossDivergence,
    ExplodingTrend,
    ClipSaturation,
    LossPlateau,
)
"""Causes before consequences."""

__all__ = ["ENTRY_POINT", "default_rules"]


def default_rules() -> list[Rule]:
    """Fresh rules of one run: ours, then those that installed packages add; one that cannot be made is left out."""
    rules = [make() for make in _OWN]
    for point in sorted(entry_points(group=ENTRY_POINT), key=lambda point: point.name):
        guard.attempt(f"rule {point.name}", lambda point=point: rules.append(_made(point)))
    return rules


def _made(point: Any) -> Rule:
    """What the entry point names, called: a class without arguments, or a function."""
    rule: Rule = point.load()()
    if rule.name in {own.name for own in _OWN}:
        raise ValueError(f"the rule {rule.name!r} of {point.value} has the name of one of torchtrack's; choose another")
    return rule
