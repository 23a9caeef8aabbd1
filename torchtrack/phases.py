"""Where the time of a step goes: seconds on the host's clock in each phase that the training thread says it is in.

Where it says none, what `watch` sees is told: how long a rank waits for the others, and how long it does not.
"""

from __future__ import annotations

import threading
from time import perf_counter
from typing import Any, Final

MAX_NAME: Final = 128
OWN: Final = "phase/own_s"
SYNC: Final = "phase/sync_s"


class Phases:
    """The clock of one process: `enter` ends one phase and begins the next, `take` reads and starts over.

    **Threads:** the training thread, which is the one that called `enter` last. A row that another thread commits
    takes nothing, so there is no lock. `sync` and `resume` come from the thread that runs the backward pass, while the
    training thread is in it. No call waits.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._seconds: dict[str, float] = {}
        self._metric = ""
        self._since = 0.0
        self._thread = 0
        self._said = False
        """Whether the script says its phases: then what is measured is not told."""
        self._stepped = False
        """Whether an optimizer step has begun since the last row,"""
        self._synced = False
        """and whether ranks have met."""

    def enter(self, name: Any) -> None:
        """Count the time from now on to this phase.

        Raises:
            TypeError: the name is no string.
            ValueError: it cannot be part of a metric's name.
        """
        metric = self._names.get(name) if type(name) is str else None
        if metric is None:
            metric = self._names[name] = f"phase/{_checked(name)}_s"
        if not self._said:
            self._said, self._metric, self._seconds = True, "", {}
        self._charge(perf_counter())
        self._metric, self._thread = metric, threading.get_ident()

    def take(self) -> dict[str, float]:
        """Metric name -> seconds of every phase since the last call; the phase under way goes on."""
        if self._thread != threading.get_ident() or not (self._said or (self._stepped and self._synced)):
            return {}
        self._stepped = self._synced = False
        self._charge(perf_counter())
        seconds, self._seconds = self._seconds, {}
        return seconds

    def sync(self) -> None:
        """From now on this rank may wait for others. Without effect where the script says its phases."""
        if not self._said and self._metric:
            self._charge(perf_counter())
            self._metric, self._synced = SYNC, True

    def resume(self) -> None:
        """From now on it works by itself again."""
        if not self._said and self._metric:
            self._charge(perf_counter())
            self._metric = OWN

    def step(self) -> None:
        """An optimizer step begins, on the training thread. The first one starts the clock."""
        if self._said:
            return
        if self._metric:
            self._stepped = True
        else:
            self._since, self._metric = perf_counter(), OWN
        self._thread = threading.get_ident()

    def _charge(self, now: float) -> None:
        since, self._since = self._since, now  # first: a signal handler that logs must not count it again
        if self._metric:
            self._seconds[self._metric] = self._seconds.get(self._metric, 0.0) + now - since


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f'phase() takes a name such as "data", "forward", "backward" or "optimizer", got {name!r:.80}')
    if not name or len(name) > MAX_NAME or "/" in name or not name.isprintable() or name != name.strip():
        raise ValueError(
            f'phase() takes a name such as "data" or "forward": 1 to {MAX_NAME} printable characters without "/" and '
            f"without spaces around it; got {name!r:.80}"
        )
    return str(name)
