"""Tells people what alert rules fired on: a thread a target, the catalog is the queue.

A message that a target does not take is tried again, ever more slowly, for a day. It is noted as sent once it was
taken: a process that is killed in between sends it once more when it is back, which is better than never.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from torchtrack import alerts, guard
from torchtrack.server.firings import Firings

if TYPE_CHECKING:
    import apprise

APART_S: Final = 10.0
"""Between two messages to a target; what comes faster goes out in one."""
LONGEST_S: Final = 300.0
LOOK_S: Final = 30.0
"""How often the catalog is asked though nobody said that something is there."""
PATIENCE_S: Final = 2.0
"""How long the end waits for a target that is being told."""
_LEVELS: Final = {"critical": "error", "warning": "warning", "info": "info"}


class Delivery:
    """The threads, from `start` to `stop`.

    Args:
        firings: the queue.
        notifiers: the targets, each with one service.
        changed: called with the projects of which something was sent, or not.
        page: where people see the page; empty if that is not known.
        apart_s: between two messages to a target.
    """

    def __init__(
        self,
        firings: Firings,
        notifiers: Sequence[apprise.Apprise],
        changed: Callable[[set[str]], None] = lambda _: None,
        page: str = "",
        apart_s: float = APART_S,
    ) -> None:
        self._firings = firings
        self._changed = changed
        self._page = page.rstrip("/")
        self._apart_s = apart_s
        self._stopped = threading.Event()
        self._wakers = [threading.Event() for _ in notifiers]
        self._threads = [
            threading.Thread(target=self._serve, args=(number, each), name=f"torchtrack target {number}", daemon=True)
            for number, each in enumerate(notifiers, 1)
        ]

    def start(self) -> None:
        """Begin, with what was left waiting."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Say that something is there to be told."""
        for waker in self._wakers:
            waker.set()

    def stop(self) -> None:
        """End. A target that hangs is left behind; what it was told is told again."""
        self._stopped.set()
        self.wake()
        ends = time.monotonic() + PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _serve(self, number: int, notifier: apprise.Apprise) -> None:
        waker, failed = self._wakers[number - 1], 0
        while not self._stopped.is_set():
            waker.clear()
            sent = guard.outcome(self._turn, number, notifier)
            if isinstance(sent, Exception):
                guard.report("telling of alerts", sent)
            if sent is None:
                waker.wait(LOOK_S)
                continue
            failed = 0 if sent is True else failed + 1
            self._stopped.wait(min(self._apart_s * 2**failed, LONGEST_S))

    def _turn(self, number: int, notifier: apprise.Apprise) -> bool | None:
        """Tell a target all that waits in one message: whether it was taken, None if nothing waits."""
        rows = self._firings.waiting(number)
        if not rows:
            return None
        sent = alerts.send(notifier, alerts.together([self._alert(row) for row in rows]))
        self._firings.tried(number, rows, sent=sent)
        self._changed({row["project"] for row in rows})
        return sent

    def _alert(self, row: Mapping[str, Any]) -> alerts.Alert:
        where = f"project {row['project']}, run {row['uid']}"
        if row["step"] is not None:
            where += f", step {row['step']}"
        link = f"{self._page}/#/p/{quote(row['project'], safe='')}/r/{row['uid']}/stability" if self._page else ""
        text = "\n".join(filter(None, (row["text"], where, link)))
        return alerts.Alert(f"[{row['run']}] {row['name']}", text, _LEVELS[row["severity"]])
