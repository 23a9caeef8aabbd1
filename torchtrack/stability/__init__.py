"""Rows in, findings out: the rules that say since when, which tensor, which rank and why. numpy only.

The same code runs beside the training, in the lookout, and over stored runs.
"""

from torchtrack.stability.finding import Finding, Severity, Sign
from torchtrack.stability.monitor import Monitor, Rule
from torchtrack.stability.rules import default_rules
from torchtrack.stability.step import Facts, Step, Tensors

__all__ = ["Facts", "Finding", "Monitor", "Rule", "Severity", "Sign", "Step", "Tensors", "default_rules"]
