"""One thread for what may be slow and may fail: media, git, the sidecar, system metrics."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from torchtrack import guard

QUEUE_LENGTH: Final = 1000


class Background:
    """Runs jobs in order and repeats some at intervals, on a daemon thread.

    **Threads:** `submit` and `every` may be called from any thread and never wait; a full queue refuses.
    """

    def __init__(self) -> None:
        self._jobs: deque[tuple[str, Callable[[], Any]]] = deque()
        self._timed: list[tuple[float, int, float, str, Callable[[], Any]]] = []
        self._number = itertools.count()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="torchtrack-background", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, what: str, call: Callable[[], Any]) -> bool:
        """Queue a job; `what` names it when it fails. False if too many wait already, or after `close`."""
        if self._stopping or len(self._jobs) >= QUEUE_LENGTH:
            return False
        self._jobs.append((what, call))
        self._wake.set()
        return True

    def every(self, interval_s: float, what: str, call: Callable[[], Any]) -> None:
        """Run a job soon and then every `interval_s` seconds, by the monotonic clock."""
        self._jobs.append((what, lambda: self._again(interval_s, what, call)))
        self._wake.set()

    def close(self, timeout_s: float) -> bool:
        """Run what is queued and end; repeated jobs run no more. False if that took longer."""
        self._stopping = True
        if self._thread.ident is None:
            return True
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _again(self, interval_s: float, what: str, call: Callable[[], Any]) -> None:
        heapq.heappush(self._timed, (time.monotonic() + interval_s, next(self._number), interval_s, what, call))
        call()

    def _main(self) -> None:
        while True:
            stopping = self._stopping  # asked first: what was queued before it was told to end is done
            while self._jobs:
                guard.attempt(*self._jobs.popleft())
            if stopping:
                return
            now = time.monotonic()
            if self._timed and self._timed[0][0] <= now:
                _, _, interval_s, what, call = heapq.heappop(self._timed)
                self._jobs.append((what, lambda i=interval_s, w=what, c=call: self._again(i, w, c)))  # type: ignore[misc]
                continue
            self._wake.wait(self._timed[0][0] - now if self._timed else None)
            self._wake.clear()
