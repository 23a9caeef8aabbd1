"""Replicas that are no longer equal: a flipped bit, a missed broadcast, ranks that began with other seeds.

Reference: in data parallel training every rank makes the same update from the same average, so that what ranks hold
alike stays equal to the last bit. `watch` holds checksums of it against each other (`watch/compare.py`).

Default: any difference. Evidence: what `watch` said: why it should be equal, and when it last was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torchtrack.stability.finding import Sign
from torchtrack.stability.step import Seen, Step

_LOOK_AT: Final = (
    "The memory and device of the odd rank; whether all ranks load the same weights and seeds, and average every "
    "gradient. A checkpoint of another rank is likely to be sound."
)


class ReplicaDivergence:
    """Ranks hold different numbers where they should hold the same."""

    name = "replica_divergence"
    patience = 1
    calm = 1 << 30  # replicas do not become equal again by themselves
    causes = frozenset(
        {"replica_divergence", "non_finite", "rank_skew", "loss_spike", "gradient_spike", "loss_divergence"}
    )

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at what `watch` has seen."""
        return {str(seen.data.get("tensor")): _sign(seen) for seen in step.seen if seen.type == "replica_divergence"}


def _sign(seen: Seen) -> Sign:
    data = seen.data
    odd = data.get("odd_ranks") or data.get("ranks") or ()
    equal = data.get("equal_last_step")
    return Sign(
        why=str(data.get("text") or f"{data.get('tensor')} differs between ranks."),
        look_at=_LOOK_AT,
        value=float(len(data.get("tensors") or (data.get("tensor"),))),
        severity="critical",
        kind=str(data.get("kind") or ""),
        names=(str(data.get("tensor")),),
        ranks=tuple(int(rank) for rank in odd),
        evidence={"reason": data.get("reason"), "equal_last_step": equal, "ranks": data.get("ranks")},
    )
