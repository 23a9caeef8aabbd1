"""Writes the runs of a source into the journal, and knows what of them is there already.

**Once:** a run's uid follows from its source, so that the same run is found again, and its journal says after each
chunk how far the source had been read. What an import that was broken off has written after that is counted, and as
many rows are left out when it goes on. **Times** of frames are those of the source, so that a run is as old and as long
as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from torchtrack import blobs, records
from torchtrack.importers.source import About, Chunk, End, Losses, SourceRun
from torchtrack.job.identity import Attempt, Keys, id_key
from torchtrack.journal import frame
from torchtrack.journal.frame import FILE_NAME, Codec, Kind, rank_path
from torchtrack.journal.reader import Stream
from torchtrack.journal.writer import Writer
from torchtrack.records import Table, encodable, histogram_row
from torchtrack.redact import Redactor
from torchtrack.version import __version__

_BY: Final = "import"
_MARK: Final = "imported"


@dataclass(frozen=True)
class Result:
    """What became of one run."""

    uid: str
    about: About
    rows: int
    """How many were added."""
    known: bool
    """Whether the run was there before."""
    losses: Losses


@dataclass
class _Known:
    """What earlier imports of a run have written."""

    cursor: Any = None
    attempt: int = 0
    about: str = ""
    end: str = ""
    since: Counter[Table] | None = None
    """Rows written after the last mark, by table."""
    broken: Sequence[Path] = ()
    start_ns: int = 0
    """Of the last stream."""


def uid_of(kind: str, key: str) -> str:
    """The uid of the run that is called so where it comes from."""
    return hashlib.blake2s(f"import\0{kind}\0{key}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def import_run(directory: Path, run: SourceRun, progress: Callable[[int], object] = lambda _: None) -> Result:
    """Have a run of a source in a folder of runs, as far as the source goes now.

    Args:
        directory: the folder of runs.
        run: of the source.
        progress: told how much of `run.size` has been read.

    Raises:
        OSError: the journal cannot be written. What was written is kept, and gone on from the next time.
    """
    with _locked(directory):
        target = _Target(directory, run)
        known = target.known
        skip = known.since or Counter()
        before = bool(known.attempt)
        try:
            for chunk in run.read(known.cursor):
                target.write(_without(chunk, skip))
                progress(chunk.position)
            target.finish(run.end)
        finally:
            target.close()
        return Result(target.uid, run.about, target.rows, before, run.losses)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One import at a time in a folder, where the file system can tell."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "import.lock").open("w") as file:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _without(chunk: Chunk, skip: Counter[Table]) -> Chunk:
    """A chunk without the rows that are in the journal already."""
    if not skip.total():
        return chunk
    tables: dict[Table, list[Any]] = {
        Table.SCALARS: chunk.scalars,
        Table.TEXTS: chunk.texts,
        Table.TENSORS: chunk.histograms,
        Table.MEDIA: chunk.media,
        Table.LOGS: chunk.lines,
        Table.EVENTS: chunk.events,
    }
    for table, rows in tables.items():
        there = min(skip[table], len(rows))
        skip[table] -= there
        del rows[:there]
    return chunk


class _Target:
    """The journal of one run while it is imported."""

    def __init__(self, directory: Path, run: SourceRun) -> None:
        self.rows = 0
        self._directory, self._run = directory, run
        self.uid = uid_of(run.kind, run.key)
        self.known = _look(directory / self.uid)
        for path in self.known.broken:
            _seal_broken(path)
        self._redactor = Redactor()
        self._writer: Writer | None = None
        self._attempt = max(1, self.known.attempt)
        self._now_ns = run.about.start_ns
        self._cursor = self.known.cursor
        self._told = self.known.about

    def write(self, chunk: Chunk) -> None:
        """Write a chunk, and how far the source was read."""
        if chunk.rows or chunk.attempt != self._attempt:
            self._tables(chunk)
        self._cursor = chunk.cursor
        if self._writer is not None:
            self._mark()

    def finish(self, end: End) -> None:
        """Say how the run ended and close its journal, if anything of it is new."""
        self._announce()
        if self._writer is None and self.known.end == end.reason:
            return
        self._close(end)

    def close(self) -> None:
        """Let go of the file; what was not finished is gone on with the next time."""
        if self._writer is not None:
            self._writer.close()

    def _tables(self, chunk: Chunk) -> None:
        if chunk.attempt != self._attempt:
            if self._writer is not None or self.known.attempt == 0:
                self._announce()
                self._close(End("finish"))
            self._attempt = chunk.attempt
            self._told = ""
        times = [row[1] for rows in (chunk.scalars, chunk.texts, chunk.histograms, chunk.media) for row in rows]
        times += [row[0] for rows in (chunk.lines, chunk.events) for row in rows]
        if times:
            self._now_ns = self._now_ns or min(times) * 1000
            self._open(min(times) * 1000, chunk.from_step)
            self._now_ns = max(self._now_ns, max(times) * 1000)
        self._announce()
        self._put(Table.MEDIA, [self._medium_row(row) for row in chunk.media])
        self._scalars(chunk)
        self._put(Table.TEXTS, [self._text_row(row) for row in chunk.texts])
        self._put(Table.TENSORS, [histogram_row(n, h, step, at) for step, at, n, h in chunk.histograms])
        self._put(Table.LOGS, [self._line_row(row) for row in chunk.lines])
        self._put(Table.EVENTS, [self._event_row(*row) for row in chunk.events])

    def _open(self, first_ns: int, from_step: int | None = None) -> Writer:
        if self._writer is not None:
            return self._writer
        fresh = self.known.attempt < self._attempt
        start_ns = (self._run.about.start_ns if fresh and self._attempt == 1 else 0) or first_ns or 1
        start_ns = self.known.start_ns = max(start_ns, self.known.start_ns + 1)  # readers order streams by it
        self._now_ns = max(self._now_ns, start_ns)
        stream = secrets.randbits(64)
        path = rank_path(self._directory, self.uid, 0, stream)
        opening = {
            "role": "rank",
            "uid": self.uid,
            "attempt": self._attempt,
            "rank": 0,
            "local_rank": 0,
            "node": 0,
            "world_size": 1,
            "host": self._run.about.host,
            "pid": 0,
            "boot_id": None,
            "start_time_ns": start_ns,
            "start_mono_ns": start_ns,
            "from_step": from_step,
            "by": _BY,
            "source": {"kind": self._run.kind, "key": self._run.key},
            "writer": f"torchtrack {__version__}",
        }
        self._writer = Writer(path.parent, path.stem, stream, opening, clock=lambda: self._now_ns)
        return self._writer

    def _announce(self) -> None:
        """Say what the run is called, if that is news."""
        about = self._run.about
        data = {
            "id": about.id,
            "name": about.name,
            "project": about.project,
            "group": about.group,
            "job_type": about.job_type,
            "tags": list(about.tags),
            "notes": about.notes,
        }
        told = json.dumps(data, sort_keys=True)
        if told == self._told:
            return
        first = not self._told
        self._open(about.start_ns)
        self._told = told
        self._put(Table.EVENTS, [self._event_row(self._now_ns // 1000, None, "run", data)], count=False)
        self._mark()
        if first:
            keys, attempt = Keys(self._directory), Attempt(self.uid, self._attempt, about.project, about.id, about.name)
            if keys.last("id", id_key(about.project, about.id)) is None:
                keys.append("id", id_key(about.project, about.id), attempt)

    def _mark(self, end: str = "") -> None:
        mark = {"type": _MARK, "cursor": self._cursor, "about": self._told, "end": end}
        self._check(self._open(0).meta(mark))

    def _close(self, end: End) -> None:
        writer = self._open(0)
        self._now_ns = max(self._now_ns, end.time_ns or 0)
        self._mark(end.reason)
        error = None if end.error is None else self._redactor.text(end.error)
        ended = {"type": "ended", "reason": end.reason, "error": error, "time_ns": end.time_ns or self._now_ns}
        self._check(writer.meta(ended))
        self._check(writer.seal(end.reason))
        writer.close()
        self._writer = None
        self.known.attempt = self._attempt

    def _check(self, written: bool) -> None:
        """An import waits for no disk: it can be done again."""
        if not written:
            names = ", ".join(self._writer.errors) if self._writer is not None else ""
            raise OSError(f"the journal in {self._directory / self.uid} cannot be written: {names or 'it is closed'}")

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _put(self, table: Table, rows: list[dict[str, Any]], *, count: bool = True) -> None:
        if rows:
            self._append(table, pa.RecordBatch.from_pylist(rows, schema=records.SCHEMAS[table]), count=count)

    def _append(self, table: Table, batch: pa.RecordBatch, *, count: bool = True) -> None:
        payload = records.encode(batch)
        self._check(self._open(0).append(Kind.DATA, payload, table=table, rows=batch.num_rows))
        self.rows += batch.num_rows if count else 0

    def _scalars(self, chunk: Chunk) -> None:
        if not chunk.scalars:
            return
        step, at, name, value = zip(*chunk.scalars, strict=True)
        n = len(step)
        zeros = pa.array(np.zeros(n, np.int32))
        arrays = [
            pa.array(step, pa.int64()),
            pa.array(at, pa.int64()).cast(records.SCALARS.field("time").type),
            pa.array(name, pa.string()).dictionary_encode(),
            pa.array(value, pa.float64()),
            pa.DictionaryArray.from_arrays(zeros, pa.array(["mean"])),
            pa.array(np.zeros(n, np.bool_)),
        ]
        self._append(Table.SCALARS, pa.RecordBatch.from_arrays(arrays, schema=records.SCALARS))

    def _medium_row(self, row: tuple[int, int, str, bytes, str, str | None]) -> dict[str, Any]:
        step, at, name, data, mime, caption = row
        sha256 = blobs.store(blobs.Blob(data, mime, caption, {}), self._directory / self.uid)
        about = {"sha256": sha256, "mime": mime, "size": len(data)}
        caption = None if caption is None else encodable(caption)
        return {"step": step, "time": at, "name": name, **about, "caption": caption}

    def _text_row(self, row: tuple[int, int, str, str | None]) -> dict[str, Any]:
        step, at, name, text = row
        text = None if text is None else encodable(self._redactor.text(text))
        return {"step": step, "time": at, "name": name, "text": text}

    def _line_row(self, row: tuple[int, str, str]) -> dict[str, Any]:
        at, stream, line = row
        return {"time": at, "stream": stream, "line": encodable(self._redactor.text(line))}

    def _event_row(self, at: int, step: int | None, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        content = json.dumps(self._redactor.value(dict(data)), default=str)
        return {"time": at, "step": step, "type": kind, "json": content}


# -- what is there already --------------------------------------------------------------------------------------------


def _look(folder: Path) -> _Known:
    """What earlier imports have written of a run."""
    known, broken = _Known(), []
    streams = [Stream(path) for path in (folder / "000").glob("0-*.ttj") if _is_first(path)]
    found = []
    for stream in streams:
        since: Counter[Table] = Counter()
        mark: dict[str, Any] = {}
        for each in stream.each():
            record = json.loads(each.payload) if each.kind is Kind.META else {}
            if record.get("type") == _MARK:
                mark, since = record, Counter()
            elif each.kind is Kind.DATA and not _is_own(each.table, each.payload):
                since[Table(each.table)] += records.decode(Table(each.table), each.payload).num_rows
        if stream.opening.get("by") == _BY:
            place = int(stream.opening["attempt"]), int(stream.opening["start_mono_ns"])
            found.append((place, mark, since, stream))
    for place, mark, since, stream in sorted(found, key=lambda item: item[0]):
        known.attempt, known.start_ns = place
        if mark:
            known.cursor, known.about, known.end = mark["cursor"], mark["about"], mark["end"]
        known.since = since
        if stream.seal is None:
            broken.append(stream.path)
    known.broken = broken
    return known


def _is_first(path: Path) -> bool:
    name = FILE_NAME.fullmatch(path.name)
    return name is not None and name[2] is None


def _is_own(table: int, payload: bytes) -> bool:
    """Whether these are the rows that say what the run is called, which come from no chunk."""
    if table != Table.EVENTS:
        return False
    return bool(records.decode(Table.EVENTS, payload)["type"].to_pylist() == ["run"])


def _seal_broken(path: Path) -> None:
    """End a stream whose import was broken off: its process is gone, and an open end looks like a run that died."""
    stream = Stream(path)
    rows, last_ns = 0, 1
    for each in stream.each():
        last_ns = each.mono_ns
        if each.kind is Kind.DATA:
            rows += records.decode(Table(each.table), each.payload).num_rows
    ended = {"type": "ended", "reason": "finish", "error": None, "time_ns": last_ns}
    buffers, crc = frame.encode(
        Kind.META, frame.dump(ended), stream=stream.stream, seq=stream.next_seq, mono_ns=last_ns, codec=Codec.NONE
    )
    crc = frame.roll(stream.crc, crc)
    seal = {"rows": rows, "frames": stream.frames + 1, "crc": crc, "reason": "import broken off", "time_ns": last_ns}
    last, _ = frame.encode(Kind.SEAL, frame.dump(seal), stream=stream.stream, seq=stream.next_seq + 1, mono_ns=last_ns)
    with frame.segment_path(path, stream.segment).open("r+b") as file:
        file.truncate(stream.offset)
        file.seek(stream.offset)
        file.write(b"".join(map(bytes, (*buffers, *last))))
        file.flush()
        os.fsync(file.fileno())
