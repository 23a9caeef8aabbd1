"""What a rank leaves that is killed: its last steps, as they were."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import torchtrack
from tests.runs import until
from torchtrack.journal import ring
from torchtrack.testing import torchrun

SCRIPT = Path(__file__).parent / "scripts" / "blackbox.py"


def files() -> set[Path]:
    return {path for place in ring.places() for path in place.glob("torchtrack-*.ttb")}


@pytest.mark.parametrize("how", ["term", "abort", "kill"])
def test_a_killed_run_leaves_the_last_steps_of_every_rank(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "runs"
    assert torchrun(SCRIPT, str(folder), how, env={"TORCHTRACK_SIDECAR": "1"}).returncode != 0
    [run] = torchtrack.Api(folder).runs()
    until(lambda: {row["rank"] for row in run.blackbox().to_pylist()} == {0, 1})
    for rank in range(2):
        truth = json.loads(Path(f"{folder}-{rank}.json").read_text())
        rows = [row for row in run.blackbox().to_pylist() if row["rank"] == rank]
        assert [(r["step"], r["name"], r["nonfinite"]) for r in rows] == [(s, n, c) for s, n, _, c in truth]
        for row, (_, _, norm, _) in zip(rows, truth, strict=True):
            assert math.isclose(row["norm"], norm, rel_tol=1e-5) or (math.isnan(norm) and math.isnan(row["norm"]))
    if how == "term":
        assert any("blackbox.py" in path.read_text() for path in folder.rglob("*.stacks"))


def test_a_finished_run_leaves_no_black_box(tmp_path: Path) -> None:
    before = files()
    assert torchrun(SCRIPT, str(tmp_path / "runs"), "finish", env={"TORCHTRACK_SIDECAR": "1"}).returncode == 0
    assert files() <= before
