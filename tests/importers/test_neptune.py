"""Parquet in the columns that neptune-exporter's README describes; the exporter itself needs the service, now gone."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.importers.imported import bring, points, recorded

SCHEMA = pa.schema(
    [
        ("project_id", pa.string()),
        ("run_id", pa.string()),
        ("attribute_path", pa.string()),
        ("attribute_type", pa.string()),
        ("step", pa.decimal128(18, 6)),
        ("timestamp", pa.timestamp("ms", tz="UTC")),
        ("int_value", pa.int64()),
        ("float_value", pa.float64()),
        ("string_value", pa.string()),
        ("bool_value", pa.bool_()),
        ("datetime_value", pa.timestamp("ms", tz="UTC")),
        ("string_set_value", pa.list_(pa.string())),
        ("file_value", pa.struct([("path", pa.string())])),
        (
            "histogram_value",
            pa.struct([("type", pa.string()), ("edges", pa.list_(pa.float64())), ("values", pa.list_(pa.float64()))]),
        ),
    ]
)
BEGAN = datetime(2025, 3, 1, tzinfo=timezone.utc)


def row(path: str, kind: str, value: Any, step: float | None = None) -> dict[str, Any]:
    column = {
        "float_series": "float",
        "string_series": "string",
        "histogram_series": "histogram",
        "file_series": "file",
    }
    time = None if step is None else BEGAN.replace(second=int(step) + 1)
    where = {"step": None if step is None else Decimal(str(step)), "timestamp": time}
    base = {"project_id": "space/llm", "run_id": "RUN-1", "attribute_path": path, "attribute_type": kind, **where}
    return {**base, f"{column.get(kind, kind)}_value": value}


def exported(folder: Path) -> Path:
    """What the exporter leaves: two parts, and a downloaded file."""
    data, files = folder / "exports" / "data" / "space-llm", folder / "exports" / "files"
    data.mkdir(parents=True)
    (files / "space-llm").mkdir(parents=True)
    (files / "space-llm" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    first = [
        row("sys/name", "string", "calm"),
        row("sys/creation_time", "datetime", BEGAN),
        row("sys/tags", "string_set", ["a", "b"]),
        row("params/lr", "float", 0.1),
        row("params/layers", "int", 4),
        row("params/bias", "bool", True),
        *(row("metrics/loss", "float_series", 1 / (step + 1), step) for step in range(4)),
        row("metrics/loss", "float_series", 0.01, 4.5),
    ]
    histogram = {"type": "COUNTING", "edges": [-1.0, 0.25, 1.0, 4.0], "values": [1.0, 0.0, 5.0]}
    second = [
        row("logs/out", "string_series", "words", 1),
        row("dist/h", "histogram_series", histogram, 2),
        row("picture", "file_series", {"path": "space-llm/x.png"}, 3),
    ]
    for number, rows in enumerate((first, second)):
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), data / f"RUN-1_part_{number}.parquet")
    return folder / "exports" / "data"


def test_a_run_comes_back_value_by_value(tmp_path: Path) -> None:
    source = exported(tmp_path)
    _, losses = bring(source, tmp_path / "runs")
    run = recorded(tmp_path / "runs")["calm"]

    assert points(run, "metrics/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.25), (4, 0.01)]
    assert run.config == {"params/lr": 0.1, "params/layers": 4, "params/bias": True}
    assert (run.id, run.project, run.tags, run.created) == ("RUN-1", "llm", ("a", "b"), BEGAN)
    assert [(each["name"], each["text"]) for each in run.texts().to_pylist()] == [("logs/out", "words")]
    assert run.histogram("logged", "dist/h", 2).count == 6
    assert [each["mime"] for each in run.media().to_pylist()] == ["image/png"]
    assert dict(losses.formats)["steps that are no whole numbers: cut off at the point"] == 1
    assert not losses.damages
    assert bring(source, tmp_path / "runs")[0] == [0]


def test_a_damaged_part_costs_itself_and_is_said(tmp_path: Path) -> None:
    source = exported(tmp_path)
    part = next(source.rglob("*_part_1.parquet"))
    part.write_bytes(part.read_bytes()[:-20])

    _, losses = bring(source, tmp_path / "runs")

    assert len(points(recorded(tmp_path / "runs")["calm"], "metrics/loss")) == 5
    assert dict(losses.damages) == {"Parquet files that cannot be read (RUN-1_part_1.parquet)": 1}
