"""The logger: what a Trainer or Fabric logs on any rank goes into the one run of the job."""

from __future__ import annotations

import inspect
import os
import secrets
import sys
import weakref
from argparse import Namespace
from collections.abc import Mapping
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

import torchtrack
from torchtrack import guard
from torchtrack_lightning.framework import base

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import Logger
else:
    Logger = base("loggers", "Logger")

_imported_in: Final = os.getpid()
_begun: Final[weakref.WeakValueDictionary[str, torchtrack.Run]] = weakref.WeakValueDictionary()
"""Runs that loggers have begun: each logger and its copies have their own. One that the script began is for all."""


class TorchtrackLogger(Logger):
    """Records on every rank, into one run for all of fit, validate, test, predict and tuning.

    The run begins on each rank when it is first needed, and ends with the process, at `torchtrack.finish()`, or as
    failed when an exception leaves the Trainer; what is logged after that is its next attempt. A run that the script
    has begun with `torchtrack.init` is used if the logger is given no arguments.

    Args:
        project: runs are listed by project.
        log_model: keep the best checkpoint, each time there is a better one, as the next version of the artifact
            `model-<id>`: a copy on this machine, made while the training waits.
        init: further arguments of `torchtrack.init`: name, id, config, tags, dir, mode, resume, ...

    Raises:
        TypeError: an argument that `torchtrack.init` does not have, or a `log_model` that is neither True nor False.
    """

    def __init__(self, project: str | None = None, *, log_model: bool = False, **init: Any) -> None:
        super().__init__()
        try:
            inspect.signature(torchtrack.init).bind(project, **init)
        except TypeError as error:
            raise TypeError(f"TorchtrackLogger() takes the arguments of torchtrack.init(): {error}") from None
        if not isinstance(log_model, bool):
            raise TypeError(
                f"TorchtrackLogger(log_model=) takes True (the best checkpoint) or False, got {log_model!r}"
            )
        self._init = ({} if project is None else {"project": project}) | init
        self._run: torchtrack.Run | None = None
        self._key = ""
        self._process = 0
        self._failed = False
        self._log_model = log_model
        self._kept: tuple[str, int] | None = None
        """Path and time of the checkpoint that was kept last."""
        self.closes_steps = True
        """Whether `log_metrics` closes its step; `TorchtrackCallback` does that itself, once a step."""

    @property
    def experiment(self) -> torchtrack.Run:
        """The run, on every rank: `logger.experiment.log({"loss": loss})` never waits for the device."""
        if self._run is None or self._failed or self._process != os.getpid():
            self._run = self._begin(self._run)
            self._process, self._failed = os.getpid(), False
        return self._run

    def _begin(self, before: torchtrack.Run | None) -> torchtrack.Run:
        active = torchtrack.run
        if before is None and not self._init and active is not None and active not in _begun.values():
            if os.getpid() == _imported_in:
                return active
            before = active  # of the process that forked this one to be a rank
        run = torchtrack.init(**(self._init if before is None else self._init | _place(before)))
        self._key = secrets.token_hex(8)
        _begun[self._key] = run
        return run

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_run": None}
        if get_spawning_popen() is not None:  # ranks are being spawned: this process, which lasts, holds their run
            state["_init"] = self._init | _place(self.experiment)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._run = _begun.get(self._key)  # copies in this process record into the same run

    # -- what Lightning asks ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The project."""
        return self.experiment.project

    @property
    def version(self) -> str:
        """The run's id."""
        return self.experiment.id

    @property
    def save_dir(self) -> str | None:
        """The folder of the run; the Trainer puts checkpoints below it unless ModelCheckpoint has a `dirpath`.

        A disabled run has none: the Trainer then takes its `default_root_dir`.
        """
        return None if self.experiment.disabled else self.experiment.dir

    @property
    def log_dir(self) -> str | None:
        """The folder of the run; None if it is disabled."""
        return self.save_dir

    @property
    def root_dir(self) -> str | None:
        """The folder of all runs; None if the run is disabled."""
        return None if self.save_dir is None else str(Path(self.save_dir).parent)

    # -- what Lightning tells -----------------------------------------------------------------------------------------

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record values of this rank at Lightning's step; readers see the mean over ranks, or each rank."""
        self.experiment.log(metrics, step=step, commit=self.closes_steps)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add to the run's config. Further arguments of other loggers, such as metrics, are accepted and not used."""
        del args, kwargs
        self.experiment.config.update(params)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Mark the step, and note the best checkpoint so far in the summary."""
        run, saved = self.experiment, checkpoint_callback
        run.mark("checkpoint", saved.last_model_path or saved.best_model_path)
        best: dict[str, Any] = {"best_model_path": saved.best_model_path} if saved.best_model_path else {}
        if isinstance(score := saved.best_model_score, torch.Tensor):
            best["best_model_score"] = score.item()  # Lightning has just waited for it, to compare
        run.summary.update(best)
        if self._log_model and saved.best_model_path:
            guard.attempt("keeping the best checkpoint", self._keep, run, saved.best_model_path)

    def _keep(self, run: Any, path: str) -> None:
        found = path, Path(path).stat().st_mtime_ns
        if found != self._kept:  # told of the last checkpoint, which may be another one, too
            self._kept = found
            run.log_artifact(path, name=f"model-{run.id}", type="model", aliases=["best"])

    def finalize(self, status: str) -> None:
        """End the run if an exception has left the Trainer; otherwise validate, test or another fit may follow."""
        if status == "success" or self._run is None or self._process != os.getpid():
            return
        kind, error, trace = sys.exc_info()
        if kind is None:
            self._run.finish(exit_code=1)
        else:
            self._run.__exit__(kind, error, trace)
        self._failed = True


def _place(run: torchtrack.Run) -> dict[str, Any]:
    """Arguments of `init` that find this run again, from another process or for another attempt."""
    if run.disabled:
        return {"mode": "disabled"}
    return {"project": run.project, "dir": Path(run.dir).parent, "id": run.id, "resume": "allow"}
