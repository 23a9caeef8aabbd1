"""Journals to the metrics store, each row exactly once, whatever is killed when.

A frame's rows go to one table, in one insert, which is there as a whole or not at all; a stream's frames are inserted
in the order of their seqs. So the newest seq a table has of a stream says exactly which of its frames are there: that
is asked of the store itself at the start and after every error, and frames up to it are left out. What is kept beside
the rows, in the table `streams`, are records (whose stream, how it ended) and a bookmark, which only saves reading.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from torchtrack import records
from torchtrack.errors import JournalError
from torchtrack.journal.frame import Kind
from torchtrack.journal.reader import Frame, Stream, find_streams
from torchtrack.records import Table
from torchtrack.server import schema
from torchtrack.server.metrics import MetricsStore

BATCH_ROWS: Final = 500_000
BATCH_BYTES: Final = 64 << 20
SCAN_SHARE: Final = 0.1
"""Of the time that may go into looking for new streams; those that are known are followed at every poll."""


class Tail:
    """One stream: its records as readers are told them, and how far its rows are in the store."""

    def __init__(self, path: Path, relative: str) -> None:
        self.path = path
        self.relative = relative
        self.exits: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.damages: list[list[Any]] = []
        self.last_mono_ns: int | None = None
        self.touched: set[str] = set()
        """What rows came of that no record speaks of yet: names of tables, and `findings`."""
        self.tables: dict[str, int] = {}
        """Of each, the counter of the newest record that speaks of such rows."""
        self.stored: dict[Table, int] = {}
        """The newest seq of each table that was in the store when it was asked for the stream `asked`."""
        self.asked = -1
        self.number = 0
        self.last_seq = -1
        self.journal = Stream(path)
        self._told: Any = None

    @property
    def done(self) -> bool:
        """Whether nothing can follow."""
        return self.journal.seal is not None

    def start_over(self) -> None:
        """Forget what was read: the file is another one."""
        self.exits, self.heartbeats, self.damages = [], [], []
        self.touched, self.tables = set(), {}
        self.last_mono_ns, self.last_seq, self.stored, self.asked = None, -1, {}, -1

    def record(self) -> dict[str, Any]:
        """What readers are told: all records of the stream, and the seq up to which its rows are in the store."""
        journal = self.journal
        return {
            "path": self.relative,
            "opening": journal.opening,
            "joined": journal.joined,
            "ended": journal.ended,
            "seal": journal.seal,
            "gaps": journal.gaps,
            "damages": [[str(d.path), *d[1:]] for d in journal.damages] + self.damages,
            "exits": self.exits,
            "heartbeats": self.heartbeats,
            "last_mono_ns": self.last_mono_ns,
            "next_seq": self.last_seq + 1,
            "tables": self.tables,
        }

    def bookmark(self) -> dict[str, Any]:
        """What `resume` needs beside the record."""
        return {"journal": self.journal.bookmark(), "damages": self.damages}

    def resume(self, record: Mapping[str, Any], bookmark: Mapping[str, Any]) -> None:
        """Go on where a row of `streams` was written."""
        self.exits, self.heartbeats = list(record["exits"]), list(record["heartbeats"])
        self.damages = list(bookmark["damages"])
        self.tables = dict(record["tables"])
        self.last_mono_ns, self.last_seq = record["last_mono_ns"], record["next_seq"] - 1
        self.journal.resume(bookmark["journal"])
        self.number = self.journal.stream
        self._told = record

    def changed(self, batch: int) -> dict[str, Any] | None:
        """The record, to be written with this counter, if it is another than the last time this was asked."""
        self.tables = {**self.tables, **dict.fromkeys(sorted(self.touched), batch)}
        self.touched.clear()
        record = self.record()
        if record == self._told:
            return None
        self._told = json.loads(json.dumps(record))
        return record


class Indexer:
    """Follows a folder of runs, which it never writes to.

    Not for several threads, but for `poll` and `run`, which exclude each other.

    Args:
        folder: the runs; a server's journal store has the same layout.
        store: where the rows go. No other Indexer may write there.
        on_change: told the runs of which something new is in the store, after each poll that found any.
    """

    def __init__(self, folder: Path, store: MetricsStore, on_change: Callable[[set[str]], None] | None = None) -> None:
        self.folder = Path(folder)
        self.store = store
        self.on_change = on_change
        self.on_followed: Callable[[], None] = lambda: None
        """Told after each stream that was looked at."""
        self.batch = -1
        """Grows with every write of records: the cursor of those who follow. -1 until the store was asked."""
        self._tails: dict[Path, Tail] = {}
        self._pending: dict[tuple[Table, int], list[pa.Table]] = {}
        self._rows = self._bytes = 0
        self._dirty: set[Path] = set()
        self._versions: dict[int, int] = {}
        self._changed: set[str] = set()
        self._lock = threading.Lock()
        self._loaded = False
        self._next_scan = 0.0

    def run(self, stop: threading.Event, interval_s: float = 0.5) -> None:
        """Poll until told to stop. An error of the store ends it: whoever runs this process starts another one."""
        while not stop.is_set():
            self.poll()
            stop.wait(interval_s)

    def poll(self, *, everything: bool = False) -> int:
        """Bring into the store what is new.

        Args:
            everything: look for new streams even if that was done a moment ago.

        Returns:
            How many rows were inserted.

        Raises:
            StoreError: the store failed. The next poll asks it what it has.
            FileNotFoundError: the folder is not there.
        """
        with self._lock:
            try:
                if not self._loaded:
                    self._load()
                self._scan(everything)
                rows = 0
                for tail in list(self._tails.values()):
                    if not tail.done:
                        rows += self._follow(tail)
                        self.on_followed()
                self._flush()
            except BaseException:
                self._loaded = False
                raise
            changed, self._changed = self._changed, set()
        if changed and self.on_change is not None:
            self.on_change(changed)
        return rows

    def rebuild(self) -> int:
        """Empty the store and fill it again from the journals."""
        with self._lock:
            self.store.clear()
            self._loaded = False
        return self.poll(everything=True)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Ask the store what it has; what this process believed is forgotten."""
        self._tails.clear()
        self._pending.clear()
        self._dirty.clear()
        self._versions.clear()
        self._rows = self._bytes = 0
        self._next_scan = 0.0
        self.store.settle()
        known = self.store.query("SELECT stream, version, batch, path, gone, record, bookmark FROM streams FINAL")
        self.batch = max(known["batch"].to_pylist(), default=0)
        for row in known.to_pylist():
            self._versions[row["stream"]] = row["version"]
            if row["gone"]:
                if row["bookmark"] != _FORGOTTEN:
                    self._forget(row["stream"], row["path"])
                continue
            tail = Tail(self.folder / row["path"], row["path"])
            tail.resume(json.loads(row["record"]), json.loads(row["bookmark"]))
            self._tails[tail.path] = tail
        self._ask_for_newest([tail for tail in self._tails.values() if not tail.done])
        self._loaded = True

    def _ask_for_newest(self, tails: list[Tail]) -> None:
        by_number: dict[int, list[Tail]] = {}
        for tail in tails:
            tail.asked = tail.journal.stream
            tail.stored = {}
            by_number.setdefault(tail.asked, []).append(tail)
        for table in Table if by_number else ():
            for number, seq in self.store.newest_seqs(table, by_number).items():
                for tail in by_number[number]:
                    tail.stored[table] = seq

    def _scan(self, everything: bool) -> None:
        """Look for streams that came and went."""
        started = time.monotonic()
        if started < self._next_scan and not everything:
            return
        if not self.folder.exists():
            raise FileNotFoundError(f"{self.folder}: no such folder of runs")
        found = set(find_streams(self.folder))
        fresh = [Tail(path, str(path.relative_to(self.folder))) for path in found - self._tails.keys()]
        self._tails.update((tail.path, tail) for tail in fresh)
        self._ask_for_newest(fresh)
        for path in self._tails.keys() - found:
            self._drop(self._tails.pop(path))
        ended = time.monotonic()
        self._next_scan = ended + (ended - started) * (1 / SCAN_SHARE - 1)

    def _drop(self, tail: Tail) -> None:
        """A stream is gone from the folder, or its file is another stream's now."""
        if tail.number:
            self._flush()
            self._changed.add(str(tail.journal.opening.get("uid", "")))
            self._tell_gone(tail.number, tail.relative, "{}")
            self._forget(tail.number, tail.relative)

    def _forget(self, number: int, path: str) -> None:
        self.store.forget(number)
        self._tell_gone(number, path, _FORGOTTEN)

    def _follow(self, tail: Tail) -> int:
        rows = 0
        try:
            for frame in tail.journal.each():
                rows += self._take(tail, frame)
                if self._rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
                    self._dirty.add(tail.path)
                    self._flush()
        except (OSError, JournalError) as error:
            if not tail.damages or tail.damages[-1][-1] != str(error):
                self._damage(tail, 0, str(error))
        if tail.number:
            self._dirty.add(tail.path)
        return rows

    def _take(self, tail: Tail, frame: Frame) -> int:
        """One frame, and how many rows of it are new to the store."""
        if tail.number != tail.journal.stream or frame.seq <= tail.last_seq:
            self._begin(tail)
        tail.last_seq, tail.last_mono_ns = frame.seq, frame.mono_ns
        if frame.kind is Kind.DATA:
            return self._take_rows(tail, frame)
        if frame.kind in (Kind.META, Kind.HEARTBEAT) and tail.journal.opening.get("role") == "node":
            self._take_node_record(tail, frame)
        return 0

    def _begin(self, tail: Tail) -> None:
        """The first frame of a stream that is new to this process; of one that was replaced, all is forgotten."""
        if tail.number:
            self._drop(tail)
            tail.start_over()
        tail.number = tail.journal.stream
        if tail.asked != tail.number:
            self._ask_for_newest([tail])

    def _take_rows(self, tail: Tail, frame: Frame) -> int:
        try:
            table = Table(frame.table)
        except ValueError:
            self._damage(tail, frame.seq, f"unknown table {frame.table}")
            return 0
        try:
            rows = records.decode(table, frame.payload)
        except (ValueError, pa.ArrowException, OSError) as error:
            self._damage(tail, frame.seq, f"a {table.name.lower()} frame does not decode: {error}")
            return 0
        if frame.seq <= tail.stored.get(table, -1):
            return 0
        tail.touched.add(table.name.lower())
        if table is Table.EVENTS and "finding" in rows["type"].to_pylist():
            tail.touched.add("findings")
        month = schema.month_of(int(tail.journal.opening.get("start_time_ns", 0)))
        rows = schema.to_store(table, rows, month=month, stream=tail.number, seq=frame.seq)
        if rows.num_rows:
            self._pending.setdefault((table, month), []).append(rows)
            self._rows += rows.num_rows
            self._bytes += rows.nbytes
        return int(rows.num_rows)

    def _take_node_record(self, tail: Tail, frame: Frame) -> None:
        try:
            record = json.loads(frame.payload)
        except ValueError:
            self._damage(tail, frame.seq, "a record is no JSON")
            return
        if frame.kind is Kind.HEARTBEAT:
            tail.heartbeats[:] = [record]
        elif record.get("type") == "exit":
            tail.exits.append(record)

    def _damage(self, tail: Tail, seq: int, reason: str) -> None:
        tail.damages.append([str(tail.path), 0, 0, seq, seq, reason])

    def _flush(self) -> None:
        """Insert what is pending, then the records that say so."""
        for (table, _), parts in self._pending.items():
            self.store.insert(schema.NAMES[table], pa.concat_tables(parts).unify_dictionaries())
        self._pending.clear()
        self._rows = self._bytes = 0
        tails = [self._tails[path] for path in self._dirty]
        changed = [(tail, record) for tail in tails if (record := tail.changed(self.batch + 1))]
        self._dirty.clear()
        if changed:
            self._tell(changed)

    def _tell(self, changed: list[tuple[Tail, dict[str, Any]]]) -> None:
        rows = []
        for tail, record in changed:
            opening, joined = tail.journal.opening, tail.journal.joined or {}
            self._changed |= {str(place["uid"]) for place in (opening, joined) if "uid" in place}
            place = {**opening, **joined}
            rows.append(
                {
                    "stream": tail.number,
                    "path": tail.relative,
                    "uid": str(place.get("uid", "")),
                    "attempt": int(place.get("attempt") or 1),
                    "rank": int(place.get("rank") or 0),
                    "gone": False,
                    "record": json.dumps(record),
                    "bookmark": json.dumps(tail.bookmark()),
                }
            )
        self._write(rows)

    def _tell_gone(self, number: int, path: str, bookmark: str) -> None:
        nowhere = {"uid": "", "attempt": 0, "rank": 0, "record": "{}"}
        self._write([{"stream": number, "path": path, "gone": True, "bookmark": bookmark, **nowhere}])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.batch += 1
        for row in rows:
            version = self._versions.get(row["stream"], 0) + 1
            self._versions[row["stream"]] = version
            row |= {"version": version, "batch": self.batch}
        self.store.insert("streams", pa.Table.from_pylist(rows, _STREAMS))


_FORGOTTEN: Final = '{"forgotten": true}'
"""The bookmark of a stream that is gone, once its rows are gone too."""
_STREAMS: Final = pa.schema(
    [
        ("stream", pa.uint64()),
        ("version", pa.uint64()),
        ("batch", pa.uint64()),
        ("path", pa.string()),
        ("uid", pa.string()),
        ("attempt", pa.uint32()),
        ("rank", pa.int32()),  # a node's own journal has -1
        ("gone", pa.bool_()),
        ("record", pa.string()),
        ("bookmark", pa.string()),
    ]
)
