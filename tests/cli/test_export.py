"""`torchtrack export`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from tests.cli.conftest import Cli
from torchtrack.api import Api


def read(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        return list(pyarrow.parquet.read_table(path).to_pylist())
    if path.suffix == ".arrow":
        with pa.ipc.open_file(path) as file:
            return list(file.read_all().to_pylist())
    if path.suffix == ".csv":
        return list(
            pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(null_values=[""])).to_pylist()
        )
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow", "jsonl"])
def test_history_comes_back_with_its_ranks_its_nulls_and_its_nans(
    cli: Cli, runs: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    result = cli("export", "baseline", "-o", str(path))
    assert result.exit_code == 0
    assert "42 rows of history" in result.stderr
    rows = read(path)
    assert list(rows[0])[:3] == ["step", "time", "rank"]
    assert [row["rank"] for row in rows[:4]] == [0, 1, 0, 1]
    assert rows[0]["loss"] == 3.0
    assert rows[-1]["watch/grad_norm"] is None
    assert math.isnan(float(str(rows[-1]["loss"])))


@pytest.mark.parametrize("table", ["scalars", "tensors", "events", "logs", "texts"])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow", "jsonl"])
def test_every_table_can_be_written_in_every_format(
    cli: Cli, runs: Path, tmp_path: Path, table: str, suffix: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    assert cli("export", "baseline", "-o", str(path), "--table", table).exit_code == 0
    rows = read(path)
    assert len(rows) == {"scalars": 82, "tensors": 4, "events": 4, "logs": 1, "texts": 1}[table]
    assert "rank" in rows[0] or "ranks" in rows[0]


def test_an_existing_file_is_kept_unless_forced(cli: Cli, runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("precious")
    result = cli("export", "baseline", "-o", str(path))
    assert result.exit_code == 1
    assert "--force overwrites it" in result.stderr
    assert path.read_text() == "precious"
    assert cli("export", "baseline", "-o", str(path), "--force").exit_code == 0
    assert path.read_text() != "precious"


def test_the_format_is_that_of_the_suffix_or_asked_for(cli: Cli, runs: Path, tmp_path: Path) -> None:
    result = cli("export", "baseline", "-o", str(tmp_path / "out.xlsx"))
    assert result.exit_code == 2
    assert ".parquet, .csv, .arrow, .jsonl" in result.stderr
    assert cli("export", "baseline", "-o", str(tmp_path / "out.txt"), "--format", "jsonl").exit_code == 0
    assert json.loads((tmp_path / "out.txt").read_text().splitlines()[0])["step"] == 0


def test_a_failed_export_leaves_no_file(cli: Cli, runs: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert cli("export", "nothing", "-o", str(tmp_path / "out.csv")).exit_code == 1
    assert cli("export", "baseline", "-o", str(tmp_path / "none" / "out.csv")).exit_code == 1
    assert sorted(tmp_path.iterdir()) == before


def test_scalars_are_all_values_as_they_were_logged(runs: Path) -> None:
    from torchtrack.records import Table

    rows = Api(runs).run("baseline").rows(Table.SCALARS)
    assert rows.schema.names == ["step", "time", "name", "value", "reduce", "rank", "attempt"]
    assert rows.slice(0, 2).select(["step", "name", "value", "rank"]).to_pylist() == [
        {"step": 0, "name": "loss", "value": 3.0, "rank": 0},
        {"step": 0, "name": "watch/grad_norm", "value": 1.0, "rank": 0},
    ]
