"""The callback: watches what the Trainer trains, and records batch size, learning rates and where the time goes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

import torchtrack
from torchtrack_lightning.framework import base
from torchtrack_lightning.logger import TorchtrackLogger

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
    from torch.utils.hooks import RemovableHandle
else:
    Callback = base("callbacks", "Callback")


class TorchtrackCallback(Callback):
    """Histograms and norms of gradients and parameters over all ranks, and one row for every optimizer step.

    The row has `batch_size` (samples of the step on all ranks), `lr` and, as `phase/<name>_s`, the seconds in data,
    forward, backward and optimizer; its step is the one Lightning logs metrics at. The run is that of the Trainer's
    `TorchtrackLogger`; without one, the active run, or a new one.

    Args:
        log: what to watch, as in `Run.watch`.
        log_freq: optimizer steps from one sample to the next.
        watch: further arguments of `Run.watch`: include, exclude, budget, ...

    Raises:
        TypeError: an argument that `Run.watch` does not have.
    """

    def __init__(self, log: str | Sequence[str] | None = "all", log_freq: int = 100, **watch: Any) -> None:
        super().__init__()
        self._watch = {"log": log, "log_freq": log_freq, **watch}
        try:
            inspect.signature(torchtrack.Run.watch).bind(None, None, **self._watch)
        except TypeError as error:
            raise TypeError(f"TorchtrackCallback() takes the arguments of Run.watch(): {error}") from None
        self._alone: TorchtrackLogger | None = None
        self._run: torchtrack.Run | None = None
        self._watched: torch.nn.Module | None = None
        self._replicas = 1
        self._samples = 0
        self._steps = 0
        self._hooks: list[RemovableHandle] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin the run on every rank; not in a `fast_dev_run`, where Lightning turns all logging off."""
        self._run = None
        if stage != "fit" or getattr(trainer, "fast_dev_run", False):
            return
        logger = _logger_of(trainer)
        if logger is None:
            logger = self._alone = self._alone or TorchtrackLogger()
        self._run = logger.experiment

    # -- training -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch what the strategy has made of the module, under the names it has in the module."""
        if self._run is None or trainer.model is None:
            return
        watcher = self._run.watch(trainer.model, **self._watch)
        if watcher is not None:  # a tuner trains for a trial, with callbacks of its own alone
            watcher.only_while(lambda: any(callback is self for callback in vars(trainer)["callbacks"]))
        self._watched = trainer.model
        self._closes_steps(trainer, ours=True)
        self._replicas = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
        self._samples, self._steps = 0, trainer.global_step
        if not pl_module.automatic_optimization:  # after a step another forward may follow, as in a GAN
            self._hooks = [o.register_step_post_hook(lambda *_: self._phase("forward")) for o in trainer.optimizers]
        self._phase("data")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self._phase("forward")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """The loss is there."""
        self._phase("backward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The gradients are there; clipping is part of the optimizer's phase."""
        self._phase("optimizer" if pl_module.automatic_optimization else "forward")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """The step begins, also where the module calls it itself."""
        self._phase("optimizer")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the step, if one was made of this batch and those accumulated before it."""
        if self._watched is None or self._run is None:
            return
        self._samples += _samples(batch) * self._replicas
        if trainer.global_step != self._steps:
            row = {"batch_size": self._samples} if self._samples else {}
            self._run.log(row | _learning_rates(trainer.optimizers), step=_step(trainer))
            self._samples, self._steps = 0, trainer.global_step
        self._phase("data")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is written from here on."""
        self._phase("checkpoint")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation within training."""
        self._phase("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        self._phase("data")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last samples and take every hook away."""
        self._phase("other")
        self._stop()
        self._closes_steps(trainer, ours=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the run failed, with the exception's words; the Trainer tells a `TorchtrackLogger` itself."""
        self._stop()
        self._closes_steps(trainer, ours=False)
        if self._alone is not None:
            self._alone.finalize("failed")

    def _closes_steps(self, trainer: Trainer, *, ours: bool) -> None:
        logger = _logger_of(trainer)
        if logger is not None:
            logger.closes_steps = not ours

    def _phase(self, name: str) -> None:
        if self._watched is not None and self._run is not None:  # also called outside of training
            self._run.phase(name)

    def _stop(self) -> None:
        if self._watched is not None and self._run is not None:
            self._run.unwatch(self._watched)
        for hook in self._hooks:
            hook.remove()
        self._watched, self._hooks = None, []


def _logger_of(trainer: Trainer) -> TorchtrackLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, TorchtrackLogger)), None)


def _step(trainer: Trainer) -> int:
    """The x axis of what Lightning logs: batches that made a step, however many optimizers stepped."""
    return getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)


def _samples(batch: Any) -> int:
    """The first dimension of the first tensor in a batch; 0 if there is none in plain dicts, lists and tuples."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.dim() else 0
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return next((count for part in parts if (count := _samples(part))), 0)


def _learning_rates(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """`lr`, or `lr/0`, `lr/1`, ... where there are several parameter groups, counted over all optimizers."""
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups if "lr" in group]
    return {"lr": rates[0]} if len(rates) == 1 else {f"lr/{i}": rate for i, rate in enumerate(rates)}
