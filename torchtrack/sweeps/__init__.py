"""Sweeps: many runs of one training, each with parameters that a method draws.

    Plan (what is asked) -> Sweep (what was drawn, in the folder of runs) -> agent (runs a trial after the other)

A trial is a run of its own: what came of it is read from the run, so that nothing is written down twice. Any number of
agents, on all machines that share the folder of runs, take part in one sweep.
"""

from torchtrack.sweeps.agent import work
from torchtrack.sweeps.plan import Plan
from torchtrack.sweeps.sweep import Outcome, Sweep, Trial

__all__ = ["Outcome", "Plan", "Sweep", "Trial", "work"]
