"""Where the ranks of one watch meet: offers in the store they share, a plan that follows from them, then a group."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from torchtrack.watch import layout
from torchtrack.watch.group import Group

if TYPE_CHECKING:
    from torchtrack.job import Job


_FIRST_PAUSE_S: Final = 0.01


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
        self._offered: layout.Offer | None = None
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

    def agree(self, offer: layout.Offer) -> layout.Plan | None:
        """Publish an offer once a round; the plan when all offers are there and agree, else None. Never waits."""
        if time.monotonic() < self._next_look:
            return None
        if self._offered is None:
            self._publish(offer)
        others = [self._key(rank) for rank in range(self._world_size)]
        if not self._store.check(others):
            self._wait(at_most_s=1.0)
            return None
        assert self._offered is not None  # noqa: S101
        headers = [json.loads(self._store.get(key)) for key in others]
        plan = self._decide(headers)
        if plan is None and max(self._offered.samples) < offer.next_sample - 1:
            self._round, self._offered = self._round + 1, None
        if plan is not None:
            self._pause = _FIRST_PAUSE_S
        return plan

    def group(self, give_up: Callable[[], bool]) -> Group:
        """The private group of this generation."""
        from torch.distributed.distributed_c10d import PrefixStore

        store = PrefixStore(f"{self._prefix}/{self._generation}/group", self._store)
        return Group(store, self._rank, self._world_size, give_up)

    def failed(self) -> None:
        """Begin a new generation, after a pause that grows while nothing is agreed: a store that died stays dead."""
        self._generation += 1
        self._round, self._offered = 0, None
        self._wait(at_most_s=5.0)

    def _wait(self, at_most_s: float) -> None:
        self._next_look, self._pause = time.monotonic() + self._pause, min(self._pause * 1.5, at_most_s)

    def _key(self, rank: int, what: str = "offer") -> str:
        return f"{self._prefix}/{self._generation}/{self._round}/{what}/{rank}"

    def _publish(self, offer: layout.Offer) -> None:
        """The whole offer, and before it a short one that is enough when all ranks hold replicas of everything."""
        self._offered = offer
        short = {number: _fingerprint([offer.numels, digests]) for number, digests in offer.samples.items()}
        self._store.set(self._key(self._rank, "whole"), offer.encode())
        self._store.set(self._key(self._rank), json.dumps([offer.next_sample, list(short.items())]))

    def _decide(self, headers: list[Any]) -> layout.Plan | None:
        assert self._offered is not None  # noqa: S101
        shorts = [dict(samples) for _, samples in headers]
        common = set(shorts[0]).intersection(*shorts[1:])
        if not common:
            self.wanted = {max(short) for short in shorts}
            return None
        if all(len({short[number] for short in shorts}) == 1 for number in common):
            samples = {number: self._offered.samples[number] for number in common}
            offers = [layout.Offer(next_sample, self._offered.numels, samples) for next_sample, _ in headers]
        else:
            whole = [self._store.get(self._key(rank, "whole")) for rank in range(self._world_size)]
            offers = [layout.Offer.decode(bytes(data)) for data in whole]
        return layout.agree(offers)


def _fingerprint(content: Any) -> str:
    return hashlib.blake2s(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
