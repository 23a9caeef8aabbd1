"""The logger and the callback under a real Trainer in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner.tuning import Tuner

import torchtrack
from tests.integrations.lightning.models import QUIET, Automatic, Manual, loader
from tests.integrations.plain import CLIP, Way, compare, only_run
from torchtrack_lightning import TorchtrackCallback, TorchtrackLogger

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns of its own use of torch


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """A run of Lightning ends with the process, which goes on here."""
    yield
    torchtrack.finish(quiet=True)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    defaults = {"logger": TorchtrackLogger(system_interval=0), "callbacks": [TorchtrackCallback(log_freq=1)]}
    defaults |= {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False}
    return L.Trainer(default_root_dir=folder, **{**defaults, **QUIET, **options})


def read(folder: Path) -> Any:
    torchtrack.finish(quiet=True)
    return only_run(folder / "runs")


def test_clipping_and_accumulation_give_the_rows_of_a_plain_loop(tmp_path: Path) -> None:
    trainer(tmp_path, accumulate_grad_batches=3, gradient_clip_val=CLIP).fit(Automatic(), loader())

    run = read(tmp_path)
    compare(run, Way("one", ranks=1, accumulate=3, clip="norm"))
    rows = run.history(["loss", "batch_size"]).to_pylist()
    assert [(row["step"], row["batch_size"]) for row in rows] == [*((step, 12.0) for step in range(5)), (5, 4.0)]
    phases = {"data", "forward", "backward", "optimizer"}
    assert {f"phase/{name}_s" for name in phases} <= set(run.keys("phase/"))


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    trainer(tmp_path).fit(Manual(), loader())

    run = read(tmp_path)
    compare(run, Way("one", ranks=1, parts=(("g", 0.1), ("d", 0.2)), clip="norm", clipped="d"))
    rows = run.history(["lr/0", "lr/1", "batch_size"]).to_pylist()
    assert [(r["step"], r["lr/0"], r["lr/1"], r["batch_size"]) for r in rows] == [(s, 0.1, 0.2, 4) for s in range(16)]


def test_what_lightning_calls_16_mixed_on_a_cpu_is_recorded_as_it_is(tmp_path: Path) -> None:
    trainer(tmp_path, precision="16-mixed").fit(Automatic(), loader())

    compare(read(tmp_path), Way("one", ranks=1, dtype=torch.bfloat16))


class Sized(Automatic):
    """Has a batch size that can be tuned; its learning rate is one of the hyperparameters."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr)
        self.batch_size = 2

    def train_dataloader(self) -> Any:
        return loader(self.batch_size)

    def val_dataloader(self) -> Any:
        return loader()


def test_all_that_a_trainer_does_is_one_run_and_its_samples_are_those_of_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # the tuner's progress bar would leave a thread
    module, used = Sized(), trainer(tmp_path, enable_checkpointing=True)
    found = Tuner(used).lr_find(module, num_training=20, min_lr=0.001, max_lr=0.1)
    assert found is not None
    tuned = module.lr
    assert tuned != 0.1
    Tuner(used).scale_batch_size(module, max_trials=1, steps_per_trial=2, init_val=4)
    assert module.batch_size == 4
    used.fit(module)
    used.validate(module, loader(), verbose=False)
    used.test(module, loader(), verbose=False)
    assert len(used.predict(module, loader()) or ()) == 16

    run = read(tmp_path)
    assert (run.state, len(run.attempts)) == ("finished", 1)
    assert run.config == {"lr": 0.1}  # Lightning gives loggers what the module was made with
    compare(run, Way("one", ranks=1, parts=(("net", tuned),)))
    rows = run.history(["loss", "batch_size", "lr"]).to_pylist()
    assert [(row["step"], row["batch_size"], row["lr"]) for row in rows] == [(step, 4.0, tuned) for step in range(16)]
    assert [len(run.history([key], raw=True)) for key in ("loss", "val_loss", "test_loss")] == [16, 2, 1]
    assert {"phase/checkpoint_s", "phase/validation_s"} <= set(run.keys("phase/"))
    assert {event.data["title"] for event in run.events() if event.type == "mark"} == {"checkpoint"}
    assert Path(run.summary["best_model_path"]).is_relative_to(tmp_path / "runs" / run.uid)


class AtEachEpoch(LearningRateFinder):
    """As in Lightning's documentation of it."""

    def on_fit_start(self, *args: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.lr_find(trainer, pl_module)


@pytest.mark.parametrize("first", [True, False])
def test_steps_of_a_learning_rate_finder_within_the_training_are_no_samples(
    tmp_path: Path, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    finder = AtEachEpoch(num_training_steps=5, max_lr=0.1, update_attr=False)
    ours = TorchtrackCallback(log=("gradients", "parameters", "updates", "activations"), log_freq=1)
    trainer(tmp_path, callbacks=[ours, finder][:: 1 if first else -1], max_epochs=2, gradient_clip_val=CLIP).fit(
        Automatic(), loader()
    )

    run = read(tmp_path)
    compare(run, Way("one", ranks=1, epochs=2, clip="norm"))
    activations = run.tensors(kind="activation", name="net.2").to_pylist()
    assert [(row["step"], row["count"]) for row in activations] == [(step, 12) for step in range(32)]


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    for epochs in (1, 2):
        logger = TorchtrackLogger("p", id="exp", system_interval=0)
        saved = ModelCheckpoint(dirpath=tmp_path / "saved", save_last=True)
        last = tmp_path / "saved" / "last.ckpt"
        used = L.Trainer(
            logger=logger,
            callbacks=[saved, TorchtrackCallback(log_freq=1)],
            max_epochs=epochs,
            log_every_n_steps=1,
            **QUIET,
        )
        used.fit(Automatic(), loader(), ckpt_path=last if last.exists() else None)
        torchtrack.finish(quiet=True)

    run = read(tmp_path)
    assert (run.id, run.state, len(run.attempts)) == ("exp", "finished", 2)
    assert run.history(["loss"])["step"].to_pylist() == list(range(32))
    compare(run, Way("one", ranks=1, epochs=2))


class Broken(Automatic):
    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if batch_idx == 2:
            raise RuntimeError("the data is bad")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("logger", [True, False], ids=["with the logger", "callback alone"])
def test_an_exception_leaves_the_run_failed_in_its_words(tmp_path: Path, logger: bool) -> None:
    used = trainer(tmp_path, **({} if logger else {"logger": False}))
    with pytest.raises(RuntimeError, match="the data is bad"):
        used.fit(Broken(), loader())

    run = only_run(tmp_path / "runs")
    assert run.state == "failed"
    assert "RuntimeError: the data is bad" in run.attempts[0].why


def test_what_follows_a_caught_exception_is_the_next_attempt(tmp_path: Path) -> None:
    used = trainer(tmp_path)
    with pytest.raises(RuntimeError, match="the data is bad"):
        used.fit(Broken(), loader())
    used.test(Automatic(), loader(), verbose=False)

    assert [attempt.state for attempt in read(tmp_path).attempts] == ["failed", "finished"]


def test_two_trainers_may_share_a_logger(tmp_path: Path) -> None:
    logger = TorchtrackLogger(system_interval=0)
    module = Automatic()
    trainer(tmp_path, logger=logger).fit(module, loader())
    assert logger.closes_steps  # the callback is done with it: each row is complete again
    trainer(tmp_path, logger=logger, max_epochs=2).fit(module, loader())

    run = read(tmp_path)
    assert (run.state, len(run.attempts)) == ("finished", 1)
    assert len(run.history(["loss"], raw=True)) == 48
    assert {row["name"] for row in run.tensors(kind="gradient").to_pylist()} == {
        f"net.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }


def test_a_fast_dev_run_records_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, fast_dev_run=True).fit(Automatic(), loader())

    assert torchtrack.run is None


def test_the_callback_alone_uses_the_active_run(tmp_path: Path) -> None:
    run = torchtrack.init(id="mine", system_interval=0)
    trainer(tmp_path, logger=False).fit(Automatic(), loader())

    assert torchtrack.run is run
    assert read(tmp_path).tensors(kind="gradient").num_rows == 16 * 4
