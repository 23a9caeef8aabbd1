"""Which streams of the store a question is about, and which of their rows still count.

The store knows rows by stream alone. Whose a stream is, which ranks there are and from which step a later attempt hides
an earlier one is looked up here, and given to the query as arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torchtrack.api import facts, history
from torchtrack.api.held import HeldRows
from torchtrack.api.run import Run
from torchtrack.api.streams import OWN_PREFIXES
from torchtrack.server.metrics import MetricsStore

FOREVER: Final = (1 << 63) - 1


@dataclass(frozen=True)
class Placed:
    """One stream of a run: its number, its place in the job, and the step from which on it is hidden."""

    stream: int
    attempt: int
    rank: int
    world_size: int
    stop: int = FOREVER
    frames: int = 0
    """How many frames of it are in the store by its record; 0 if nothing says so."""


def placed(store: MetricsStore, run: Run) -> list[Placed]:
    """The streams of a run; where two tell of the same thing, the later one wins."""
    streams = [stream for stream in run.streams() if isinstance(stream, HeldRows)]
    attempts = {number: list(group) for number, group in itertools.groupby(streams, key=lambda stream: stream.attempt)}
    cuts = history.cuts(_first_steps(store, attempts)) if len(attempts) > 1 else {}
    sizes = {number: facts.world_size(group) for number, group in attempts.items()}
    return [
        Placed(s.number, s.attempt, s.rank, sizes[s.attempt], cuts.get(s.attempt, FOREVER), s.frames) for s in streams
    ]


def _first_steps(store: MetricsStore, attempts: Mapping[int, Sequence[HeldRows]]) -> dict[int, int | None]:
    own = " AND ".join(f"NOT startsWith(name, '{prefix}')" for prefix in OWN_PREFIXES)
    found = store.query(
        f"SELECT stream, min(step) AS step FROM scalars WHERE stream IN {{streams:Array(UInt64)}} AND {own} "
        "GROUP BY stream",
        streams=[stream.number for group in attempts.values() for stream in group],
    )
    first = dict(zip(found["stream"].to_pylist(), found["step"].to_pylist(), strict=True))
    steps: dict[int, int | None] = {}
    for number, group in attempts.items():
        mine = [first[stream.number] for stream in group if stream.number in first]
        steps[number] = min(mine) if mine else facts.first_step(group)
    return steps


def arrays(streams: Sequence[Placed]) -> dict[str, Any]:
    """The parameters of a query over some streams, an array each: see `LOOKUP`."""
    return {
        "streams": [one.stream for one in streams],
        "ranks": [one.rank for one in streams],
        "worlds": [one.world_size for one in streams],
        "stops": [one.stop for one in streams],
        "attempts": [one.attempt for one in streams],
        "orders": list(range(len(streams))),
    }


def lookup(name: str) -> str:
    """SQL for the value of a stream in one of the arrays; a hash table for the engine."""
    return f"transform(stream, {{streams:Array(UInt64)}}, {{{name}:Array(Int64)}}, toInt64(-1))"


VISIBLE: Final = "stream IN {streams:Array(UInt64)} AND step < " + lookup("stops")
"""SQL for the rows that count."""
