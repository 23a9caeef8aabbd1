"""Journals to the store: the same suite on an engine in this process and on a server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.api.journals import UID, RankJournal
from tests.server.samples import Make, facts, write_runs
from torchtrack.api import Api
from torchtrack.errors import StoreError
from torchtrack.journal.reader import Frame, Stream
from torchtrack.journal.writer import Writer
from torchtrack.records import Table
from torchtrack.server import stored
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.reading import Reader


def stored_api(store: MetricsStore) -> Api:
    return Api.of(stored.open_source(store))


def assert_alike(runs: Path, api: Api, *, findings: bool = False) -> None:
    """Every run of the folder, and no other, with everything it says."""
    there = Api(runs)
    assert [run.uid for run in api.runs()] == [run.uid for run in there.runs()]
    for run in there.runs():
        mine = dict(facts(api.run(run.uid), findings=findings))
        for what, expected in facts(run, findings=findings):
            assert mine[what] == expected, what


def numbers(store: MetricsStore) -> list[tuple[str, int, int]]:
    return list(stored.counts(store))


def assert_once(store: MetricsStore, runs: Path) -> None:
    """As many rows in each table as the journals have, each with a key of its own."""
    expected = dict.fromkeys(Table, 0)
    for run in Api(runs).runs():
        for table in Table:
            expected[table] += run.rows(table).num_rows
    assert numbers(store) == [(table.name.lower(), n, n) for table, n in expected.items()]


def test_a_run_in_the_store_is_the_run_in_its_journals_bit_by_bit(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    write_runs(journal)
    inserted = Indexer(runs, store).poll()

    assert_alike(runs, stored_api(store), findings=True)
    assert_once(store, runs)
    assert inserted == sum(n for _, n, _ in numbers(store))


@pytest.mark.parametrize("wrong", [{"attempt": "first"}, {"rank": 1.5}, {"uid": 7}, {"start_time_ns": "now"}])
def test_a_journal_whose_opening_has_wrong_types_is_named_and_stops_no_other_run(
    runs: Path, journal: Make, store: MetricsStore, caplog: pytest.LogCaptureFixture, wrong: dict[str, Any]
) -> None:
    opening = {
        "role": "rank",
        "uid": "0" * 16,
        "attempt": 1,
        "rank": 0,
        "start_time_ns": 0,
        "start_mono_ns": 0,
        **wrong,
    }
    damaged = Writer(runs / ("0" * 16) / "000", "0-00000000000000aa", 0xAA, opening, sync_interval_s=60)
    damaged.meta({"type": "ended", "reason": "finish", "error": None, "time_ns": 1})
    damaged.close()
    write_runs(journal)
    Indexer(runs, store).poll()

    assert_alike(runs, stored_api(store))
    assert sorted(Reader(store).projects()) == sorted(run.uid for run in Api(runs).runs())
    (path,) = Api(runs).unread
    assert (path.name, next(iter(wrong)) in Api(runs).unread[path]) == ("0-00000000000000aa.ttj", True)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert str(path) in warning
    assert next(iter(wrong)) in warning


def test_rows_appear_as_the_run_goes_on(runs: Path, journal: Make, store: MetricsStore) -> None:
    rank = journal()
    rank.about()
    indexer, api = Indexer(runs, store), stored_api(store)
    indexer.poll()
    run = api.run(UID)
    for step in range(4):
        rank.log(step, {"loss": float(step)})
        rank.writer.sync()
        indexer.poll()
        assert run.history("loss")["step"].to_pylist() == list(range(step + 1))
    journal(rank=1, world_size=2).log(2, {"loss": 4.0})
    indexer.poll(everything=True)

    assert run.history("loss")["loss"].to_pylist() == [0.0, 1.0, 3.0, 3.0]
    assert_alike(runs, api)


class FailingStore(MetricsStore):
    """Fails at the n-th insert: before it, or after it, as when a worker is killed there or an answer is lost."""

    at, after, inserts = 0, False, 0

    def insert(self, table: str, rows: pa.Table) -> None:
        self.inserts += 1
        fails = self.inserts == self.at
        if fails and not self.after:
            raise StoreError("killed before the insert")
        super().insert(table, rows)
        if fails:
            raise StoreError("killed after the insert")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_whatever_insert_is_interrupted_every_row_is_there_once(
    runs: Path, journal: Make, store: MetricsStore, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchtrack.server.indexer.BATCH_BYTES", 64 << 10)
    write_runs(journal)
    store.__class__ = FailingStore
    assert isinstance(store, FailingStore)
    store.after = after
    indexer = Indexer(runs, store)
    interrupted = 0
    for attempt in range(100):
        store.at, store.inserts = 1 + attempt % 3, 0
        try:
            indexer.poll()
            break
        except StoreError:
            interrupted += 1
            if interrupted % 2:
                indexer = Indexer(runs, store)
    store.at = 0
    indexer.poll()

    assert interrupted > 4
    assert_once(store, runs)
    assert_alike(runs, stored_api(store))


def test_reading_again_from_the_start_changes_no_count(runs: Path, journal: Make, store: MetricsStore) -> None:
    write_runs(journal, seal=False)
    Indexer(runs, store).poll()
    before = numbers(store)
    store.command("TRUNCATE TABLE streams")  # all bookmarks are lost
    again = Indexer(runs, store)

    assert again.poll() == 0
    assert numbers(store) == before
    assert_alike(runs, stored_api(store))


def test_an_indexer_goes_on_from_the_bookmark_without_reading_what_lies_before(
    runs: Path, journal: Make, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = journal()
    for step in range(5):
        rank.log(step, {"loss": 1.0})
    Indexer(runs, store).poll()
    rank.log(5, {"loss": 1.0})
    seen = []
    each = Stream.each

    def watched(stream: Stream) -> Iterator[Frame]:
        for frame in each(stream):
            seen.append(frame.seq)
            yield frame

    monkeypatch.setattr(Stream, "each", watched)

    assert Indexer(runs, store).poll() == 1
    assert seen == [6]  # the opening is frame 0


def test_a_stream_that_joins_another_run_moves_with_all_its_rows(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    rank, other = journal(), journal("0123456789abcdef", rank=1)
    rank.log(0, {"loss": 1.0})
    other.log(0, {"loss": 3.0})
    indexer, api = Indexer(runs, store), stored_api(store)
    indexer.poll()
    assert len(api.runs()) == 2
    other.joined(UID, rank=1, world_size=2)
    indexer.poll()

    assert api.run(UID).history("loss")["loss"].to_pylist() == [2.0]
    assert_alike(runs, api)


def test_a_journal_that_was_replaced_is_in_the_store_as_it_is_now(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    rank = journal()
    for step in range(6):
        rank.log(step, {"loss": 1.0})
    rank.abandon()
    path = rank.writer.path
    indexer, api = Indexer(runs, store), stored_api(store)
    indexer.poll()
    assert api.run(UID).history("loss").num_rows == 6
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # as a file system may be after a power cut
    indexer.poll()
    assert_once(store, runs)
    assert_alike(runs, api)
    path.write_bytes(data)
    Indexer(runs, store).poll()

    assert_once(store, runs)
    assert_alike(runs, api)


def test_a_run_that_is_removed_from_the_folder_is_removed_from_the_store(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    made = write_runs(journal)
    indexer, api = Indexer(runs, store), stored_api(store)
    indexer.poll()
    shutil.copytree(runs / UID, runs.parent / "kept")
    shutil.rmtree(runs / UID)
    indexer.poll(everything=True)
    assert [run.project for run in api.runs()] == ["vision"]
    assert_once(store, runs)
    shutil.copytree(runs.parent / "kept", runs / UID)
    Indexer(runs, store).poll()

    assert_alike(runs, api)
    assert_once(store, runs)
    assert len(made) == 5


def test_rebuilt_from_nothing_it_is_the_same(runs: Path, journal: Make, store: MetricsStore) -> None:
    write_runs(journal)
    indexer = Indexer(runs, store)
    indexer.poll()
    before = numbers(store)
    store.command("ALTER TABLE scalars DELETE WHERE step > 3 SETTINGS mutations_sync = 2")  # what nothing of ours does
    assert numbers(store) != before
    indexer.rebuild()

    assert numbers(store) == before
    assert_alike(runs, stored_api(store))


def test_a_damaged_journal_costs_only_what_is_damaged_and_says_so(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    rank = journal()
    for step in range(6):
        rank.log(step, {"loss": float(step)})
    rank.close()
    path = rank.writer.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    Indexer(runs, store).poll()
    run = stored_api(store).run(UID)

    assert [(d.first_seq, d.last_seq, d.reason) for d in run.damages] == [
        (d.first_seq, d.last_seq, d.reason) for d in Api(runs).run(UID).damages
    ]
    assert run.damages
    assert_alike(runs, stored_api(store))


def test_the_folder_is_not_written_to(runs: Path, journal: Make, store: MetricsStore) -> None:
    write_runs(journal)
    paths = [runs, *runs.rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        Indexer(runs, store).poll()
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)

    assert {path: path.stat().st_mtime_ns for path in [runs, *runs.rglob("*")]} == before


def test_a_folder_that_is_not_there_is_no_empty_folder(runs: Path, journal: Make, store: MetricsStore) -> None:
    write_runs(journal)
    indexer = Indexer(runs, store)
    indexer.poll()
    before = numbers(store)
    runs.rename(runs.parent / "away")
    with pytest.raises(FileNotFoundError, match="no such folder of runs"):
        indexer.poll(everything=True)
    (runs.parent / "away").rename(runs)

    assert numbers(store) == before


def test_those_who_wait_are_told_which_runs_changed(runs: Path, journal: Make, store: MetricsStore) -> None:
    told: list[Any] = []
    rank = journal()
    rank.log(0, {"loss": 1.0})
    indexer = Indexer(runs, store, told.append)
    indexer.poll()
    indexer.poll()

    assert told == [{UID}]


def write_one_run_each(runs: Path, number: int) -> list[str]:
    """Runs of one stream and one value, the newest last; their uids."""
    uids = [f"{i:016x}" for i in range(1, number + 1)]
    for i, uid in enumerate(uids):
        with RankJournal(runs, uid) as rank:
            rank.log(0, {"loss": float(i)})
        os.utime(rank.writer.path, (1e9 + i, 1e9 + i))
    return uids


def readable(store: MetricsStore) -> list[str]:
    return sorted(set(store.query("SELECT uid FROM streams")["uid"].to_pylist()))


def test_of_a_folder_that_is_new_the_newest_run_can_be_asked_about_once_it_was_read(
    runs: Path, store: MetricsStore
) -> None:
    uids = write_one_run_each(runs, 30)
    indexer = Indexer(runs, store)
    seen: list[list[str]] = []
    indexer.on_followed = lambda: seen.append(readable(store))
    indexer.poll()

    assert seen[0] == []
    assert seen[1] == uids[-1:]
    assert [len(each) for each in seen] == [0, 1, 1, 1, 1, *[5] * 16, *[21] * 9]
    assert readable(store) == uids


def test_a_run_that_somebody_waits_for_is_read_before_the_others(runs: Path, store: MetricsStore) -> None:
    uids = write_one_run_each(runs, 30)
    indexer = Indexer(runs, store)
    assert not indexer.arrivals.wait(uids[3], 0)
    reader = Reader(store, lambda: indexer.batch, arrivals=indexer.arrivals)
    seen: list[tuple[list[str], bool, int]] = []
    indexer.on_followed = lambda: seen.append((readable(store), indexer.arrivals.wait(uids[3], 0), reader.missing))
    indexer.poll()

    assert seen[:2] == [([], False, 30), ([uids[3]], True, 29)]
    assert reader.missing == 0
    assert indexer.arrivals.wait("no such run", 0)


def test_runs_that_are_followed_are_told_in_one_piece(runs: Path, store: MetricsStore) -> None:
    writers = [RankJournal(runs, f"{i:016x}") for i in range(20)]
    for rank in writers:
        rank.log(0, {"loss": 1.0})
    indexer = Indexer(runs, store)
    indexer.poll()
    before = indexer.batch
    for rank in writers:
        rank.log(1, {"loss": 1.0})
    assert indexer.poll() == 20
    for rank in writers:
        rank.close()

    assert indexer.batch == before + 1
