"""`torchtrack report`, and `export` to HTML on a folder whose page is not up."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.server.test_reports import contents, page_is_built
from torchtrack import Api
from torchtrack.server.answers import read_frame
from torchtrack.server.offline import catalog_of
from torchtrack.server.rights import OWNER


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def write(folder: Path, title: str, text: str = "", project: str = "uncategorized") -> str:
    """A report of a folder; its id."""
    with catalog_of(folder) as catalog:
        return str(catalog.reports.create(project, title, text, OWNER)["id"])


def test_reports_of_a_folder_are_listed_the_one_changed_last_first(cli: Cli, runs: Path) -> None:
    assert "no reports" in cli("report", "list").stderr
    write(runs, "First")
    write(runs, "[bold]Second[/]", project="vision")

    lines = cli("report", "list").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["project", "vision", "uncategorized"]
    assert "[bold]Second[/]" in lines[1]
    assert [one["title"] for one in json.loads(cli("report", "list", "--json", "--project", "vision").stdout)] == [
        "[bold]Second[/]"
    ]


def test_what_was_written_outlives_the_cache(cli: Cli, runs: Path, tmp_path: Path) -> None:
    write(runs, "Kept")
    assert not (tmp_path / "cache").exists()
    assert "Kept" in cli("report", "list").stdout
    assert (next((tmp_path / "data").rglob("catalog.sqlite"))).stat().st_mode & 0o077 == 0


def test_a_report_is_found_by_title_and_by_the_beginning_of_its_id_and_a_wrong_name_says_which_there_are(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    id_ = write(runs, "First")
    write(runs, "Twice")
    write(runs, "Twice", project="vision")
    out = str(tmp_path / "x.html")

    assert f"{id_} 'First'" in cli("report", "export", "Nothing", "-o", out).stderr
    assert "2 reports are called 'Twice': give the id" in cli("report", "export", "Twice", "-o", out).stderr
    (tmp_path / "x.html").write_text("precious")
    assert "--force overwrites it" in cli("report", "export", id_[:6], "-o", out).stderr
    assert (tmp_path / "x.html").read_text() == "precious"


def torchtrack(*arguments: str) -> str:
    """A command in a process of its own, which opens an engine; what it says of what it did."""
    command = [sys.executable, "-m", "torchtrack.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@page_is_built
def test_a_report_becomes_a_file_without_its_page_being_up(runs: Path, tmp_path: Path) -> None:
    run = Api(runs).run("baseline")
    write(runs, "Alone", f"```panel\nmetric: loss\nruns: {run.uid}\n```\n")
    file = tmp_path / "report.html"
    assert "Alone" in torchtrack("report", "export", "Alone", "-o", str(file), "--dir", str(runs))

    asked = {line["path"]: line for line in contents(file.read_bytes())["answers"]}
    header, columns = read_frame(gzip.decompress(base64.b64decode(asked["series"]["data"])))
    assert header["items"][0]["run"] == run.uid
    expected = run.history("loss")["loss"].to_pylist()
    assert columns["mean.0"].tolist() == pytest.approx(expected, nan_ok=True)


@page_is_built
def test_the_page_of_a_run_becomes_a_file_without_being_up(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    torchtrack("export", "baseline", "-o", str(file), "--dir", str(runs))

    told = contents(file.read_bytes())
    assert told["title"] == Api(runs).run("baseline").name
    assert {"series", "heatmap", "histogram"} <= {line["path"] for line in told["answers"]}
    assert {line["status"] for line in told["answers"]} == {200}


def test_the_page_of_a_run_has_no_table(cli: Cli, runs: Path, tmp_path: Path) -> None:
    done = cli("export", "baseline", "-o", str(tmp_path / "x.html"), "--table", "logs")

    assert done.exit_code == 2
    assert "the whole page" in done.stderr
