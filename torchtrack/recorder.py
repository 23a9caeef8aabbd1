"""From log() to the journal: the training thread appends to typed buffers, a thread hands whole buffers to Arrow.

    training thread                      recorder thread, every 0.1 s
    Recorder.row -> Layout.buffer  --->  numpy view -> Arrow columns -> one frame -> journal.Writer
    Recorder.put -> queue          --->  rows of the rare tables (texts, events, media, tensors)

The thread works on whole buffers (columns.py) and so never keeps the interpreter from the training loop.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # pandas, which Arrow loads at its first column, needs it; too late at exit
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyarrow as pa

from torchtrack import forks, guard, records
from torchtrack.columns import Layout, Rows, columns, frames, scalars_batch
from torchtrack.journal.frame import Kind

if TYPE_CHECKING:
    from torchtrack.journal.writer import Writer

FLUSH_INTERVAL_S: Final = 0.1
MEMORY_BYTES: Final = 64 << 20
ROWS_PER_TURN: Final = 4096
_REPORT_INTERVAL_S: Final = 10.0
_LAST_STEP: Final = (1 << 63) - 1
_LATER_BYTES: Final = 512
_MAX_TICKETS: Final = 64
_LATER_POLL_S: Final = 0.005
_LATER_SHARE: Final = 0.8
_NO_ROOM: Final = -(1 << 62)


class Later(Protocol):
    """A number that is not on the host yet."""

    def ready(self) -> bool:
        """Whether `value` can be called without waiting."""

    def value(self) -> float:
        """The number."""


class Ticket:
    """The step a captured sample will carry: that of the next committed row, else the current one."""

    __slots__ = ("step",)

    def __init__(self) -> None:
        self.step: int | None = None


@dataclass(slots=True)
class _Gap:
    """Rows that were lost on their way to the journal."""

    rows: int = 0
    reason: str = ""
    since_ns: int = 0
    until_ns: int = 0


@dataclass(slots=True)
class _Count:
    """Entries of the two queues."""

    rows: int = 0
    later: int = 0


class Recorder:
    """Takes rows from any thread without waiting; owns the thread that writes them.

    **Threads:** `row`, `put`, `later` and `ticket` may be called from any thread and never wait for the disk: the lock
    they take is held elsewhere only to swap buffers, and can be taken again by the thread that holds it: a signal
    handler may log. What touches the writer runs on the recorder's own thread.
    **The writer** is opened on that thread at its first turn, when the run may already know which ranks it has.
    **Memory:** at most `memory_bytes` of rows wait; beyond it the newest are dropped, counted, and the count is logged.
    """

    def __init__(
        self,
        open_writer: Callable[[], Writer],
        *,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.step = 0
        self.dropped_rows = 0
        self._open_writer = open_writer
        self._opened: Writer | None = None
        self._interval_s = flush_interval_s
        self._lock = threading.RLock()
        self._room = memory_bytes
        self._order = 0
        self._gap = _Gap()
        self._tickets: list[Ticket] = []
        self._dirty: dict[Layout, None] = {}
        self._layouts: dict[tuple[str, str, bool], Layout] = {}
        self._several: dict[tuple[str, ...], Layout] = {}
        self._rows: deque[tuple[records.Table, Callable[[], dict[str, Any] | pa.RecordBatch], int]] = deque()
        self._commands: deque[Callable[[Writer], Any]] = deque()
        self._later: deque[tuple[Later, str, int, int, str, bool]] = deque()
        self._queued = _Count()
        self._done = _Count()
        self._own: dict[str, Callable[[], float]] = {}
        self._beside: tuple[Callable[[], Mapping[str, float]], ...] = ()
        self._reported: dict[str, float] = {}
        self._next_report = time.monotonic() + _REPORT_INTERVAL_S
        self._wake = threading.Event()
        self._flushed = threading.Condition()
        self._turns = 0
        self._stopping = False
        self._give_up_at = 0.0
        self._last: Callable[[Writer], Any] | None = None
        self._thread = threading.Thread(target=self._main, name="torchtrack-recorder", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    # -- any thread -------------------------------------------------------------------------------------------------

    def row(self, layout: Layout, values: Iterable[Any], step: int | None, *, commit: bool) -> None:
        """Append one row of plain numbers at `step` (None: the current one); `commit` moves the counter past it."""
        now = time.time_ns()
        with self._lock:
            at = self.step if step is None else step
            row = layout.pack(self._order + 1, at, now, *values)
            self._room -= layout.row_bytes
            if self._room < 0:
                self._drop(len(layout.names), layout.row_bytes, now)
            else:
                self._order += 1
                if not (buffer := layout.buffer):
                    self._dirty[layout] = None
                buffer += row
            if commit:
                self._commit(at)

    def put(self, table: records.Table, make: Callable[[], dict[str, Any] | pa.RecordBatch], size: int = 512) -> None:
        """Queue one row (a dict) or one batch of a rare table; `make` runs on the recorder's thread.

        Args:
            table: which table.
            make: returns the row by column name, or a whole RecordBatch of the table.
            size: about how many bytes it keeps in memory until then.
        """
        with self._lock:
            self._room -= size
            if self._room < 0:
                self._drop(1, size, time.time_ns())
            else:
                self._rows.append((table, make, size))
                self._queued.rows += 1

    def later(self, value: Later, name: str, step: int | None, *, reduce: str = "mean", partial: bool = False) -> None:
        """Queue a number that is still on its way from a device."""
        now = time.time_ns()
        with self._lock:
            self._room -= _LATER_BYTES
            if self._room < 0:
                self._drop(1, _LATER_BYTES, now)
            else:
                self._later.append((value, name, self.step if step is None else step, now, reduce, partial))
                self._queued.later += 1

    def number(self, name: str, value: float, step: int | None) -> None:
        """Log one of our own metrics at a step (None: the current one) without moving the counter."""
        self.row(self._layout(name, "mean", partial=False), (value,), step, commit=False)

    def numbers(self, values: Mapping[str, float], step: int | None) -> None:
        """Log several of our own metrics at a step, as one row."""
        names = tuple(values)
        if not names:
            return
        layout = self._several.get(names)
        if layout is None:
            layout = self._several[names] = Layout(names, "mean")
        self.row(layout, tuple(values.values()), step, commit=False)

    def command(self, call: Callable[[Writer], Any]) -> None:
        """Have the recorder's thread call something with the writer (a `joined` record, the seal)."""
        self._commands.append(call)
        self._wake.set()

    def commit(self, step: int | None = None) -> None:
        """Close the current step, as the last part of a row that went in pieces."""
        with self._lock:
            self._commit(self.step if step is None else step)

    def ticket(self) -> Ticket:
        """A ticket that the next committed row stamps. Where none ever comes, the oldest get the current step."""
        ticket = Ticket()
        with self._lock:
            if len(self._tickets) >= _MAX_TICKETS:
                self._tickets.pop(0).step = self.step
            self._tickets.append(ticket)
        return ticket

    def stamp(self, tickets: Iterable[Ticket]) -> None:
        """Give those of these tickets that are still open the current step: nothing will be logged with them."""
        with self._lock:
            for ticket in tickets:
                if ticket.step is None:
                    ticket.step = self.step
                    self._tickets.remove(ticket)

    def report(self, name: str, read: Callable[[], float]) -> None:
        """Log what `read` returns as the metric `name` whenever it changed, at most every ten seconds."""
        self._own[name] = read

    def log_beside(self, take: Callable[[], Mapping[str, float]]) -> None:
        """Log what `take` returns with each row that closes a step, at that step; on the thread that commits."""
        if take not in self._beside:
            self._beside = (*self._beside, take)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all rows logged so far are in the journal (or in its backlog). False after the timeout."""
        with self._flushed:
            turns = self._turns + 2  # the turn under way may have swapped its buffers already
            rows, later = self._queued.rows, self._queued.later

            def written() -> bool:
                if self._turns < turns:
                    self._wake.set()
                queues = self._done.rows >= rows and self._done.later >= later
                return (queues and self._turns >= turns) or not self._thread.is_alive()

            return self._flushed.wait_for(written, timeout_s)

    def stop(self, timeout_s: float, last: Callable[[Writer], Any] | None = None) -> bool:
        """Write what is there, call `last` with the writer and end the thread. What comes later is counted as dropped.

        Returns:
            False if that did not end in time (a disk that hangs).
        """
        if self._thread.ident is None:
            return True
        self._last = last
        self._give_up_at = time.monotonic() + timeout_s * _LATER_SHARE
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """In a forked child: whoever still holds this recorder finds no lock that is held for ever, and no room."""
        self._lock = threading.RLock()
        self._flushed = threading.Condition()
        self._wake = threading.Event()
        self._room = _NO_ROOM

    # -- under the lock ---------------------------------------------------------------------------------------------

    def _commit(self, step: int) -> None:
        if self._beside and step >= self.step:  # not a step that has been closed before
            for take in self._beside:
                for name, value in take().items():
                    self.number(name, value, step)
        self.step = min(step, _LAST_STEP - 1) + 1
        if self._tickets:
            self._stamp(step)

    def _stamp(self, step: int) -> None:
        for ticket in self._tickets:
            ticket.step = step
        self._tickets.clear()

    def _drop(self, rows: int, size: int, now_ns: int, reason: str = "out of memory") -> None:
        self._room += size
        self._gap.reason = self._gap.reason or reason
        self._gap.since_ns = self._gap.since_ns or now_ns
        self._gap.until_ns = now_ns
        self._gap.rows += rows
        self.dropped_rows += rows

    @property
    def _writer(self) -> Writer:
        if self._opened is None:
            self._opened = self._open_writer()
        return self._opened

    # -- the recorder's thread --------------------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._stopping:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            self._turn()
        guard.attempt("recorder", self._await_later)
        self._next_report = 0.0
        self._turn()
        self._next_report = float("inf")
        with self._lock:
            self._room = _NO_ROOM
        self._turn()
        while self._rows or self._commands:
            self._turn()
        if self._last is not None:
            guard.attempt("recorder", lambda: self._last and self._last(self._writer))
        with self._flushed:
            self._flushed.notify_all()

    def _turn(self) -> None:
        """Write what is there. One part that fails does not keep the others from their turn."""
        numbers = (self._resolve, self._report, self._write_scalars)
        for part in (*numbers, self._write_rows, self._write_gap, self._run_commands):
            guard.attempt("recorder", part)
        with self._flushed:
            self._turns += 1
            self._flushed.notify_all()

    def _resolve(self) -> None:
        while self._later:
            value, name, step, time_ns, reduce, partial = self._later[0]
            found: list[float] = []
            whole = guard.attempt("a value on a device", _take, value, found)
            if whole and not found:
                return
            self._later.popleft()
            layout = self._layout(name, reduce, partial)
            with self._lock:
                self._room += _LATER_BYTES
                if found:
                    self._order += 1
                    self._room -= layout.row_bytes
                    self._dirty[layout] = None
                    layout.buffer += layout.pack(self._order, step, time_ns, found[0])
                else:
                    self._drop(1, 0, time_ns, "failed on the device")
            self._done.later += 1

    def _await_later(self) -> None:
        """Numbers that are on their way when the run ends: they come when the device gets there, or never."""
        pause = threading.Event()
        self._resolve()
        while self._later and time.monotonic() < self._give_up_at:
            pause.wait(_LATER_POLL_S)
            self._resolve()
        while self._later:
            with self._lock:
                self._drop(1, _LATER_BYTES, self._later.popleft()[3], "still on the device at the end")
            self._resolve()

    def _layout(self, name: str, reduce: str, partial: bool) -> Layout:
        key = (name, reduce, partial)
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = Layout([name], reduce, partial=partial)
        return layout

    def _report(self) -> None:
        if time.monotonic() < self._next_report:
            return
        self._next_report = time.monotonic() + _REPORT_INTERVAL_S
        for name, read in self._own.items():
            guard.attempt("recorder", self._report_one, name, read)

    def _report_one(self, name: str, read: Callable[[], float]) -> None:
        value = float(read())
        if self._reported.get(name) != value:
            self._reported[name] = value
            self.row(self._layout(name, "sum", partial=False), (value,), None, commit=False)

    def _write_scalars(self) -> None:
        with self._lock:
            full = [(layout, layout.buffer) for layout in self._dirty]
            for layout in self._dirty:
                layout.buffer = bytearray()
            self._dirty = {}
        rows = [(layout, columns(layout, buffer)) for layout, buffer in full]
        for part in frames(rows):
            if not guard.attempt("recorder", self._append_scalars, part):
                self._lose(sum(len(table) * len(layout.names) for layout, table in part))
        with self._lock:
            self._room += sum(len(buffer) for _, buffer in full)

    def _append_scalars(self, rows: Rows) -> None:
        self._append(records.Table.SCALARS, lambda: scalars_batch(rows))

    def _write_rows(self) -> None:
        waiting: dict[records.Table, list[dict[str, Any]]] = {}
        number = min(len(self._rows), ROWS_PER_TURN)
        for _ in range(number):
            table, make, size = self._rows.popleft()
            made: list[dict[str, Any] | pa.RecordBatch] = []
            with forks.at_work():
                if not guard.attempt(f"{table.name.lower()} row", lambda m=make, out=made: out.append(m())):
                    self._lose(1)
            for row in made:
                if not isinstance(row, pa.RecordBatch):
                    waiting.setdefault(table, []).append(row)
                elif not guard.attempt("recorder", self._append, table, lambda row=row: row):
                    self._lose(row.num_rows)
            with self._lock:
                self._room += size
        for table, dicts in waiting.items():
            self._append_dicts(table, dicts)
        self._done.rows += number
        if number == ROWS_PER_TURN:
            self._wake.set()

    def _append_dicts(self, table: records.Table, dicts: list[dict[str, Any]]) -> None:
        """Write rows of a table; one that its columns cannot hold does not take the others with it."""
        schema = records.SCHEMAS[table]
        if guard.attempt("recorder", self._append, table, lambda: pa.RecordBatch.from_pylist(dicts, schema=schema)):
            return
        if len(dicts) == 1:
            self._lose(1)
            return
        for row in dicts:
            self._append_dicts(table, [row])

    def _write_gap(self) -> None:
        with self._lock:
            gap, self._gap = self._gap, _Gap()
        if gap.rows:
            self._writer.gap(gap.rows, gap.reason, gap.since_ns, gap.until_ns)

    def _run_commands(self) -> None:
        while self._commands:
            call = self._commands.popleft()
            guard.attempt("recorder", lambda c=call: c(self._writer))

    def _append(self, table: records.Table, make: Callable[[], pa.RecordBatch]) -> None:
        with forks.at_work():
            batch = make()
            payload = records.encode(batch)
        self._writer.append(Kind.DATA, payload, table=table, rows=batch.num_rows)

    def _lose(self, rows: int) -> None:
        with self._lock:
            self._drop(rows, 0, time.time_ns(), "could not be encoded")


def _take(value: Later, found: list[float]) -> None:
    if value.ready():
        found.append(float(value.value()))
