"""Frames that wait to be inserted: together, and yet each for itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from tests.api.journals import UID
from tests.server.samples import Make
from tests.server.test_indexer import assert_alike, assert_once, stored_api
from torchtrack import records
from torchtrack.journal.frame import Kind
from torchtrack.records import Table
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore


class CountingStore(MetricsStore):
    """Counts the inserts into each table."""

    inserts: ClassVar[Counter[str]] = Counter()

    def insert(self, table: str, rows: pa.Table) -> None:
        self.inserts[table] += 1
        super().insert(table, rows)


def test_frames_of_many_streams_are_one_insert_a_table(
    runs: Path, journal: Make, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingStore, "inserts", Counter())
    store.__class__ = CountingStore
    for rank in range(20):
        stream = journal(rank=rank, world_size=20)
        stream.about()
        for step in range(5):
            stream.log(step, {"loss": 1.0 + rank, f"only/{rank}": 2.0})
    indexer = Indexer(runs, store)
    rows = indexer.poll()

    assert rows == 20 * (1 + 5 * 2)
    assert CountingStore.inserts == {"scalars": 1, "events": 1, "streams": 1}
    assert_once(store, runs)
    assert_alike(runs, stored_api(store))


def test_a_frame_that_does_not_decode_costs_no_other_frame(runs: Path, journal: Make, store: MetricsStore) -> None:
    ranks = [journal(rank=rank, world_size=3) for rank in range(3)]
    for step in range(4):
        for rank in ranks:
            rank.log(step, {"loss": 1.0})
        if step == 1:
            ranks[1].writer.append(Kind.DATA, b"no Arrow at all", table=Table.SCALARS, rows=1)
    Indexer(runs, store).poll()
    damages = stored_api(store).run(UID).damages

    assert store.query("SELECT count() AS n FROM scalars")["n"].to_pylist() == [12]
    assert [(damage.first_seq, damage.lost) for damage in damages] == [(3, 1)]
    assert "a scalars frame does not decode" in damages[0].reason
    assert_alike(runs, stored_api(store))


def test_a_name_that_is_null_in_its_dictionary_stops_nobody(runs: Path, journal: Make, store: MetricsStore) -> None:
    odd, good = journal(rank=0, world_size=2), journal(rank=1, world_size=2)
    names = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["loss", None]))
    columns = [pa.array([0, 0]), pa.array([1, 1], records.TEXTS.field("time").type), names, pa.array(["a", "b"])]
    payload = records.encode(pa.RecordBatch.from_arrays(columns, schema=records.TEXTS))
    for _ in range(2):
        odd.writer.append(Kind.DATA, payload, table=Table.TEXTS, rows=2)
    good.text(0, "note", "here")
    Indexer(runs, store).poll()

    assert store.query("SELECT name, text FROM texts ORDER BY text").to_pylist() == [
        {"name": "loss", "text": "a"},
        {"name": "loss", "text": "a"},
        {"name": None, "text": "b"},
        {"name": None, "text": "b"},
        {"name": "note", "text": "here"},
    ]
