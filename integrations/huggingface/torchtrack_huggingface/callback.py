"""The Trainer callback: one run for train, evaluate and predict, with what the Trainer logs and what the model does."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback
from transformers.integrations import integration_utils

import torchtrack
from torchtrack_huggingface.beginning import Beginning

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments


class TorchtrackCallback(TrainerCallback):
    """Records on every rank, into one run: metrics, config, histograms and norms of the model, and where time goes.

    What the Trainer logs has the names that its other callbacks give it, `train/loss` and `eval/loss`, at its
    `global_step`. Each optimizer step has a row of its own with `phase/<name>_s`: seconds in data, training (forward,
    backward and clipping), optimizer, validation and checkpoint. The run ends with the process or at
    `torchtrack.finish()`, so that `predict` still goes into it. A run that the script has begun with `torchtrack.init`
    is used if no arguments of it are given here.

    Args:
        project: runs are listed by project.
        watch: arguments of `Run.watch`: log, log_freq, include, ...; None for its defaults, False to watch nothing.
        init: further arguments of `torchtrack.init`: id, name, tags, dir, resume, ...

    Raises:
        TypeError: an argument that `Run.watch` or `torchtrack.init` does not have.
    """

    def __init__(
        self, project: str | None = None, *, watch: Mapping[str, Any] | Literal[False] | None = None, **init: Any
    ) -> None:
        self._beginning = Beginning("TorchtrackCallback", ({} if project is None else {"project": project}) | init)
        self._watch: dict[str, Any] | None = None if watch is False else dict(watch or {})
        try:
            inspect.signature(torchtrack.Run.watch).bind(None, None, **(self._watch or {}))
        except TypeError as error:
            raise TypeError(f"TorchtrackCallback(watch=) takes arguments of Run.watch(): {error}") from None
        self._watched: torch.nn.Module | None = None
        self._configured: torchtrack.Run | None = None
        self._step: int | None = None
        """The step whose row is open: what the Trainer logs and evaluates after it is of that step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Begin the run and watch the model."""
        run = self._run(args, model)
        self._unwatch(
            run
        )  # a training that failed has had no end, as when the Trainer looks for a batch size that fits
        if self._watch is not None and model is not None:
            self._watched = _around(model)
            run.watch(self._watched, **self._watch)
        if args.auto_find_batch_size:
            run.config.update({"batch_size": _batch_size(args, state.train_batch_size)})
        run.phase("data")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The batches of a step are there, and nothing more is said about the step before."""
        self._close()
        self._run(args).phase("training")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gradients are there and clipped."""
        self._run(args).phase("optimizer")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The step is made; its row stays open for what is said about it."""
        self._step = state.global_step
        checkpoint = "checkpoint" if control.should_save else "data"
        self._run(args).phase("validation" if control.should_evaluate else checkpoint)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The evaluation is over."""
        self._run(args).phase("checkpoint" if control.should_save else "data")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint has been written."""
        run = self._run(args)
        run.mark("checkpoint", f"checkpoint-{state.global_step}")
        run.phase("data")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record what the Trainer logs, at its step."""
        run = self._run(args, model)
        run.log(integration_utils.rewrite_logs(logs or {}), step=state.global_step, commit=self._step is None)

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Record the metrics of `predict`, which the Trainer does not log."""
        self._run(args).log(integration_utils.rewrite_logs(metrics or {}), step=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the last samples and take every hook away."""
        run = self._run(args)
        run.phase("other")
        self._close()
        self._unwatch(run)
        if state.best_model_checkpoint:
            run.summary.update({"best_model_checkpoint": state.best_model_checkpoint, "best_metric": state.best_metric})

    def _run(self, args: TrainingArguments, model: Any = None) -> torchtrack.Run:
        run = self._beginning.run(**({"name": args.run_name} if args.run_name else {}))
        if run is not self._configured:
            self._configured = run
            run.config.update({**_config(model), **args.to_dict(), "batch_size": _batch_size(args, None)})
        return run

    def _unwatch(self, run: torchtrack.Run) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            run.unwatch(watched)

    def _close(self) -> None:
        step, self._step = self._step, None
        if step is not None and self._configured is not None:
            self._configured.log({}, step=step)


def register() -> None:
    """Make "torchtrack" a name for `TrainingArguments(report_to=)`."""
    integration_utils.INTEGRATION_TO_CALLBACK["torchtrack"] = TorchtrackCallback


def _around(model: torch.nn.Module) -> torch.nn.Module:
    """The DistributedDataParallel around a model, by which each rank's own gradients are seen; else the model.

    The Trainer hands callbacks the model inside it alone. Looks through all objects: takes as long as a full garbage
    collection, once a training.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return model
    wrappers = [thing for thing in gc.get_objects() if DistributedDataParallel in type(thing).__mro__]
    around = [wrapper for wrapper in wrappers if wrapper.__dict__.get("_modules", {}).get("module") is model]
    return around[0] if len(around) == 1 else model  # of a training before, which nobody has collected yet: unclear


def _config(model: Any) -> dict[str, Any]:
    """What the model says about itself."""
    config = getattr(model, "config", None)
    if config is None:
        return {}
    return dict(config) if isinstance(config, Mapping) else {"model": config.to_dict()}


def _batch_size(args: TrainingArguments, found: int | None) -> int:
    """Samples of a full step on all ranks, where the Trainer may have found that a rank can take fewer at a time."""
    return int((found or args.train_batch_size) * args.gradient_accumulation_steps * args.world_size)
