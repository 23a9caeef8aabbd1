"""What a run's streams say besides rows: its attempts and its events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from torchtrack.api.streams import Rows
from torchtrack.api.tensors import select
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


def attempt(number: int, streams: Sequence[Rows], state: State) -> Attempt:
    """One launch, from the streams of its ranks; what forked children do after it is not the rank's."""
    streams = _of_ranks(streams)
    return Attempt(
        number=number,
        world_size=world_size(streams),
        start=when(min(stream.start_ns for stream in streams)),
        end=when(max(stream.last_ns for stream in streams)),
        ranks=tuple(sorted({stream.rank for stream in streams})),
        hosts=tuple(dict.fromkeys(str(stream.opening.get("host", "?")) for stream in streams)),
        state=state.name,
        why=f"rank {state.rank}: {state.why}" if state.why and state.rank is not None else state.why,
    )


def world_size(streams: Sequence[Rows]) -> int:
    """How many ranks an attempt has."""
    return max(int(stream.place.get("world_size") or 1) for stream in _of_ranks(streams))


def _of_ranks(streams: Sequence[Rows]) -> Sequence[Rows]:
    """Without the streams of forked children, unless there are no others."""
    return [stream for stream in streams if not stream.parent] or streams


def first_step(streams: Sequence[Rows]) -> int | None:
    """The first step of an attempt, from which on it hides earlier ones; None if it has none.

    It is that of the user's metrics, else of other things the user logged, else of the lowest rank's tensors: what
    `watch` writes on a rank that never logs carries step 0, wherever the run was resumed.
    """
    steps = [step for stream in streams if (step := stream.load_scalars().first_step) is not None]
    steps = steps or [step for stream in streams if (step := _first(stream, _LOGGED)) is not None]
    if steps:
        return min(steps)
    sampled = [(stream.rank, step) for stream in streams if (step := _first(stream, _SAMPLED)) is not None]
    return min(sampled)[1] if sampled else None


_LOGGED: Final = "logged"
_SAMPLED: Final = "sampled"


def remember(stream: Rows) -> None:
    """Keep what rows say of where an attempt begins, before they are let go of."""
    for what in (_LOGGED, _SAMPLED):
        step = _first(stream, what)
        if step is not None:
            stream.remembered[what] = step


def _first(stream: Rows, what: str) -> int | None:
    """The first step of texts, media and histograms that the user logged, or of all rows of tensors."""
    tables = [stream.table(Table.TENSORS)]
    if what == _LOGGED:
        tables = [stream.table(Table.TEXTS), stream.table(Table.MEDIA), select(tables[0], "logged", None)]
    steps = [pc.min(rows.column("step")).as_py() for rows in tables]
    return min((step for step in (*steps, stream.remembered.get(what)) if step is not None), default=None)


def when(time_ns: int) -> datetime:
    """A wall time as a moment in UTC."""
    return datetime.fromtimestamp(time_ns / 1e9, timezone.utc)


def events(streams: Sequence[Rows], types: Sequence[str] | None = None) -> Iterator[Event]:
    """The events of some streams, one stream after the other, as they were written; no JSON object: left out.

    Args:
        streams: whose.
        types: of these types only.
    """
    for stream in streams:
        rows = stream.table(Table.EVENTS)
        if types is not None:
            rows = rows.filter(pc.is_in(rows["type"].cast(pa.string()), pa.array(types, pa.string())))
        for row in rows.to_pylist():
            try:
                data = json.loads(row["json"])
            except (TypeError, ValueError):
                continue
            if isinstance(data, dict) and row["time"] is not None:
                yield Event(row["time"], row["step"], row["type"], stream.rank, stream.attempt, data)
