"""What a writer puts on file, and what it does when it cannot."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from torchtrack.journal import Frame, Kind, Stream, Writer, find_streams
from torchtrack.journal import background as background_module
from torchtrack.journal import frame as frame_module

if TYPE_CHECKING:
    from tests.journal.conftest import NewWriter

Rows = Callable[[list[Frame]], list[bytes]]
Wait = Callable[[Callable[[], object]], None]


class BrokenDisk:
    """Makes every write fail with an errno while it is `broken`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken = 0
        self.written_before_failing = 0
        self._writev = os.writev
        monkeypatch.setattr(os, "writev", self._fail_or_write)

    def _fail_or_write(self, fd: int, buffers: Any) -> int:
        if not self.broken:
            return self._writev(fd, buffers)
        if self.written_before_failing:
            os.write(fd, b"".join(buffers)[: self.written_before_failing])
        raise OSError(self.broken, os.strerror(self.broken))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> BrokenDisk:
    return BrokenDisk(monkeypatch)


@pytest.fixture
def odd_umask() -> Iterator[None]:
    before = os.umask(0o777)
    yield
    os.umask(before)


def test_nothing_is_created_before_the_first_frame(new_writer: NewWriter) -> None:
    writer = new_writer()

    assert writer.committed == -1
    assert not writer.seal("finish")
    assert not writer.path.parent.exists()


def test_the_first_frame_is_the_opening(new_writer: NewWriter) -> None:
    writer = new_writer()

    assert writer.append(Kind.DATA, b"row", table=1, rows=1)

    stream = Stream(writer.path)
    assert [item.kind for item in stream.poll()] == [Kind.META, Kind.DATA]
    assert stream.opening.items() >= {"type": "opening", "format": 1, "stream": "0123456789abcdef"}.items()
    assert stream.opening.items() >= {"segment": 0, "rank": 3, "writer": "torchtrack 0.1.0"}.items()
    assert (writer.committed, writer.seq, writer.bytes) == (1, 2, writer.path.stat().st_size)


@pytest.mark.usefixtures("odd_umask")
def test_files_and_folders_are_the_owners_alone_under_any_umask(new_writer: NewWriter, tmp_path: Path) -> None:
    writer = new_writer()

    writer.append(Kind.DATA, b"row")

    assert stat.S_IMODE(writer.path.stat().st_mode) == 0o600
    for folder in (writer.path.parent, writer.path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_symlink_at_the_path_is_refused(new_writer: NewWriter, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    writer = new_writer(tmp_path)
    writer.path.symlink_to(victim)

    assert not writer.append(Kind.DATA, b"row", rows=1)

    assert victim.read_bytes() == b"precious"
    assert writer.errors["EEXIST"] >= 1


def test_a_second_writer_never_touches_the_file_of_the_first(new_writer: NewWriter, rows: Rows) -> None:
    first, second = new_writer(), new_writer()
    first.append(Kind.DATA, b"first", rows=1)

    assert not second.append(Kind.DATA, b"second", rows=1)

    second.close()
    assert second.dropped_rows == 1
    assert rows(Stream(first.path).poll()) == [b"first"]


def test_two_writers_of_one_rank_make_two_streams(new_writer: NewWriter, tmp_path: Path) -> None:
    for stream in (1, 2):
        new_writer(stream=stream).append(Kind.DATA, b"row")

    assert [Stream(path).stream for path in find_streams(tmp_path)] == [1, 2]


def test_a_forked_child_writes_nothing(new_writer: NewWriter) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, b"parent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        wrote = writer.append(Kind.DATA, b"child") or writer.meta({}) or writer.seal("child") or writer.sync()
        writer.close()
        os._exit(wrote)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert writer.append(Kind.DATA, b"parent again")
    assert [item.seq for item in Stream(writer.path).poll()] == [0, 1, 2]


def test_a_file_that_is_long_enough_is_followed_by_the_next(new_writer: NewWriter, rows: Rows) -> None:
    writer = new_writer(segment_bytes=1000)
    written = [bytes([number]) * 200 for number in range(20)]

    for row in written:
        assert writer.append(Kind.DATA, row, rows=1)
    writer.seal("finish")

    stream = Stream(writer.path)
    assert rows(stream.poll()) == written
    assert (stream.state, stream.opening["segment"]) == ("sealed", 0)
    files = sorted(writer.path.parent.iterdir())
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) <= 1000
    assert find_streams(writer.path.parent.parent) == [writer.path]


def test_a_frame_larger_than_a_file_still_gets_one(new_writer: NewWriter, rows: Rows) -> None:
    writer = new_writer(segment_bytes=1000)

    for size in (3000, 3000, 10):
        writer.append(Kind.DATA, bytes(size), rows=1)

    assert [len(row) for row in rows(Stream(writer.path).poll())] == [3000, 3000, 10]
    assert len(list(writer.path.parent.iterdir())) == 3


def test_the_seal_counts_what_was_written(new_writer: NewWriter) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, b"rows", rows=5)
    writer.append(Kind.DATA, b"rows", rows=2)

    assert writer.seal("finish")

    stream = Stream(writer.path)
    stream.poll()
    assert stream.seal is not None
    assert stream.seal.items() >= {"rows": 7, "frames": 3, "crc": stream.crc, "reason": "finish"}.items()


def test_nothing_follows_the_seal(new_writer: NewWriter) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, b"row", rows=1)
    writer.seal("finish")

    assert not writer.append(Kind.DATA, b"late", rows=3)
    assert not writer.seal("again")

    assert writer.dropped_rows == 3
    assert Stream(writer.path).poll()[-1].kind is Kind.SEAL


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EFBIG])
@pytest.mark.parametrize("partly", [0, 30])
def test_frames_wait_while_writing_fails_and_follow_in_order(
    new_writer: NewWriter, disk: BrokenDisk, rows: Rows, code: int, partly: int
) -> None:
    writer = new_writer()
    written = [b"%d" % number * 40 for number in range(6)]
    writer.append(Kind.DATA, written[0])
    writer.append(Kind.DATA, written[1])
    disk.broken, disk.written_before_failing = code, partly
    assert not writer.append(Kind.DATA, written[2])
    assert not writer.append(Kind.DATA, written[3])
    whole = rows(Stream(writer.path).poll())
    disk.broken = 0
    writer.append(Kind.DATA, written[4])
    writer.append(Kind.DATA, written[5])
    writer.seal("finish")

    stream = Stream(writer.path)
    assert whole == written[:2]
    assert rows(stream.poll()) == written
    assert (stream.state, stream.gaps, writer.dropped_rows) == ("sealed", [], 0)
    assert writer.errors[errno.errorcode[code]] >= 1


def test_writing_resumes_by_itself_without_another_append(
    new_writer: NewWriter, disk: BrokenDisk, wait_until: Wait
) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, b"before")
    disk.broken = errno.ENOSPC
    writer.append(Kind.DATA, b"kept")
    disk.broken = 0

    wait_until(lambda: writer.committed == 2)


def test_writing_is_tried_again_at_most_four_times_a_second(
    new_writer: NewWriter, disk: BrokenDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 10**9
    monkeypatch.setattr("torchtrack.journal.writer.monotonic_ns", lambda: now)
    writer = new_writer()
    disk.broken = errno.ENOSPC

    for _ in range(10):
        writer.append(Kind.DATA, b"row")
    first = writer.errors["ENOSPC"]
    now += 250_000_001
    for _ in range(10):
        writer.append(Kind.DATA, b"row")

    assert (first, writer.errors["ENOSPC"]) == (1, 2)


def test_rows_beyond_the_backlog_are_dropped_newest_first_and_counted(
    new_writer: NewWriter, disk: BrokenDisk, rows: Rows
) -> None:
    writer = new_writer(backlog_bytes=1000)
    writer.append(Kind.DATA, b"before", rows=1)
    disk.broken = errno.ENOSPC
    started_ns = time.time_ns()
    for number in range(10):
        writer.append(Kind.DATA, bytes([number]) * 200, rows=3)
    disk.broken = 0
    writer.seal("finish")

    stream = Stream(writer.path)
    kept = rows(stream.poll())
    assert kept == [b"before", *(bytes([number]) * 200 for number in range(4))]
    [gap] = stream.gaps
    assert (gap["rows"], gap["reason"], writer.dropped_rows) == (18, "ENOSPC", 18)
    assert started_ns <= gap["since_ns"] <= gap["until_ns"] <= time.time_ns()
    assert stream.seal is not None
    assert stream.seal["rows"] == 13


def test_once_rows_are_dropped_a_smaller_one_is_dropped_too(new_writer: NewWriter, disk: BrokenDisk) -> None:
    writer = new_writer(backlog_bytes=1000)
    disk.broken = errno.ENOSPC

    for size in (400, 600, 10):
        writer.append(Kind.DATA, bytes(size), rows=1)

    assert writer.dropped_rows == 2


def test_events_and_records_fit_where_rows_do_not(new_writer: NewWriter, disk: BrokenDisk) -> None:
    writer = new_writer(backlog_bytes=1000)
    disk.broken = errno.ENOSPC
    writer.append(Kind.DATA, bytes(2000), rows=1)
    writer.append(Kind.DATA, b"summary", table=6, rows=1)
    writer.meta({"type": "ended"})
    disk.broken = 0
    writer.seal("finish")

    stream = Stream(writer.path)
    kinds = [(item.kind, item.table) for item in stream.poll()]
    assert (Kind.DATA, 6) in kinds
    assert stream.ended == {"type": "ended"}
    assert writer.dropped_rows == 1


def test_a_file_that_cannot_be_cut_back_is_left_for_a_new_one(
    new_writer: NewWriter, disk: BrokenDisk, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    def fail(fd: int, length: int) -> None:
        raise OSError(errno.EIO, "no")

    writer = new_writer()
    writer.append(Kind.DATA, b"before", rows=1)
    disk.broken, disk.written_before_failing = errno.ENOSPC, 33
    monkeypatch.setattr(os, "ftruncate", fail)
    writer.append(Kind.DATA, b"torn", rows=1)
    live = Stream(writer.path)
    while_broken = rows(live.poll())
    disk.broken = 0
    writer.append(Kind.DATA, b"after", rows=1)
    writer.seal("finish")

    assert while_broken == [b"before"]
    for stream, earlier in ((live, while_broken), (Stream(writer.path), [])):
        assert earlier + rows(stream.poll()) == [b"before", b"torn", b"after"]
        assert (stream.state, stream.damages) == ("sealed", [])
        assert stream.segment > 0


def test_a_disk_that_stays_broken_is_not_littered_with_files(
    new_writer: NewWriter, disk: BrokenDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**9, 10**13, 10**9))
    monkeypatch.setattr("torchtrack.journal.writer.monotonic_ns", lambda: next(ticks))
    writer = new_writer()
    writer.append(Kind.DATA, b"row")
    writer.append(Kind.DATA, b"row")
    disk.broken = errno.EIO

    for _ in range(20):
        writer.append(Kind.DATA, b"row")

    assert len(list(writer.path.parent.iterdir())) == 2


def test_a_folder_that_cannot_be_made_costs_rows_not_an_exception(new_writer: NewWriter, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    writer = new_writer(tmp_path / "file" / "000", backlog_bytes=100)

    for _ in range(10):
        assert not writer.append(Kind.DATA, bytes(40), rows=1)
    assert not writer.seal("finish")
    writer.close()

    assert writer.errors["ENOTDIR"] >= 1
    assert writer.dropped_rows == 10


def test_a_folder_that_becomes_writable_gets_all_that_waited(
    new_writer: NewWriter, tmp_path: Path, rows: Rows, wait_until: Wait
) -> None:
    (tmp_path / "file").write_bytes(b"")
    writer = new_writer(tmp_path / "file" / "000")
    writer.append(Kind.DATA, b"early")
    (tmp_path / "file").unlink()

    wait_until(lambda: writer.committed == 1)

    assert rows(Stream(writer.path).poll()) == [b"early"]


def test_a_frame_beyond_the_limit_is_dropped_and_counted(
    new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_module, "MAX_PAYLOAD", 1000)
    writer = new_writer()

    assert not writer.append(Kind.DATA, bytes(1001), rows=4)
    writer.seal("finish")

    stream = Stream(writer.path)
    stream.poll()
    assert [(gap["rows"], gap["reason"]) for gap in stream.gaps] == [(4, "frame too large")]
    assert writer.dropped_rows == 4


def test_what_the_caller_dropped_is_a_gap_but_not_this_writers_drop(new_writer: NewWriter) -> None:
    writer = new_writer()

    writer.gap(5, "queue full", 10, 20)

    stream = Stream(writer.path)
    stream.poll()
    assert stream.gaps == [{"rows": 5, "reason": "queue full", "since_ns": 10, "until_ns": 20}]
    assert writer.dropped_rows == 0


def test_a_gap_that_does_not_fit_either_is_added_to_the_next(new_writer: NewWriter, disk: BrokenDisk) -> None:
    writer = new_writer(backlog_bytes=-background_module.RESERVE)
    disk.broken = errno.ENOSPC
    writer.gap(5, "queue full", 10, 20)
    writer.append(Kind.DATA, b"row", rows=1)
    disk.broken = 0
    writer.seal("finish")

    stream = Stream(writer.path)
    stream.poll()
    assert [gap["rows"] for gap in stream.gaps] == [6]


def test_large_rows_are_compressed_and_read_back(new_writer: NewWriter, rows: Rows) -> None:
    writer = new_writer()
    payload = b"0123456789" * 10_000

    writer.append(Kind.DATA, payload)

    assert rows(Stream(writer.path).poll()) == [payload]
    assert writer.bytes < 10_000


def test_arrow_buffers_are_written_without_a_copy_of_ours(new_writer: NewWriter, rows: Rows) -> None:
    import pyarrow as pa

    writer = new_writer()

    writer.append(Kind.DATA, pa.py_buffer(b"small"))
    writer.append(Kind.DATA, pa.py_buffer(bytes(5000)))

    assert rows(Stream(writer.path).poll()) == [b"small", bytes(5000)]


def test_what_is_written_is_synced_on_a_timer_with_its_folders(
    new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    synced: list[Path] = []
    for module, name in ((background_module, "_fdatasync"), (os, "fsync")):
        monkeypatch.setattr(module, name, lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()))
    writer = new_writer(sync_interval_s=0.01)

    writer.append(Kind.DATA, b"row")
    wait_until(lambda: writer.path in synced)
    writer.append(Kind.DATA, b"row")
    wait_until(lambda: synced.count(writer.path) == 2)

    folder = writer.path.parent
    assert {folder, folder.parent, folder.parent.parent} <= set(synced)


def test_a_sync_that_hangs_stops_neither_append_nor_seal(
    new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(background_module, "_fdatasync", lambda _: released.wait(30))
    monkeypatch.setattr("torchtrack.journal.writer.SYNC_S", 0.05)
    writer = new_writer()
    writer.append(Kind.DATA, b"row")

    assert not writer.sync(0.05)
    assert writer.append(Kind.DATA, b"row")
    assert writer.seal("finish")

    released.set()
    assert Stream(writer.path).poll()[-1].kind is Kind.SEAL


def test_a_failed_sync_is_counted_and_told(new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(background_module, "_fdatasync", fail)
    writer = new_writer()
    writer.append(Kind.DATA, b"row")

    assert not writer.sync()

    assert writer.errors["EIO"] >= 1


def test_what_the_seal_counts_is_synced_before_the_seal_is_written(
    new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(background_module, "_fdatasync", lambda fd: sizes.append(os.fstat(fd).st_size))
    writer = new_writer()
    writer.append(Kind.DATA, b"row")
    before = writer.bytes

    writer.seal("finish")

    assert before in sizes
    assert sizes[-1] == writer.bytes


def test_closing_leaves_no_thread_and_no_open_file(new_writer: NewWriter) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    threads = threading.active_count()
    writer = new_writer(segment_bytes=300)
    for _ in range(10):
        writer.append(Kind.DATA, bytes(100))
    writer.sync()

    writer.close()
    writer.close()

    assert threading.active_count() == threads
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_sync_interval_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sync_interval_s must be positive, got 0"):
        Writer(tmp_path, "0-00000000000000aa", 0xAA, {}, sync_interval_s=0)
