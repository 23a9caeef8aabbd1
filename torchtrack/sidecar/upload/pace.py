"""When the next request may go: the server's budget, its Retry-After, else exponential backoff with full jitter."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from typing import Final

LONGEST_WAIT_S: Final = 3600.0
"""However long a server or a proxy says."""
_FIRST_S: Final = 1.0
_MOST_S: Final = 60.0
_MOST_SPREAD_S: Final = 300.0
_MOST_INTERVAL_S: Final = 600.0


def retry_after(value: str | None, now_s: float | None = None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None if it is no such thing.

    Args:
        value: the header.
        now_s: wall time, for a date.
    """
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdecimal():
        return min(LONGEST_WAIT_S, float(text[:9]))
    try:
        date = email.utils.parsedate_to_datetime(text)
        seconds = date.timestamp() - (time.time() if now_s is None else now_s)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(LONGEST_WAIT_S, max(0.0, seconds))


class Pace:
    """Holds back requests. Times are of `clock`.

    Args:
        clock: monotonic seconds.
        rng: for the jitter.
    """

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        self.failures = 0
        """How many requests have failed in a row."""
        self._clock = clock
        self._rng = rng
        self._at = clock()

    def wait_s(self) -> float:
        """Seconds until the next request may go."""
        return max(0.0, self._at - self._clock())

    def succeeded(self, next_after_s: float) -> None:
        """The server took it and says when it wants the next."""
        self.failures = 0
        sane = next_after_s if 0.0 <= next_after_s <= _MOST_INTERVAL_S else _MOST_S
        self._at = self._clock() + sane * self._rng.uniform(0.95, 1.05)

    def failed(self, retry_after_s: float | None = None, at_least_s: float = 0.0) -> None:
        """The server did not take it.

        Args:
            retry_after_s: what it said; it is never asked earlier.
            at_least_s: what makes sense to wait anyhow.
        """
        self.failures += 1
        bound = min(_MOST_S, _FIRST_S * 2.0 ** min(self.failures - 1, 16))
        least = min(LONGEST_WAIT_S, max(at_least_s, retry_after_s or 0.0))
        # All who are told to come again in ten seconds come over the ten seconds after that.
        spread = max(bound, min(least, _MOST_SPREAD_S))
        self._at = self._clock() + least + self._rng.uniform(0.0, spread)

    def hurry(self) -> None:
        """Something ends: ask now, unless the server has to be left in peace."""
        if not self.failures:
            self._at = self._clock()
