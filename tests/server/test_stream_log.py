"""What a server takes of one stream, and what it refuses."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchtrack
from tests.server.simulated import Journal, Server, simulate_disk, stored
from torchtrack.journal import frame
from torchtrack.journal.frame import Kind
from torchtrack.server import disk
from torchtrack.server.disk import StorageError
from torchtrack.server.journals import JournalStore
from torchtrack.server.received import RefusedError


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "runs", 0xABCD, 0)
    for number in range(5):
        made.append(bytes([number]) * 100)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JournalStore]:
    made = JournalStore(tmp_path / "server")
    yield made
    made.close()


def raw(journal: Journal, first: int, last: int) -> memoryview:
    return memoryview(b"".join(journal.frames[journal.number, seq] for seq in range(first, last + 1)))


def test_only_what_was_committed_is_told(journal: Journal, store: JournalStore) -> None:
    store.append(journal.number, 0, raw(journal, 0, 2))
    before = store.position(journal.number).next
    store.commit()

    assert (before, store.position(journal.number).next) == (0, 3)


def test_what_came_already_is_skipped_and_the_rest_is_taken(journal: Journal, store: JournalStore) -> None:
    store.append(journal.number, 0, raw(journal, 0, 3))
    store.append(journal.number, 1, raw(journal, 1, 5))
    store.commit()

    assert store.position(journal.number).next == 6
    assert stored(store.streams()[journal.number]) == journal.frames


def test_another_frame_under_the_same_number_is_a_conflict_that_names_both_checksums(
    journal: Journal, store: JournalStore, tmp_path: Path
) -> None:
    other = Journal(tmp_path / "other", journal.number, 0)
    other.append(b"something else")
    store.append(journal.number, 0, raw(journal, 0, 3))

    with pytest.raises(RefusedError) as refused:
        store.append(journal.number, 1, raw(other, 1, 1))
    detail = refused.value.detail
    assert (refused.value.code, detail["seq"]) == ("conflict", 1)
    assert detail["stored_crc"] != detail["sent_crc"]
    assert stored(store.streams()[journal.number]).keys() == {(journal.number, seq) for seq in range(4)}


@pytest.mark.parametrize(
    ("kind", "record", "said"),
    [
        (Kind.META, {"type": "joined", "attempt": "x"}, "attempt is a whole number"),
        (Kind.META, {"type": "joined", "rank": 1 << 40}, "rank is a whole number"),
        (Kind.META, {"type": "opening", "start_time_ns": None}, "start_time_ns is a whole number"),
        (Kind.META, {"type": "ended", "time_ns": [1]}, "time_ns is a whole number"),
        (Kind.META, {"type": ["ended"]}, "type is a text"),
        (Kind.HEARTBEAT, {"time_ns": 1, "streams": [2]}, "streams is a list of texts"),
        (Kind.GAP, {"rows": "many"}, "rows is a whole number"),
    ],
)
def test_a_record_that_no_reader_could_understand_is_refused_and_nothing_of_it_is_kept(
    journal: Journal, store: JournalStore, kind: Kind, record: dict[str, object], said: str
) -> None:
    buffers, _ = frame.encode(kind, frame.dump(record), stream=journal.number, seq=6, mono_ns=1)
    store.append(journal.number, 0, raw(journal, 0, 5))

    with pytest.raises(RefusedError, match=f"the record in frame 6 is none: {said}") as refused:
        store.append(journal.number, 6, memoryview(b"".join(map(bytes, buffers))))
    store.commit()
    assert refused.value.code == "invalid"
    assert stored(store.streams()[journal.number]) == journal.frames


def test_a_gap_is_refused_with_what_is_expected_unless_it_is_declared_lost(
    journal: Journal, store: JournalStore
) -> None:
    store.append(journal.number, 0, raw(journal, 0, 1))
    with pytest.raises(RefusedError) as refused:
        store.append(journal.number, 4, raw(journal, 4, 5))
    store.append(journal.number, 4, raw(journal, 4, 5), [(2, 3)])
    store.commit()
    position = store.position(journal.number)

    assert (refused.value.code, refused.value.detail) == ("gap", {"expected": 2})
    assert (position.next, position.missing, position.frames) == (6, ((2, 3),), 4)


def test_frames_that_were_lost_here_are_put_in_their_place_when_another_has_them(
    journal: Journal, store: JournalStore
) -> None:
    store.append(journal.number, 0, raw(journal, 0, 1))
    store.append(journal.number, 4, raw(journal, 4, 5), [(2, 3)])
    store.append(journal.number, 2, raw(journal, 2, 5))
    store.commit()

    assert store.position(journal.number).missing == ()
    assert stored(store.streams()[journal.number]) == journal.frames


@pytest.mark.parametrize("at", [0, 20, 50, 139])
def test_a_bit_that_fell_over_on_the_way_is_refused_and_nothing_is_kept(
    journal: Journal, store: JournalStore, at: int
) -> None:
    store.append(journal.number, 0, raw(journal, 0, 0))
    damaged = bytearray(raw(journal, 1, 2))
    damaged[at] ^= 4
    with pytest.raises(RefusedError) as refused:
        store.append(journal.number, 1, memoryview(damaged))
    store.commit()

    assert (refused.value.code, store.position(journal.number).next) == ("invalid", 1)


def test_bytes_that_no_checksum_covers_are_zeros_or_refused(journal: Journal, store: JournalStore) -> None:
    journal.append(b"padded to eight")
    padded = bytearray(raw(journal, 6, 6))
    assert padded[-1] == 0
    padded[-1] = 1
    store.append(journal.number, 0, raw(journal, 0, 5))
    with pytest.raises(RefusedError, match="padded with something else"):
        store.append(journal.number, 6, memoryview(padded))


def test_nothing_follows_a_seal(journal: Journal, store: JournalStore) -> None:
    journal.seal()
    store.append(journal.number, 0, raw(journal, 0, 6))
    buffers, _ = frame.encode(Kind.DATA, b"more", stream=journal.number, seq=7, mono_ns=0)
    with pytest.raises(RefusedError, match="follows the seal"):
        store.append(journal.number, 7, memoryview(b"".join(bytes(each) for each in buffers)))


def test_a_stream_that_names_a_path_is_placed_by_digits_alone(store: JournalStore) -> None:
    record = {"type": "opening", "format": 1, "stream": f"{5:016x}", "uid": "../../etc", "rank": -1, "role": "rank"}
    buffers, _ = frame.encode(Kind.META, frame.dump(record), stream=0, seq=0, mono_ns=0)
    store.append(5, 0, memoryview(b"".join(bytes(each) for each in buffers)))
    store.commit()

    assert store.streams()[5].relative_to(store.folder) == Path(f"{5:016x}/000/0-{5:016x}.ttj")


def test_a_full_disk_leaves_whole_frames_and_the_same_request_is_taken_later(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "server")
    simulate_disk(server.disk, monkeypatch.setattr)
    server.store.append(journal.number, 0, raw(journal, 0, 1))
    server.disk.fail_write = 1
    with pytest.raises(StorageError) as failed:
        server.store.append(journal.number, 2, raw(journal, 2, 5))
    size = server.store.streams()[journal.number].stat().st_size
    server.store.append(journal.number, 2, raw(journal, 2, 5))
    server.store.commit()
    server.stop()

    assert failed.value.full
    assert size == len(raw(journal, 0, 1))
    assert stored(server.store.streams()[journal.number]) == journal.frames


def test_after_a_failed_sync_what_was_not_durable_is_taken_back(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "server")
    simulate_disk(server.disk, monkeypatch.setattr)
    server.store.append(journal.number, 0, raw(journal, 0, 1))
    server.store.commit()
    server.store.append(journal.number, 2, raw(journal, 2, 5))
    server.disk.fail_sync = 1
    failed = server.store.commit()
    position = server.store.position(journal.number).next
    server.store.append(journal.number, 2, raw(journal, 2, 5))
    server.store.commit()
    server.stop()

    assert (list(failed), position) == ([journal.number], 2)
    assert stored(server.store.streams()[journal.number]) == journal.frames


def test_a_folder_is_synced_once_for_all_streams_that_begin_in_it(
    tmp_path: Path, store: JournalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(disk, "sync_folder", synced.append)
    for rank in range(8):
        store.append(0xA0 + rank, 0, raw(Journal(tmp_path / "runs", 0xA0 + rank, rank), 0, 0))
    store.commit()

    assert store.streams()[0xA0].parent in synced
    assert len(synced) == len(set(synced))


def test_a_folder_that_cannot_be_synced_costs_every_stream_that_begins_in_it_and_no_other(
    journal: Journal, tmp_path: Path, store: JournalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "injected", str(folder))

    store.append(journal.number, 0, raw(journal, 0, 1))
    store.commit()
    monkeypatch.setattr(disk, "sync_folder", fail)
    store.append(journal.number, 2, raw(journal, 2, 2))
    for number in (0xA0, 0xA1):
        store.append(number, 0, raw(Journal(tmp_path / "runs", number, 0), 0, 0))
    failed = store.commit()

    assert set(failed) == {0xA0, 0xA1}
    assert [store.position(number).next for number in (journal.number, 0xA0, 0xA1)] == [3, 0, 0]


def test_a_restart_lists_a_folder_once_however_many_streams_are_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    scandir = os.scandir

    def counted(path: str | Path = ".") -> object:
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    counts = []
    for many in (3, 40):
        store = JournalStore(tmp_path / f"{many} streams")
        for number in range(many):
            journal = Journal(tmp_path / f"{many} runs", 0xA00 + number, 0)
            journal.next_file()
            store.append(journal.number, 0, raw(journal, 0, 1))
        store.close()
        listed.clear()
        again = JournalStore(store.folder)
        positions = [again.position(0xA00 + number).next for number in range(many)]
        counts.append(len(listed))
        assert positions == [2] * many
        again.close()

    assert counts[0] == counts[1]


def test_a_file_that_was_made_just_before_a_crash_survives_a_power_cut_once_it_was_told(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "server")
    simulate_disk(server.disk, monkeypatch.setattr)
    server.store.append(journal.number, 0, raw(journal, 0, 5))
    server.crash()
    told = server.store.position(journal.number).next
    for seed in range(8):
        server.cut_power(random.Random(seed))

    assert told == server.store.position(journal.number).next == 6
    server.stop()


def test_all_files_of_a_stream_survive_a_power_cut_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "runs", 0xABCD, 0)
    journal.append(b"a")
    journal.next_file()
    journal.append(b"b")
    server = Server(tmp_path / "server")
    simulate_disk(server.disk, monkeypatch.setattr)
    server.store.append(journal.number, 0, raw(journal, 0, 3))
    server.crash()
    told = server.store.position(journal.number).next
    for seed in range(8):
        server.cut_power(random.Random(seed))

    assert told == server.store.position(journal.number).next == 4
    assert server.store.position(journal.number).missing == ()
    server.stop()


@pytest.mark.parametrize("hole", [(0, 0), (0, 1), (1, 1), (2, 2), (3, 3), (3, 4), (4, 4), (4, 5), (2, 5), (0, 3)])
def test_a_hole_on_the_servers_disk_is_filled_wherever_it_is(
    store: JournalStore, tmp_path: Path, hole: tuple[int, int]
) -> None:
    journal = Journal(tmp_path / "runs", 0xABCD, 0)  # frames 0 to 3 in one file, 4 to 7 in the next
    for number in range(6):
        if number == 3:
            journal.next_file()
        journal.append(bytes([number]) * 30)
    store.append(journal.number, 0, raw(journal, 0, 7))
    store.commit()
    first = store.streams()[journal.number]
    for path in (first, frame.segment_path(first, 1)):
        data = path.read_bytes()
        for seq in range(hole[0], hole[1] + 1):
            whole = journal.frames[journal.number, seq]
            data = data.replace(whole, bytes(len(whole)))
        path.write_bytes(data)
    again = JournalStore(store.folder)
    before = again.position(journal.number)
    again.append(journal.number, 0, raw(journal, 0, 7))
    again.commit()
    after = again.position(journal.number)
    again.close()

    assert before.missing == (hole,)
    assert (after.next, after.missing) == (8, ())
    assert stored(first) == journal.frames


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("gone", [(0,), (1,), (0, 1)])
def test_files_that_a_power_cut_took_are_made_again(
    store: JournalStore, tmp_path: Path, gone: tuple[int, ...], opened: bool
) -> None:
    journal = Journal(tmp_path / "runs", 0xABCD, 0)  # frames 0 to 2 in one file, 3 to 5 in the next, 6 to 8 in the last
    for number in range(6):
        if number in (2, 4):
            journal.next_file()
        journal.append(bytes([number]) * 30)
    store.append(journal.number, 0, raw(journal, 0, 8))
    store.commit()
    first = store.streams()[journal.number]
    for segment in gone:
        frame.segment_path(first, segment).unlink()
    again = JournalStore(store.folder)
    (missing,) = again.position(journal.number).missing

    begin = missing[0] + (not opened)  # a sender that has lost an opening frame itself sends what follows it
    again.append(journal.number, begin, raw(journal, begin, missing[1]))
    again.commit()
    again.close()

    assert missing == (3 * gone[0], 3 * gone[-1] + 2)
    there = JournalStore(store.folder)
    assert there.position(journal.number).missing == (() if opened else ((missing[0], missing[0]),))
    expected = {key: each for key, each in journal.frames.items() if opened or key[1] != missing[0]}
    assert {key: each for path in there.streams().values() for key, each in stored(path).items()} == expected
    there.close()


def test_bytes_behind_the_last_frame_that_a_power_cut_left_are_zeros_again(
    journal: Journal, store: JournalStore
) -> None:
    journal.append(b"padded to eight")
    store.append(journal.number, 0, raw(journal, 0, 6))
    store.commit()
    path = store.streams()[journal.number]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    again = JournalStore(store.folder)

    assert again.position(journal.number).next == 7
    assert stored(path, strict=True) == journal.frames
    again.close()


def test_a_stream_that_begins_elsewhere_after_all_of_it_was_lost_is_found_there(
    journal: Journal, store: JournalStore
) -> None:
    store.append(journal.number, 0, raw(journal, 0, 0))
    store.commit()
    path = store.streams()[journal.number]
    path.write_bytes(bytes(path.stat().st_size))  # as after a power cut
    again = JournalStore(store.folder)
    again.append(journal.number, 1, raw(journal, 1, 2), [(0, 0)])  # the opening, which tells the place, is lost
    again.commit()

    assert stored(again.streams()[journal.number]).keys() == {(journal.number, 1), (journal.number, 2)}
    again.close()


def test_what_a_server_keeps_is_read_like_a_local_folder(tmp_path: Path) -> None:
    run = torchtrack.init(dir=tmp_path / "runs", system_interval=0)
    for step in range(20):
        run.log({"loss": step})
    run.finish(quiet=True)
    (path,) = (tmp_path / "runs").glob("*/000/*.ttj")
    number = int(path.stem.partition("-")[2], 16)
    store = JournalStore(tmp_path / "server")
    store.append(number, 0, memoryview(path.read_bytes()))
    store.commit()

    there = torchtrack.Api(store.folder).run(run.uid)
    assert there.history() == torchtrack.Api(tmp_path / "runs").run(run.uid).history()
    assert store.streams()[number].read_bytes() == path.read_bytes()
    store.close()
