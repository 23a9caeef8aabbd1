"""The programs of the guide run, one after the other."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import torchtrack

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "from-wandb.md"


def test_the_guides_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"^```python\n(.+?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    for number, program in enumerate(programs):
        path = tmp_path / f"{number}.py"
        path.write_text(program)
        runpy.run_path(str(path), run_name="__main__")
    runs = torchtrack.Api(tmp_path / "runs").runs("digits")

    assert len(programs) == 4
    assert [sorted(run.keys("")) != [] for run in runs] == [True] * 3
    assert (tmp_path / "artifacts" / "digits-model:v0" / "weights.txt").read_text() == "0.1 0.2"
    assert {"losses/value", "loss", "val/acc"} <= {key for run in runs for key in run.keys()}  # noqa: SIM118
