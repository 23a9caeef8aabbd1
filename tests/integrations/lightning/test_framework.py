"""Which Lightning the classes belong to, and what is said without it."""

from __future__ import annotations

from pathlib import Path

import torchtrack
from tests.integrations.lightning.programs import python
from tests.integrations.plain import Way, compare

SCRIPT = Path(__file__).parent / "scripts" / "names.py"


def test_a_trainer_of_either_package_records_the_rows_of_a_plain_loop(tmp_path: Path) -> None:
    done = python(str(SCRIPT), cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    runs = torchtrack.Api(tmp_path / "runs").runs()
    assert sorted(run.project for run in runs) == ["lightning.pytorch", "pytorch_lightning", "pytorch_lightning"]
    for run in runs:
        assert (run.state, run.world_size, run.config) == ("finished", 2, {"lr": 0.1})
        way = Way("two", accumulate=3, clip="norm")
        assert len(run.history(["loss"])) == way.steps
        compare(run, way)
