"""The Hugging Face example works as its first lines say."""

from __future__ import annotations

from pathlib import Path

import torchtrack
from tests.integrations.huggingface.programs import python
from tests.rules.source import ROOT

SCRIPT = ROOT / "examples" / "huggingface" / "train.py"


def test_two_ranks_become_one_run_that_learns(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = python(*launch, "--max_steps", "15", "--n_layer", "1", "--log_freq", "5", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (run,) = torchtrack.Api(tmp_path / "runs").runs()
    assert (run.state, run.world_size, run.project) == ("finished", 2, "examples")
    first, *_, last = run.history(["train/loss"])["train/loss"].to_pylist()
    assert last < first
    gradients = run.tensors(kind="gradient")
    assert set(gradients["stage"].to_pylist()) == {"pre_clip"}
    assert "transformer.wte.weight" in gradients["name"].to_pylist()
    assert run.config["model"]["n_embd"] == 64
