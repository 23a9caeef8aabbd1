"""The programs of the guides for those who move run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rules.source import ROOT
from tests.runs import only_run, script

METRICS = {"from-tensorboard": "train/loss", "from-mlflow": "loss", "from-neptune": "metrics/loss"}


@pytest.mark.parametrize("guide", METRICS)
def test_a_guides_program_runs(guide: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text()
    (program,) = re.findall(r"^```python\n(.+?)^```", text, re.MULTILINE | re.DOTALL)

    done = script(program, tmp_path)

    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert run.project == guide
    assert len(run.history(METRICS[guide])) == 4


def test_the_program_of_the_guide_of_sinks_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / "sinks.md").read_text()
    (program,) = re.findall(r"^```python\n(.+?)^```", text, re.MULTILINE | re.DOTALL)

    done = script(program, tmp_path)

    assert done.returncode == 0, done.stderr
    assert only_run(tmp_path).tensors(kind="logged").num_rows == 3
