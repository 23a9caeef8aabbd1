"""Where the ranks of one watch meet: offers in the store they share, a plan that rank 0 makes of them, then a group.

Every rank puts its offer into the store and takes its plan from there, so a meeting costs each rank a handful of
messages, however many there are. No call waits: who finds nothing comes back later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from torchtrack.watch.agreement import agree
from torchtrack.watch.group import Group
from torchtrack.watch.offer import Offer, Received, read_offers
from torchtrack.watch.plan import Plan

if TYPE_CHECKING:
    from torchtrack.job import Job


_FIRST_PAUSE_S: Final = 0.01
_GATHER_S: Final = 5.0
_AGAIN: Final = b"again"
"""Before the numbers of samples: rank 0 found none that all ranks have counted."""


class Meeting:
    """Ranks of one watch meet in the store: offers by round, then a group; a new generation after every failure."""

    def __init__(self, store: Any, prefix: str, rank: int, world_size: int, attempt: int) -> None:
        self.attempt = attempt
        self.wanted: set[int] = set()
        """Samples that other ranks have offered: worth keeping until this rank has counted them too."""
        self._store, self._prefix = store, prefix
        self._rank, self._world_size = rank, world_size
        self._generation = 0
        self._round = 0
        self._offered: Offer | None = None
        self._next_look = 0.0
        self._pause = _FIRST_PAUSE_S

    @classmethod
    def join(cls, job: Job, ordinal: int, terms: str) -> Meeting | None:
        """A meeting over the job's store of the ranks that watch on the same terms; None while there is no store."""
        store, identity = job.store(), job.identity
        if store is None:
            return None
        prefix = f"torchtrack/{identity.uid}/{identity.attempt}/watch{ordinal}/{terms}"
        return cls(store, prefix, identity.rank, identity.world_size, identity.attempt)

    def agree(self, offer: Offer) -> Plan | None:
        """Publish an offer once a round; the plan when rank 0 could make one of all of them. Never waits."""
        if time.monotonic() < self._next_look:
            return None
        if self._offered is None:
            if self._round and max(offer.samples) < max(self.wanted):  # the answer would be the same
                self._wait(at_most_s=0.05)
                return None
            self._offered = offer
            self._store.set(self._key("offer", self._rank), offer.encode())
        if self._rank == 0:
            offers = [self._key("offer", rank) for rank in range(self._world_size)]
            if not self._store.check(offers):
                self._wait(at_most_s=1.0)
                return None
            return self._decide(read_offers([bytes(self._store.get(key)) for key in offers]))
        if not self._store.check([self._key("plan", self._rank)]):
            self._wait(at_most_s=1.0)
            return None
        answer = bytes(self._store.get(self._key("plan", self._rank)))
        if answer.startswith(_AGAIN):
            self._again(json.loads(answer[len(_AGAIN) :]))
            return None
        self._pause = _FIRST_PAUSE_S
        return Plan.decode(answer)

    def group(self, plan: Plan, give_up: Callable[[], bool], ends: Callable[[], bool]) -> Group:
        """The private group of this generation, for the ranks of a plan; `ends` is asked while they come together."""
        from torch.distributed.distributed_c10d import PrefixStore

        store = PrefixStore(f"{self._prefix}/{self._generation}/group", self._store)
        self._gather(store, ends)
        return Group(store, self._rank, self._world_size, give_up, plan.nodes)

    def _gather(self, store: Any, ends: Callable[[], bool]) -> None:
        """Wait for all ranks to come: gloo would wait too, for one that has ended its run meanwhile, and not let go."""
        deadline, pause = time.monotonic() + _GATHER_S, _FIRST_PAUSE_S
        store.add("here", 1)
        while store.add("here", 0) < self._world_size:
            if ends() or time.monotonic() > deadline:
                raise TimeoutError("the ranks did not come together in time")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    def failed(self) -> None:
        """Begin a new generation, after a pause that grows while nothing is agreed: a store that died stays dead."""
        self._generation += 1
        self._round, self._offered, self.wanted = 0, None, set()
        self._wait(at_most_s=5.0)

    def _wait(self, at_most_s: float) -> None:
        self._next_look, self._pause = time.monotonic() + self._pause, min(self._pause * 1.5, at_most_s)

    def _key(self, what: str, rank: int) -> str:
        return f"{self._prefix}/{self._generation}/{self._round}/{what}/{rank}"

    def _decide(self, offers: list[Received]) -> Plan | None:
        """On rank 0: make the plan and tell every other rank its shares, or which samples were offered."""
        plan = agree(offers)
        if plan is None:
            offered = sorted({max(offer.samples) for offer in offers})
            for rank in range(1, self._world_size):
                self._store.set(self._key("plan", rank), _AGAIN + json.dumps(offered).encode())
            self._again(offered)
            return None
        for rank in range(1, self._world_size):
            self._store.set(self._key("plan", rank), plan.encode(rank))
        self._pause = _FIRST_PAUSE_S
        return replace(plan, shares=plan.shares_of(0), division=plan.division and plan.division.counted())

    def _again(self, offered: list[int]) -> None:
        self.wanted = set(offered)
        self._round, self._offered, self._pause = self._round + 1, None, _FIRST_PAUSE_S
