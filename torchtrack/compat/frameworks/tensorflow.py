"""`wandb.tensorflow`: a hook for sessions of TensorFlow's first version. Its class is made when it is asked for."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torchtrack import guard
from torchtrack.active import current
from torchtrack.compat.tensorboard import values_of
from torchtrack.errors import MissingDependencyError


def __getattr__(name: str) -> Any:
    if name != "WandbHook":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _hook()


@functools.cache
def _hook() -> Any:
    try:
        base = _v1().train.SessionRunHook
    except ImportError:
        raise MissingDependencyError("wandb.tensorflow.WandbHook needs tensorflow: pip install tensorflow") from None
    return type("WandbHook", (Summaries, base), {"__doc__": Summaries.__doc__})


def _v1() -> Any:
    return importlib.import_module("tensorflow.compat.v1")


class Summaries:
    """Logs the summaries of a `MonitoredSession` every few of its global steps, at that step.

    Args:
        summary_op: which; by default all of the graph.
        steps_per_log: from one logging to the next.
        history: the run that it goes to; by default the active one.
    """

    def __init__(self, summary_op: Any = None, steps_per_log: int = 1000, history: Any = None) -> None:
        super().__init__()
        self.summary_op, self.steps_per_log = summary_op, steps_per_log
        self._run = history or current("tensorflow.WandbHook()")

    def begin(self) -> None:
        """Find the summaries of the graph, before it is finished."""
        if self.summary_op is None:
            self.summary_op = _v1().summary.merge_all()

    def before_run(self, run_context: Any) -> Any:
        """Ask for the summaries and the step."""
        del run_context
        train = _v1().train
        asked = {"global_step": train.get_global_step(), "summary": self.summary_op}
        return train.SessionRunArgs({name: op for name, op in asked.items() if op is not None})

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Log them, if it is time."""
        del run_context
        found = run_values.results
        if "summary" in found and int(found.get("global_step", 0)) % self.steps_per_log == 0:
            guard.attempt("tensorflow.WandbHook", self._log, found["summary"], int(found.get("global_step", 0)))

    def _log(self, written: bytes, step: int) -> None:
        self._run.log(values_of(_v1().Summary.FromString(written)), step=step)
