"""`torchtrack reindex` and `torchtrack gc`: tables come back from the journals, and only what nobody needs goes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_sync import call, record
from tests.server.running import Running
from torchtrack.server.app import Config
from torchtrack.server.catalog import Catalog
from torchtrack.server.engine import take_hold
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore

OLD_S = 3 * 86400
PART = f".{'a' * 64}.0123456789abcdef"


def age(path: Path) -> None:
    moment = path.stat().st_mtime - OLD_S
    os.utime(path, (moment, moment))


def in_a_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function returns in a process of its own: a process has one engine, which here may be another test's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def counted(data: Path) -> list[dict[str, Any]]:
    """How many scalars the tables in a server's folder have, and what they add up to."""
    with closing(MetricsStore.in_folder(data / "index")) as store:
        rows: list[dict[str, Any]] = store.query("SELECT count() AS n, sum(value) AS total FROM scalars").to_pylist()
        return rows


def index_and_lose_rows(data: Path) -> list[dict[str, Any]]:
    """Write the tables of a server's folder, say what they have, and then take rows away."""
    with closing(MetricsStore.in_folder(data / "index")) as store:
        Indexer(data / "runs", store).poll(everything=True)
    before = counted(data)
    with closing(MetricsStore.in_folder(data / "index")) as store:
        store.command("ALTER TABLE scalars DELETE WHERE step > 3 SETTINGS mutations_sync = 2")
    assert counted(data) != before
    return before


def put(path: Path, content: bytes = b"something") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_tables_are_made_again_from_the_journals_and_what_people_typed_stays(tmp_path: Path) -> None:
    data = tmp_path / "server"
    uid = record(data / "runs")
    catalog = Catalog(Config(data=data).catalog_url)
    catalog.edit(uid, {"name": "kept"}, "ann")
    before = in_a_process(index_and_lose_rows, data)
    code, said = in_a_process(call, "reindex", "--data", str(data))
    again = in_a_process(counted, data)

    assert (code, "rows from" in said) == (0, True), said
    assert again == before
    assert catalog.edits()[uid]["name"] == "kept"
    catalog.close()


@pytest.mark.parametrize("command", ["reindex", "gc"])
def test_a_folder_that_a_server_has_is_left_alone(tmp_path: Path, command: str) -> None:
    (tmp_path / "runs").mkdir()
    with take_hold(tmp_path):
        code, said = call(command, "--data", str(tmp_path))

    assert (code, "stop it" in said) == (1, True), said


@pytest.mark.parametrize("command", ["reindex", "gc"])
def test_a_folder_that_is_no_servers_is_named(tmp_path: Path, command: str) -> None:
    code, said = call(command, "--data", str(tmp_path))

    assert (code, "no data folder of a server" in said) == (1, True), said


def test_nothing_is_removed_until_somebody_says_yes(tmp_path: Path) -> None:
    uid = record(tmp_path)
    named = next((tmp_path / uid / "media").iterdir())
    stray = put(tmp_path / uid / "media" / ("b" * 64))
    part = put(tmp_path / uid / "media" / PART)
    fresh = put(tmp_path / uid / "media" / ("c" * 64))
    for path in (named, stray, part):
        age(path)
    told = call("gc", "--dir", str(tmp_path))
    there = stray.exists() and part.exists()
    removed = call("gc", "--dir", str(tmp_path), "--yes")

    assert (told[0], "media that no row names" in told[1], "never came whole" in told[1]) == (0, True, True), told
    assert "2 things, 18 bytes would be removed" in told[1]
    assert there
    assert removed[0] == 0
    assert [path.exists() for path in (named, fresh, stray, part)] == [True, True, False, False]
    assert call("gc", "--dir", str(tmp_path)) == (0, "0 things, 0 bytes removed\n")


def test_media_of_a_damaged_journal_stays(tmp_path: Path) -> None:
    uid = record(tmp_path)
    stray = put(tmp_path / uid / "media" / ("b" * 64))
    age(stray)
    (journal,) = tmp_path.glob(f"{uid}/000/*.ttj")
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    code, said = call("gc", "--dir", str(tmp_path), "--yes")

    assert (code, stray.exists()) == (0, True), said


def test_a_run_that_was_deleted_long_ago_goes_and_one_that_can_be_restored_stays(tmp_path: Path) -> None:
    data = tmp_path / "server"
    gone, kept = record(data / "runs"), record(data / "runs")
    catalog = Catalog(Config(data=data).catalog_url)
    catalog.delete(gone, "ann")
    catalog.close()
    early = call("gc", "--data", str(data), "--yes")
    there = (data / "runs" / gone).exists()
    late = call("gc", "--data", str(data), "--yes", "--deleted-days", "0")

    assert (early[0], there) == (0, True), early
    assert (late[0], "deleted run" in late[1]) == (0, True), late
    assert [(data / "runs" / uid).exists() for uid in (gone, kept)] == [False, True]


def test_only_a_run_of_which_the_server_has_every_frame_is_taken_for_uploaded(server: Running, tmp_path: Path) -> None:
    runs = tmp_path / "here"
    whole, damaged = record(runs), record(runs)
    (journal,) = runs.glob(f"{damaged}/000/*.ttj")
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    open_run = runs / ("f" * 16)
    shutil.copytree(runs / whole / "000", open_run / "000")
    (copy,) = open_run.glob("000/*.ttj")
    copy.rename(copy.with_name(f"0-{'e' * 16}.ttj"))  # the server has nothing of this stream, and will not take it
    code, said = call("gc", "--dir", str(runs), "--uploaded", "--yes")

    assert (code, said.count("uploaded run")) == (0, 1), said
    assert [path.exists() for path in (runs / whole, runs / damaged, open_run)] == [False, True, True]
    assert (server.config.runs / whole).is_dir()


def test_a_servers_folder_and_ones_own_are_not_mixed(tmp_path: Path) -> None:
    code, said = call("gc", "--data", str(tmp_path), "--uploaded")

    assert (code, "--uploaded are for runs of this machine" in said) == (2, True), said
