"""The logger and the callback under a real Trainer in this process."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner.tuning import Tuner

import torchtrack
from tests.integrations.lightning.models import CLIP, QUIET, Automatic, Manual, loader, network, norms, only_run, plain
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
    trainer(tmp_path, accumulate_grad_batches=2, gradient_clip_val=CLIP).fit(Automatic(), loader())

    run = read(tmp_path)
    expected = list(plain(8, 2, CLIP))
    assert len(expected) == 8
    for step, gradients in enumerate(expected):
        for name, gradient in gradients.items():
            assert norms(run)[step, name] == pytest.approx(float(gradient.norm()), rel=1e-6)
            assert run.histogram("gradient", name, step).count == gradient.numel()
    assert set(run.tensors(kind="gradient")["stage"].to_pylist()) == {"pre_clip"}
    rows = run.history(["loss", "batch_size"]).to_pylist()
    assert [(row["step"], row["batch_size"]) for row in rows] == [(step, 8.0) for step in range(8)]
    phases = {"data", "forward", "backward", "optimizer"}
    assert {f"phase/{name}_s" for name in phases} <= set(run.keys("phase/"))


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    trainer(tmp_path).fit(Manual(), loader())

    run = read(tmp_path)
    truth: dict[tuple[int, str], float] = {}
    parts = {"g": (network(), 0.1), "d": (network(), 0.2)}
    for step, (batch,) in enumerate(loader()):
        for name, (net, lr) in parts.items():
            optimizer = torch.optim.SGD(net.parameters(), lr=lr)
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            truth |= {(step, f"{name}.{n}"): float(p.grad.norm()) for n, p in net.named_parameters()}  # type: ignore[union-attr]
            if name == "d":
                torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
    assert norms(run) == pytest.approx(truth, rel=1e-6)
    rows = run.history(["lr/0", "lr/1", "batch_size"]).to_pylist()
    assert [(r["step"], r["lr/0"], r["lr/1"], r["batch_size"]) for r in rows] == [(s, 0.1, 0.2, 4) for s in range(16)]


def test_fit_validate_test_and_tuning_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # the tuner's progress bar would leave a thread
    module, used = Automatic(), trainer(tmp_path, enable_checkpointing=True)
    Tuner(used).lr_find(module, loader(), num_training=3, update_attr=False)
    used.fit(module, loader(), loader())
    used.validate(module, loader(), verbose=False)
    used.test(module, loader(), verbose=False)

    assert torchtrack.run is not None
    run = read(tmp_path)
    assert (run.state, len(run.attempts), run.config) == ("finished", 1, {"lr": 0.1})
    assert {"loss", "val_loss", "test_loss", "epoch"} <= set(run.keys())
    assert {event.data["title"] for event in run.events() if event.type == "mark"} == {"checkpoint"}
    assert Path(run.summary["best_model_path"]).exists()


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


def test_a_second_fit_watches_again_under_the_same_names(tmp_path: Path) -> None:
    module = Automatic()
    used = trainer(tmp_path)
    used.fit(module, loader())
    used.fit_loop.max_epochs = 2
    used.fit(module, loader())

    assert {name.partition(".")[0] for _, name in norms(read(tmp_path))} == {"net"}


def test_a_fast_dev_run_records_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, fast_dev_run=True).fit(Automatic(), loader())

    assert torchtrack.run is None


def test_the_callback_alone_uses_the_active_run(tmp_path: Path) -> None:
    run = torchtrack.init(id="mine", system_interval=0)
    trainer(tmp_path, logger=False).fit(Automatic(), loader())

    assert torchtrack.run is run
    assert read(tmp_path).tensors(kind="gradient").num_rows == 16 * 4


def test_a_logger_without_arguments_uses_the_scripts_run_and_one_with_arguments_its_own() -> None:
    run = torchtrack.init(system_interval=0)

    assert TorchtrackLogger().experiment is run
    run.finish(quiet=True)
    other = TorchtrackLogger(id="other", system_interval=0)
    assert (other.version, other.name) == ("other", "uncategorized")


def test_a_logger_can_be_pickled_and_copies_begin_nothing(tmp_path: Path) -> None:
    logger = TorchtrackLogger(id="exp", system_interval=0)
    copy = pickle.loads(pickle.dumps(logger))

    assert torchtrack.run is None
    assert copy.experiment.id == "exp"


def test_metrics_and_hyperparameters(tmp_path: Path) -> None:
    logger = TorchtrackLogger(system_interval=0)
    logger.log_hyperparams({"lr": 0.1, "model": {"width": 3}, "api_key": "abc"}, {"metric": 1.0})
    logger.log_metrics({"loss": torch.tensor(2.0), "epoch": 0}, step=7)
    logger.log_graph(torch.nn.Linear(1, 1))
    logger.save()
    logger.finalize("success")
    logger.log_metrics({"loss": 1.0}, step=8)

    run = read(tmp_path)
    assert (run.config["lr"], run.config["model"]["width"], run.config["api_key"]) == (0.1, 3, "[redacted]")
    assert run.history(["loss"]).drop(["time"]).to_pylist() == [{"step": 7, "loss": 2.0}, {"step": 8, "loss": 1.0}]


@pytest.mark.parametrize("made", [TorchtrackLogger, TorchtrackCallback])
def test_an_unknown_argument_is_refused_at_once(made: Any) -> None:
    with pytest.raises(TypeError, match=rf"{made.__name__}\(\) takes the arguments of .*colour"):
        made(colour="red")
