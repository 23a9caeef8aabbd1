"""`torchtrack ls`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.api.journals import UID
from tests.cli.conftest import Cli


def test_ls_lists_runs_newest_first_with_state_ranks_steps_and_a_metric(cli: Cli, runs: Path) -> None:
    result = cli("ls", str(runs))
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["run", "state", "uid", "project", "ranks", "steps", "metrics", "started"]
    assert "red-fox-1" in first
    assert "● running" in first
    assert second.split()[:8] == ["calm-otter-7", "✓", "finished", UID[:8], "llm", "2", "21", "loss"]


def test_ls_finds_the_folder_by_the_environment_and_by_default(cli: Cli, runs: Path) -> None:
    assert "red-fox-1" in cli("ls").stdout


def test_ls_of_one_project(cli: Cli, runs: Path) -> None:
    assert "calm-otter-7" not in cli("ls", str(runs), "--project", "vision").stdout
    assert cli("ls", str(runs), "--project", "none").stdout == f"no runs of project 'none' in {runs}\n"


def test_ls_json_is_strict_json_with_all_fields(cli: Cli, runs: Path) -> None:
    newest, oldest = json.loads(cli("ls", str(runs), "--json").stdout)
    assert newest["state"] == "running"
    assert oldest["uid"] == UID
    assert oldest["summary"] == {"loss": "NaN", "watch/grad_norm": 1.0}
    assert (oldest["ranks"], oldest["last_step"], oldest["dropped_rows"]) == (2, 20, 0)


def test_ls_fits_80_columns(cli: Cli, runs: Path) -> None:
    assert max(map(len, cli("ls", str(runs), width=80).stdout.splitlines())) <= 80


def test_a_folder_that_is_not_there_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    result = cli("ls", str(tmp_path / "typo"))
    assert result.exit_code == 1
    assert "no runs: there is no" in result.stderr


def test_a_foreign_file_is_named_and_the_runs_are_listed(cli: Cli, runs: Path) -> None:
    foreign = runs / "x" / "000" / "0-0000000000000001.ttj"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"something else")
    result = cli("ls", str(runs))
    assert result.exit_code == 0
    assert f"not read: {foreign}" in result.stderr
    assert "calm-otter-7" in result.stdout
