"""What fsck says, and what a repair leaves."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from torchtrack import records
from torchtrack.journal import Frame, Kind, Stream, check, frame
from torchtrack.records import Table

if TYPE_CHECKING:
    from tests.journal.conftest import NewWriter

Rows = Callable[[list[Frame]], list[bytes]]


def lines(number: int) -> pa.Buffer:
    """A payload with so many rows of the logs table."""
    rows = [{"time": None, "stream": "out", "line": "a line"}] * number
    return records.encode(pa.RecordBatch.from_pylist(rows, schema=records.LOGS))


@pytest.fixture
def journal(new_writer: NewWriter) -> Path:
    """Twelve rows of logs in three frames over two files, sealed."""
    writer = new_writer(segment_bytes=2600)
    for number in (3, 4, 5):
        assert writer.append(Kind.DATA, lines(number), table=Table.LOGS, rows=number)
    writer.seal("finish")
    writer.close()
    return writer.path


def flip(path: Path, offset: int) -> None:
    """Damage one byte."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def second_row(path: Path) -> int:
    """Where the payload of the second data frame lies."""
    return [found.offset for found in frame.scan(path.read_bytes(), 0x0123456789ABCDEF, opening=True)][2] + 60


def test_an_intact_stream_agrees_with_its_seal(journal: Path) -> None:
    report = check(journal)

    assert len(list(journal.parent.iterdir())) == 2
    assert (report.path, report.stream, report.state) == (journal, 0x0123456789ABCDEF, "sealed")
    assert (report.frames, report.rows, report.seal_agrees) == (5, {"logs": 12}, True)
    assert (report.damages, report.missing, report.gaps, report.invalid) == ([], [], [], [])
    assert (report.torn, report.repaired) == (0, [])
    assert report.opening["rank"] == 3


def test_a_damaged_row_is_missing_and_the_seal_disagrees(journal: Path) -> None:
    flip(journal, second_row(journal))

    report = check(journal)

    assert (report.state, report.rows, report.missing) == ("damaged", {"logs": 8}, [(2, 2)])
    assert report.seal_agrees is False


def test_a_stream_that_still_grows_has_no_seal_to_agree_with(new_writer: NewWriter) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, lines(2), table=Table.LOGS, rows=2)
    os.truncate(writer.path, writer.bytes - 8)

    report = check(writer.path)

    assert (report.state, report.seal, report.seal_agrees) == ("pending", None, None)
    assert report.torn > 0


@pytest.mark.parametrize(("payload", "table"), [(b"no arrow", Table.LOGS), (lines(1), Table.MEDIA), (lines(1), 99)])
def test_a_row_that_is_not_of_its_table_is_listed_not_raised(new_writer: NewWriter, payload: bytes, table: int) -> None:
    writer = new_writer()
    writer.append(Kind.DATA, payload, table=table, rows=1)

    report = check(writer.path)

    assert (report.invalid, report.rows) == ([1], {})


def test_what_the_writer_dropped_is_shown(new_writer: NewWriter) -> None:
    writer = new_writer()
    writer.gap(7, "ENOSPC", 1, 2)

    assert check(writer.path).gaps == [{"rows": 7, "reason": "ENOSPC", "since_ns": 1, "until_ns": 2}]


def test_a_repair_holds_every_good_frame_byte_for_byte_and_leaves_the_original(journal: Path, tmp_path: Path) -> None:
    flip(journal, second_row(journal))
    before = {path: path.read_bytes() for path in journal.parent.iterdir()}
    good = Stream(journal).poll()
    target = tmp_path / journal.name

    report = check(journal, repair_to=target)

    assert {path: path.read_bytes() for path in journal.parent.iterdir()} == before
    assert report.repaired == [target, frame.segment_path(target, 1)]
    assert Stream(target).poll() == good
    frames = [found.raw.tobytes() for found in frame.scan(before[journal], report.stream, opening=True)]
    assert target.read_bytes() == b"".join(frames)
    assert frame.segment_path(target, 1).read_bytes() == before[frame.segment_path(journal, 1)]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_repaired_stream_without_a_seal_gets_one_that_agrees(
    new_writer: NewWriter, tmp_path: Path, rows: Rows
) -> None:
    writer = new_writer()
    for number in (1, 2, 3):
        writer.append(Kind.DATA, lines(number), table=Table.LOGS, rows=number)
    whole = writer.bytes
    writer.append(Kind.DATA, lines(4), table=Table.LOGS, rows=4)
    os.truncate(writer.path, whole + 100)
    flip(writer.path, second_row(writer.path))
    assert len(rows(Stream(writer.path).poll())) == 1
    target = tmp_path / writer.path.name

    check(writer.path, repair_to=target)

    report = check(target)
    assert (report.rows, report.missing, report.torn) == ({"logs": 4}, [(2, 2)], 0)
    assert (report.seal or {})["reason"] == "repaired"
    assert report.seal_agrees


def test_a_repair_without_the_opening_is_read_by_its_name(journal: Path, tmp_path: Path, rows: Rows) -> None:
    flip(journal, 50)
    target = tmp_path / journal.name

    check(journal, repair_to=target)

    assert len(rows(Stream(target).poll())) == 3


def test_a_repair_never_overwrites(journal: Path, tmp_path: Path) -> None:
    target = tmp_path / journal.name
    target.write_bytes(b"precious")

    with pytest.raises(FileExistsError):
        check(journal, repair_to=target)

    assert target.read_bytes() == b"precious"
