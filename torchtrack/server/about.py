"""What a run is, for its page: a few questions to the store, however many ranks it has and however much they logged."""

from __future__ import annotations

import math
from typing import Any

from torchtrack.api.run import Run
from torchtrack.server.answers import jsonable
from torchtrack.server.reading import Reader


def about(reader: Reader, run: Run) -> dict[str, Any]:
    """Its row of the table, environment, attempts, mesh, metrics, and what its journals lost: what `Run` says of them.

    Args:
        reader: of the runs.
        run: which, as `Reader.run` gives it.
    """
    reader.give_events([run])
    streams = run.streams()
    where = [one.stream for one in reader.where(run)]
    attempts = [{**vars(one), "start": one.start.isoformat(), "end": one.end.isoformat()} for one in run.attempts]
    counted = _counted(reader, where)
    result: dict[str, Any] = jsonable(
        {
            **{name: value for name, value in reader.row(run).items() if name != "attempts"},
            "attempts": attempts,
            "environment": run.environment,
            "mesh": [event.data for event in run.events("mesh")],
            "keys": _keys(reader, where),
            "definitions": run.definitions,
            "pinned": run.pinned,
            "dropped": sum(max(one.dropped_rows, counted.get(one.key, 0)) for one in streams),
            "damages": [damage.reason for one in streams for damage in one.damages],
        }
    )
    return result


def _keys(reader: Reader, streams: list[int]) -> list[str]:
    sql = "SELECT DISTINCT toString(name) AS key FROM scalars WHERE stream IN {streams:Array(UInt64)} ORDER BY key"
    found: list[str] = reader.store.query(sql, streams=streams)["key"].to_pylist()
    return found


def _counted(reader: Reader, streams: list[int]) -> dict[str, int]:
    """By stream: the rows that its rank itself has counted as dropped."""
    rows = reader.store.query(
        "SELECT lower(leftPad(hex(stream), 16, '0')) AS key, argMax(value, (seq, row)) AS n FROM scalars "
        "WHERE stream IN {streams:Array(UInt64)} AND name = '_tt/dropped_rows' GROUP BY key",
        streams=streams,
    ).to_pylist()
    return {row["key"]: int(row["n"]) for row in rows if not math.isnan(row["n"])}
