"""A run's streams as its ranks and attempts: what readers of whole runs and those who follow one have in common."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from torchtrack.api import facts, history
from torchtrack.api.history import Part
from torchtrack.api.streams import Rows


def ranked(streams: Iterable[Rows]) -> list[Rows]:
    """The ranks' streams: by attempt and rank, forked children after their rank, then as they were opened."""
    ranks = [stream for stream in streams if stream.role == "rank"]
    return sorted(ranks, key=lambda s: (s.attempt, s.rank, bool(s.parent), s.opened, str(s.path)))


def attempts(streams: Sequence[Rows]) -> dict[int, list[Rows]]:
    """The streams of each attempt, oldest first, from those of all ranks in order."""
    return {number: list(group) for number, group in itertools.groupby(streams, key=lambda stream: stream.attempt)}


def scalars(streams: Sequence[Rows]) -> list[Part]:
    """What each rank logged in each attempt."""
    found = []
    for attempt, group in attempts(streams).items():
        world_size = facts.world_size(group)
        for rank, own in itertools.groupby(group, key=lambda stream: stream.rank):
            found.append(Part(attempt, rank, tuple(stream.load_scalars() for stream in own), world_size))
    return found


def cuts(streams: Sequence[Rows]) -> dict[int, int]:
    """From which step on each attempt is hidden."""
    return history.cuts({number: facts.first_step(group) for number, group in attempts(streams).items()})
