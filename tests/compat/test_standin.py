"""`import wandb` that gives torchtrack, and the frameworks that look for it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.runs import finished, own
from torchtrack.compat import install, standin, uninstall

pytestmark = pytest.mark.filterwarnings("ignore")  # frameworks warn of their own use of torch


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module that stands in, and no run left."""
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    install()
    yield importlib.import_module("wandb")
    uninstall()


def test_the_module_and_its_distribution_are_found(wandb: Any) -> None:
    spec = importlib.util.find_spec("wandb")

    assert spec is not None
    assert importlib.metadata.version("wandb") == wandb.__version__ == standin.VERSION
    assert importlib.metadata.packages_distributions()["wandb"][0] == "wandb"


@pytest.mark.parametrize("name", sorted(standin.ALIASES))
def test_a_submodule_can_be_imported(wandb: Any, name: str) -> None:
    module = importlib.import_module(name)

    assert module.__name__ == name
    assert importlib.util.find_spec(name) is not None


def test_a_submodule_that_is_not_offered_is_an_import_error(wandb: Any) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("wandb.nothing")


def test_afterwards_it_is_gone() -> None:
    install()
    uninstall()

    assert "wandb" not in sys.modules
    assert standin._finder not in sys.meta_path


def test_wandb_that_is_imported_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", type(sys)("wandb"))

    with pytest.raises(RuntimeError, match="before the first import"):
        install()


def test_a_name_it_has_not_is_an_attribute_error(wandb: Any) -> None:
    assert not hasattr(wandb, "nothing")
    assert hasattr(wandb, "Artifact")


def test_the_active_run_and_its_config_are_attributes(wandb: Any) -> None:
    before = wandb.run
    run = wandb.init(project="p", mode="disabled")
    wandb.config = {"lr": 0.1}
    wandb.config["epochs"] = 3

    assert (before, wandb.run) == (None, run)
    assert run.config.as_dict() == {"lr": 0.1, "epochs": 3}


def test_calls_before_init_raise_wandbs_error(wandb: Any) -> None:
    errors = importlib.import_module("wandb.errors")
    with pytest.raises(wandb.Error, match="init"):
        wandb.log({"x": 1.0})

    assert wandb.Error is errors.Error
    assert issubclass(errors.CommError, errors.Error)


def test_dir_is_the_folder_around_the_runs_unless_ours_is_set(
    wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = wandb.init(dir=tmp_path / "x", system_interval=0).settings.dir
    wandb.finish()
    monkeypatch.delenv("TORCHTRACK_DIR")
    beside = wandb.init(dir=tmp_path / "x", system_interval=0).settings.dir
    wandb.finish()

    assert (inside, beside) == (tmp_path / "runs", tmp_path / "x" / "torchtrack-runs")


def test_init_takes_every_argument_of_torchtracks_own(wandb: Any) -> None:
    run = wandb.init(**{**dict.fromkeys(inspect.signature(torchtrack.init).parameters), "mode": "disabled"})

    assert run.disabled


def test_a_run_without_recording_is_a_disabled_one(wandb: Any) -> None:
    disabled = importlib.import_module("wandb.sdk.lib").RunDisabled
    run = wandb.init(mode="disabled")

    assert isinstance(run, disabled)
    assert isinstance(run, importlib.import_module("wandb.wandb_run").Run)
    assert Path(run.dir).is_dir()


def test_a_histogram_of_328_whole_numbers_is_counted_too(wandb: Any) -> None:
    assert wandb.Histogram(list(range(328))).count == 328


def test_a_script_runs_by_the_module(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys, wandb\nwith wandb.init(sidecar=False) as run:\n    run.log({'x': len(sys.argv)})\n")
    command = [sys.executable, "-m", "torchtrack.compat", str(script), "a", "b"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    (run,) = torchtrack.Api(tmp_path / "runs").runs()

    assert run.history("x").column("x").to_pylist() == [3.0]


def test_lightnings_own_logger_works(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # Lightning sets it
    lightning = pytest.importorskip("lightning")
    import torch
    from lightning.pytorch.loggers import WandbLogger

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)
            self.save_hyperparameters({"width": 2})

        def training_step(self, batch: Any, _: int) -> Any:
            loss = self.net(batch).square().mean()
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    logger = WandbLogger(project="lightning", name="n", save_dir=str(tmp_path), log_model=True, system_interval=0)
    trainer = lightning.Trainer(
        logger=logger,
        max_epochs=1,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data: Any = list(torch.ones(6, 2))
    module = Module()
    logger.watch(module, log="all", log_freq=1, log_graph=False)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    logger.log_table("table", columns=["a"], data=[[1]])
    logger.log_image("image", [torch.zeros(3, 4, 4)], caption=["black"])
    run = wandb.run
    recorded = finished(run)

    assert (recorded.project, recorded.name, recorded.config["width"]) == ("lightning", "n", 2)
    assert {"epoch", "train/loss", "trainer/global_step"} <= set(own(recorded))
    assert len(recorded.history("train/loss")) == 3
    assert set(recorded.tensors("gradient").column("name").to_pylist()) == {"net.weight", "net.bias"}
    assert {row["name"] for row in recorded.media().to_pylist()} == {"table", "image"}
    assert wandb.Api().artifact(f"lightning/model-{run.id}:best", type="model").get("model.ckpt") is not None


def test_the_wandb_reporting_of_transformers_works(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    monkeypatch.setenv("WANDB_PROJECT", "hub")
    monkeypatch.setenv("WANDB_WATCH", "gradients")
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)

        def forward(self, x: Any, labels: Any = None) -> Any:
            return {"loss": (self.net(x) - labels).square().mean()}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        report_to="wandb",
        run_name="n",
        max_steps=3,
        logging_steps=1,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    data = [{"x": torch.ones(2), "labels": torch.zeros(1)}] * 8
    transformers.Trainer(Model(), arguments, train_dataset=data).train()
    run = wandb.run
    recorded = finished(run)

    assert (recorded.project, recorded.name, recorded.config["max_steps"]) == ("hub", "n", 3)
    assert {"train/loss", "train/global_step", "train/learning_rate"} <= set(own(recorded))
    assert recorded.tensors("gradient").num_rows > 0
    assert wandb.Api().artifact("hub/model-n:final_model").file_count > 0
