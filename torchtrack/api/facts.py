"""What a run's streams say besides rows: its attempts and its events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from torchtrack.api.streams import StreamRows
from torchtrack.records import Table
from torchtrack.sidecar.state import State


@dataclass(frozen=True)
class Attempt:
    """One launch of a run."""

    number: int
    world_size: int
    start: datetime
    end: datetime
    """When the last of its ranks wrote for the last time."""
    ranks: tuple[int, ...]
    """Ranks that recorded anything."""
    hosts: tuple[str, ...]
    state: str
    why: str
    """What decided the state, in words: "exit code 1" and the like, with the rank; empty if there is nothing to say."""

    @property
    def duration(self) -> timedelta:
        """From the first rank's start to the last sign of life."""
        return self.end - self.start


@dataclass(frozen=True)
class Event:
    """Something a rank said about its run, as a JSON object."""

    time: datetime
    step: int | None
    type: str
    rank: int
    attempt: int
    data: Mapping[str, Any]


def attempt(number: int, streams: Sequence[StreamRows], state: State) -> Attempt:
    """One launch, from the streams of its ranks."""
    return Attempt(
        number=number,
        world_size=max(int(stream.place.get("world_size") or 1) for stream in streams),
        start=when(min(stream.start_ns for stream in streams)),
        end=when(max(stream.last_ns for stream in streams)),
        ranks=tuple(sorted({stream.rank for stream in streams})),
        hosts=tuple(dict.fromkeys(str(stream.opening.get("host", "?")) for stream in streams)),
        state=state.name,
        why=f"rank {state.rank}: {state.why}" if state.why and state.rank is not None else state.why,
    )


def when(time_ns: int) -> datetime:
    """A wall time as a moment in UTC."""
    return datetime.fromtimestamp(time_ns / 1e9, timezone.utc)


def events(streams: Sequence[StreamRows]) -> Iterator[Event]:
    """All events of some streams in the order of time; what is no JSON object is left out."""
    found = []
    for stream in streams:
        for row in stream.table(Table.EVENTS).to_pylist():
            try:
                data = json.loads(row["json"])
            except (TypeError, ValueError):
                continue
            if isinstance(data, dict) and row["time"] is not None:
                found.append(Event(row["time"], row["step"], row["type"], stream.rank, stream.attempt, data))
    yield from sorted(found, key=lambda event: event.time)
