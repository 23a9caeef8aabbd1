"""`python -m torchtrack.lookout DIR`: follow the runs that the sidecar names on stdin, and leave after it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torchtrack import guard
from torchtrack.beside import Requests
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

    Args:
        directory: the folder of runs.
        requests: the descriptor that the sidecar writes to.
        last_s: how many seconds it goes on at most after the sidecar has left.
    """

    def __init__(self, directory: Path, requests: int, last_s: int = _LAST_S) -> None:
        self._directory = directory
        self._requests = Requests(requests, last_s)
        self._runs: dict[str, Lookout] = {}
        self._streams: dict[str, str] = {}
        self._ended_at: dict[str, float] = {}
        self._warnings = _Warnings()
        guard.logger.addHandler(self._warnings)

    def run(self) -> None:
        """Follow runs until the sidecar has left."""
        pause_s = 0.0
        while self._requests.obey(self._obey, pause_s):
            started_s = time.monotonic()
            for uid in list(self._runs):
                guard.attempt("a lookout", self._turn, uid)
            pause_s = max(_LOOK_S, (time.monotonic() - started_s) / _SHARE)
        for uid in list(self._runs):
            self._finish(uid)

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

    def _obey(self, request: Mapping[str, Any]) -> None:
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
