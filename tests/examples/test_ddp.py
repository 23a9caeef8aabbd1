"""The example is what people run first: it has to work as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torchtrack
from tests.rules.source import ROOT
from torchtrack.testing import torchrun

SCRIPT = ROOT / "examples" / "ddp" / "train.py"
SMALL = (
    "max_steps=32",
    "num_chars=60000",
    "eval_every=12",
    "eval_batches=1",
    "log_freq=2",
    "n_layer=1",
    "block_size=32",
)


def test_two_ranks_become_one_run_with_curves_and_merged_histograms(tmp_path: Path) -> None:
    done = torchrun(SCRIPT, *SMALL, nproc=2, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (run,) = torchtrack.Api(tmp_path / "runs").runs()
    assert (run.state, run.world_size, run.project) == ("finished", 2, "examples")
    assert run.config["max_steps"] == 32
    assert run.history(["train/loss"])["step"].to_pylist() == list(range(32))
    assert run.history(["val/loss"])["step"].to_pylist() == [0, 12, 24, 31]
    assert set(run.history(["train/loss"], ranks="all")["rank"].to_pylist()) == {0, 1}
    gradients = run.tensors(kind="gradient")
    assert set(gradients["coverage"].to_pylist()) == {1.0}
    assert set(gradients["step"].to_pylist()) == set(range(0, 32, 2))
    assert set(gradients["stage"].to_pylist()) == {"pre_clip"}
    assert max(gradients["ranks"].to_pylist()) == 2
    assert f"The run lies in {tmp_path / 'runs' / run.uid}" in done.stdout


def test_the_run_keeps_what_was_printed_and_the_sample(tmp_path: Path) -> None:
    done = torchrun(SCRIPT, *SMALL, nproc=2, cwd=tmp_path)

    (run,) = torchtrack.Api(tmp_path / "runs").runs()
    kept = [row["line"] for row in run.logs().to_pylist() if row["stream"] == "stdout" and row["rank"] == 0]
    assert [line for line in kept if line] == [line for line in done.stdout.splitlines() if line]
    (sample,) = (row for row in run.texts().to_pylist() if row["name"] == "sample")
    assert (sample["step"], sample["text"][:4]) == (31, "def ")
    assert sample["text"] in done.stdout


def test_it_runs_on_one_process_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *SMALL], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert torchtrack.Api(tmp_path / "runs").runs()[0].world_size == 1


def test_a_mistyped_setting_is_refused_with_the_ones_there_are(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "max_step=4"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "'max_step=4': write key=value with one of num_chars, block_size" in done.stderr
