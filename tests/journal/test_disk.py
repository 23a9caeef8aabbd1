"""Real full disks, file size limits and disk errors: what is lost is counted, what is not is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from torchtrack.journal import Frame, Kind, Stream, Writer
from torchtrack.journal.background import RESERVE

if TYPE_CHECKING:
    from tests.journal.conftest import Child, NewWriter

Rows = Callable[[list[Frame]], list[bytes]]
Wait = Callable[[Callable[[], object]], None]
SmallDisk = Callable[[int], Path]
JOURNAL = "run/000/0-00000000000000aa.ttj"


def fill(folder: Path) -> Path:
    """Take all space of a file system; the file that holds it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(folder).f_bavail == 0
    return filler


def numbered(writer: Writer, numbers: range) -> None:
    for number in numbers:
        writer.append(Kind.DATA, b"%06d" % number * 20, table=1, rows=1)


def test_a_full_disk_loses_exactly_the_counted_rows_and_logging_resumes_by_itself(
    new_writer: NewWriter, small_disk: SmallDisk, rows: Rows, wait_until: Wait
) -> None:
    disk = small_disk(64)
    writer = new_writer(disk / "run" / "000", backlog_bytes=4000)
    stream = Stream(writer.path)
    numbered(writer, range(50))
    filler = fill(disk)
    numbered(writer, range(50, 250))
    while_full = rows(stream.poll())
    filler.unlink()
    wait_until(lambda: Stream(writer.path).poll()[-1].kind is Kind.GAP)
    numbered(writer, range(250, 300))
    assert writer.seal("finish")

    read = [int(row[:6]) for row in while_full + rows(stream.poll())]
    [gap] = stream.gaps
    missing = sorted(set(range(300)) - set(read))
    assert len(while_full) >= 50
    assert read == sorted(set(read))
    assert missing == list(range(250 - len(missing), 250))
    assert 0 < len(missing) == gap["rows"] == writer.dropped_rows
    assert (gap["reason"], stream.state, stream.damages) == ("ENOSPC", "sealed", [])


def test_a_disk_that_is_full_for_a_moment_loses_nothing(
    new_writer: NewWriter, small_disk: SmallDisk, rows: Rows
) -> None:
    disk = small_disk(64)
    writer = new_writer(disk / "run" / "000")
    numbered(writer, range(20))
    filler = fill(disk)
    numbered(writer, range(20, 100))
    filler.unlink()
    writer.seal("finish")

    stream = Stream(writer.path)
    assert [int(row[:6]) for row in rows(stream.poll())] == list(range(100))
    assert (stream.gaps, stream.state) == ([], "sealed")


def test_summary_and_seal_are_written_on_a_disk_that_stays_full(
    new_writer: NewWriter, small_disk: SmallDisk, rows: Rows
) -> None:
    disk = small_disk(3 * RESERVE // 1024)
    writer = new_writer(disk / "run" / "000")
    numbered(writer, range(10))
    writer.sync()
    fill(disk)
    for number in range(10, 40):
        writer.append(Kind.DATA, os.urandom(100_000) + b"%06d" % number, table=1, rows=1)
    writer.append(Kind.DATA, b"summary", table=6, rows=1)
    writer.meta({"type": "ended", "reason": "finish"})

    assert writer.seal("finish")

    stream = Stream(writer.path)
    read = rows(stream.poll())
    assert b"summary" in read
    assert (stream.ended or {})["reason"] == "finish"
    assert stream.state == "sealed"
    assert 10 < len(read) < 40
    assert len(read) + sum(gap["rows"] for gap in stream.gaps) == 41
    assert list(writer.path.parent.iterdir()) == [writer.path]


def test_the_reserve_takes_its_space_and_gives_it_back(new_writer: NewWriter, small_disk: SmallDisk) -> None:
    disk = small_disk(4 * RESERVE // 1024)
    writer = new_writer(disk / "run" / "000")
    before = os.statvfs(disk).f_bavail
    numbered(writer, range(1))
    writer.sync()
    during = os.statvfs(disk)
    writer.close()
    after = os.statvfs(disk).f_bavail

    assert (before - during.f_bavail) * during.f_bsize >= RESERVE
    assert (before - after) * during.f_bsize < RESERVE // 8
    assert list(writer.path.parent.iterdir()) == [writer.path]


def test_a_seal_that_finds_no_space_at_all_returns_false(new_writer: NewWriter, small_disk: SmallDisk) -> None:
    disk = small_disk(64)
    writer = new_writer(disk / "run" / "000")
    numbered(writer, range(10))
    fill(disk)
    numbered(writer, range(10, 100))

    assert not writer.seal("finish")
    writer.close()

    assert len(Stream(writer.path).poll()) + writer.dropped_rows >= 100


def test_a_limit_on_the_size_of_files_only_makes_more_files(child: Child, tmp_path: Path, rows: Rows) -> None:
    process = child(tmp_path, "--largest-file", "3000", "--segment-bytes", "1000000")

    output, errors = process.communicate(timeout=50)

    assert process.returncode == 0, errors
    assert "'EFBIG'" in output
    stream = Stream(tmp_path / JOURNAL)
    assert len(rows(stream.poll())) == 60
    assert (stream.state, stream.gaps) == ("sealed", [])
    assert stream.segment >= 2


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("error", ["EIO", "EDQUOT", "ESTALE"])
def test_a_disk_that_fails_for_a_few_writes_loses_nothing(child: Child, tmp_path: Path, rows: Rows, error: str) -> None:
    process = child(tmp_path, strace=("-e", f"inject=writev:error={error}:when=5..6"))

    output, errors = process.communicate(timeout=50)

    assert process.returncode == 0, errors
    assert f"'{error}'" in output
    stream = Stream(tmp_path / JOURNAL)
    assert len(rows(stream.poll())) == 60
    assert (stream.state, stream.gaps) == ("sealed", [])


@pytest.mark.usefixtures("strace")
def test_a_disk_that_fails_for_good_costs_rows_not_the_process(child: Child, tmp_path: Path) -> None:
    process = child(tmp_path, strace=("-e", "inject=writev,ftruncate:error=EIO:when=5+"))

    output, errors = process.communicate(timeout=50)

    assert process.returncode == 0, errors
    recovered = [item for item in Stream(tmp_path / JOURNAL).poll() if item.kind is Kind.DATA]
    assert len(recovered) + int(output.split()[-1]) == 60
