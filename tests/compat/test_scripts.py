"""Scripts written for wandb run unchanged, on rank 0 alone and on all ranks of a job, and are one run."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

import torchtrack
import torchtrack.compat
from tests.runs import column, own
from torchtrack.api.run import Run as RecordedRun
from torchtrack.testing import ranks, torchrun

SCRIPTS = Path(__file__).parent / "scripts"
COMMANDS = {
    "nanogpt": ["--max_iters=4"],
    "cleanrl": ["--track", "--wandb-entity", "team"],
    "timm": ["--log-wandb", "--experiment", "imagenet", "--wandb-tags", "a", "b"],
}
RUNS = [(name, everywhere) for name in COMMANDS for everywhere in (False, True)]


def train(folder: Path, everywhere: bool) -> None:
    """Run every script on this rank, each in a folder of its own, under `import wandb`."""
    before, here = list(sys.argv), Path.cwd()
    variable = os.environ.pop("TORCHTRACK_DIR", None)
    torchtrack.compat.install()
    try:
        for name in COMMANDS:
            work = folder / f"{name}-{everywhere}"
            work.mkdir(parents=True, exist_ok=True)
            os.chdir(work)
            os.environ["TORCHTRACK_DIR"] = str(work)
            sys.argv = [f"{name}.py", *COMMANDS[name], f"--everywhere={everywhere}"]
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before
        os.chdir(here)
        del os.environ["TORCHTRACK_DIR"]
        if variable is not None:
            os.environ["TORCHTRACK_DIR"] = variable
        torchtrack.compat.uninstall()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of all scripts, each on two ranks."""
    folder = tmp_path_factory.mktemp("scripts")
    for everywhere in (False, True):  # each is a job of its own
        ranks(2, init=True).run(train, folder, everywhere)
    return folder


def the_run(folder: Path) -> RecordedRun:
    (run,) = torchtrack.Api(folder).runs()
    return run


@pytest.mark.parametrize(("name", "everywhere"), RUNS)
def test_a_script_on_two_ranks_is_one_finished_run(trained: Path, name: str, everywhere: bool) -> None:
    run = the_run(trained / f"{name}-{everywhere}")

    assert (run.state, {stream.rank for stream in run.streams()}) == ("finished", {0, 1} if everywhere else {0})


@pytest.mark.parametrize("everywhere", [False, True])
def test_what_the_language_model_logs_is_there(trained: Path, everywhere: bool) -> None:
    run = the_run(trained / f"nanogpt-{everywhere}")

    assert (run.project, run.name, run.config["max_iters"]) == ("owt", "gpt2-tiny", 4)
    assert own(run) == ["iter", "lr", "mfu", "train/loss", "val/loss"]
    assert run.history("iter", ranks=0).to_pydict()["iter"] == [0.0, 3.0]


@pytest.mark.parametrize("everywhere", [False, True])
def test_what_the_agent_writes_for_tensorboard_is_there(trained: Path, everywhere: bool) -> None:
    run = the_run(trained / f"cleanrl-{everywhere}")

    assert run.history("charts/episodic_return", ranks=0).column("step").to_pylist() == [10, 20, 30, 40]
    assert {"charts/SPS", "losses/policy_loss"} <= set(own(run))
    assert run.histogram("logged", "weights", 40).count == 4
    assert "|env_id|Bandit-v0|" in run.texts().to_pylist()[0]["text"]
    assert {row["mime"] for row in run.media().to_pylist()} == {"image/gif"}
    assert (trained / f"cleanrl-{everywhere}" / run.uid / "files" / "code").is_dir()


@pytest.mark.parametrize("everywhere", [False, True])
def test_what_the_classifier_logs_is_there(trained: Path, everywhere: bool) -> None:
    run = the_run(trained / f"timm-{everywhere}")

    assert (run.project, run.tags, run.config["epochs"]) == ("imagenet", ("a", "b"), 3)
    assert column(run, "eval_top1")[:3] == [0.0, 10.0, 20.0] or everywhere
    assert (run.summary["best_top1"], run.summary["epochs"]) == (20.0, 3)
    assert set(run.tensors("gradient").column("name").to_pylist()) == {"weight", "bias"}
    assert len(run.media().to_pylist()) == (2 if everywhere else 1)


def test_under_torchrun_a_module_before_the_script_is_enough(tmp_path: Path) -> None:
    launcher = tmp_path / "launcher.py"
    launcher.write_text("import runpy\nrunpy.run_module('torchtrack.compat', run_name='__main__', alter_sys=True)\n")

    done = torchrun(launcher, str(SCRIPTS / "nanogpt.py"), "--max_iters=2", "--everywhere=True", cwd=tmp_path)

    assert done.returncode == 0, done.stdout
    run = the_run(tmp_path / "runs")
    assert (run.world_size, run.state, len(run.history("iter", ranks=1))) == (2, "finished", 1)
