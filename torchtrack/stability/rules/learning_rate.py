"""A learning rate far above all that the run had before: a slip in a schedule, a restart or a configuration.

Reference: schedules change the rate by factors near 1 from step to step, warm restarts (Loshchilov and Hutter 2017,
"SGDR") go back to what was there; beyond a few times the largest stable rate training diverges (Cohen et al. 2021,
"Gradient descent on neural networks typically occurs at the edge of stability").

Default: from one value to the next the rate rises to 30 times the largest before, of which there are at least 4. Only a
note: it may be meant. The rules for spikes look harder for twenty steps after it.
Evidence: the rate, the one before, and the largest before.
"""

from __future__ import annotations

from collections.abc import Mapping

from torchtrack.stability.finding import Sign
from torchtrack.stability.rates import Jump, Rates
from torchtrack.stability.step import Step


class LearningRate:
    """The rate jumps to where it never was."""

    name = "learning_rate"
    patience = 1
    calm = 20
    causes: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._rates = Rates()

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """Look at each learning rate."""
        found = self._rates.look(step.scalars, step.step)
        return {name: None if jump is None else _sign(name, jump, step) for name, jump in found.items()}


def _sign(name: str, jump: Jump, step: Step) -> Sign:
    times = jump.value / jump.most
    return Sign(
        why=f"{name} went from {jump.last:.3g} to {jump.value:.3g} at step {step.step:,}, {times:.3g} times the rest.",
        look_at="The schedule and what set it: a restart, a configuration, a factor that was applied twice.",
        value=times,
        severity="info",
        names=(name,),
        evidence={"rate": jump.value, "before": jump.last, "largest": jump.most},
    )
