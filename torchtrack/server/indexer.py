"""Journals to the metrics store, each row exactly once, whatever is killed when.

A frame's rows go to one table, in one insert, which is there as a whole or not at all; a stream's frames are inserted
in the order of their seqs. So the newest seq a table has of a stream says exactly which of its frames are there: that
is asked of the store itself at the start and after every error, and frames up to it are left out. What is kept beside
the rows, in the table `streams`, are records (whose stream, how it ended) and a bookmark, which only saves reading.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from torchtrack.errors import JournalError
from torchtrack.journal import wellformed
from torchtrack.journal.frame import Kind
from torchtrack.journal.reader import Frame, find_streams
from torchtrack.records import Table
from torchtrack.server import schema
from torchtrack.server.arrivals import Arrivals
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.pending import Pending, Waiting
from torchtrack.server.tail import Tail

BATCH_BYTES: Final = 32 << 20
"""Of payloads that are inserted together: a million scalars at most."""
PIECES: Final = 4
"""New runs can be asked about once one was read, and whenever so many times as many were."""
SCAN_SHARE: Final = 0.1
"""Of the time that may go into looking for new streams; those that are known are followed at every poll."""

_log = logging.getLogger("torchtrack.server")


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
        self._pending = Pending()
        self._inserted = 0
        self._dirty: set[Path] = set()
        self._versions: dict[int, int] = {}
        self._changed: set[str] = set()
        self.arrivals = Arrivals()
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
                self._inserted = 0
                self._scan(everything)
                self._follow_all()
            except BaseException:
                self._loaded = False
                raise
            changed, self._changed = self._changed, set()
        if changed and self.on_change is not None:
            self.on_change(changed)
        return self._inserted

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
        self._next_scan = 0.0
        self.store.settle()
        known = self.store.query("SELECT stream, version, batch, path, gone, record, bookmark FROM streams FINAL")
        self.batch = max(known["batch"].to_pylist(), default=0)
        if known.num_rows:
            self.arrivals.begin()
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
            self.arrivals.expect(())
            raise FileNotFoundError(f"{self.folder}: no such folder of runs")
        found = set(find_streams(self.folder))
        newest = sorted(found - self._tails.keys(), key=_written, reverse=True)
        fresh = [Tail(path, str(path.relative_to(self.folder))) for path in newest]
        self._tails.update((tail.path, tail) for tail in fresh)
        self._ask_for_newest(fresh)
        self.arrivals.expect({tail.run for tail in fresh})
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

    def _follow_all(self) -> None:
        """Read on in all streams. New runs can be asked about piece by piece, and one that is waited for at once."""
        left: dict[str, list[Tail]] = {}
        for tail in self._tails.values():
            if not tail.done:
                left.setdefault(tail.run, []).append(tail)
        enough, read = 1, list[str]()
        while left:
            run = self.arrivals.first(left)
            for tail in left.pop(run):
                self._follow(tail)
                self.on_followed()
            read.append(run)
            if not self.arrivals.all_read and (len(read) >= enough or self.arrivals.is_wanted(run)):
                self._flush()
                self.arrivals.read(read)
                enough, read = PIECES * enough, []
        self._flush()
        self.arrivals.finish()

    def _follow(self, tail: Tail) -> None:
        try:
            for frame in tail.journal.each():
                self._take(tail, frame)
                if self._pending.bytes >= BATCH_BYTES:
                    self._dirty.add(tail.path)
                    self._flush()
        except (OSError, JournalError) as error:
            if not tail.damages or tail.damages[-1][-1] != str(error):
                tail.damaged(0, str(error))
        if tail.number:
            self._dirty.add(tail.path)

    def _take(self, tail: Tail, frame: Frame) -> None:
        if tail.number != tail.journal.stream or frame.seq <= tail.last_seq:
            self._begin(tail)
        tail.last_seq, tail.last_mono_ns = frame.seq, frame.mono_ns
        if frame.kind is Kind.DATA:
            self._take_rows(tail, frame)
        elif frame.kind in (Kind.META, Kind.HEARTBEAT) and tail.journal.opening.get("role") == "node":
            self._take_node_record(tail, frame)

    def _begin(self, tail: Tail) -> None:
        """The first frame of a stream that is new to this process; of one that was replaced, all is forgotten."""
        if tail.number:
            self._drop(tail)
            tail.start_over()
        tail.number = tail.journal.stream
        if not tail.journal.opening:
            reasons = [damage.reason for damage in tail.journal.damages] or ["it has no opening record"]
            _log.warning("%s is left out: %s (torchtrack fsck says more)", tail.path, reasons[0])
        if tail.asked != tail.number:
            self._ask_for_newest([tail])

    def _take_rows(self, tail: Tail, frame: Frame) -> None:
        try:
            table = Table(frame.table)
        except ValueError:
            tail.damaged(frame.seq, f"unknown table {frame.table}")
            return
        month = schema.month_of(int(tail.journal.opening.get("start_time_ns", 0)))
        stored = frame.seq <= tail.stored.get(table, -1)
        self._pending.add(table, month, Waiting(tail, tail.number, frame.seq, frame.payload, stored))

    def _take_node_record(self, tail: Tail, frame: Frame) -> None:
        try:
            record = json.loads(frame.payload)
        except ValueError:
            tail.damaged(frame.seq, "a record is no JSON")
            return
        if not isinstance(record, dict) or wellformed.problem(record):
            return  # the journal has noted it
        if frame.kind is Kind.HEARTBEAT:
            tail.heartbeats[:] = [record]
        elif record.get("type") == "exit":
            tail.exits.append(record)

    def _flush(self) -> None:
        """Insert what is pending, then the records that say so."""
        for table, block in self._pending.blocks():
            self.store.insert(schema.NAMES[table], block)
            self._inserted += block.num_rows
        self._pending.clear()
        tails = [self._tails[path] for path in self._dirty]
        changed = [(tail, record) for tail in tails if (record := tail.changed(self.batch + 1))]
        self._dirty.clear()
        if changed:
            self._tell(changed)

    def _tell(self, changed: list[tuple[Tail, str]]) -> None:
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
                    "record": record,
                    "bookmark": json.dumps(tail.bookmark()),
                }
            )
        self._write(rows)

    def _tell_gone(self, number: int, path: str, bookmark: str) -> None:
        nowhere = {"uid": "", "attempt": 0, "rank": 0, "record": "{}"}
        self._write([{"stream": number, "path": path, "gone": True, "bookmark": bookmark, **nowhere}])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write records under the next number, told once they are there: who sees it looks for them only once."""
        batch = self.batch + 1
        for row in rows:
            version = self._versions.get(row["stream"], 0) + 1
            self._versions[row["stream"]] = version
            row |= {"version": version, "batch": batch}
        self.store.insert("streams", pa.Table.from_pylist(rows, _STREAMS))
        self.batch = batch


def _written(path: Path) -> float:
    """When a file was changed last, in seconds; 0 for one that is not there or has been gathered."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


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
