"""Which steps are sampled: every `log_freq`-th, or as many as a share of the training time pays for.

Under a budget the interval is a power of two, so that the samples of ranks which do not agree yet lie inside each other
and some are common. Ranks agree at each merged sample: all take the longest interval that any of them needs, from a
step on that none of them has reached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_SMOOTHING: Final = 0.2
"""Weight of the newest measurement."""
_MARGIN: Final = 4
"""Steps that a rank may make while it learns what was agreed."""
LONGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Change:
    """From the step `at` on, another interval."""

    at: int
    interval: int


class Schedule:
    """Says of each optimizer step whether it is sampled, and under a budget measures what that costs.

    **Threads:** `agree` may be called from another thread than the rest; each step sees all of a change or nothing.

    Args:
        log_freq: steps from one sample to the next; with a budget not used.
        budget: the share of the training time that samples may take, such as 0.01; None for a fixed interval.
    """

    def __init__(self, log_freq: int, budget: float | None = None) -> None:
        self.budget = budget
        self._now = 0
        self._interval = 1 if budget is not None else log_freq
        self._change: _Change | None = None
        self._sample_s: float | None = None
        self._step_s: float | None = None
        self._began: float | None = None
        self._spent = 0.0

    @property
    def terms(self) -> str:
        """What ranks must have in common to merge."""
        return str(self._interval) if self.budget is None else f"{self.budget:g}"

    @property
    def interval(self) -> int:
        """Steps from one sample to the next, now."""
        return self._interval

    @property
    def share(self) -> float:
        """Of the training time, what samples take at this interval, as measured; 0 before anything is known."""
        if not self._sample_s or not self._step_s:
            return 0.0
        return self._sample_s / self._interval / self._step_s

    @property
    def step_s(self) -> float:
        """What a step takes without samples, as measured; 0 before anything is known."""
        return self._step_s or 0.0

    def is_due(self, step: int) -> bool:
        """Whether this step of an optimizer is sampled."""
        change = self._change
        if change is not None and step >= change.at:
            self._interval, self._change = change.interval, None
        self._now = max(self._now, step)
        return step % self._interval == 0

    def began(self, now_s: float) -> None:
        """A step begins: the time since the last one, less what samples took in it, is what a bare step takes."""
        if self._began is not None:
            self._step_s = _smoothed(self._step_s, max(now_s - self._began - self._spent, 1e-9))
        self._began, self._spent = now_s, 0.0

    def interrupted(self) -> None:
        """Until the next step something else than training happens."""
        self._began = None

    def took(self, seconds: float) -> None:
        """Work on the sample of this step held training up for so long."""
        self._spent += seconds

    def sampled(self, seconds: float) -> None:
        """A whole sample took so long, on the host or on the device, whichever is longer."""
        self._sample_s = _smoothed(self._sample_s, seconds)

    def wanted(self) -> int:
        """The interval that keeps this rank within the budget: the next power of two.

        One that is shorter than now is asked for only if it leaves room: else it would go to and fro.
        """
        if self.budget is None or not self._sample_s or not self._step_s:
            return self._interval
        needed = self._sample_s / (self.budget * self._step_s)
        interval = min(1 << max(0, math.ceil(math.log2(max(needed, 1.0)))), LONGEST)
        return interval if interval > self._interval or 2 * needed < self._interval / 2 else self._interval

    @property
    def now(self) -> int:
        """The latest step that was asked about."""
        return self._now

    def agree(self, interval: int, now: int) -> None:
        """Take an interval from a step on that no rank has reached yet, if it is another than now.

        Args:
            interval: the longest that a rank wants.
            now: the latest step that a rank has begun.
        """
        if self.budget is None:
            return
        change = self._change
        if interval == (change.interval if change else self._interval):
            return
        self._change = _Change(now + _MARGIN, interval)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + _SMOOTHING * (now - before)
