"""Ranks as threads of this process, each with the shipped `Group`, over one store and real loopback sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import PrefixStore

from torchtrack.watch.group import FAILURES, Group

NEVER_S = 50.0
"""A timeout nobody should come to: the test would take too long."""


class DeathError(Exception):
    """What a rank raises that the test lets die: none of the failures that a rank survives."""


def together(ranks: Sequence[int], body: Callable[[int], Any]) -> list[Any]:
    """What each rank's body returns or raises, all of them at the same time."""
    results: list[Any] = [None] * len(ranks)

    def run(place: int) -> None:
        try:
            results[place] = body(ranks[place])
        except (*FAILURES, DeathError) as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def others(world_size: int, absent: int) -> list[int]:
    """All ranks but one."""
    return [rank for rank in range(world_size) if rank != absent]


class Ranks:
    """All ranks of a job."""

    def __init__(self, world_size: int, nodes: Sequence[int] | None = None) -> None:
        self.world_size, self.nodes = world_size, nodes
        self.gives_up = False
        self._store = HashStore()
        self._generation = 0
        self.groups: dict[int, Group] = {}

    def connect(self, ranks: Sequence[int] | None = None, nodes: dict[int, Sequence[int]] | None = None) -> list[Any]:
        """Let these ranks, or all, make their groups; those that could not are in the answer as what they raised.

        Args:
            ranks: who comes.
            nodes: what single ranks think about the nodes, where that is not what the others do.
        """
        self._generation += 1
        prefix = f"group{self._generation}"

        def make(rank: int) -> None:
            store = PrefixStore(prefix, self._store)
            known = (nodes or {}).get(rank, self.nodes)
            self.groups[rank] = Group(store, rank, self.world_size, lambda: self.gives_up, known)

        self.groups = {}
        return together(range(self.world_size) if ranks is None else ranks, make)

    def all_reduce(
        self,
        value: Callable[[int], torch.Tensor],
        op: str = "sum",
        timeout_s: float = NEVER_S,
        ranks: Sequence[int] | None = None,
    ) -> list[Any]:
        """What each rank has afterwards; a rank that fails closes its group, as the merge thread does."""

        def reduce(rank: int) -> torch.Tensor:
            tensor = value(rank)
            try:
                self.groups[rank].all_reduce(tensor, op, timeout_s)
            except (*FAILURES, DeathError):
                self.groups[rank].close()
                raise
            return tensor

        return together(sorted(self.groups) if ranks is None else ranks, reduce)

    def close(self) -> None:
        """All leave."""
        together(list(self.groups), lambda rank: self.groups[rank].close())


def assert_failed(results: Sequence[Any]) -> None:
    """All of them raised something that a rank survives."""
    assert [result for result in results if not isinstance(result, FAILURES)] == []
