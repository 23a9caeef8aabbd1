"""`wandb.keras`: callbacks for Keras. Each class is made when it is asked for, since it derives from one of Keras."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from torchtrack import guard
from torchtrack.active import current
from torchtrack.compat.tables import Table
from torchtrack.errors import MissingDependencyError


def __getattr__(name: str) -> Any:
    if name not in _MAKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _made(name)


@functools.cache
def _made(name: str) -> Any:
    try:
        from keras import callbacks
    except ImportError:
        raise MissingDependencyError(f"wandb.keras.{name} needs keras: pip install keras") from None
    made = _MAKERS[name](callbacks)
    made.__name__ = made.__qualname__ = name
    return made


def _log(logs: Mapping[str, Any] | None, prefix: str, **more: Any) -> None:
    values = {f"{prefix}/{name}": value for name, value in (logs or {}).items()}
    current("keras").log({**values, **{f"{prefix}/{name}": value for name, value in more.items()}})


def _rate(model: Any) -> dict[str, float]:
    """The learning rate, where the optimizer has one."""
    optimizer: Any = getattr(model, "optimizer", None)
    rate: Any = getattr(optimizer, "learning_rate", None)
    found = guard.outcome(lambda: float(rate(optimizer.iterations) if callable(rate) else rate))
    return {"learning_rate": found} if isinstance(found, float) else {}


def _metrics_logger(callbacks: Any) -> Any:
    class Logger(callbacks.Callback):  # type: ignore[misc]  # a base that is imported at run time
        """Logs the metrics of Keras.

        Args:
            log_freq: "epoch", "batch", or a number of batches.
            initial_global_step: the batch at which training goes on.
        """

        def __init__(self, log_freq: str | int = "epoch", initial_global_step: int = 0, **_: Any) -> None:
            super().__init__()
            self.log_freq = 1 if log_freq == "batch" else log_freq
            if not (self.log_freq == "epoch" or (isinstance(self.log_freq, int) and self.log_freq > 0)):
                raise ValueError(f"log_freq takes 'epoch', 'batch' or a number of batches; got {log_freq!r}")
            self.global_batch = self.global_step = initial_global_step
            run = current("keras.WandbMetricsLogger()")
            run.define_metric("epoch/*", step_metric="epoch/epoch")
            run.define_metric("batch/*", step_metric="batch/batch_step")

        def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            """Log the epoch."""
            _log(logs, "epoch", epoch=epoch, **_rate(self.model))

        def on_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
            """Log the batch, if it is its turn."""
            self.global_step += 1
            if isinstance(self.log_freq, int) and batch % self.log_freq == 0:
                _log(logs, "batch", batch_step=self.global_batch, **_rate(self.model))
                self.global_batch += self.log_freq

        def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
            """As above."""
            self.on_batch_end(batch, logs)

    return Logger


def _checkpoint(callbacks: Any) -> Any:
    class Checkpoint(callbacks.ModelCheckpoint):  # type: ignore[misc]
        """Keras's ModelCheckpoint that also keeps what it saves as versions of an artifact."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            """Save, if it is its turn."""
            super().on_train_batch_end(batch, logs)
            self._keep()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            """Save, if it is its turn."""
            super().on_epoch_end(epoch, logs)
            self._keep(epoch)

        def _keep(self, epoch: int | None = None) -> None:
            target = Path(str(self.filepath))
            found = [(path.stat().st_mtime_ns, str(path)) for path in target.parent.glob(f"*{target.suffix}")]
            if not found or max(found) == getattr(self, "_kept", None):
                return
            self._kept = newest = max(found)
            run: Any = current("keras.WandbModelCheckpoint()")
            aliases = [] if epoch is None else [f"epoch_{epoch}"]
            run.log_artifact(newest[1], name=f"run_{run.id}_model", type="model", aliases=aliases)

    return Checkpoint


def _eval_callback(callbacks: Any) -> Any:
    class Evaluation(callbacks.Callback):  # type: ignore[misc]
        """A table of predictions an epoch: derive from it and give `add_ground_truth` and `add_model_predictions`.

        Args:
            data_table_columns: of what is known.
            pred_table_columns: of what is predicted.
        """

        def __init__(self, data_table_columns: list[str], pred_table_columns: list[str], *_: Any, **__: Any) -> None:
            super().__init__()
            self.data_table = Table(columns=data_table_columns)
            self.pred_table = Table(columns=pred_table_columns)
            self._columns = pred_table_columns

        def on_train_begin(self, logs: Any = None) -> None:
            """Take what is known."""
            self.add_ground_truth(logs)
            current("keras.WandbEvalCallback()").log({"val_data": self.data_table}, commit=False)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            """Log what is predicted now."""
            self.pred_table = Table(columns=self._columns)
            self.add_model_predictions(epoch, logs)
            current("keras.WandbEvalCallback()").log({"run_eval": self.pred_table}, commit=False)

        def add_ground_truth(self, logs: Any = None) -> None:
            """Add rows to `data_table`."""
            raise NotImplementedError("derive from WandbEvalCallback and give add_ground_truth")

        def add_model_predictions(self, epoch: int, logs: Any = None) -> None:
            """Add rows to `pred_table`."""
            raise NotImplementedError("derive from WandbEvalCallback and give add_model_predictions")

    return Evaluation


def _older(callbacks: Any) -> Any:
    class Older(callbacks.Callback):  # type: ignore[misc]
        """Logs each epoch, and keeps the best model in the run's folder.

        Args:
            monitor: the metric that says which model is best.
            mode: "min", "max", or "auto": "max" for what has acc or auc in its name.
            save_model: whether it is kept.
            log_freq: further arguments of wandb's are taken, and not used.
        """

        def __init__(
            self, monitor: str = "val_loss", verbose: int = 0, mode: str = "auto", save_model: bool = True, **_: Any
        ) -> None:
            super().__init__()
            self.monitor, self.verbose, self.save_model = monitor, verbose, save_model
            larger = mode == "max" or (mode == "auto" and any(part in monitor for part in ("acc", "auc", "fmeasure")))
            self._sign = -1.0 if larger else 1.0
            self.best: float | None = None

        def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            """Log the epoch, and keep the model if it is the best so far."""
            run: Any = current("keras.WandbCallback()")
            run.log({"epoch": epoch, **(logs or {}), **_rate(self.model)})
            value = (logs or {}).get(self.monitor)
            if value is None or (self.best is not None and self._sign * value >= self._sign * self.best):
                return
            self.best = value
            run.summary.update({f"best_{self.monitor.removeprefix('val_')}": value, "best_epoch": epoch})
            if self.save_model:
                guard.attempt("saving the best model", self.model.save, os.path.join(run.dir, "model-best.keras"))  # noqa: PTH118

    return Older


_MAKERS: Final[dict[str, Callable[[Any], Any]]] = {
    "WandbCallback": _older,
    "WandbEvalCallback": _eval_callback,
    "WandbMetricsLogger": _metrics_logger,
    "WandbModelCheckpoint": _checkpoint,
}
