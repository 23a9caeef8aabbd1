"""Which runs of a folder are still to be read, which of them somebody waits for, and the waiting.

Of a folder that is shown for the first time the newest run can be asked about as soon as it was read, and one that is
asked for is read before all others: nobody waits for a thousand old runs.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable


class Arrivals:
    """Runs by the name of their folder. **Threads:** any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._unread: set[str] | None = None  # None: nobody has looked yet
        self._wanted: set[str] = set()
        self._any = False

    @property
    def unread(self) -> int:
        """How many runs were found and not read yet."""
        return len(self._unread or ())

    @property
    def all_read(self) -> bool:
        """Whether it is known that no run is left to read."""
        return self._unread == set()

    def begin(self) -> None:
        """Something can be asked about: what was read before this process began."""
        with self._changed:
            self._any = True
            self._changed.notify_all()

    def expect(self, runs: Iterable[str]) -> None:
        """These were found and are going to be read."""
        with self._changed:
            self._unread = (self._unread or set()) | set(runs)
            self._changed.notify_all()

    def first(self, runs: Collection[str]) -> str:
        """Which of some runs to read first: one that somebody waits for, else the first."""
        with self._changed:
            return next((run for run in self._wanted if run in runs), None) or next(iter(runs))

    def is_wanted(self, run: str) -> bool:
        """Whether somebody waits for it."""
        with self._changed:
            return run in self._wanted

    def read(self, runs: Iterable[str]) -> None:
        """These can be asked about now."""
        with self._changed:
            self._unread = (self._unread or set()) - set(runs)
            self._wanted &= self._unread
            self._any = True
            self._changed.notify_all()

    def finish(self) -> None:
        """All that was found was read."""
        with self._changed:
            self._unread, self._wanted = set(), set()
            self._changed.notify_all()

    def wait(self, run: str | None, timeout_s: float) -> bool:
        """Wait until a run can be asked about, and have it read first; None: until any can, or there is none.

        Returns:
            Whether there is nothing to wait for any more.
        """
        with self._changed:
            if run is None:
                return self._changed.wait_for(lambda: self._any or self.all_read, timeout_s)
            if self._unread is None or run in self._unread:
                self._wanted.add(run)
            return self._changed.wait_for(lambda: self._unread is not None and run not in self._unread, timeout_s)
