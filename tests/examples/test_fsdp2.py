"""The example of sharded training works as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torchtrack
from tests.rules.source import ROOT
from torchtrack.testing import torchrun

SCRIPT = ROOT / "examples" / "fsdp2" / "train.py"
BLOCK = (
    "ln_1.weight", "ln_1.bias", "attn.qkv.weight", "attn.proj.weight", "ln_2.weight", "ln_2.bias",
    "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias",
)  # fmt: skip
PARAMETERS = (
    "wte.weight", "wpe.weight", *(f"blocks.0.{name}" for name in BLOCK), "ln_f.weight", "ln_f.bias", "head.weight",
)  # fmt: skip
SMALL = (
    "max_steps=12",
    "num_chars=60000",
    "eval_every=4",
    "eval_batches=1",
    "log_freq=2",
    "n_layer=1",
    "block_size=32",
)


def test_two_ranks_that_each_hold_half_a_model_become_one_run(tmp_path: Path) -> None:
    done = torchrun(SCRIPT, *SMALL, nproc=2, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (run,) = torchtrack.Api(tmp_path / "runs").runs()
    assert (run.state, run.world_size, run.project) == ("finished", 2, "examples")
    assert run.config["max_steps"] == 12
    losses = run.history(["train/loss"])
    assert losses["step"].to_pylist() == list(range(12))
    first, *_, last = losses["train/loss"].to_pylist()
    assert last < first - 0.5
    assert run.history(["val/loss"])["step"].to_pylist() == [0, 4, 8, 11]
    assert set(run.history(["train/loss"], ranks="all")["rank"].to_pylist()) == {0, 1}
    for kind, stage in (("gradient", "pre_clip"), ("parameter", "step")):
        rows = run.tensors(kind=kind).to_pylist()
        assert sorted((row["step"], row["name"]) for row in rows) == sorted(
            (step, name) for step in (0, 2, 4, 6, 8, 10) for name in PARAMETERS
        )
        assert {(row["stage"], row["coverage"]) for row in rows} == {(stage, 1.0)}
        assert max(row["ranks"] for row in rows) == 2
    assert f"The run lies in {tmp_path / 'runs' / run.uid}" in done.stdout
    assert f"look: torchtrack show {run.uid}" in done.stderr


def test_without_torchrun_it_says_how_to_start_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *SMALL], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "torchrun --standalone --nproc-per-node=1" in done.stderr
