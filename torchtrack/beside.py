"""What a process beside the sidecar, which may hang, hears from it: the other end of `sidecar.helper`."""

from __future__ import annotations

import json
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from torchtrack import guard


class Requests:
    """Requests of the sidecar, in order.

    **Threads:** they are read on one of their own, so that the end of the sidecar is seen while what obeys them hangs.

    Args:
        descriptor: what the sidecar writes to.
        last_s: the most seconds that the process goes on after the sidecar has left.
    """

    def __init__(self, descriptor: int, last_s: int) -> None:
        self._descriptor, self._last_s = descriptor, last_s
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="torchtrack-requests", daemon=True).start()

    def obey(self, do: Callable[[Mapping[str, Any]], object], wait_s: float) -> bool:
        """Do what the sidecar says, for so long and as long as it says something. False if it has left."""
        until_s = time.monotonic() + wait_s
        while (left_s := until_s - time.monotonic()) > 0 or not self._waiting.empty():
            try:
                line = self._waiting.get(timeout=max(0.0, left_s))
            except queue.Empty:
                return True
            if line is None:
                return False
            guard.attempt("a request of the sidecar", lambda line=line: do(json.loads(line)))
        return True

    def _listen(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as requests:  # it is a descriptor
            for line in requests:
                self._waiting.put(line)
        signal.alarm(self._last_s)  # its default action ends even a process that hangs
        self._waiting.put(None)
