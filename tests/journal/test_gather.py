"""Journal files that move into one file a node while others read them, and crashes in between."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from torchtrack.journal import Frame, Kind, Stream, check, find_streams, frame
from torchtrack.journal.gather import SUFFIX, Gatherer
from torchtrack.journal.gathered import Archive, find_archives

if TYPE_CHECKING:
    from tests.journal.conftest import NewWriter

STREAM = 0x0123456789ABCDEF
ROWS = [b"%03d" % number * 100 for number in range(12)]
OPENING = {"role": "gathered", "uid": "00112233aabbccdd"}


class CrashError(BaseException):
    """The process is gone: nobody handles this."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "00112233aabbccdd"


@pytest.fixture
def journal(new_writer: NewWriter) -> Path:
    """A sealed stream of three files."""
    return written(new_writer)


@pytest.fixture
def gatherer(run: Path) -> Iterator[Gatherer]:
    made = Gatherer(run / "nodes", OPENING)
    yield made
    made.close()


def written(new_writer: NewWriter, stream: int = STREAM, *, seal: bool = True) -> Path:
    writer = new_writer(stream=stream, segment_bytes=2000)
    for row in ROWS:
        writer.append(Kind.DATA, row, rows=1)
    if seal:
        writer.seal("finish")
    writer.close()
    assert len(list(writer.path.parent.glob(f"*{stream:016x}*"))) == 3
    return writer.path


def data(frames: list[Frame]) -> list[bytes]:
    return [each.payload for each in frames if each.kind is Kind.DATA]


def files(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("000/*"))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_gathered_stream_reads_as_if_its_files_were_there(journal: Path, run: Path, gatherer: Gatherer) -> None:
    before, report = Stream(journal).poll(), check(journal)
    assert gatherer.take(journal, STREAM, ended=True) == 3
    assert files(run) == []
    assert find_streams(run) == find_streams(run.parent) == [journal]
    assert Stream(journal).poll() == before
    assert check(journal) == report


def test_its_frames_are_byte_for_byte_those_of_the_files(journal: Path, run: Path, gatherer: Gatherer) -> None:
    contents = [frame.segment_path(journal, segment).read_bytes() for segment in range(3)]
    gatherer.take(journal, STREAM, ended=True)
    whole = gatherer.path.read_bytes()
    assert [whole.count(content) for content in contents] == [1, 1, 1]


def test_streams_of_a_node_share_one_file(new_writer: NewWriter, run: Path, gatherer: Gatherer) -> None:
    paths = [written(new_writer, stream) for stream in range(1, 6)]
    for number, path in enumerate(paths, 1):
        assert gatherer.take(path, number, ended=True) == 3
    assert [path.name for path in run.rglob("*") if path.is_file()] == [gatherer.path.name]
    assert find_streams(run) == sorted(paths)
    for path in paths:
        assert data(Stream(path).poll()) == ROWS


def test_what_a_writer_may_still_write_to_stays(new_writer: NewWriter, run: Path, gatherer: Gatherer) -> None:
    path = written(new_writer, seal=False)
    last = frame.segment_path(path, 2).name
    assert gatherer.take(path, STREAM, ended=False) == 2
    assert files(run) == [last]
    assert gatherer.take(path, STREAM, ended=True) == 0  # it died without a seal
    assert files(run) == [last]
    assert data(Stream(path).poll()) == ROWS


def test_a_sealed_file_of_a_process_that_lives_stays(journal: Path, run: Path, gatherer: Gatherer) -> None:
    gatherer.take(journal, STREAM, ended=False)
    assert len(files(run)) == 1


def test_a_reader_goes_on_where_it_stopped_while_files_move(
    new_writer: NewWriter, run: Path, gatherer: Gatherer
) -> None:
    writer = new_writer(segment_bytes=1000)
    stream, seen = Stream(writer.path), []
    for row in ROWS:
        writer.append(Kind.DATA, row, rows=1)
        seen += data(stream.poll())
        gatherer.take(writer.path, STREAM, ended=False)
    assert seen == ROWS
    writer.append(Kind.DATA, b"one more", rows=1)
    writer.seal("finish")
    writer.close()
    assert gatherer.take(writer.path, STREAM, ended=True) >= 1
    assert data(stream.poll()) == [b"one more"]
    assert (stream.state, files(run)) == ("sealed", [])


def test_a_reader_that_was_away_meanwhile_misses_nothing(new_writer: NewWriter, run: Path, gatherer: Gatherer) -> None:
    writer = new_writer(segment_bytes=1000)
    stream = Stream(writer.path)
    writer.append(Kind.DATA, ROWS[0], rows=1)
    assert data(stream.poll()) == ROWS[:1]
    for row in ROWS[1:]:
        writer.append(Kind.DATA, row, rows=1)
        gatherer.take(writer.path, STREAM, ended=False)
    assert data(stream.poll()) == ROWS[1:]


def test_a_damaged_file_stays_for_fsck_to_find(journal: Path, run: Path, gatherer: Gatherer) -> None:
    flip(frame.segment_path(journal, 1), 1500)
    assert gatherer.take(journal, STREAM, ended=True) == 2
    assert files(run) == [frame.segment_path(journal, 1).name]
    report = check(journal)
    assert (report.state, len(report.damages)) == ("damaged", 1)
    assert report.frames == len(ROWS) + 2  # three openings, less the damaged one


def test_a_torn_file_stays(new_writer: NewWriter, journal: Path, run: Path, gatherer: Gatherer) -> None:
    with journal.open("ab") as file:
        file.write(bytes(3))
    assert gatherer.take(journal, STREAM, ended=True) == 2
    assert files(run) == [journal.name]


def test_another_streams_file_under_this_name_stays(journal: Path, run: Path, gatherer: Gatherer) -> None:
    assert gatherer.take(journal, STREAM + 1, ended=True) == 0
    assert len(files(run)) == 3


def test_a_full_disk_costs_nothing_and_the_next_try_succeeds(
    journal: Path, run: Path, gatherer: Gatherer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, 4000

    def small(fd: int, content: Any) -> int:
        nonlocal room
        if room == 0:
            raise OSError(28, "No space left on device")
        done = write(fd, content[:room])
        room -= done
        return done

    monkeypatch.setattr(os, "write", small)
    with pytest.raises(OSError, match="No space"):
        gatherer.take(journal, STREAM, ended=True)
    monkeypatch.undo()
    archive = Archive(gatherer.path)
    archive.read()
    assert (len(archive.places), archive.torn, archive.gaps) == (1, 0, [])
    assert data(Stream(journal).poll()) == ROWS
    assert gatherer.take(journal, STREAM, ended=True) == 2
    assert (files(run), data(Stream(journal).poll())) == ([], ROWS)


def test_a_file_that_cannot_be_begun_leaves_nothing(
    journal: Path, run: Path, gatherer: Gatherer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        gatherer.take(journal, STREAM, ended=True)
    monkeypatch.undo()
    assert (find_archives(run), len(files(run))) == ([], 3)
    assert gatherer.take(journal, STREAM, ended=True) == 3


def crash_at(call: int, torn: bool, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Let the process end at a system call that changes a file; the answer tells whether it came to that."""
    calls, crashed = 0, False

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any, **options: Any) -> Any:
            nonlocal calls, crashed
            calls += 1
            if calls == call:
                crashed = True
                if torn and real is write:
                    write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise CrashError
            return real(*arguments, **options)

        return do

    write = os.write
    for name in ("write", "fsync", "unlink", "ftruncate"):
        monkeypatch.setattr(os, name, deadly(getattr(os, name)))
    return lambda: crashed


@pytest.mark.parametrize("torn", [False, True])
def test_a_crash_at_any_system_call_loses_nothing_and_doubles_nothing(
    journal: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    kept = shutil.copytree(run, tmp_path / "kept")
    expected, report = Stream(journal).poll(), check(journal)
    call, crashed = 0, True
    while crashed:
        call += 1
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        with monkeypatch.context() as patch:
            tell = crash_at(call, torn, patch)
            first = Gatherer(run / "nodes", OPENING)
            with contextlib.suppress(CrashError):
                first.take(journal, STREAM, ended=True)
            crashed = tell()
        first.close()
        for _ in range(2):  # as it is left, and once the next sidecar has gathered the rest
            assert Stream(journal).poll() == expected, f"call {call}"
            assert check(journal) == report, f"call {call}"
            assert find_streams(run) == [journal]
            second = Gatherer(run / "nodes", OPENING)
            second.take(journal, STREAM, ended=True)
            second.close()
        assert files(run) == []
    assert call > 3 * (len(ROWS) // 3 + 3)  # it went through all of it


def test_a_file_is_deleted_only_when_its_copy_is_on_the_disk(
    journal: Path, gatherer: Gatherer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return real(*arguments, **options)

        return call

    for name in ("write", "fsync", "unlink"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    gatherer.take(journal, STREAM, ended=True)
    assert calls.count("unlink") == 3
    assert {calls[i - 1] for i, name in enumerate(calls) if name == "unlink"} == {"fsync"}
    assert {calls[i + 1] for i, name in enumerate(calls[:-1]) if name == "unlink"} == {"write"}


def archive_of(run: Path, gatherer: Gatherer, journal: Path) -> Archive:
    gatherer.take(journal, STREAM, ended=True)
    archive = Archive(gatherer.path)
    archive.read()
    return archive


def own_frames(path: Path) -> list[frame.Found]:
    return list(frame.scan(path.read_bytes(), int(path.stem, 16), opening=True))


def test_one_damaged_frame_of_the_gathered_file_costs_no_journal_file(
    journal: Path, run: Path, gatherer: Gatherer
) -> None:
    whole = archive_of(run, gatherer, journal)
    assert (whole.gaps, whole.torn, whole.error, len(whole.places)) == ([], 0, "", 3)
    content = gatherer.path.read_bytes()
    for own in own_frames(gatherer.path)[:-1]:
        gatherer.path.write_bytes(content)
        flip(gatherer.path, own.offset + 50)
        archive = Archive(gatherer.path)
        archive.read()
        assert archive.places == whole.places
        assert [(gap.offset, gap.length) for gap in archive.gaps] == [(own.offset, len(own.raw))]


def test_a_flipped_bit_costs_the_frame_it_hits_and_is_found(
    journal: Path, run: Path, gatherer: Gatherer, rng: random.Random
) -> None:
    whole = archive_of(run, gatherer, journal)
    content = gatherer.path.read_bytes()
    for place in whole.places.values():
        offset = place.offset + rng.randrange(place.length)
        gatherer.path.write_bytes(content)
        flip(gatherer.path, offset)
        report = check(journal)
        assert report.state == "damaged"
        assert len(report.missing) <= 1
        assert report.frames >= len(ROWS) + 2


def test_what_is_cut_off_is_not_there_and_the_rest_is(journal: Path, run: Path, gatherer: Gatherer) -> None:
    whole = archive_of(run, gatherer, journal)
    content = gatherer.path.read_bytes()
    ends = [own.end for own in own_frames(gatherer.path)[2::2]]
    for length in range(0, len(content), 97):
        gatherer.path.write_bytes(content[:length])
        archive = Archive(gatherer.path)
        archive.read()
        assert len(archive.places) == sum(end <= length for end in ends)
        assert archive.places.items() <= whole.places.items()
        assert archive.gaps == []


def test_an_archive_is_followed_as_it_grows(new_writer: NewWriter, run: Path, gatherer: Gatherer) -> None:
    first, second = written(new_writer, 1), written(new_writer, 2)
    gatherer.take(first, 1, ended=True)
    archive = Archive(gatherer.path)
    archive.read()
    assert len(archive.places) == 3
    gatherer.take(second, 2, ended=True)
    archive.read()
    assert len(archive.places) == 6


def test_a_name_that_points_elsewhere_is_no_place(run: Path, gatherer: Gatherer, journal: Path) -> None:
    gatherer.take(journal, STREAM, ended=True)
    gatherer._put({"type": "begin", "path": "../../000/1-0123456789abcdef.ttj", "length": 0, "mtime_ns": 0})
    gatherer._put({"type": "end", "path": "../../000/1-0123456789abcdef.ttj", "length": 0, "mtime_ns": 0})
    archive = Archive(gatherer.path)
    archive.read()
    assert len(archive.places) == 3


def test_a_newer_format_and_what_cannot_be_opened_are_said(run: Path, tmp_path: Path) -> None:
    newer = tmp_path / f"{STREAM:016x}{SUFFIX}"
    head = bytearray(frame.encode(Kind.META, b"{}", stream=0, seq=0, mono_ns=0)[0][0])
    head[7] = frame.FORMAT + 1
    head[36:] = zlib.crc32(head[:36]).to_bytes(4, "little")
    newer.write_bytes(head)
    archive = Archive(newer)
    archive.read()
    assert "format 2" in archive.error
    missing = Archive(tmp_path / "missing.ttg")
    missing.read()
    assert missing.error == "No such file or directory"
