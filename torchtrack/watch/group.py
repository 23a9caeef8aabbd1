"""A private tree of gloo groups, beside the user's groups: what it does or fails to do never touches training.

Made straight from a store, not by `new_group`, so that the user's groups and their order are unchanged. A thread never
blocks inside a collective: that would abort the process at interpreter exit. It starts the work and polls.

    up:    ranks of a node --reduce--> its first rank, groups of those --reduce--> their first, ...
    top:   all-reduce among the last 16 or fewer
    down:  broadcast along the same groups
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from torchtrack.watch import tree

SLAB_BYTES: Final = 8 << 20
_CONNECT_TIMEOUT_S: Final = 5.0
_POLL_S: Final = (0.0005, 0.02)
_MAX_UNFINISHED: Final = 3
_unfinished: list[tuple[Any, Any]] = []
"""Gloo groups that cannot be destroyed yet, with the work that holds them."""
FAILURES: Final = (RuntimeError, ValueError, OSError, TimeoutError)
"""What a lost peer, a closed socket or a late rank looks like."""


class Group:
    """All-reduces of float64 tensors that give up at a deadline.

    A job of at most `tree.FAN_OUT` ranks is one group. A larger one is a tree: sums go up, the total comes down. It is
    the same to the last bit on all ranks, since it is made once, at the top.

    Args:
        store: an own client of a store that all ranks share, with a prefix no other group uses.
        rank: this rank.
        world_size: how many ranks there are; the constructor waits for those it is connected with.
        give_up: asked while waiting; True ends the wait with TimeoutError.
        nodes: on which node each rank runs, the same on every rank; None if that is unknown (see `tree.levels`).
        connect_within_s: for all levels together.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        give_up: Callable[[], bool],
        nodes: Sequence[int] | None = None,
        connect_within_s: float = _CONNECT_TIMEOUT_S,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._give_up = give_up
        self._below: list[_Link] = []
        """The groups of this rank under the top, the lowest first. It leads all of them but, perhaps, the last."""
        self._top: _Link | None = None
        try:
            self._connect(store, tree.levels(world_size, nodes), connect_within_s)
        except FAILURES:
            self.close()  # who has connected to this rank already would wait in vain
            raise

    def _connect(self, store: Any, levels: list[list[tree.Members]], within_s: float) -> None:
        """Level by level: a leader meets the other leaders once its own group stands."""
        deadline = time.monotonic() + within_s
        fingerprint = tree.digest(levels)
        for level, members in enumerate(tree.path(self.rank, levels)):
            if len(members) == 1 < self.world_size:
                continue
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._give_up():
                raise TimeoutError("the ranks did not connect in time")
            prefix = PrefixStore(f"{fingerprint}/{level}/{members[0]}", store)
            place = members.index(self.rank)
            link = _Link(dist.ProcessGroupGloo(prefix, place, len(members), timedelta(seconds=left_s)))
            if level == len(levels) - 1:
                self._top = link
            else:
                self._below.append(link)

    def all_reduce(self, tensor: torch.Tensor, op: str, timeout_s: float) -> None:
        """Reduce a contiguous tensor in place, in slabs of at most 8 MiB. After a failure its content is undefined.

        Args:
            tensor: float64, on the CPU.
            op: "sum" or "max".
            timeout_s: for all of it.
        """
        up, across, down = dist.ReduceOptions(), dist.AllreduceOptions(), dist.BroadcastOptions()
        up.reduceOp = across.reduceOp = dist.ReduceOp(dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX)
        up.timeout = across.timeout = down.timeout = timedelta(seconds=timeout_s + 1)
        deadline = time.monotonic() + timeout_s
        for slab in tensor.view(-1).split(SLAB_BYTES // 8):
            for link in self._below:
                link.start("reduce", slab, up)
                self._finish(link, deadline)
            if self._top is not None:
                self._top.start("allreduce", slab, across)
                self._finish(self._top, deadline)
            for link in reversed(self._below):
                link.start("broadcast", slab, down)
                self._finish(link, deadline)

    def _finish(self, link: _Link, deadline: float) -> None:
        finish(link.done, deadline, self._give_up)
        link.check()

    def close(self) -> None:
        """Close the connections, so that ranks which still wait for this one learn it, and theirs from them."""
        for link in (*self._below, self._top):
            if link is not None:
                link.close()


class _Link:
    """One gloo group of the tree, and what it is at.

    Nobody else holds the gloo group or its work, since either keeps the connections open: an exception that somebody
    looks at for a while holds every local variable on its way.
    """

    def __init__(self, gloo: Any) -> None:
        self._gloo = gloo
        self._work: Any = None

    def start(self, collective: str, tensor: torch.Tensor, options: Any) -> None:
        """Begin a collective; rank 0 of the gloo group is the root."""
        self._work = getattr(self._gloo, collective)([tensor], options)

    def done(self) -> bool:
        """Whether the collective has ended, well or not. Never waits."""
        return bool(self._work.is_completed())

    def check(self) -> None:
        """Raise what went wrong, once `done`."""
        try:
            self._work.wait()
        finally:
            self._work = None

    def close(self) -> None:
        """Close the connections of this group.

        With unfinished work it cannot be closed: its destructor waits for the work's timeout, at interpreter exit too.
        Such a group is kept until its work has ended by itself, or for the rest of the process.
        """
        if self._work is not None and not self._work.is_completed():
            _unfinished.append((self._gloo, self._work))
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._gloo))
        self._gloo = self._work = None


def finish(done: Callable[[], bool], deadline: float, give_up: Callable[[], bool]) -> None:
    """Poll until something is done; TimeoutError at the deadline (monotonic seconds) or when `give_up` says so."""
    pause = _POLL_S[0]
    while not done():
        if time.monotonic() > deadline or give_up():
            raise TimeoutError("a rank did not come to the merge in time")
        time.sleep(pause)
        pause = min(2 * pause, _POLL_S[1])


def may_connect() -> bool:
    """Whether this process may make another group: those it has to keep cost it threads and open files."""
    for kept in [kept for kept in _unfinished if kept[1].is_completed()]:
        _unfinished.remove(kept)
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(kept[0]))
    return len(_unfinished) < _MAX_UNFINISHED
