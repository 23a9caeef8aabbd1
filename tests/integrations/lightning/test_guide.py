"""The programs of the guide run as they are printed, in one file, and Fabric's rows have the module's names."""

from __future__ import annotations

import re
from pathlib import Path

import torchtrack
from tests.integrations.lightning.programs import python
from tests.rules.source import ROOT

GUIDE = ROOT / "docs" / "guides" / "lightning.md"


def test_the_guides_programs_run(tmp_path: Path) -> None:
    program = tmp_path / "guide.py"
    program.write_text("\n".join(re.findall(r"^```python\n(.+?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)))
    done = python(str(program), cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    runs = {run.project: run for run in torchtrack.Api(tmp_path / "runs").runs()}
    assert runs["lightning"].history(["train/loss"])["step"].to_pylist() == [3, 7, 11, 15]
    assert set(runs["lightning"].tensors(kind="gradient")["name"].to_pylist()) == {"net.weight", "net.bias"}
    assert len(runs["fabric"].history(["loss"])) == 20
    assert set(runs["fabric"].tensors(kind="gradient")["name"].to_pylist()) == {"weight", "bias"}
