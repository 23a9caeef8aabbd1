"""`torchtrack findings`: what the rules say of a run, recorded or replayed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from tests.api.journals import RankJournal
from tests.cli.conftest import Cli


def broken(folder: Path) -> None:
    """A run whose gradient is not finite on one rank at step 2."""
    with RankJournal(folder, "aaaa000011112222") as rank:
        rank.about(name="broken")
        for sample in range(4):
            values = np.full(8, math.nan) if sample == 2 else np.linspace(-1, 1, 8)
            rank.tensor(sample, "head.weight", values)
            rank.log(sample, {"loss": 1.0})
        seen = {"kind": "gradient", "first": "head.weight", "names": ["head.weight"], "count": 1}
        rank.event("nonfinite", seen, step=2)


def test_a_finding_says_since_when_where_on_which_rank_and_what_to_look_at(cli: Cli, tmp_path: Path) -> None:
    broken(tmp_path / "runs")
    result = cli("findings", "broken", "--dir", str(tmp_path / "runs"))

    assert result.exit_code == 1  # it is critical
    assert "critical non_finite  step 2" in result.stdout
    assert "rank 0 · head.weight" in result.stdout
    assert "8 of 8 elements of the gradient head.weight are NaN or infinite at step 2" in result.stdout
    assert "Look at: " in result.stdout


def test_json_holds_the_same(cli: Cli, tmp_path: Path) -> None:
    broken(tmp_path / "runs")
    result = cli("findings", "broken", "--json", "--dir", str(tmp_path / "runs"))

    [found] = json.loads(result.stdout)
    assert (found["rule"], found["first_step"], found["ranks"]) == ("non_finite", 2, [0])


def test_only_what_is_grave_enough_is_shown(cli: Cli, runs: Path) -> None:
    result = cli("findings", "red-fox-1", "--severity", "critical", "--dir", str(runs))

    assert (result.exit_code, result.stdout) == (0, "no findings of severity critical or more in run red-fox-1\n")


def test_a_severity_that_is_none_is_refused_with_those_there_are(cli: Cli, runs: Path) -> None:
    result = cli("findings", "--severity", "loud", "--dir", str(runs))

    assert result.exit_code == 2
    assert "'loud' is not one of 'info', 'warning', 'critical'" in result.stderr
