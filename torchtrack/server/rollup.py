"""What a row of the table of runs says of a run's journals, for many runs at once: a few queries whatever their number.

The values are those of `Run.summary` and `Run.last_step`. Where a run says how a metric is summed up, the parts of
its last value are not all there, or an attempt was told from which step on it goes on, the run itself is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torchtrack.api.hiding import hidden, last_step, told
from torchtrack.api.streams import BACKGROUND, OWN_PREFIXES, Span
from torchtrack.records import OF_LAYERS
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import Placed, arrays, begins, lookup, several_attempts, spans_of

_HIDDEN: Final = ("_tt/", *OF_LAYERS)


@dataclass
class Rollup:
    """What was found of one run."""

    last: dict[str, float] = field(default_factory=dict)
    """The value of each metric at its last step."""
    whole: bool = True
    """Whether all parts of all of them are there."""
    last_step: int | None = None
    tensors: dict[str, set[str]] = field(default_factory=dict)
    """By kind, the names of the tensors."""
    sources: set[str] = field(default_factory=set)
    """Where lines were printed to."""


def rollups(store: MetricsStore, runs: Sequence[Sequence[Placed]]) -> list[Rollup]:
    """What there is of each run, by its streams."""
    found = [Rollup() for _ in runs]
    owner = {one.stream: number for number, streams in enumerate(runs) for one in streams}
    every = [one for streams in runs for one in streams]
    if not every:
        return found
    _last_values(store, every, owner, found)
    _last_steps(store, every, owner, found)
    parameters: dict[str, Any] = {"streams": list(owner)}
    where = "WHERE stream IN {streams:Array(UInt64)}"
    for row in store.query(f"SELECT DISTINCT stream, kind, name FROM tensors {where}", **parameters).to_pylist():
        found[owner[row["stream"]]].tensors.setdefault(row["kind"], set()).add(row["name"])
    for row in store.query(f"SELECT DISTINCT stream, source FROM logs {where}", **parameters).to_pylist():
        if row["source"] is not None:
            found[owner[row["stream"]]].sources.add(row["source"])
    return found


def _without(prefixes: Sequence[str]) -> str:
    return "".join(f" AND NOT startsWith(name, '{prefix}')" for prefix in prefixes)


def _last_values(
    store: MetricsStore, streams: Sequence[Placed], owner: Mapping[int, int], found: Sequence[Rollup]
) -> None:
    runs: dict[int, list[Placed]] = {}
    for one in streams:
        runs.setdefault(owner[one.stream], []).append(one)
    rewound = {number for number, of in runs.items() if told(of)}  # any row may be the last that is shown
    for number in rewound:
        found[number].whole = False
    several = {number: of for number, of in runs.items() if several_attempts(of) and number not in rewound}
    alone = [one for one in streams if owner[one.stream] not in several and owner[one.stream] not in rewound]
    if alone:
        last = (
            f"(run, name, step) IN (SELECT {lookup('owners')} AS run, name, max(step) FROM scalars "
            f"WHERE stream IN {{streams:Array(UInt64)}}{_without(_HIDDEN)} GROUP BY run, name)"
        )
        _values_at(store, alone, owner, found, last, {})
    if several:
        every = [one for of in several.values() for one in of]
        place = f"(run, name, step, {lookup('attempts')}) IN {{places:Array(Tuple(Int64, String, Int64, Int64))}}"
        _values_at(store, every, owner, found, place, {"places": list(_last_places(store, several))})


def _last_places(store: MetricsStore, runs: Mapping[int, Sequence[Placed]]) -> Iterator[tuple[int, str, int, int]]:
    """Run, name, step and attempt of the values that count of each metric's last step."""
    owner = {one.stream: number for number, streams in runs.items() for one in streams}
    rows = store.query(
        f"SELECT {lookup('owners')} AS run, {lookup('attempts')} AS attempt, name, min(step) AS low, max(step) AS high "
        f"FROM scalars WHERE stream IN {{streams:Array(UInt64)}}{_without(_HIDDEN)} GROUP BY run, attempt, name",
        **arrays([one for streams in runs.values() for one in streams]),
        owners=list(owner.values()),
    ).to_pylist()
    spans: dict[int, dict[str, dict[int, Span]]] = {number: {} for number in runs}
    for row in rows:
        spans[row["run"]].setdefault(row["name"], {})[row["attempt"]] = row["low"], row["high"]
    for number, names in spans.items():
        begin = begins(store, runs[number])
        for name, of in names.items():
            seen = hidden(of, begin if name.startswith(OWN_PREFIXES) else None)
            ends = {attempt: high for attempt, (_, high) in of.items() if seen[attempt].shows_step(high)}
            last = max(ends.values())
            yield from (
                (number, name, last, n) for n in of if of[n][0] <= last <= of[n][1] and seen[n].shows_step(last)
            )


def _values_at(
    store: MetricsStore,
    streams: Sequence[Placed],
    owner: Mapping[int, int],
    found: Sequence[Rollup],
    last: str,
    parameters: Mapping[str, Any],
) -> None:
    """Combine the values of the rows that `last` names."""
    by_rank = (
        f"SELECT {lookup('owners')} AS run, name, step, {lookup('ranks')} AS r, argMax((value, reduce, partial, "
        f"{lookup('worlds')}), ({lookup('orders')}, seq, row)) AS said FROM scalars "
        f"WHERE stream IN {{streams:Array(UInt64)}}{_without(_HIDDEN)} AND {last} GROUP BY run, name, step, r"
    )
    answer = store.query(
        "SELECT run, name, count() AS n, argMin(said.2, r) AS how, max(if(said.3, said.4, 0)) AS needed, "
        "multiIf(n = 1, any(said.1), how = 'sum', sum(said.1), how = 'min', min(said.1), how = 'max', max(said.1), "
        f"sum(said.1) / n) AS value FROM ({by_rank}) GROUP BY run, name ORDER BY run, name",
        owners=[owner[one.stream] for one in streams],
        **arrays(streams),
        **parameters,
    )
    columns = (answer[name].to_pylist() for name in ("run", "name", "n", "needed", "value"))
    for number, name, n, needed, value in zip(*columns, strict=True):
        found[number].last[name] = value
        found[number].whole &= n >= needed


def _last_steps(
    store: MetricsStore, streams: Sequence[Placed], owner: Mapping[int, int], found: Sequence[Rollup]
) -> None:
    where = f"WHERE stream IN {{streams:Array(UInt64)}}{_without(BACKGROUND)}"
    sql = f"SELECT stream, min(step) AS low, max(step) AS high FROM scalars {where} GROUP BY stream"
    rows = store.query(sql, streams=list(owner)).to_pylist()
    steps = {row["stream"]: (row["low"], row["high"]) for row in rows}
    runs: dict[int, list[Placed]] = {}
    for one in streams:
        runs.setdefault(owner[one.stream], []).append(one)
    for number, of in runs.items():
        found[number].last_step = last_step(spans_of(of, steps), told(of))
