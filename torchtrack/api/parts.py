"""A run's streams as its ranks and attempts: what readers of whole runs and those who follow one have in common."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from torchtrack.api import facts
from torchtrack.api.hiding import Hides, told
from torchtrack.api.history import Part
from torchtrack.api.streams import Names, Rows


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


def hides(streams: Sequence[Rows], names: Names) -> Hides | None:
    """What later attempts hide of earlier ones; None where there is one attempt."""
    return Hides(streams, names) if streams and streams[0].attempt != streams[-1].attempt else None


def begins(streams: Sequence[Rows]) -> dict[int, int]:
    """From where on each attempt after the first may hide: its first step, or the one that the user said, if any."""
    later = list(attempts(streams).items())[1:]
    said = told(stream for _, group in later for stream in group)
    first = {number: step for number, group in later if (step := facts.first_step(group)) is not None}
    return {number: min(of[number] for of in (first, said) if number in of) for number in {**first, **said}}
