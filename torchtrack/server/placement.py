"""Which streams of the store a question is about, and which of their rows still count.

The store knows rows by stream alone. Whose a stream is, which ranks there are and what a later attempt hides of an
earlier one (see `api.hiding`) is looked up here, and given to the query as arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchtrack.api import facts, parts
from torchtrack.api.held import HeldRows
from torchtrack.api.hiding import FOREVER, hidden, told
from torchtrack.api.run import Run
from torchtrack.api.streams import OWN_PREFIXES, Span, merged
from torchtrack.server.metrics import MetricsStore


@dataclass(frozen=True)
class Placed:
    """One stream of a run: its number, its place in the job, and what is hidden of its rows under one name."""

    stream: int
    attempt: int
    rank: int
    world_size: int
    stop: int = FOREVER
    """From this step on they are hidden,"""
    holes: tuple[int, ...] = ()
    """and at these steps."""
    frames: int = 0
    """How many frames of it are in the store by its record; 0 if nothing says so."""
    from_step: int | None = None
    """From this step on its attempt takes back what earlier ones recorded, if the user said so."""


def placed(run: Run) -> list[Placed]:
    """The streams of a run, nothing hidden yet; where two tell of the same thing, the later one wins."""
    streams = [stream for stream in run.streams() if isinstance(stream, HeldRows)]
    sizes = {number: facts.world_size(group) for number, group in parts.attempts(streams).items()}
    return [
        Placed(s.number, s.attempt, s.rank, sizes[s.attempt], frames=s.frames, from_step=s.from_step) for s in streams
    ]


def several_attempts(streams: Sequence[Placed]) -> bool:
    """Whether anything can be hidden."""
    return len({one.attempt for one in streams}) > 1


def spans_of(streams: Iterable[Placed], steps: Mapping[int, Span]) -> dict[int, Span]:
    """First and last step of each attempt that has any, from those of streams."""
    found: dict[int, list[Span]] = {}
    for one in streams:
        if one.stream in steps:
            found.setdefault(one.attempt, []).append(steps[one.stream])
    return {attempt: span for attempt, each in found.items() if (span := merged(each)) is not None}


def without_hidden(
    streams: Sequence[Placed], steps: Mapping[int, Span], begins: Mapping[int, int] | None = None
) -> list[Placed]:
    """The streams of a run with what is hidden of their rows under one name.

    Args:
        streams: all of the run.
        steps: of each stream that has such rows, the first and the last step.
        begins: what `begins` says, of names that are not the user's.
    """
    of = hidden(spans_of(streams, steps), begins, told(streams))
    return [
        replace(one, stop=of[one.attempt].stop, holes=of[one.attempt].holes) if one.attempt in of else one
        for one in streams
    ]


def begins(store: MetricsStore, streams: Sequence[Placed]) -> dict[int, int]:
    """The first step of each attempt of a run that has one: what `facts.first_step` says."""
    attempts = {one.attempt for one in streams}
    own = " AND ".join(f"NOT startsWith(name, '{prefix}')" for prefix in OWN_PREFIXES)
    found: dict[int, int] = {}
    for sources in ([f"scalars WHERE {own} AND"], ["texts WHERE", "media WHERE", "tensors WHERE kind = 'logged' AND"]):
        left = [one for one in streams if one.attempt not in found]
        each = [_first_steps(store, source, left) for source in sources]
        for one in left:
            steps = [of[one.stream] for of in each if one.stream in of]
            if steps:
                found[one.attempt] = min(*steps, found.get(one.attempt, FOREVER))
        if found.keys() == attempts:
            return found
    left = [one for one in streams if one.attempt not in found]
    sampled = _first_steps(store, "tensors WHERE", left)
    for one in sorted(left, key=lambda one: (one.rank, sampled.get(one.stream, FOREVER))):
        if one.stream in sampled:
            found.setdefault(one.attempt, sampled[one.stream])
    return found


def _first_steps(store: MetricsStore, source: str, streams: Sequence[Placed]) -> dict[int, int]:
    found = store.query(
        f"SELECT stream, min(step) AS first FROM {source} step IS NOT NULL AND stream IN {{streams:Array(UInt64)}} "
        "GROUP BY stream",
        streams=[one.stream for one in streams],
    )
    return dict(zip(found["stream"].to_pylist(), found["first"].to_pylist(), strict=True))


def arrays(streams: Sequence[Placed], prefix: str = "") -> dict[str, Any]:
    """The parameters of a query over some streams, an array each: see `lookup` and `visible`."""
    return {
        "streams": [one.stream for one in streams],
        "ranks": [one.rank for one in streams],
        "worlds": [one.world_size for one in streams],
        "attempts": [one.attempt for one in streams],
        "orders": list(range(len(streams))),
        f"{prefix}stops": [one.stop for one in streams],
        f"{prefix}holes": [(one.stream, step) for one in streams for step in one.holes],
    }


def lookup(name: str) -> str:
    """SQL for the value of a stream in one of the arrays; a hash table for the engine."""
    return f"transform(stream, {{streams:Array(UInt64)}}, {{{name}:Array(Int64)}}, toInt64(-1))"


def visible(streams: Sequence[Placed], prefix: str = "") -> str:
    """SQL for the rows of these streams that count."""
    sql = "stream IN {streams:Array(UInt64)}"
    if any(one.stop != FOREVER for one in streams):
        sql += f" AND step < {lookup(f'{prefix}stops')}"
    if any(one.holes for one in streams):
        sql += f" AND (stream, step) NOT IN {{{prefix}holes:Array(Tuple(UInt64, Int64))}}"
    return sql


@dataclass(frozen=True)
class Shown:
    """SQL for the rows of a table that count, whatever their names, and its parameters."""

    sql: str
    parameters: Mapping[str, Any]
    lots: int = 0
    """In how many ways names are hidden."""


def shown(
    store: MetricsStore,
    table: str,
    runs: Sequence[Sequence[Placed]],
    where: str = "step IS NOT NULL",
    begins: Mapping[int, int] | None = None,
    **parameters: Any,
) -> Shown:
    """The rows of a table other than scalars.

    Args:
        store: where they are.
        table: its name.
        runs: the streams of each run.
        where: which rows are wanted at all.
        begins: what `begins` says of a run, if the rows are not the user's.
        parameters: of `where`.
    """
    every = [one for streams in runs for one in streams]
    known = {**arrays(every), **parameters}
    several = [streams for streams in runs if several_attempts(streams)]
    if not several:
        return Shown(f"stream IN {{streams:Array(UInt64)}} AND {where}", known)
    rows = store.query(
        f"SELECT stream, name, min(step) AS low, max(step) AS high FROM {table} "
        f"WHERE stream IN {{streams:Array(UInt64)}} AND {where} GROUP BY stream, name",
        **{**known, "streams": [one.stream for streams in several for one in streams]},
    ).to_pylist()
    spans: dict[str, dict[int, Span]] = {}
    for row in rows:
        spans.setdefault(row["name"], {})[row["stream"]] = row["low"], row["high"]
    lots: dict[tuple[Placed, ...], list[str]] = {}
    for name, steps in spans.items():
        seen = tuple(one for streams in runs for one in without_hidden(streams, steps, begins))
        if any(one.stop != FOREVER or one.holes for one in seen):
            lots.setdefault(seen, []).append(name)
    conditions = [where]
    for number, (seen, names) in enumerate(lots.items()):
        prefix = f"lot{number}_"
        known |= {**arrays(seen, prefix), f"{prefix}names": names}
        conditions.append(f"(name NOT IN {{{prefix}names:Array(String)}} OR ({visible(seen, prefix)}))")
    return Shown(f"stream IN {{streams:Array(UInt64)}} AND {' AND '.join(conditions)}", known, len(lots))
