"""The format does not change by accident: files of every released format are read, and today's is written alike."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from torchtrack.journal import Kind, Stream, Writer, check, find_streams
from torchtrack.journal.gather import Gatherer

GOLDEN = Path(__file__).parent / "golden"
STREAM = 0x0123456789ABCDEF
OPENING = {
    "role": "rank",
    "uid": "00112233aabbccdd",
    "attempt": 1,
    "rank": 3,
    "local_rank": 1,
    "node": 1,
    "world_size": 8,
    "host": "golden",
    "pid": 4711,
    "boot_id": "00000000-0000-0000-0000-000000000000",
    "start_time_ns": 1_700_000_000_000_000_000,
    "start_mono_ns": 1_000_000_000,
    "writer": "torchtrack 0.1.0",
}


def write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the golden journal: every kind of frame, payloads of every length modulo 8, fixed clocks."""
    ticks = iter(range(1_000_000_000, 2_000_000_000, 1_000_000))
    monkeypatch.setattr("torchtrack.journal.writer.monotonic_ns", lambda: next(ticks))
    monkeypatch.setattr("torchtrack.journal.writer.time_ns", lambda: 1_700_000_001_000_000_000)
    writer = Writer(folder, f"3-{STREAM:016x}", STREAM, OPENING)
    for length in range(9):
        writer.append(Kind.DATA, bytes(range(length)), table=length % 7, rows=length)
    writer.meta({"type": "joined", "uid": "00112233aabbccdd", "attempt": 2, "rank": 3, "world_size": 8})
    writer.append(Kind.HEARTBEAT, b'{"time_ns":1700000000500000000,"streams":["0123456789abcdef"]}')
    writer.gap(12, "ENOSPC", 1_700_000_000_100_000_000, 1_700_000_000_200_000_000)
    writer.meta({"type": "ended", "reason": "finish", "error": None, "time_ns": 1_700_000_001_000_000_000})
    assert writer.seal("finish")
    writer.close()
    return writer.path


def test_todays_writer_writes_the_golden_file_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write(tmp_path, monkeypatch).read_bytes() == (GOLDEN / "v1.ttj").read_bytes()


def test_todays_reader_reads_format_1() -> None:
    stream = Stream(GOLDEN / "v1.ttj")

    frames = stream.poll()

    assert [item.seq for item in frames] == list(range(15))
    assert [item.kind for item in frames] == [1, *[2] * 9, 1, 5, 3, 1, 4]
    assert [item.payload for item in frames[1:10]] == [bytes(range(length)) for length in range(9)]
    assert [item.table for item in frames[1:10]] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert frames[0].mono_ns < frames[-1].mono_ns < 2_000_000_000
    assert (stream.state, stream.stream, stream.rank, stream.attempt) == ("sealed", STREAM, 3, 2)
    assert stream.opening == {"type": "opening", "format": 1, "stream": "0123456789abcdef", "segment": 0, **OPENING}
    assert stream.gaps == [
        {"rows": 12, "reason": "ENOSPC", "since_ns": 1_700_000_000_100_000_000, "until_ns": 1_700_000_000_200_000_000}
    ]
    assert stream.seal is not None
    assert (stream.seal["rows"], stream.seal["frames"], stream.seal["crc"]) == (36, 14, stream.crc)


def test_todays_reader_reads_a_compressed_row_of_format_1() -> None:
    """Written once: another version of zstd may compress to other bytes."""
    report = check(GOLDEN / "v1-zstd.ttj")
    [row] = [item.payload for item in Stream(GOLDEN / "v1-zstd.ttj").poll() if item.kind is Kind.DATA]

    assert row == b"0123456789abcdef" * 1000
    assert (GOLDEN / "v1-zstd.ttj").stat().st_size < 1000
    assert report.state == "sealed"


def gather(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gather the golden journal."""
    path = run / "000" / f"3-{STREAM:016x}.ttj"
    path.parent.mkdir(parents=True)
    shutil.copyfile(GOLDEN / "v1.ttj", path)
    os.utime(path, ns=(0, 1_700_000_002_000_000_000))
    monkeypatch.setattr("torchtrack.journal.gather.secrets.randbits", lambda _: 0xFEDCBA9876543210)
    monkeypatch.setattr("torchtrack.journal.gather.monotonic_ns", lambda: 3_000_000_000)
    gatherer = Gatherer(run / "nodes", {"role": "gathered", "writer": "torchtrack 0.1.0"})
    assert gatherer.take(path, STREAM, ended=True) == 1
    gathered = gatherer.path
    gatherer.close()
    return gathered


def test_todays_gathering_writes_the_golden_file_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gather(tmp_path, monkeypatch).read_bytes() == (GOLDEN / "v1.ttg").read_bytes()


def test_todays_reader_reads_a_gathered_file_of_format_1(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    shutil.copyfile(GOLDEN / "v1.ttg", tmp_path / "nodes" / "fedcba9876543210.ttg")

    [path] = find_streams(tmp_path)

    assert path == tmp_path / "000" / f"3-{STREAM:016x}.ttj"
    assert Stream(path).poll() == Stream(GOLDEN / "v1.ttj").poll()
