"""trackio's databases: as trackio writes them (peers), and the same layout written by hand."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.importers.imported import bring, points, recorded
from torchtrack.importers import sources

SCRIPT = """
import numpy as np
import trackio

trackio.init(project="p", name="calm", config={"lr": 0.1}, group="g")
for step in range(3):
    trackio.log({"loss": 1 / (step + 1), "nan": float("nan"), "nested": {"a": step}, "text": "words",
                 "h": trackio.Histogram(np_histogram=([1, 0, 5], [-1.0, 0.25, 1.0, 4.0]))}, step=step)
trackio.log({"picture": trackio.Image(np.zeros((4, 5, 3), np.uint8), caption="black"),
             "table": trackio.Table(columns=["a"], data=[[1]])}, step=3)
trackio.finish()
"""


def by_trackio(folder: Path) -> Path:
    (folder / "train.py").write_text(SCRIPT)
    environ = {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run(
        [sys.executable, str(folder / "train.py")],
        check=True,
        capture_output=True,
        env={**os.environ, **environ},
        timeout=120,
    )
    return folder / "trackio"


def by_hand(folder: Path) -> Path:
    place = folder / "trackio"
    picture = place / "media" / "p" / "calm" / "3" / "x.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"\x89PNG\r\n\x1a\n...")
    connection = sqlite3.connect(place / "p.db")
    connection.executescript(
        "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, timestamp TEXT, run_name TEXT,"
        " step INTEGER, metrics TEXT);"
        "CREATE TABLE configs (id INTEGER PRIMARY KEY, run_id TEXT, run_name TEXT, config TEXT, created_at TEXT);"
    )
    config = json.dumps({"lr": 0.1, "_Created": "2026-01-01T00:00:00+00:00", "_Group": "g", "_Username": None})
    connection.execute("INSERT INTO configs VALUES (1, 'abc', 'calm', ?, '')", (config,))
    histogram = {"_type": "trackio.histogram", "values": [1, 0, 5], "bins": [-1.0, 0.25, 1.0, 4.0]}
    for step in range(3):
        row = {"loss": 1 / (step + 1), "nan": "NaN", "nested": {"a": step}, "text": "words", "h": histogram}
        add(connection, step, json.dumps(row))
    media = {"picture": {"_type": "trackio.image", "file_path": "p/calm/3/x.png", "caption": "black"}}
    add(connection, 3, json.dumps({**media, "table": {"_type": "trackio.table", "_value": [{"a": 1}]}}))
    connection.close()
    return place


def add(connection: sqlite3.Connection, step: int, row: str) -> None:
    time = f"2026-01-01T00:00:{step + 1:02d}+00:00"
    columns = "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES ('abc', ?, 'calm', ?, ?)"
    connection.execute(columns, (time, step, row))
    connection.commit()


@pytest.mark.parametrize("write", [by_hand, pytest.param(by_trackio, marks=pytest.mark.peers)])
def test_a_run_comes_back_value_by_value(write: Callable[[Path], Path], tmp_path: Path) -> None:
    source = write(tmp_path)
    _, losses = bring(source, tmp_path / "runs")
    run = recorded(tmp_path / "runs")["calm"]

    assert points(run, "loss") == [(step, 1 / (step + 1)) for step in range(3)]
    assert [math.isnan(value) for _, value in points(run, "nan")] == [True] * 3
    assert points(run, "nested.a") == [(step, float(step)) for step in range(3)]
    assert [row["text"] for row in run.texts().to_pylist()] == ["words"] * 3
    back = run.histogram("logged", "h", 1)
    assert (back.count, back.min, back.max) == (6, -1.0, 4.0)
    media = {row["name"]: row for row in run.media().to_pylist()}
    assert (media["picture"]["mime"], media["picture"]["caption"], media["picture"]["step"]) == (
        "image/png",
        "black",
        3,
    )
    table = json.loads((tmp_path / "runs" / run.uid / "media" / media["table"]["sha256"]).read_text())
    assert table == {"columns": ["a"], "data": [[1]]}
    assert (run.project, run.group, run.config, run.state) == ("p", "g", {"lr": 0.1}, "finished")
    assert not losses.damages
    assert bring(source, tmp_path / "runs")[0] == [0]


def test_new_rows_are_added_and_damaged_ones_said(tmp_path: Path) -> None:
    source = by_hand(tmp_path)
    bring(source, tmp_path / "runs")
    connection = sqlite3.connect(source / "p.db")
    add(connection, 4, "{no json")
    add(connection, 5, json.dumps({"loss": 0.01}))
    connection.close()

    rows, losses = bring(source, tmp_path / "runs")

    assert rows == [1]
    assert points(recorded(tmp_path / "runs")["calm"], "loss")[-1] == (5, 0.01)
    assert dict(losses.damages) == {"rows that are no JSON": 1}


def test_files_outside_of_the_media_folder_are_not_taken(tmp_path: Path) -> None:
    source = by_hand(tmp_path)
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    connection = sqlite3.connect(source / "p.db")
    add(connection, 4, json.dumps({"p": {"_type": "trackio.image", "file_path": "../../secret.png"}}))
    connection.close()

    _, losses = bring(source, tmp_path / "runs")

    assert dict(losses.damages) == {"media whose files are not there": 1}


def test_a_database_that_was_cut_off_is_said_to_be_one(tmp_path: Path) -> None:
    source = by_hand(tmp_path)
    (database,) = source.glob("*.db")
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])
    said = rf"there is no history .*; {database.name} cannot be read: database disk image"
    with pytest.raises(ValueError, match=said):
        sources.find(source)
