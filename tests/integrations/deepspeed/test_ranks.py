"""DeepSpeed on two CPU ranks: one run for each, with the rows of a plain loop."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.integrations.deepspeed.ways import CLIPPED, EXACT, WAYS
from tests.integrations.plain import compare
from tests.rules.source import ROOT
from torchtrack.testing import torchrun

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed"),
]
SCRIPT = Path(__file__).parent / "scripts" / "train.py"
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "integrations" / "deepspeed")])
ENVIRONMENT = {"PYTHONPATH": PATHS, "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("deepspeed")
    done = torchrun(SCRIPT, str(folder / "runs"), env=ENVIRONMENT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {run.project: run for run in torchtrack.Api(folder / "runs").runs()}


@pytest.mark.parametrize("name", EXACT)
def test_each_stage_gives_the_rows_of_a_plain_loop(runs: dict[str, Any], name: str) -> None:
    compare(runs[name], WAYS[name])


@pytest.mark.parametrize("name", CLIPPED)
def test_norms_are_those_that_deepspeed_clips_by(runs: dict[str, Any], name: str) -> None:
    run = runs[name]
    rows = run.tensors(kind="gradient")
    squares: dict[int, float] = {}
    for row in rows.to_pylist():
        squares[row["step"]] = squares.get(row["step"], 0.0) + row["norm"] ** 2

    assert len(squares) == WAYS[name].steps
    norms = {row["step"]: row["norm"] for row in run.history("norm").to_pylist()}
    assert {step: math.sqrt(square) for step, square in squares.items()} == pytest.approx(norms, rel=1e-4)
    assert set(rows["stage"].to_pylist()) == {"pre_clip"}
    for kind in ("gradient", "parameter"):
        assert set(run.tensors(kind=kind)["coverage"].to_pylist()) == {1.0}


def test_two_ranks_are_one_run(runs: dict[str, Any]) -> None:
    assert {(run.state, run.world_size) for run in runs.values()} == {("finished", 2)}
    assert len(runs) == len(WAYS)


def test_the_guides_program_runs(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guides" / "more-frameworks.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    program = tmp_path / "guide.py"
    program.write_text(code)
    done = torchrun(program, env=ENVIRONMENT, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (run,) = torchtrack.Api(tmp_path / "runs").runs()
    assert (run.world_size, len(run.history(["loss"]))) == (2, 20)
    rows = run.tensors(kind="gradient").to_pylist()
    assert {(row["name"], row["coverage"]) for row in rows} == {
        (f"{layer}.{kind}", 1.0) for layer in (0, 2) for kind in ("weight", "bias")
    }
