"""`python -m torchtrack.sinks DIR SINK`: forward the runs that the sidecar names on stdin, and leave after it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torchtrack import guard
from torchtrack.beside import Requests
from torchtrack.sinks.forwarder import Forwarder

_LOOK_S: Final = 1.0
_LAST_S: Final = 60
"""How many seconds it goes on at most after the sidecar has left: a service may hang."""
_AGAIN_S: Final = 30.0
"""After what a sink that failed is tried again."""


class Forwarding:
    """The runs of a sidecar, for one sink.

    Args:
        directory: the folder of runs.
        spec: the sink.
        requests: the descriptor that the sidecar writes to.
    """

    def __init__(self, directory: Path, spec: str, requests: int) -> None:
        self._directory, self._spec = directory, spec
        self._requests = Requests(requests, _LAST_S)
        self._runs: dict[str, Forwarder] = {}
        self._again_at: dict[str, float] = {}

    def run(self) -> None:
        """Forward until the sidecar has left."""
        while self._requests.obey(self._obey, _LOOK_S):
            for uid in list(self._runs):
                self._turn(uid)
        for uid in list(self._runs):
            guard.attempt("the end of a sink", self._fresh(uid).finish)

    def _obey(self, request: Mapping[str, Any]) -> None:
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
