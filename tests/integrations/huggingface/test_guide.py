"""The programs of the guide run as they are printed, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import torchtrack
from tests.integrations.huggingface.programs import python
from tests.rules.source import ROOT

GUIDE = ROOT / "docs" / "guides" / "huggingface.md"
PROGRAMS = re.findall(r"^```python\n(.+?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_guides_programs_run(tmp_path: Path) -> None:
    program = tmp_path / "guide.py"
    program.write_text("\ntorchtrack.finish()\n".join(["import torchtrack", *PROGRAMS[:-1]]))
    done = python(str(program), cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    runs = {run.project: run for run in torchtrack.Api(tmp_path / "runs").runs()}
    assert runs["digits"].history(["train/loss"])["step"].to_pylist() == [5, 10, 15, 20]
    assert set(runs["digits"].tensors(kind="gradient")["name"].to_pylist()) == {"net.weight", "net.bias"}
    assert len(runs["accelerate"].history(["loss"])) == 20
    assert set(runs["accelerate"].tensors(kind="gradient")["name"].to_pylist()) == {"weight", "bias"}


@pytest.mark.peers
def test_the_guides_program_for_trl_runs(tmp_path: Path) -> None:
    program = tmp_path / "guide.py"
    program.write_text(PROGRAMS[-1])
    done = python(str(program), cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (run,) = torchtrack.Api(tmp_path / "runs").runs()
    assert run.history(["train/loss"])["step"].to_pylist() == [1, 2, 3, 4]
    assert any("attn" in name for name in run.tensors(kind="gradient")["name"].to_pylist())
