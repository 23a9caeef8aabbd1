"""`torchtrack fsck`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli
from torchtrack.api import Api
from torchtrack.journal.gather import Gatherer


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


def gather(runs: Path) -> Path:
    """Gather the journals of the finished run."""
    journals = sorted(runs.glob("*/000/[01]-*.ttj"))[:2]
    gatherer = Gatherer(journals[0].parent.parent / "nodes", {"role": "gathered"})
    for path in journals:
        assert gatherer.take(path, int(path.stem.split("-")[1], 16), ended=True) == 1
    path = gatherer.path
    gatherer.close()
    return path


def test_gathered_journals_are_checked_where_they_are(cli: Cli, runs: Path) -> None:
    path = gather(runs)
    for place in (runs, path.parent.parent):
        result = cli("fsck", str(place))
        assert result.exit_code == 0
        assert result.stdout.count("sealed") >= 2
        assert "holds 2 journal files" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 journals, 1 gathered file, none damaged"
    assert cli("fsck", str(path)).stdout == result.stdout


def test_damage_in_a_gathered_file_is_named(cli: Cli, runs: Path, tmp_path: Path) -> None:
    path = gather(runs)
    content = path.read_bytes()
    for offset in (200, len(content) // 2):  # a frame of its own, and one of a journal in it
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        result = cli("fsck", str(runs), "--quiet", "--repair", str(tmp_path / f"repaired{offset}"))
        assert result.exit_code == 1
        assert " at byte " in result.stdout
        assert result.stdout.splitlines()[-1] == "3 journals, 1 gathered file, 1 damaged"
    assert Api(tmp_path / f"repaired{offset}").runs()[0].history().num_rows > 0
