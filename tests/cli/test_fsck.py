"""`torchtrack fsck`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli
from torchtrack.api import Api


def damage(runs: Path) -> Path:
    path = sorted(runs.glob("*/000/0-*.ttj"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


def test_whole_journals_exit_with_0(cli: Cli, runs: Path) -> None:
    result = cli("fsck")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "3 journals, none damaged"
    assert "sealed" in result.stdout


def test_a_damaged_journal_is_named_and_the_exit_code_is_1(cli: Cli, runs: Path) -> None:
    path = damage(runs)
    result = cli("fsck", str(runs), "--quiet")
    assert result.exit_code == 1
    assert str(path) in result.stdout.replace("\n", "")
    assert "lost: " in result.stdout
    assert result.stdout.splitlines()[-1] == "3 journals, 1 damaged"


def test_repair_writes_what_is_left_elsewhere_and_leaves_the_original(cli: Cli, runs: Path, tmp_path: Path) -> None:
    path = damage(runs)
    before = path.read_bytes()
    result = cli("fsck", str(path), "--repair", str(tmp_path / "repaired"))
    assert result.exit_code == 1
    assert path.read_bytes() == before
    assert "repaired: " in result.stdout
    assert Api(tmp_path / "repaired").run("baseline").history().num_rows > 0
    assert cli("fsck", str(tmp_path / "repaired")).exit_code in (0, 1)


def test_a_folder_without_journals_and_one_that_is_not_there_are_errors(cli: Cli, tmp_path: Path) -> None:
    assert "no journals in" in cli("fsck", str(tmp_path)).stderr
    result = cli("fsck", str(tmp_path / "typo"))
    assert result.exit_code == 1
    assert "no such file or folder" in result.stderr
