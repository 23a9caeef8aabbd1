"""What all ranks decide at a step, and what they know of it: over a private gloo group, on the training thread.

Only for what the user asked a wait for. Ranks that cannot decide together decide nothing any more.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.distributed.distributed_c10d import PrefixStore

from torchtrack.watch.group import FAILURES, Group

if TYPE_CHECKING:
    from torchtrack.job import Job

MEET_WITHIN_S: Final = 60.0
"""Ranks reach their first step within this of each other."""
ANSWER_WITHIN_S: Final = 600.0
FINE, HERE, ORIGIN = 0.0, 1.0, 2.0
"""What a rank says of itself: nothing; a gradient that it uses is not finite; its own was not before the average."""
_POLL_S: Final = 0.01
_NAME_BYTES: Final = 512
logger = logging.getLogger("torchtrack")


class Ranks:
    """One answer of all ranks; their group is made at the first step.

    Args:
        job: who the others are.
        ordinal: number of the watch in the run, the same on every rank.
    """

    def __init__(self, job: Job | None, ordinal: int) -> None:
        self.rank = 0
        self._job, self._ordinal = job, ordinal
        self._group: Group | None = None
        self._number = 0
        self._broken = False
        self._ended = False

    def agree(self, bad: bool) -> bool:
        """Whether a step is bad on any rank; False on all of them from when one was lost."""
        if not self._together():
            return bad and not self._broken
        self._number += 1
        answer = np.array([self._number, -self._number, bad], np.float64)
        if not self._max(answer):
            return False
        if answer[0] != -answer[1]:
            self._give_up("they are at different steps")
            return False
        return bool(answer[2])

    def blame(self, code: float, order: int, first: str) -> tuple[np.ndarray[Any, Any], str]:
        """What each rank says of itself, and the first parameter: by one whose own gradient it was, if there is one."""
        if self._group is None:
            return np.array([code]), first
        size, text = self._group.world_size, first.encode()[:_NAME_BYTES]
        said = np.full((2, size), -np.inf)
        said[:, self.rank] = code, order
        if not self._max(said):
            return np.array([], np.float64), first
        # of several the one that the backward pass came to first, of equals the lowest rank
        speaker = max(range(size), key=lambda rank: (said[0, rank], said[1, rank], -rank))
        name = np.zeros(_NAME_BYTES)
        if speaker == self.rank:
            name[: len(text)] = list(text)
        if not self._max(name):
            return said[0], first
        return said[0], bytes(name.astype(np.uint8)).rstrip(b"\0").decode(errors="replace")

    def close(self) -> None:
        """Leave the others."""
        self._ended = True
        if self._group is not None:
            self._group.close()
            self._group = None

    def _max(self, array: np.ndarray[Any, Any]) -> bool:
        assert self._group is not None  # noqa: S101
        try:
            self._group.all_reduce(torch.from_numpy(array), "max", ANSWER_WITHIN_S)
        except FAILURES as error:
            self._give_up(str(error))
            return False
        return True

    def _together(self) -> bool:
        """Whether there are other ranks to ask; meets them at the first call."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._broken or self._ended or not distributed or torch.distributed.get_world_size() < 2:
            return False
        if self._group is None:
            try:
                self._group = self._meet()
                self.rank = self._group.rank
            except FAILURES as error:
                self._give_up(str(error))
        return self._group is not None

    def _meet(self) -> Group:
        deadline = time.monotonic() + MEET_WITHIN_S
        store = self._job.store() if self._job is not None else None
        while store is None and self._job is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)  # the ranks are still finding out that they are one run
            store = self._job.store()
        if store is None or self._job is None:
            raise TimeoutError("they did not become one run in time")
        identity = self._job.identity
        prefix = f"torchtrack/{identity.uid}/{identity.attempt}/nonfinite{self._ordinal}"
        named = PrefixStore(prefix, store)
        left_s = max(1.0, deadline - time.monotonic())
        return Group(named, identity.rank, identity.world_size, lambda: self._ended, connect_within_s=left_s)

    def _give_up(self, why: str) -> None:
        self._broken = True
        self.close()
        logger.warning(
            "torchtrack: the ranks cannot decide together on steps whose gradients are not finite (%s); from here on "
            "such steps are recorded, not stopped. watch(on_nonfinite=) is to be the same on every rank",
            why,
        )
