"""What a reader returns while a stream is written, and what it makes of holes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtrack.errors import FormatVersionError, JournalError
from torchtrack.journal import Frame, Kind, Stream, Writer, find_streams, frame, gathered, reader
from torchtrack.journal.reader import writer_gone

if TYPE_CHECKING:
    from tests.journal.conftest import NewWriter

Rows = Callable[[list[Frame]], list[bytes]]
FinalStream = Callable[[Path], Stream]
STREAM = 0x0123456789ABCDEF
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture
def journal(new_writer: NewWriter) -> tuple[Path, list[int]]:
    """A file with an opening and eight rows, not sealed, and where its frames start and end."""
    writer = new_writer()
    offsets = [0]
    for number in range(8):
        writer.append(Kind.DATA, b"%d" % number * 50, rows=1)
        offsets.append(writer.bytes)
    writer.close()
    offsets.insert(1, offsets[1] - frame.frame_size(50))
    return writer.path, offsets


def punch(path: Path, start: int, end: int, filler: bytes = b"\0") -> bytes:
    """Overwrite a range of a file; what was there."""
    with path.open("r+b") as file:
        file.seek(start)
        before = file.read(end - start)
        file.seek(start)
        file.write(filler * (end - start))
    return before


def restore(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


Appended = st.lists(
    st.tuples(st.sampled_from([Kind.META, Kind.DATA, Kind.HEARTBEAT]), st.binary(max_size=6000), st.integers(0, 255)),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(Appended, st.integers(200, 20_000), st.booleans())
def test_any_sequence_of_frames_is_read_back(
    appended: list[tuple[Kind, bytes, int]], segment_bytes: int, sealed: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder), f"0-{STREAM:016x}", STREAM, {}, segment_bytes=segment_bytes)
        for kind, payload, table in appended:
            assert writer.append(kind, payload, table=table)
        if sealed:
            writer.seal("finish")
        writer.close()
        stream = Stream(writer.path)
        frames = stream.poll()

    read = [(item.kind, item.payload, item.table) for item in frames if b'"type":"opening"' not in item.payload]
    assert [item.seq for item in frames] == list(range(len(frames)))
    assert read[: len(appended)] == appended
    assert stream.state == ("sealed" if sealed and appended else "ok")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=10), st.data())
def test_a_file_that_grows_in_any_pieces_gives_the_same_frames(payloads: list[bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder), f"0-{STREAM:016x}", STREAM, {})
        for payload in payloads:
            writer.append(Kind.DATA, payload)
        writer.close()
        whole = writer.path.read_bytes()
        expected = Stream(writer.path).poll()
        growing = Path(folder) / f"1-{STREAM:016x}.ttj"
        cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8).map(sorted))
        stream = Stream(growing)
        read = stream.poll()
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            with growing.open("ab") as file:
                file.write(whole[start:end])
            read += stream.poll()

    assert read == expected
    assert (stream.state, stream.damages) == ("ok", [])


def test_a_poll_returns_only_what_is_new(new_writer: NewWriter, rows: Rows) -> None:
    writer = new_writer()
    stream = Stream(writer.path)

    assert (stream.poll(), stream.state) == ([], "ok")
    writer.append(Kind.DATA, b"first")
    assert rows(stream.poll()) == [b"first"]
    assert stream.poll() == []
    writer.append(Kind.DATA, b"second")
    assert rows(stream.poll()) == [b"second"]


def test_a_poll_reads_only_what_is_new(new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = new_writer()
    for _ in range(100):
        writer.append(Kind.DATA, os.urandom(1000))
    stream = Stream(writer.path)
    stream.poll()
    read: list[int] = []
    pread = os.pread

    def count(fd: int, length: int, offset: int) -> bytes:
        data = pread(fd, length, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", count)
    writer.append(Kind.DATA, bytes(100))

    assert len(stream.poll()) == 1
    assert sum(read) < 300


def test_frames_larger_than_what_is_read_at_once_are_whole(
    new_writer: NewWriter, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_WINDOW", 64)
    writer = new_writer()
    written = [os.urandom(size) for size in (10, 3000, 70, 500)]

    for payload in written:
        writer.append(Kind.DATA, payload)

    assert rows(Stream(writer.path).poll()) == written


def test_a_joined_frame_tells_where_the_stream_belongs(new_writer: NewWriter) -> None:
    writer = new_writer()
    writer.meta({"type": "joined", "uid": "ffffffffffffffff", "attempt": 2, "rank": 1, "world_size": 16})
    stream = Stream(writer.path)

    stream.poll()

    assert (stream.uid, stream.attempt, stream.rank) == ("ffffffffffffffff", 2, 1)
    assert (stream.world_size, stream.role, stream.opening["uid"]) == (16, "rank", "00112233aabbccdd")


def test_the_newest_ended_frame_is_kept(new_writer: NewWriter) -> None:
    writer = new_writer()
    for reason in ("exception", "exit"):
        writer.meta({"type": "ended", "reason": reason})

    stream = Stream(writer.path)
    stream.poll()

    assert stream.ended == {"type": "ended", "reason": "exit"}


def test_a_file_that_became_shorter_is_read_again_from_its_start(journal: tuple[Path, list[int]], rows: Rows) -> None:
    path, offsets = journal
    stream = Stream(path)
    stream.poll()
    os.truncate(path, offsets[4])

    assert len(rows(stream.poll())) == 3


def test_a_file_that_became_another_stream_is_read_from_its_start(
    new_writer: NewWriter, tmp_path: Path, rows: Rows
) -> None:
    first, second = new_writer(), new_writer(stream=2)
    first.append(Kind.DATA, b"short")
    second.append(Kind.DATA, b"a longer row, so that the file is longer")
    stream = Stream(first.path)
    stream.poll()
    second.path.replace(first.path)

    assert rows(stream.poll()) == [b"a longer row, so that the file is longer"]
    assert stream.stream == 2


def test_a_copy_under_any_name_is_read(journal: tuple[Path, list[int]], rows: Rows, tmp_path: Path) -> None:
    copy = tmp_path / "copy.ttj"
    copy.write_bytes(journal[0].read_bytes())

    assert len(rows(Stream(copy).poll())) == 8


def test_a_copy_that_replaces_the_file_goes_on_where_the_reader_was(new_writer: NewWriter, rows: Rows) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, b"first")
    stream = Stream(writer.path)
    stream.poll()
    writer.append(Kind.DATA, b"second")
    copy = writer.path.with_suffix(".copy")
    copy.write_bytes(writer.path.read_bytes())
    copy.replace(writer.path)

    assert rows(stream.poll()) == [b"second"]


def test_a_newer_format_is_refused_by_name(new_writer: NewWriter) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, b"row")
    whole = bytearray(writer.path.read_bytes())
    fields = bytes(whole[:7]) + b"\x02" + bytes(whole[8:36])
    writer.path.write_bytes(fields + zlib.crc32(fields).to_bytes(4, "little") + whole[40:])

    with pytest.raises(
        FormatVersionError, match=r"ttj is written in journal format 2; torchtrack 0.1.0 reads format 1"
    ):
        Stream(writer.path).poll()


def test_a_damaged_version_byte_is_damage_not_a_newer_format(
    journal: tuple[Path, list[int]], final_stream: FinalStream, rows: Rows
) -> None:
    path, _ = journal
    punch(path, 7, 8, b"\x02")

    assert len(rows(final_stream(path).poll())) == 8


def test_a_file_that_cannot_be_read_is_a_journal_error(tmp_path: Path) -> None:
    path = tmp_path / "0-00000000000000aa.ttj"
    path.mkdir()

    with pytest.raises(JournalError, match="cannot be read: Is a directory"):
        Stream(path).poll()


@pytest.mark.parametrize("filler", [b"\0", b"x"])
@pytest.mark.parametrize("number", range(1, 8))
def test_a_hole_hides_what_is_behind_it_until_it_is_filled(
    journal: tuple[Path, list[int]], rows: Rows, number: int, filler: bytes
) -> None:
    path, offsets = journal
    data = punch(path, offsets[number] + 1, offsets[number + 1], filler)
    stream = Stream(path)

    assert len(rows(stream.poll())) == number - 1
    assert (stream.state, stream.damages) == ("pending", [])
    restore(path, offsets[number] + 1, data)
    assert len(rows(stream.poll())) == 8 - number + 1
    assert (stream.state, stream.damages) == ("ok", [])


@settings(deadline=None, max_examples=40)
@given(st.randoms(use_true_random=False))
def test_pages_may_become_visible_in_any_order(random: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder), f"0-{STREAM:016x}", STREAM, {})
        for number in range(12):
            writer.append(Kind.DATA, b"%d" % number * 60)
        writer.close()
        whole = writer.path.read_bytes()
        late = Path(folder) / f"1-{STREAM:016x}.ttj"
        late.write_bytes(bytes(len(whole)))
        pages = list(range(0, len(whole), 128))
        random.shuffle(pages)  # type: ignore[attr-defined]
        stream = Stream(late)
        read = []
        for page in pages:
            restore(late, page, whole[page : page + 128])
            read += stream.poll()
        expected = Stream(writer.path).poll()

    assert read == expected
    assert (stream.state, stream.damages) == ("ok", [])


def test_a_hole_is_damage_once_the_writer_is_gone_and_the_grace_period_over(
    journal: tuple[Path, list[int]], rows: Rows
) -> None:
    path, offsets = journal
    punch(path, offsets[3], offsets[5])
    changed = path.stat().st_mtime
    now, gone = changed, False
    stream = Stream(path, clock=lambda: now, gone=lambda *_: gone)
    stream.poll()

    now = changed + 61
    assert (stream.poll(), stream.state) == ([], "pending")
    now, gone = changed + 59, True
    assert (stream.poll(), stream.state) == ([], "pending")
    now = changed + 61
    assert [row[:1] for row in rows(stream.poll())] == [b"4", b"5", b"6", b"7"]
    assert stream.state == "damaged"
    [damage] = stream.damages
    assert damage == (path, offsets[3], offsets[5] - offsets[3], 3, 4, "zeros")
    assert damage.lost == 2


def test_a_hole_is_damage_as_soon_as_the_seal_is_there(new_writer: NewWriter, rows: Rows) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, b"first")
    start = writer.bytes
    writer.append(Kind.DATA, b"second")
    punch(writer.path, start + 42, start + 43, b"S")
    writer.append(Kind.DATA, b"third")
    stream = Stream(writer.path)
    assert rows(stream.poll()) == [b"first"]

    writer.seal("finish")

    assert rows(stream.poll()) == [b"third"]
    assert [(damage.first_seq, damage.last_seq) for damage in stream.damages] == [(2, 2)]
    assert stream.damages[0].reason == "a payload that does not match its checksum"
    assert stream.seal is not None


def test_a_torn_tail_is_pending_for_ever(journal: tuple[Path, list[int]], final_stream: FinalStream) -> None:
    path, offsets = journal
    os.truncate(path, offsets[-1] - 9)
    stream = final_stream(path)

    assert len(stream.poll()) == 8
    assert (stream.state, stream.damages) == ("pending", [])
    assert stream.torn == offsets[-1] - 9 - offsets[-2]


def test_a_damaged_opening_costs_only_itself(
    journal: tuple[Path, list[int]], final_stream: FinalStream, rows: Rows
) -> None:
    path, _ = journal
    punch(path, 50, 51, b"~")
    stream = final_stream(path)

    assert len(rows(stream.poll())) == 8
    assert (stream.stream, stream.opening, stream.uid) == (STREAM, {}, None)
    assert [(damage.first_seq, damage.last_seq) for damage in stream.damages] == [(0, 0)]


def test_bytes_between_two_frames_are_noted_and_cost_nothing(journal: tuple[Path, list[int]], rows: Rows) -> None:
    path, offsets = journal
    whole = path.read_bytes()
    path.write_bytes(whole[: offsets[3]] + b"inserted" * 3 + whole[offsets[3] :])
    stream = Stream(path)

    assert len(rows(stream.poll())) == 8
    [damage] = stream.damages
    assert (damage.length, damage.lost, damage.reason) == (24, 0, "unreadable bytes")


def test_a_frame_quoted_in_a_row_is_never_taken_for_a_frame(
    new_writer: NewWriter, final_stream: FinalStream, rows: Rows
) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, b"first")
    start = writer.bytes
    quote = writer.path.read_bytes()
    writer.append(Kind.DATA, quote)
    writer.append(Kind.DATA, b"third")
    whole = writer.path.read_bytes()
    torn = writer.path.with_name(f"9-{STREAM:016x}.ttj")
    torn.write_bytes(whole[: start + len(quote)])
    stream = Stream(torn)
    assert rows(stream.poll()) == [b"first"]
    torn.write_bytes(whole)
    assert rows(stream.poll()) == [quote, b"third"]

    punch(torn, start + 41, start + 42, b"~")

    damaged = final_stream(torn)
    assert rows(damaged.poll()) == [b"first", b"third"]
    assert [(damage.first_seq, damage.last_seq) for damage in damaged.damages] == [(2, 2)]


def test_a_row_that_does_not_decompress_is_damage_and_the_rest_is_read(
    new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, bytes(5000))
    writer.append(Kind.DATA, b"next")
    monkeypatch.setattr(frame, "MAX_PAYLOAD", 4999)
    stream = Stream(writer.path)

    assert rows(stream.poll()) == [b"next"]
    assert [(damage.first_seq, damage.last_seq) for damage in stream.damages] == [(1, 1)]


@pytest.fixture
def segments(new_writer: NewWriter) -> Path:
    """Ten rows over four files, not sealed."""
    writer = new_writer(segment_bytes=700)
    for number in range(10):
        writer.append(Kind.DATA, b"%d" % number * 100)
    writer.close()
    assert len(list(writer.path.parent.iterdir())) == 4
    return writer.path


def test_the_lost_end_of_a_file_is_named_before_the_next_file(
    segments: Path, final_stream: FinalStream, rows: Rows
) -> None:
    size = segments.stat().st_size
    punch(segments, size - 8, size, b"~")
    live, final = Stream(segments), final_stream(segments)

    assert len(rows(live.poll())) == 2
    assert live.state == "pending"
    assert len(rows(final.poll())) == 9
    assert [(damage.path, damage.first_seq, damage.last_seq) for damage in final.damages] == [(segments, 3, 3)]


def test_a_lost_file_is_named_and_the_others_are_read(segments: Path, final_stream: FinalStream, rows: Rows) -> None:
    frame.segment_path(segments, 2).unlink()
    stream = final_stream(segments)

    assert len(rows(stream.poll())) == 7
    assert [(damage.lost, damage.reason) for damage in stream.damages] == [(4, "frames are missing")]


def test_a_file_of_another_stream_among_the_segments_gives_no_row(
    segments: Path, new_writer: NewWriter, final_stream: FinalStream, rows: Rows
) -> None:
    other = new_writer(stream=5)
    other.append(Kind.DATA, b"foreign")
    frame.segment_path(segments, 2).write_bytes(other.path.read_bytes())

    read = rows(final_stream(segments).poll())

    assert len(read) == 7
    assert b"foreign" not in read


def test_rows_written_just_before_the_next_file_are_not_missed(
    new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    writer = new_writer(segment_bytes=700)
    writer.append(Kind.DATA, b"0" * 100)
    stream = Stream(writer.path)
    following = Stream._following

    def write_in_between(self: Stream) -> tuple[int | None, int]:
        while writer.committed < 10:
            writer.append(Kind.DATA, b"%d" % writer.seq * 100)
        writer.seal("finish")
        return following(self)

    monkeypatch.setattr(Stream, "_following", write_in_between)

    assert [item.seq for item in stream.poll()] == list(range(writer.seq))
    assert stream.damages == []


def test_streams_are_found_by_their_first_file(new_writer: NewWriter, tmp_path: Path) -> None:
    run = tmp_path / "00112233aabbccdd"
    for folder, stream in ((run / "000", 1), (run / "001", 2), (tmp_path / "ffeeddccbbaa9988" / "000", 3)):
        writer = new_writer(folder, stream=stream, segment_bytes=300)
        for _ in range(4):
            writer.append(Kind.DATA, bytes(100))
    node = Writer(run / "nodes", f"{4:016x}", 4, {})
    node.append(Kind.HEARTBEAT, b"{}")
    node.close()
    (run / "media").mkdir()
    (run / "media" / "0-00000000000000aa.ttj").write_bytes(b"not a journal")
    (run / "000" / "notes.ttj").write_bytes(b"not one either")

    assert [Stream(path).stream for path in find_streams(run)] == [1, 2, 4]
    assert [Stream(path).stream for path in find_streams(tmp_path)] == [1, 2, 4, 3]


def test_a_stream_that_has_lost_its_first_file_is_found_by_a_later_one(tmp_path: Path) -> None:
    run = tmp_path / f"{7:016x}"
    (run / "000").mkdir(parents=True)
    for name in ("0-00000000000000aa.1.ttj", "0-00000000000000aa.2.ttj"):
        (run / "000" / name).touch()

    assert find_streams(tmp_path) == [run / "000" / "0-00000000000000aa.ttj"]


def test_a_writer_on_this_machine_is_gone_when_its_process_has_ended() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    assert writer_gone({"boot_id": BOOT_ID, "pid": ended.pid}, 0)
    assert not writer_gone({"boot_id": BOOT_ID, "pid": os.getpid()}, 0)


@pytest.mark.parametrize("opening", [{}, {"boot_id": "elsewhere", "pid": 1}, {"boot_id": BOOT_ID, "pid": "x"}])
def test_a_writer_that_cannot_be_seen_is_gone_after_a_long_silence(opening: dict[str, object]) -> None:
    assert not writer_gone(opening, 599)
    assert writer_gone(opening, 601)


def test_a_stream_of_a_process_that_died_long_ago_is_read_behind_its_damage(
    journal: tuple[Path, list[int]], rows: Rows
) -> None:
    path, offsets = journal
    punch(path, offsets[3], offsets[4])
    os.utime(path, (time.time() - 3600, time.time() - 3600))

    assert len(rows(Stream(path).poll())) == 7


def test_streams_that_are_met_for_the_first_time_share_one_listing_of_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{number}-{number:016x}.ttj" for number in range(20)]
    for path in (*paths, frame.segment_path(paths[3], 2), frame.segment_path(paths[3], 11)):
        path.touch()
    listed: list[object] = []
    scandir = os.scandir

    def counted(folder: str) -> object:
        listed.append(folder)
        return scandir(folder)

    monkeypatch.setattr("os.scandir", counted)
    newest = [gathered.last_segment(stream.path) for stream in map(Stream, paths)]

    assert len(listed) == 1
    assert newest == [0, 0, 0, 11, *[0] * 16]
