"""Capture of what a program prints, line by line. Opt-in.

sys.stdout and sys.stderr are replaced by objects that pass everything on and keep a copy of each line; file descriptors
are left alone, so what C code or a subprocess prints is not seen. **No thread ever waits here:** a write leaves its
text in a queue, and one thread at a time, whichever comes, takes lines out. **The sink is called by a thread that may
hold any lock**, since a program may print anywhere: it should do no more than append to a queue.
"""

from __future__ import annotations

import collections
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from torchtrack import guard

MAX_LINE_CHARS: Final = 8192
_MAX_WAITING_WRITES = 10_000
_STREAMS = ("stdout", "stderr")

LineSink = Callable[[str, str], None]


class ConsoleCapture:
    """Hands each line printed through sys.stdout and sys.stderr to a sink, between start and stop.

    A progress bar, which overwrites its line with carriage returns, becomes the line's last state. Lines beyond
    `max_lines_per_s` a stream are counted, and one line says how many are missing.

    Args:
        write: called as write("stdout" | "stderr", line), by the thread that printed, one call at a time a stream. A
            failure in it is reported once and printing goes on.
        max_lines_per_s: how many lines of a stream are kept in a second.
        clock: seconds that never go back.
    """

    def __init__(
        self, write: LineSink, *, max_lines_per_s: int = 200, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._max_lines_per_s = max_lines_per_s
        self._clock = clock
        self._in_sink = threading.local()
        self._tees: dict[str, _Tee] = {}

    def start(self) -> None:
        """Begin. Does nothing if it has begun."""
        for name in _STREAMS:
            original = getattr(sys, name)
            if name not in self._tees and original is not None:
                lines = _Lines(functools.partial(self._sink, name), self._max_lines_per_s, self._clock)
                self._tees[name] = _Tee(original, lines, self._in_sink)
                setattr(sys, name, self._tees[name])

    def stop(self) -> None:
        """End, after the last line even if it is not complete; a stream somebody else has replaced stays theirs."""
        for name, tee in self._tees.items():
            if getattr(sys, name) is tee:
                setattr(sys, name, tee.original)
            tee.close_capture()
        self._tees.clear()

    def _sink(self, stream: str, line: str) -> None:
        self._in_sink.now = True
        try:
            guard.attempt("console", self._write, stream, line)
        finally:
            self._in_sink.now = False

    def __enter__(self) -> ConsoleCapture:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Tee:
    """Stands in for a text stream; whoever keeps a reference after the end has a plain passage to the original."""

    def __init__(self, original: Any, lines: _Lines, in_sink: threading.local) -> None:
        self.original = original
        self._lines: _Lines | None = lines
        self._in_sink = in_sink
        self._pid = os.getpid()

    def write(self, text: str) -> Any:
        result = self.original.write(text)
        lines = self._lines
        # What the sink prints would go round for ever; a forked child is no part of the run.
        if lines is not None and not getattr(self._in_sink, "now", False) and os.getpid() == self._pid:
            lines.feed(text)
        return result

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def close_capture(self) -> None:
        lines, self._lines = self._lines, None
        if lines is not None and os.getpid() == self._pid:
            lines.finish()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __enter__(self) -> _Tee:
        return self

    def __exit__(self, *_: object) -> None:
        self.original.flush()


class _Lines:
    """Puts lines together from writes, and rations them."""

    def __init__(self, sink: Callable[[str], None], max_lines_per_s: int, clock: Callable[[], float]) -> None:
        self._sink = sink
        self._max_lines_per_s = max_lines_per_s
        self._clock = clock
        self._waiting: collections.deque[str] = collections.deque()
        self._taking = threading.Lock()
        self._partial = ""
        self._second = clock()
        self._written = 0
        self._dropped = 0

    def feed(self, text: str) -> None:
        if len(self._waiting) < _MAX_WAITING_WRITES:
            self._waiting.append(text)
        else:
            self._dropped += text.count("\n")
        # Whoever fails to take the lock has left its text to the holder, who looks again after letting it go.
        while self._waiting and self._taking.acquire(blocking=False):
            try:
                self._take()
            finally:
                self._taking.release()

    def finish(self) -> None:
        if self._partial:
            self.feed("\n")
        self._report_dropped()

    def _take(self) -> None:
        while self._waiting:
            *complete, rest = (self._partial + self._waiting.popleft()).split("\n")
            for line in complete:
                self._emit(_last_state(line))
            # A bar redraws its line without end: what was overwritten is not kept.
            self._partial = rest if len(rest) < MAX_LINE_CHARS else _last_state(rest)[:MAX_LINE_CHARS]

    def _emit(self, line: str) -> None:
        now = self._clock()
        if now - self._second >= 1.0:
            self._report_dropped()
            self._second, self._written = now, 0
        if self._written < self._max_lines_per_s:
            self._written += 1
            self._sink(line[:MAX_LINE_CHARS])
        else:
            self._dropped += 1

    def _report_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._sink(f"[torchtrack: {dropped} lines not recorded, more than {self._max_lines_per_s} a second]")


def _last_state(line: str) -> str:
    """What a terminal shows of a line with carriage returns, near enough: the text after the last of them."""
    return line.rstrip("\r").rpartition("\r")[2]
