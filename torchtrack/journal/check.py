"""What `torchtrack fsck` says about a stream, and the repair that never touches the original."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtrack.journal import frame
from torchtrack.journal.frame import Found, Kind
from torchtrack.journal.reader import Damage, Stream

_COUNTED = ("rows", "frames", "crc")


@dataclass(frozen=True)
class Report:
    """The condition of one stream.

    Attributes:
        state: ok, pending, damaged or sealed, as `Stream.state`.
        frames: verified frames, the seal not counted.
        rows: verified rows by table.
        damages: pieces of the files that hold no frame.
        missing: seqs that are lost, as (first, last).
        gaps: what the writer itself says it dropped.
        invalid: seqs of frames that are as they were written, yet hold no rows of their table.
        torn: bytes after the last verified frame.
        seal: the last frame, None if the stream was not sealed.
        seal_agrees: whether rows, frames and checksum are those the seal counts; None without a seal.
        repaired: the files that were written.
    """

    path: Path
    state: str
    stream: int
    opening: dict[str, Any]
    frames: int
    rows: dict[str, int]
    damages: list[Damage]
    missing: list[tuple[int, int]]
    gaps: list[dict[str, Any]]
    invalid: list[int]
    torn: int
    seal: dict[str, Any] | None
    seal_agrees: bool | None
    repaired: list[Path]


def check(path: Path, repair_to: Path | None = None) -> Report:
    """Read a stream from its first file and say what is in it.

    Args:
        path: the stream's first file.
        repair_to: write every verified frame, byte for byte, to this new file and its segments, and a seal after them.
            The writer must have ended. Should the opening frame be lost, keep the stream's id in the name.

    Raises:
        FormatVersionError: a file was written in another format.
        JournalError: a file cannot be read.
        FileExistsError: there is a file at `repair_to` already.
    """
    stream = Stream(path)
    rows: Counter[str] = Counter()
    invalid: list[int] = []
    for found in stream.stored():
        if found.header.kind is Kind.DATA:
            _count_rows(found, rows, invalid)
    seal = stream.seal
    return Report(
        path=path,
        state=stream.state,
        stream=stream.stream,
        opening=stream.opening,
        frames=stream.frames,
        rows=dict(rows),
        damages=stream.damages,
        missing=[(damage.first_seq, damage.last_seq) for damage in stream.damages if damage.lost],
        gaps=stream.gaps,
        invalid=invalid,
        torn=stream.torn,
        seal=seal,
        seal_agrees=None if seal is None else _counts(stream, rows) == {key: seal.get(key) for key in _COUNTED},
        repaired=[] if repair_to is None else _repair(path, repair_to),
    )


def _counts(stream: Stream, rows: Counter[str]) -> dict[str, int]:
    return {"rows": sum(rows.values()), "frames": stream.frames, "crc": stream.crc}


def _count_rows(found: Found, rows: Counter[str], invalid: list[int]) -> None:
    from torchtrack import records  # with it comes pyarrow, which a process that only imports the journal is spared

    try:
        table = records.Table(found.header.table)
        rows[table.name.lower()] += records.decode(table, found.payload()).num_rows
    except (ValueError, OSError):
        invalid.append(found.header.seq)


def _repair(path: Path, repair_to: Path) -> list[Path]:
    """Copy what is verified, behind holes too: nobody writes the missing frames any more."""
    stream = Stream(path, grace_s=-math.inf, gone=lambda *_: True)
    rows: Counter[str] = Counter()
    written: dict[Path, Any] = {}
    with ExitStack() as files:
        for found in stream.stored():
            target = frame.segment_path(repair_to, stream.segment)
            if target not in written:
                fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                written[target] = files.enter_context(os.fdopen(fd, "wb"))
            written[target].write(found.raw)
            if found.header.kind is Kind.DATA:
                _count_rows(found, rows, [])
        if stream.seal is None and written:
            written[target].write(_seal(stream, rows))
        for file in written.values():
            file.flush()
            os.fsync(file.fileno())
    return list(written)


def _seal(stream: Stream, rows: Counter[str]) -> bytes:
    record = {**_counts(stream, rows), "reason": "repaired", "time_ns": time.time_ns()}
    buffers, _ = frame.encode(
        Kind.SEAL, frame.dump(record), stream=stream.stream, seq=stream.next_seq, mono_ns=time.monotonic_ns()
    )
    return b"".join(buffers)
