"""`python -m torchtrack.sinks DIR SINK`: forward the runs that the sidecar names on stdin, and leave after it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from torchtrack import guard
from torchtrack.sinks.forwarder import Forwarder

_LOOK_S: Final = 1.0
_LAST_S: Final = 60
"""How many seconds it goes on at most after the sidecar has left: a service may hang."""
_AGAIN_S: Final = 30.0
"""After what a sink that failed is tried again."""


class Forwarding:
    """The runs of a sidecar, for one sink.

    **Threads:** requests are read on one of their own, so that the end of the sidecar is seen while a sink hangs.

    Args:
        directory: the folder of runs.
        spec: the sink.
        requests: the descriptor that the sidecar writes to.
        last_s: how many seconds it goes on at most after the sidecar has left.
    """

    def __init__(self, directory: Path, spec: str, requests: int, last_s: int = _LAST_S) -> None:
        self._directory, self._spec, self._requests, self._last_s = directory, spec, requests, last_s
        self._runs: dict[str, Forwarder] = {}
        self._again_at: dict[str, float] = {}
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Forward until the sidecar has left."""
        threading.Thread(target=self._listen, name="torchtrack-requests", daemon=True).start()
        while self._obeyed():
            for uid in list(self._runs):
                self._turn(uid)
        for uid in list(self._runs):
            guard.attempt("the end of a sink", self._fresh(uid).finish)

    def _listen(self) -> None:
        with open(self._requests, "rb", closefd=False) as requests:  # it is a descriptor
            for line in requests:
                self._waiting.put(line)
        signal.alarm(self._last_s)  # its default action ends even a sink that hangs
        self._waiting.put(None)

    def _obeyed(self) -> bool:
        """Do what the sidecar says, for a moment. False if it has left."""
        until_s = time.monotonic() + _LOOK_S
        while (left_s := until_s - time.monotonic()) > 0 or not self._waiting.empty():
            try:
                line = self._waiting.get(timeout=max(0.0, left_s))
            except queue.Empty:
                return True
            if line is None:
                return False
            guard.attempt("a request to a sink", self._obey, line)
        return True

    def _obey(self, line: bytes) -> None:
        request: dict[str, Any] = json.loads(line)
        uid = request.get("uid")
        if uid and str(uid) not in self._runs:
            self._runs[str(uid)] = Forwarder(self._directory, str(uid), self._spec)

    def _turn(self, uid: str) -> None:
        if time.monotonic() < self._again_at.get(uid, 0.0):
            return
        forwarder = self._runs[uid]
        if not guard.attempt("a sink", forwarder.look):
            self._again_at[uid] = time.monotonic() + _AGAIN_S
            self._runs[uid] = Forwarder(self._directory, uid, self._spec)
        elif forwarder.moved:
            del self._runs[uid]

    def _fresh(self, uid: str) -> Forwarder:
        """One that failed begins again where it was for a last time."""
        if uid in self._again_at:
            return Forwarder(self._directory, uid, self._spec)
        return self._runs[uid]


def main() -> None:
    """Serve one sidecar."""
    with contextlib.suppress(OSError):
        os.nice(19)
    Forwarding(Path(sys.argv[1]), sys.argv[2], sys.stdin.fileno()).run()
    os._exit(0)  # threads of a sink that hangs are left


if __name__ == "__main__":
    main()
