"""`torchtrack blackbox`, and what show and fsck say of black boxes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.api.journals import START_US, RankJournal
from tests.cli.conftest import Cli
from torchtrack.journal import ring

UID = "aaaa000011112222"


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two ranks: the first left a box and stacks, the second had its last steps kept at a value."""
    runs, place = tmp_path / "killed", tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(ring, "places", lambda: [place])
    monkeypatch.setattr(ring, "place", lambda _: place)
    for number in range(2):
        rank = RankJournal(runs, UID, rank=number, world_size=2)
        rank.about(name="killed")
        rank.log(0, {"loss": 1.0})
        made = ring.Ring(rank.stream, 0, ["head.weight", "head.bias", "unused"], {})
        for step in range(6):
            made.rows[:] = [(3.0, 1.0, 0), (160.0 if step == 4 else 4.0, 2.0, 0), (0, 0, ring.ABSENT)]
            if step == 5 and number == 1:
                made.rows[1] = (math.nan, math.nan, 7)
            made.write(step, step + 10, (START_US + step * 1_000_000) * 1000, made.rows, skipped=step == 2)
        made.close(remove=False)
        nodes = runs / UID / "nodes"
        nodes.mkdir(exist_ok=True)
        made.path.rename(nodes / f"{rank.stream:016x}-0{'-nonfinite-15' if number else ''}.ttb")
        if not number:
            (nodes / f"{rank.stream:016x}-process.stacks").write_text(
                'Thread 0x1 (most recent call first):\n  File "/x/torchtrack/recorder.py", line 282 in _main\n\n'
                'Current thread 0x2 (most recent call first):\n  File "train.py", line 7 in step\n'
            )
        rank.abandon()
    return runs


def test_it_shows_the_last_steps_of_every_rank_and_where_its_code_was(cli: Cli, killed: Path) -> None:
    text = cli("blackbox", "killed", "--steps", "4", "--dir", str(killed)).stdout
    first, second = text.split("rank 1  last step 15")
    rows = [line for line in first.splitlines() if line.strip()[:2].isdigit()]
    assert [row.split()[0] for row in rows] == ["12", "13", "14", "15"]
    assert "5.000" in rows[0]
    assert "left out by the scaler" in rows[0]
    assert "160.0" in rows[2]
    assert "head.bias x40" in rows[2]
    assert "7  head.bias (7)" in second
    assert "kept at nonfinite-15" in second
    assert "line 7 in step" in second
    assert "1 thread of torchtrack's own" in second
    assert "recorder.py" not in second


def test_a_narrow_terminal_takes_from_the_names_and_not_from_the_numbers(cli: Cli, killed: Path) -> None:
    text = cli("blackbox", "killed", "--rank", "1", "--dir", str(killed), width=56).stdout
    (worst,) = [line for line in text.splitlines() if line.startswith("  15")]
    assert worst.split()[2:5] == ["nan", "nan", "7"]
    assert worst.endswith("…")


def test_json_and_one_rank(cli: Cli, killed: Path) -> None:
    said = json.loads(cli("blackbox", "killed", "--json", "--rank", "1", "--dir", str(killed)).stdout)
    [one] = said["ranks"]
    assert (one["rank"], [step["step"] for step in one["steps"]]) == (1, list(range(10, 16)))
    last = one["steps"][-1]
    assert (last["nonfinite"], last["norm"], last["worst"][0]["name"]) == (7, "NaN", "head.bias")
    assert [(file["rank"], file["why"]) for file in said["files"]] == [(1, "nonfinite-15")]


def test_a_run_without_one_says_so(cli: Cli, runs: Path) -> None:
    result = cli("blackbox", "baseline", "--dir", str(runs))
    assert result.exit_code == 0
    assert "no black box of run calm-otter-7" in result.stdout


def test_show_and_fsck_tell_of_it(cli: Cli, killed: Path, runs: Path) -> None:
    page = cli("show", "killed", "--dir", str(killed)).stdout
    assert f"black box: last steps of ranks 0, 1, kept at nonfinite-15  (torchtrack blackbox {UID})" in page
    assert "black box" not in cli("show", "baseline", "--dir", str(runs)).stdout
    checked = cli("fsck", str(killed / UID))
    assert checked.stdout.splitlines()[-1] == "2 journals, 2 black boxes, none damaged"
    assert checked.stdout.count("6 steps of 3 gradients") == 2


def test_fsck_names_a_damaged_one_and_the_reader_does_without(cli: Cli, killed: Path) -> None:
    path = sorted(killed.rglob("*.ttb"))[0]
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    result = cli("fsck", str(killed / UID), "--quiet")
    assert result.exit_code == 1
    assert path.name in result.stdout.replace("\n", "")
    assert cli("blackbox", "killed", "--dir", str(killed)).stdout.count("last step 15") == 1
