"""`torchtrack diff`: where two runs part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.api.journals import RankJournal
from tests.cli.conftest import Cli


@pytest.fixture
def three(tmp_path: Path) -> str:
    """Runs a and b are equal; c has other values in one tensor from step 2 on."""
    folder = tmp_path / "runs"
    values = np.random.default_rng(0).normal(size=200)
    for uid, name in (("a" * 16, "a"), ("b" * 16, "b"), ("c" * 16, "c")):
        with RankJournal(folder, uid) as rank:
            rank.about(name=name)
            for sample in range(4):
                rank.tensor(sample, "head.weight", values * (8.0 if name == "c" and sample >= 2 else 1.0))
                rank.tensor(sample, "body.weight", values)
                rank.log(sample, {"loss": 1.0})
    return str(folder)


def test_equal_runs_are_the_same_up_to_their_last_step(cli: Cli, three: str) -> None:
    result = cli("diff", "a", "b", "--dir", three)

    assert result.exit_code == 0
    assert result.stdout.startswith("a and b are the same up to step 3: 4 samples of 2 tensors")


def test_runs_that_part_name_step_tensor_and_kind(cli: Cli, three: str) -> None:
    result = cli("diff", "a", "c", "--dir", three)

    assert result.exit_code == 1
    assert "a and c part at step 2 in the gradient head.weight, after step 1" in result.stdout
    assert "within the tolerance, furthest: gradient body.weight" in " ".join(result.stdout.split())
    parted = json.loads(cli("diff", "a", "c", "--json", "--dir", three).stdout)["parted"]
    assert [(one["name"], one["step"]) for one in parted] == [("head.weight", 2)]


def test_a_tolerance_that_is_none_is_refused(cli: Cli, three: str) -> None:
    result = cli("diff", "a", "b", "--tolerance", "-1", "--dir", three)

    assert result.exit_code == 1
    assert "tolerance=-1.0" in result.stderr
