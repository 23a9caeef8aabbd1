"""The table of runs: there at once when a server starts again, and the same as the runs say."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.api.journals import UID
from tests.server.samples import Make, write_runs
from torchtrack import Api
from torchtrack.server import overview, reading
from torchtrack.server.catalog import Catalog
from torchtrack.server.filters import compile_filter
from torchtrack.server.indexer import Indexer
from torchtrack.server.ledger import Entry, Ledger
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import Placed
from torchtrack.server.reading import FIELDS, Reader
from torchtrack.server.rollup import Rollup, rollups

EVERY = compile_filter("")


def shown(reader: Reader, sort: str = "-created") -> list[dict[str, Any]]:
    return overview.page(reader.store, reader.scope(), EVERY, [sort], 1000, 0)[1]


def test_a_row_says_what_the_run_says(runs: Path, journal: Make, store: MetricsStore) -> None:
    made = write_runs(journal)
    chosen = journal("e" * 16)
    chosen.event("metric", {"name": "loss", "summary": "min"})
    chosen.event("summary", {"best": 3, "none": None})
    for step, value in enumerate([3.0, 1.0, 2.0]):
        chosen.log(step, {"loss": value})
    half = journal("f" * 16, rank=0, world_size=2)
    half.log(0, {"part": 1.0}, reduce="sum", partial=True)  # the other rank's part never comes
    indexer = Indexer(runs, store)
    indexer.poll()
    there = {run.uid: run for run in Api(runs).runs()}

    rows = {row["uid"]: row for row in shown(Reader(store, lambda: indexer.batch))}

    assert len(made) + 2 > len(rows) == len(there)
    for uid, run in there.items():
        row = rows[uid]
        for name in ("name", "project", "state", "config", "world_size", "last_step"):
            assert row[name] == getattr(run, name), name
        assert (row["tags"], row["attempts"]) == (list(run.tags), len(run.attempts))
        assert repr(row["summary"]) == repr(run.summary)
    assert rows["e" * 16]["summary"] == {"loss": 1.0, "best": 3, "none": None}


def test_runs_that_are_asked_for_while_they_are_written_are_there_afterwards(
    runs: Path, journal: Make, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runs(journal)
    indexer = Indexer(runs, store)
    reader = Reader(store, lambda: indexer.batch)
    insert = store.insert

    def ask_first(table: str, rows: pa.Table) -> None:
        if table == "streams":
            reader.update()
        insert(table, rows)

    monkeypatch.setattr(store, "insert", ask_first)
    indexer.poll()

    assert {row["uid"] for row in shown(reader)} == {run.uid for run in Api(runs).runs()}


def test_a_server_that_starts_again_makes_no_row_twice(
    runs: Path, journal: Make, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_runs(journal, seal=False)
    indexer = Indexer(runs, store)
    indexer.poll()
    before = shown(Reader(store, lambda: indexer.batch))
    asked: list[int] = []

    def counted(store: MetricsStore, runs: Sequence[Sequence[Placed]]) -> list[Rollup]:
        asked.append(len(runs))
        return rollups(store, runs)

    monkeypatch.setattr(reading, "rollups", counted)

    again = Reader(store, lambda: indexer.batch)
    assert shown(again) == before
    assert asked == []
    made[0].log(500, {"loss": 9.0})
    indexer.poll()
    assert {row["uid"]: row["last_step"] for row in shown(again)}[UID] in (14, 500)
    assert asked == [1]


def test_a_question_does_not_wait_for_many_runs_and_says_how_many_are_missing(
    runs: Path, journal: Make, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BACKLOG", 2)
    monkeypatch.setattr(reading, "CHUNK", 2)
    for number in range(5):
        journal(f"{number:016x}").log(0, {"loss": float(number)})
    indexer = Indexer(runs, store)
    indexer.poll()
    reader = Reader(store, lambda: indexer.batch)

    assert shown(reader) == []
    assert reader.pending == 5
    assert reader.update(0.0) is False
    while not reader.update(60.0):
        pass
    assert len(shown(reader)) == 5
    assert reader.pending == 0


def test_what_lies_along_x_is_told_without_a_look_at_every_run(
    runs: Path, journal: Make, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runs(journal)
    indexer = Indexer(runs, store)
    indexer.poll()
    reader = Reader(store, lambda: indexer.batch)
    known = reader.along(None, ["loss"])  # what is new is looked at once
    opened: list[str] = []
    monkeypatch.setattr(reader._api, "with_uid", opened.append)

    assert reader.along(None, ["loss"]) == known
    assert opened == []


def test_what_people_take_back_and_runs_that_go_are_seen_at_once(
    runs: Path, journal: Make, store: MetricsStore, tmp_path: Path
) -> None:
    write_runs(journal)
    indexer = Indexer(runs, store)
    indexer.poll()
    with contextlib.closing(Catalog.in_folder(tmp_path / "catalog")) as catalog:
        reader = Reader(store, lambda: indexer.batch, catalog)
        catalog.edit(UID, {"name": "mine"}, "ann")
        assert {row["uid"]: row["name"] for row in shown(reader)}[UID] == "mine"
        catalog.edit(UID, {"name": None}, "ann")
        assert {row["uid"]: row["name"] for row in shown(reader)}[UID] == "two-ranks-2"
        with reader.run("llm/two-ranks-2") as run:
            assert run.uid == UID
        catalog.delete(UID, "ann")
        assert UID not in [row["uid"] for row in shown(reader)]
        catalog.restore(UID)
        assert UID in [row["uid"] for row in shown(reader)]
    shutil.rmtree(runs / UID)
    indexer.poll(everything=True)
    assert UID not in [row["uid"] for row in shown(reader)]


def test_sorting_puts_numbers_before_words_and_what_has_none_last(store: MetricsStore) -> None:
    ledger = Ledger(store)
    ledger.load()
    values = [3, "b", None, True, -1.5, "a", float("nan"), [1]]
    said = [{"uid": str(n), "created": "x", "config": {"v": value}} for n, value in enumerate(values)]
    ledger.put([Entry(row, 1, 1) for row in said], {})

    def order(key: str) -> list[Any]:
        rows = overview.page(store, overview.Scope(), compile_filter("", FIELDS), [key], 100, 0)[1]
        return [values[int(row["uid"])] for row in rows]

    assert order("config.v")[:6] == [-1.5, True, 3, [1], "a", "b"]
    assert order("-config.v")[:6] == ["b", "a", [1], 3, True, -1.5]
