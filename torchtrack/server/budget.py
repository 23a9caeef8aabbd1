"""How fast a job may send: what every answer tells, and what is refused of those who do not listen. Holds no clock."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_LIVE_S: Final = 60.0
"""A node that was silent for so long, and for three of its turns, has no share any more."""
_FORGET_S: Final = 3600.0
_JOBS: Final = 1000
"""So many are remembered, however long they are silent."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes.

    Attributes:
        job_requests_per_s: of all nodes of a run together.
        job_bytes_per_s: likewise, uncompressed.
        interval_s: the least time between two requests of a node that has nothing waiting.
        key_requests_per_s: what one API key may do before it is refused, with a burst of so many as in five seconds.
        body_bytes: of one request, before and after decompression; holds the largest frame there is.
        pending_bytes: bodies that are held in memory at one time.
        media_bytes: of one file.
        free_bytes: space on the disk below which nothing is taken.
    """

    job_requests_per_s: float = 5.0
    job_bytes_per_s: float = 16e6
    interval_s: float = 5.0
    key_requests_per_s: float = 200.0
    body_bytes: int = 72 << 20
    pending_bytes: int = 256 << 20
    media_bytes: int = 1 << 30
    free_bytes: int = 64 << 20


@dataclass(frozen=True)
class Share:
    """What a node may do next: wait so long, then send so much."""

    next_after_s: float
    max_bytes: int


class BusyError(Exception):
    """Come again in `retry_after_s` seconds. `flooding` tells whether the sender is the cause."""

    def __init__(self, message: str, retry_after_s: float, *, flooding: bool) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.flooding = flooding


class Budget:
    """Shares the limits among those who send. **Threads:** any.

    Args:
        limits: what there is to share.
        clock: monotonic seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()
        self._tokens: dict[str, tuple[float, float]] = {}
        self._pending = 0

    def enter(self, key: str) -> None:
        """Count a request of a key.

        Raises:
            BusyError: it sends more than its limit.
        """
        rate = self.limits.key_requests_per_s
        with self._lock:
            now = self._clock()
            tokens, since = self._tokens.get(key, (5 * rate, now))
            tokens = min(5 * rate, tokens + (now - since) * rate)
            self._tokens[key] = (max(0.0, tokens - 1), now)
        if tokens < 1:
            raise BusyError(f"this key sends more than {rate:g} requests a second", 1.0 + 1 / rate, flooding=True)

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """Room in memory for a body, given back at the end."""
        held = Held(self)
        try:
            yield held
        finally:
            with self._lock:
                self._pending -= held.size

    def take(self, size: int) -> None:
        """Room for so many bytes more.

        Raises:
            BusyError: there is none now.
        """
        with self._lock:
            if self._pending and self._pending + size > self.limits.pending_bytes:
                raise BusyError("more is coming in than is being written", 2.0, flooding=False)
            self._pending += size

    def share(self, jobs: Iterable[str], node: str, *, waiting: bool) -> Share:
        """What a node may do next.

        Args:
            jobs: the runs it sends for.
            node: who it is.
            waiting: whether it has more to send already.
        """
        limits = self.limits
        with self._lock:
            now = self._clock()
            nodes = max([1, *(self._live(job, node, now) for job in jobs)])
        turn = nodes / limits.job_requests_per_s
        after = turn if waiting else max(turn, limits.interval_s)
        fair = int(limits.job_bytes_per_s / nodes * max(after, 1.0))
        return Share(after, max(1 << 16, min(fair, limits.body_bytes // 4)))

    def _live(self, job: str, node: str, now: float) -> int:
        """How many nodes a job has now. Whoever was silent for longest is first: no look at all the others."""
        seen = self._jobs.setdefault(job, OrderedDict())
        self._jobs.move_to_end(job)
        seen[node] = now
        seen.move_to_end(node)
        patience = max(_LIVE_S, 3 * len(seen) / self.limits.job_requests_per_s)
        while now - next(iter(seen.values())) > patience:
            seen.popitem(last=False)
        while len(self._jobs) > _JOBS and now - next(reversed(next(iter(self._jobs.values())).values())) > _FORGET_S:
            self._jobs.popitem(last=False)
        return len(seen)


class Held:
    """The bytes that one request holds."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = 0

    def grow(self, size: int) -> None:
        """Hold more.

        Raises:
            BusyError: there is no room now.
        """
        self._budget.take(size)
        self.size += size
