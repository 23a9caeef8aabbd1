"""What a row of the table of runs says of a run's journals, for many runs at once: a few queries whatever their number.

The values are those of `Run.summary` and `Run.last_step`. Where a run says how a metric is summed up, or the parts of
its last value are not all there, the run itself is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torchtrack.api.streams import BACKGROUND
from torchtrack.records import OF_LAYERS
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import FOREVER, Placed, arrays, lookup

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
    hidden = f" AND step < {lookup('stops')}" if any(one.stop != FOREVER for one in streams) else ""
    rows = f"FROM scalars WHERE stream IN {{streams:Array(UInt64)}}{hidden}{_without(_HIDDEN)}"
    run = lookup("owners")
    by_rank = (
        f"SELECT {run} AS run, name, step, {lookup('ranks')} AS r, argMax((value, reduce, partial, "
        f"{lookup('worlds')}), ({lookup('orders')}, seq, row)) AS said {rows} AND (run, name, step) IN "
        f"(SELECT {run} AS run, name, max(step) {rows} GROUP BY run, name) GROUP BY run, name, step, r"
    )
    answer = store.query(
        "SELECT run, name, count() AS n, argMin(said.2, r) AS how, max(if(said.3, said.4, 0)) AS needed, "
        "multiIf(n = 1, any(said.1), how = 'sum', sum(said.1), how = 'min', min(said.1), how = 'max', max(said.1), "
        f"sum(said.1) / n) AS value FROM ({by_rank}) GROUP BY run, name ORDER BY run, name",
        owners=[owner[one.stream] for one in streams],
        **arrays(streams),
    )
    columns = (answer[name].to_pylist() for name in ("run", "name", "n", "needed", "value"))
    for number, name, n, needed, value in zip(*columns, strict=True):
        found[number].last[name] = value
        found[number].whole &= n >= needed


def _last_steps(
    store: MetricsStore, streams: Sequence[Placed], owner: Mapping[int, int], found: Sequence[Rollup]
) -> None:
    attempt = {one.stream: one.attempt for one in streams}
    where = f"WHERE stream IN {{streams:Array(UInt64)}}{_without(BACKGROUND)}"
    sql = f"SELECT stream, max(step) AS step FROM scalars {where} GROUP BY stream"
    rows = store.query(sql, streams=list(attempt)).to_pylist()
    newest: dict[int, tuple[int, int]] = {}
    for row in rows:
        number, last = owner[row["stream"]], (attempt[row["stream"]], row["step"])
        newest[number] = max(newest.get(number, last), last)
    for number, (_, step) in newest.items():
        found[number].last_step = step
