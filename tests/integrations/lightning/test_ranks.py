"""Two ranks under each launcher and strategy of Lightning that runs on CPUs: one run, with the rows of a plain loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.lightning.models import CLIP, norms, only_run, plain
from tests.integrations.lightning.programs import PATHS, python
from torchtrack.testing import torchrun

SCRIPT = Path(__file__).parent / "scripts" / "train.py"


def launch(kind: str, folder: Path) -> None:
    if kind == "torchrun":
        done = torchrun(SCRIPT, "ddp", nproc=2, env={"PYTHONPATH": PATHS}, cwd=folder)
    else:
        done = python(str(SCRIPT), kind, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["ddp", "ddp_spawn", "torchrun", "sharded"])
def test_two_ranks_are_one_run_with_the_gradients_of_a_plain_loop(kind: str, tmp_path: Path) -> None:
    launch(kind, tmp_path)

    run = only_run(tmp_path / "runs")
    assert (run.state, run.world_size, run.project, run.config["lr"]) == ("finished", 2, "ranks", 0.1)
    [attempt] = run.attempts
    assert attempt.ranks == (0, 1)
    rows = run.history(["loss", "batch_size", "lr", "phase/forward_s"], stop=4, ranks="all").to_pylist()
    assert [(row["step"], row["rank"]) for row in rows] == [(step, rank) for step in range(4) for rank in (0, 1)]
    assert {row["batch_size"] for row in rows} == {16.0}
    assert {row["lr"] for row in rows} == {0.1}
    assert all(row["phase/forward_s"] > 0 for row in rows)
    assert len({row["loss"] for row in rows}) == len(rows)
    assert len(run.history(["test_loss"])) == 1
    found = norms(run)
    truth = {
        (step, name): float(gradient.norm())
        for step, gradients in enumerate(plain(16, 2, None if kind == "sharded" else CLIP))
        for name, gradient in gradients.items()
    }
    assert found == pytest.approx(truth, rel=1e-5)
    gradients = run.tensors(kind="gradient")
    assert set(gradients["coverage"].to_pylist()) == {1.0}
    assert set(gradients["stage"].to_pylist()) == {"step" if kind == "sharded" else "pre_clip"}
