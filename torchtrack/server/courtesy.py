"""Work of minutes lets questions of milliseconds go first: all threads of the worker share one interpreter."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Final, TypeVar

from torchtrack.server.tenancy import ASGI

QUIET_S: Final = 0.15
"""How long nobody asks anything until long work begins: a page asks several things one after the other,"""
LONGEST_S: Final = 3.0
"""and how long it waits for others at most, in all: somebody waits for it too, and of many people one always asks."""
TURN_S: Final = 0.05
"""How long it works until it looks again whether it is in the way."""
_LONG: Final = ("/findings", "/live")
"""How the addresses end whose answers take long themselves."""

T = TypeVar("T")


class Courtesy:
    """Counts the questions that are being answered. **Threads:** any."""

    def __init__(self) -> None:
        self._asked = 0
        self._quiet_since = 0.0
        self._changed = threading.Condition()

    def begin(self) -> None:
        """A question has come."""
        with self._changed:
            self._asked += 1

    def end(self) -> None:
        """It was answered."""
        with self._changed:
            self._asked -= 1
            self._quiet_since = time.monotonic()
            self._changed.notify_all()

    def give_way(self, longest_s: float, quiet_s: float = 0.0) -> float:
        """Wait until nobody has asked anything for so long, some time at most; how long that took."""
        began = time.monotonic()
        with self._changed:
            while (spent := (now := time.monotonic()) - began) < longest_s:
                left = quiet_s - (now - self._quiet_since)
                if self._asked == 0 and left <= 0:
                    break
                self._changed.wait(longest_s - spent if self._asked else min(left, longest_s - spent))
        return time.monotonic() - began

    def among(self, work: Iterable[T]) -> Iterator[T]:
        """The pieces of a long work, each once nobody waits for something else."""
        spare = LONGEST_S - self.give_way(LONGEST_S, QUIET_S)
        looks = time.monotonic() + TURN_S
        for piece in work:
            yield piece
            if self._asked and spare > 0 and time.monotonic() > looks:
                spare -= self.give_way(spare)
                looks = time.monotonic() + TURN_S


class Asked:
    """ASGI middleware: tells of questions."""

    def __init__(self, app: ASGI, courtesy: Courtesy) -> None:
        self._app = app
        self._courtesy = courtesy

    async def __call__(self, scope: MutableMapping[str, Any], receive: ASGI, send: ASGI) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"].endswith(_LONG):
            await self._app(scope, receive, send)
            return
        self._courtesy.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            self._courtesy.end()
