"""MLflow's stores: as its client writes them (peers), and the same layout written by hand."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.importers.imported import bring, points, recorded

RUN = "65f0e651890244038b3f6f72cd14ce28"
SCRIPT = """
import sys
import mlflow

mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("exp/one")
with mlflow.start_run(run_name="calm", tags={"team": "a"}, description="words"):
    mlflow.log_params({"lr": 0.1, "layers": 4, "bias": True, "kind": "adam"})
    for step in range(3):
        mlflow.log_metrics({"loss": 1 / (step + 1), "a/nan": float("nan"), "inf": float("inf")}, step=step)
        mlflow.log_metric("system/cpu", 5.0, step=step)
"""


def folder_store(folder: Path) -> Path:
    """As the file store lays it out."""
    store = folder / "mlruns"
    run = store / "1" / RUN
    for name in ("metrics/a", "metrics/system", "params", "tags", "artifacts"):
        (run / name).mkdir(parents=True)
    (store / "1" / "meta.yaml").write_text("experiment_id: '1'\nlifecycle_stage: active\nname: 'exp/one'\n")
    about = f"run_id: {RUN}\nrun_name: calm\nstatus: 3\nstart_time: 1700000000000\nend_time: 1700000009000\n"
    (run / "meta.yaml").write_text(f"{about}lifecycle_stage: active\n")
    for name, text in {"lr": "0.1", "layers": "4", "bias": "True", "kind": "adam"}.items():
        (run / "params" / name).write_text(text)
    (run / "tags" / "team").write_text("a")
    (run / "tags" / "mlflow.note.content").write_text("words")
    lines = {"loss": ("1.0", "0.5", str(1 / 3)), "a/nan": ("nan",) * 3, "inf": ("inf",) * 3, "system/cpu": ("5.0",) * 3}
    for name, values in lines.items():
        text = "".join(f"{1700000001000 + step} {value} {step}\n" for step, value in enumerate(values))
        (run / "metrics" / name).write_text(text)
    return store


def database(folder: Path) -> Path:
    """As the SQL store lays it out, as far as it is read."""
    path = folder / "mlflow.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT);"
        "CREATE TABLE runs (run_uuid TEXT PRIMARY KEY, name TEXT, status TEXT, start_time BIGINT, end_time BIGINT,"
        " lifecycle_stage TEXT, experiment_id INTEGER);"
        "CREATE TABLE metrics (key TEXT, value DOUBLE, timestamp BIGINT, run_uuid TEXT, step BIGINT, is_nan BOOLEAN,"
        " PRIMARY KEY (key, timestamp, step, run_uuid, value, is_nan));"
        "CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT);"
        "CREATE TABLE tags (key TEXT, value TEXT, run_uuid TEXT);"
    )
    connection.execute("INSERT INTO experiments VALUES (1, 'exp/one')")
    about = (RUN, "calm", "FINISHED", 1700000000000, 1700000009000, "active", 1)
    connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", about)
    connection.execute("INSERT INTO runs VALUES ('gone', 'gone', 'FINISHED', 1, 2, 'deleted', 1)")
    for step in range(3):
        values = {
            "loss": (1 / (step + 1), 0),
            "a/nan": (0.0, 1),
            "inf": (1.7976931348623157e308, 0),
            "system/cpu": (5.0, 0),
        }
        for name, (value, is_nan) in values.items():
            row = (name, value, 1700000001000 + step, RUN, step, is_nan)
            connection.execute("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", row)
    params = {"lr": "0.1", "layers": "4", "bias": "True", "kind": "adam"}
    connection.executemany("INSERT INTO params VALUES (?, ?, ?)", [(k, v, RUN) for k, v in params.items()])
    tags = {"team": "a", "mlflow.note.content": "words"}
    connection.executemany("INSERT INTO tags VALUES (?, ?, ?)", [(k, v, RUN) for k, v in tags.items()])
    connection.commit()
    connection.close()
    return path


def written_by_mlflow(folder: Path, uri: str) -> Path:
    (folder / "train.py").write_text(SCRIPT)
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path), "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [sys.executable, str(folder / "train.py"), uri]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environ, timeout=120)
    return folder


SOURCES: dict[str, Callable[[Path], Path]] = {
    "a folder": folder_store,
    "a database": database,
    "a folder of MLflow": lambda folder: written_by_mlflow(folder, f"file://{folder}/mlruns") / "mlruns",
    "a database of MLflow": lambda folder: written_by_mlflow(folder, f"sqlite:///{folder}/m.db") / "m.db",
}
REAL = [name for name in SOURCES if "of MLflow" in name]
EACH = [pytest.param(name, marks=pytest.mark.peers) if name in REAL else name for name in SOURCES]


@pytest.mark.parametrize("which", EACH)
def test_a_run_comes_back_value_by_value(which: str, tmp_path: Path) -> None:
    source = SOURCES[which](tmp_path)
    _, losses = bring(source, tmp_path / "runs")
    run = recorded(tmp_path / "runs")["calm"]

    assert points(run, "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [math.isnan(value) for _, value in points(run, "a/nan")] == [True] * 3
    assert points(run, "inf") == [(step, math.inf) for step in range(3)]
    assert points(run, "system/cpu") == [(step, 5.0) for step in range(3)]
    assert run.config == {"lr": 0.1, "layers": 4, "bias": True, "kind": "adam"}
    assert (run.project, run.notes, run.state, run.tags) == ("exp-one", "words", "finished", ("team=a",))
    assert not losses.damages
    assert bring(source, tmp_path / "runs")[0] == [0]


def test_a_folder_that_grew_is_added_to_and_damaged_lines_are_said(tmp_path: Path) -> None:
    source = folder_store(tmp_path)
    bring(source, tmp_path / "runs")
    with (source / "1" / RUN / "metrics" / "loss").open("a") as file:
        file.write("what is this\n1700000005000 0.25 3\n1700000006000 0.1")

    rows, losses = bring(source, tmp_path / "runs")

    assert rows == [1]
    assert points(recorded(tmp_path / "runs")["calm"], "loss")[-1] == (3, 0.25)
    assert sorted(losses.damages) == [
        "lines of metric files that are none",
        "metric files that end within a line: being written, or cut off",
    ]


def test_a_database_that_grew_is_added_to_and_is_never_written_to(tmp_path: Path) -> None:
    source = database(tmp_path)
    bring(source, tmp_path / "runs")
    connection = sqlite3.connect(source)
    connection.execute("INSERT INTO metrics VALUES ('loss', 0.25, 1700000005000, ?, 3, 0)", (RUN,))
    connection.commit()
    connection.close()
    before = source.read_bytes()

    rows, losses = bring(source, tmp_path / "runs")

    assert rows == [1]
    assert points(recorded(tmp_path / "runs")["calm"], "loss")[-1] == (3, 0.25)
    assert dict(losses.formats) == {"runs that were deleted in MLflow: left out": 1}
    assert source.read_bytes() == before
