"""A private gloo group of all ranks, beside the user's: what it does or fails to do never touches training.

Made straight from a store, not by `new_group`, so that the user's groups and their order are unchanged. A thread never
blocks inside a collective: that would abort the process at interpreter exit. It starts the work and polls.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

SLAB_BYTES: Final = 8 << 20
_CONNECT_TIMEOUT_S: Final = 5.0
_POLL_S: Final = (0.0002, 0.005)
_MAX_UNFINISHED: Final = 3
_unfinished: list[tuple[Any, Any]] = []
"""Groups that cannot be destroyed yet, with the work that holds them."""
FAILURES: Final = (RuntimeError, ValueError, OSError, TimeoutError)
"""What a lost peer, a closed socket or a late rank looks like."""


class Group:
    """All-reduces of float64 tensors that give up at a deadline.

    Args:
        store: an own client of a store that all ranks share, with a prefix no other group uses.
        rank: this rank.
        world_size: how many ranks there are; the constructor waits for all of them, five seconds at most.
        give_up: asked while waiting; True ends the wait with TimeoutError.
    """

    def __init__(self, store: Any, rank: int, world_size: int, give_up: Callable[[], bool]) -> None:
        self.rank, self.world_size = rank, world_size
        self._give_up = give_up
        self._work: Any = None
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, timedelta(seconds=_CONNECT_TIMEOUT_S))

    def all_reduce(self, tensor: torch.Tensor, op: str, timeout_s: float) -> None:
        """Reduce a contiguous tensor in place, in slabs of at most 8 MiB.

        Args:
            tensor: float64, on the CPU.
            op: "sum" or "max".
            timeout_s: for all of it.
        """
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp(dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX)
        options.timeout = timedelta(seconds=timeout_s + 1)
        deadline = time.monotonic() + timeout_s
        for slab in tensor.view(-1).split(SLAB_BYTES // 8):
            self._finish(self._group.allreduce([slab], options), deadline)

    def _finish(self, work: Any, deadline: float) -> None:
        self._work = work
        pause = _POLL_S[0]
        while not work.is_completed():
            if time.monotonic() > deadline or self._give_up():
                raise TimeoutError("a rank did not come to the merge in time")
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_S[1])
        self._work = None
        work.wait()

    def close(self) -> None:
        """Close the connections, so that ranks which still wait for this one learn it.

        A group with unfinished work cannot be closed: its destructor waits for the work's timeout, at interpreter exit
        too. Such a group is kept until its work has ended by itself, or for the rest of the process.
        """
        if self._work is not None:
            _unfinished.append((self._group, self._work))
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
        del self._group


def may_connect() -> bool:
    """Whether this process may make another group: those it has to keep cost it threads and open files."""
    for kept in [kept for kept in _unfinished if kept[1].is_completed()]:
        _unfinished.remove(kept)
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(kept[0]))
    return len(_unfinished) < _MAX_UNFINISHED
