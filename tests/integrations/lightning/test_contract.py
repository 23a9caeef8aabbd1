"""What Trainer and Fabric may ask of a logger and tell it, and what a copy of a logger is."""

from __future__ import annotations

import argparse
import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger as FabricLogger
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only

import torchtrack
from tests.integrations.lightning.models import QUIET, Automatic, loader
from tests.integrations.plain import only_run
from torchtrack_lightning import TorchtrackCallback, TorchtrackLogger

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns of its own use of torch


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    torchtrack.finish(quiet=True)


def read(folder: Path) -> Any:
    torchtrack.finish(quiet=True)
    return only_run(folder / "runs")


def new(**init: Any) -> TorchtrackLogger:
    return TorchtrackLogger(system_interval=0, **init)


# -- the logger -------------------------------------------------------------------------------------------------------


def test_it_is_a_logger_of_trainer_and_fabric_with_nothing_left_abstract() -> None:
    assert issubclass(TorchtrackLogger, Logger)
    assert issubclass(TorchtrackLogger, FabricLogger)
    assert TorchtrackLogger.__abstractmethods__ == frozenset()
    assert issubclass(TorchtrackCallback, L.Callback)


def test_it_says_where_the_run_is(tmp_path: Path) -> None:
    logger = new(project="p", id="exp")

    assert (logger.name, logger.version, logger.group_separator) == ("p", "exp", "/")
    assert logger.save_dir == logger.log_dir == logger.experiment.dir
    assert logger.root_dir == str(tmp_path / "runs")
    assert isinstance(new().version, str)  # else Lightning would write "version_None" into paths


def test_nothing_begins_before_it_is_needed(tmp_path: Path) -> None:
    new(project="p")

    assert torchtrack.run is None
    assert not (tmp_path / "runs").exists()


def test_the_run_is_there_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = new()
    logger.log_metrics({"loss": 1.0}, step=0)

    assert logger.experiment is torchtrack.run


def test_metrics_and_hyperparameters(tmp_path: Path) -> None:
    logger = new()
    logger.log_hyperparams({"lr": 0.1, "model": {"width": 3}, "api_key": "abc"}, {"metric": 1.0})
    logger.log_hyperparams(argparse.Namespace(depth=2, net=torch.nn.ReLU()))
    logger.log_metrics({"loss": torch.tensor(2.0), "epoch": 0}, step=7)
    logger.log_graph(torch.nn.Linear(1, 1))
    logger.save()
    logger.finalize("success")
    logger.log_metrics({"loss": 1.0}, step=8)
    logger.log_metrics({"free": 1.0})

    run = read(tmp_path)
    assert (run.config["lr"], run.config["model"]["width"], run.config["api_key"]) == (0.1, 3, "[redacted]")
    assert (run.config["depth"], run.config["net"]) == (2, "ReLU()")
    assert run.history(["loss"]).drop(["time"]).to_pylist() == [{"step": 7, "loss": 2.0}, {"step": 8, "loss": 1.0}]
    assert run.history(["free"])["step"].to_pylist() == [9]
    assert (run.state, len(run.attempts)) == ("finished", 1)


@pytest.mark.parametrize("status", ["failed", "aborted", "interrupted"])
def test_any_end_but_success_leaves_the_run_failed(tmp_path: Path, status: str) -> None:
    logger = new()
    logger.finalize(status)  # nothing has begun
    assert torchtrack.run is None
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.finalize(status)
    logger.finalize(status)

    assert (read(tmp_path).state, len(read(tmp_path).attempts)) == ("failed", 1)


def test_each_checkpoint_is_a_mark_and_the_best_is_in_the_summary(tmp_path: Path) -> None:
    logger = new()
    saved = ModelCheckpoint(monitor="val_loss", save_top_k=1, save_last=True)
    L.Trainer(logger=logger, callbacks=[saved], max_epochs=2, **QUIET).fit(Automatic(), loader(), loader())

    run = read(tmp_path)
    best = Path(saved.best_model_path)
    assert best.parent == tmp_path / "runs" / run.uid / "uncategorized" / run.id / "checkpoints"
    assert run.summary["best_model_path"] == str(best)
    assert run.summary["best_model_score"] == pytest.approx(float(saved.best_model_score or 0))
    marks = [event.data for event in run.events("mark")]
    assert {mark["title"] for mark in marks} == {"checkpoint"}
    assert marks[-1]["text"] == saved.last_model_path


def test_each_best_checkpoint_is_a_version_of_an_artifact_if_asked_for(tmp_path: Path) -> None:
    logger = new(id="exp", log_model=True)
    saved = ModelCheckpoint(monitor="val_loss", save_top_k=1, save_last=True)
    L.Trainer(logger=logger, callbacks=[saved], max_epochs=2, **QUIET).fit(Automatic(), loader(), loader())

    run = read(tmp_path)
    logged = [event.data for event in run.events("artifact")]
    name = f"{run.project}/model-exp"
    assert [(each["name"], each["type"]) for each in logged] == [(f"{name}:v0", "model"), (f"{name}:v1", "model")]
    kept = tmp_path / "runs" / "artifacts" / run.project / "model-exp"
    best = Path(saved.best_model_path)
    assert (kept / (kept / "aliases" / "best").read_text() / "files" / best.name).read_bytes() == best.read_bytes()


def test_checkpoints_of_a_disabled_run_lie_where_they_would_without_a_logger(tmp_path: Path) -> None:
    logger = TorchtrackLogger(mode="disabled")
    used = L.Trainer(default_root_dir=tmp_path, logger=logger, callbacks=[TorchtrackCallback()], max_epochs=1, **QUIET)
    used.fit(Automatic(), loader())

    assert (logger.save_dir, logger.log_dir, logger.root_dir) == (None, None, None)
    assert isinstance(used.checkpoint_callback, ModelCheckpoint)
    saved = Path(used.checkpoint_callback.best_model_path)
    assert saved.parent == tmp_path / "uncategorized" / "disabled" / "checkpoints"
    assert not (tmp_path / "runs").exists()


def test_it_works_beside_another_logger(tmp_path: Path) -> None:
    others = CSVLogger(tmp_path / "csv")
    callbacks: list[L.Callback] = [TorchtrackCallback(log_freq=1)]
    used = L.Trainer(
        logger=[others, new()], callbacks=callbacks, max_epochs=1, log_every_n_steps=1, enable_checkpointing=False,
        **QUIET,
    )  # fmt: skip
    used.fit(Automatic(), loader())

    run = read(tmp_path)
    assert len(run.history(["loss"])) == 16
    assert run.tensors(kind="gradient").num_rows == 16 * 4


# -- copies -----------------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda logger: pickle.loads(pickle.dumps(logger)),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_in_this_process_records_into_the_same_run(tmp_path: Path, way: str) -> None:
    logger = new()
    logger.log_metrics({"loss": 1.0}, step=0)
    made = COPIES[way](logger)
    made.log_metrics({"loss": 2.0}, step=1)
    logger.log_metrics({"loss": 3.0}, step=2)

    assert made.experiment is logger.experiment
    assert read(tmp_path).history(["loss"])["loss"].to_pylist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("way", COPIES)
def test_copying_begins_nothing_and_keeps_the_arguments(way: str) -> None:
    made = COPIES[way](new(id="exp"))

    assert torchtrack.run is None
    assert made.version == "exp"


def test_a_logger_without_arguments_uses_the_scripts_run_and_one_with_arguments_its_own() -> None:
    run = torchtrack.init(system_interval=0)

    assert TorchtrackLogger().experiment is run
    assert copy.deepcopy(TorchtrackLogger()).experiment is run
    run.finish(quiet=True)
    other = new(id="other")
    assert (other.version, other.name) == ("other", "uncategorized")


@pytest.mark.parametrize("made", [TorchtrackLogger, TorchtrackCallback])
def test_an_unknown_argument_is_refused_at_once(made: Any) -> None:
    with pytest.raises(TypeError, match=rf"{made.__name__}\(\) takes the arguments of .*colour"):
        made(colour="red")


def test_keeping_every_checkpoint_is_refused() -> None:
    with pytest.raises(TypeError, match=r"log_model=\) takes True \(the best checkpoint\) or False, got 'all'"):
        new(log_model="all")


# -- Fabric -----------------------------------------------------------------------------------------------------------


def test_fabric_logs_values_and_dicts_at_its_steps(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", loggers=new())
    fabric.launch()
    fabric.logger.log_hyperparams({"lr": 0.1})
    for step in range(3):
        fabric.log("a", torch.tensor(float(step)), step=step)
        fabric.log_dict({"b": step, "c": 2.0 * step}, step=step)
    fabric.logger.save()

    run = read(tmp_path)
    assert run.config == {"lr": 0.1}
    assert run.history(["a", "b", "c"]).drop(["time"]).to_pylist() == [
        {"step": step, "a": float(step), "b": float(step), "c": 2.0 * step} for step in range(3)
    ]


def test_fabric_calls_the_callback_of_a_trainer_in_vain(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", loggers=new(), callbacks=[TorchtrackCallback()])
    fabric.launch()
    fabric.call("on_something_of_mine")

    assert torchtrack.run is None
