"""`python -m torchtrack.lookout DIR`: follow the runs that the sidecar names on stdin, and leave after it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from torchtrack import guard
from torchtrack.lookout.lookout import Lookout

_LOOK_S: Final = 1.0
_SHARE: Final = 0.25
"""Of a processor's time at most, in the long run."""
_GRACE_S: Final = 3.0
"""How long other ranks may take to end after rank 0."""
_LAST_S: Final = 40


class _Warnings(logging.Handler):
    """What would be printed: there is nobody to print it for, so runs record it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Lookouts:
    """The runs of a sidecar.

    **Threads:** requests are read on one of their own, so that the end of the sidecar is seen while a rule hangs.

    Args:
        directory: the folder of runs.
        requests: the descriptor that the sidecar writes to.
        last_s: how many seconds it goes on at most after the sidecar has left.
    """

    def __init__(self, directory: Path, requests: int, last_s: int = _LAST_S) -> None:
        self._directory, self._requests, self._last_s = directory, requests, last_s
        self._runs: dict[str, Lookout] = {}
        self._streams: dict[str, str] = {}
        self._ended_at: dict[str, float] = {}
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._warnings = _Warnings()
        guard.logger.addHandler(self._warnings)

    def run(self) -> None:
        """Follow runs until the sidecar has left."""
        threading.Thread(target=self._listen, name="torchtrack-requests", daemon=True).start()
        pause_s = 0.0
        while self._obeyed(pause_s):
            started_s = time.monotonic()
            for uid in list(self._runs):
                guard.attempt("a lookout", self._turn, uid)
            pause_s = max(_LOOK_S, (time.monotonic() - started_s) / _SHARE)
        for uid in list(self._runs):
            self._finish(uid)

    def _listen(self) -> None:
        with open(self._requests, "rb", closefd=False) as requests:  # it is a descriptor
            for line in requests:
                self._waiting.put(line)
        signal.alarm(self._last_s)  # its default action ends even a rule that hangs
        self._waiting.put(None)

    def _obeyed(self, pause_s: float) -> bool:
        """Do what the sidecar says, as long as it says something, and then wait. False if it has left."""
        until_s = time.monotonic() + pause_s
        while (left_s := until_s - time.monotonic()) > 0 or not self._waiting.empty():
            try:
                line = self._waiting.get(timeout=max(0.0, left_s))
            except queue.Empty:
                return True
            if line is None:
                return False
            guard.attempt("a request to the lookout", self._obey, line)
        return True

    def _turn(self, uid: str) -> None:
        lookout = self._runs[uid]
        ended_at = self._ended_at.get(uid)
        if ended_at is not None and (lookout.ended or time.monotonic() > ended_at + _GRACE_S):
            self._finish(uid)
            return
        while lookout.look() and not lookout.moved:
            pass
        self._warn(lookout)
        if lookout.moved:
            self._runs.pop(uid).close("this is another run")

    def _finish(self, uid: str) -> None:
        lookout = self._runs.pop(uid)
        guard.attempt("the end of a lookout", lookout.finish)
        self._warn(lookout)

    def _warn(self, lookout: Lookout) -> None:
        texts, self._warnings.texts = self._warnings.texts, []
        for text in texts:
            lookout.warn(text)

    def _obey(self, line: bytes) -> None:
        request: dict[str, Any] = json.loads(line)
        stream = str(request["stream"])
        if request.get("ended"):
            uid = self._streams.get(stream, "")
            if uid in self._runs:
                self._ended_at[uid] = time.monotonic()
            return
        uid = self._streams[stream] = str(request["uid"])
        self._ended_at.pop(uid, None)
        if uid not in self._runs:
            self._runs[uid] = Lookout(self._directory, uid)


def main() -> None:
    """Serve one sidecar."""
    with contextlib.suppress(OSError):
        os.nice(19)
    Lookouts(Path(sys.argv[1]), sys.stdin.fileno()).run()


if __name__ == "__main__":
    main()
