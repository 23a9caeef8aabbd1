"""The tables of the metrics store, and rows on their way in and out: see docs/adr/0012-metrics-store.md.

Every row is known by (stream, seq, row): the journal stream, the frame in it, the place in the frame. Which run, rank
and attempt a stream belongs to may be told late, so that stands in the table `streams` alone. Times are microseconds
since the epoch, as the rank wrote them: no clock, however wrong, is out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchtrack.records import SCHEMAS, Table
from torchtrack.server.layout import Layout

VERSION: Final = 2
"""Of the store's layout; a store of another version is built anew from the journals."""

NAMES: Final = {table: table.name.lower() for table in Table}
_KEY: Final = "month UInt32, stream UInt64, seq UInt64, row UInt32"
_TIME: Final = (
    "time {} CODEC(DoubleDelta, ZSTD), at DateTime64(6, 'UTC') ALIAS fromUnixTimestamp64Micro(ifNull(time, 0))"
)
_COLUMNS: Final = {
    Table.SCALARS: f"""
        step Int64 CODEC(Delta, ZSTD), {_TIME.format("Int64")}, name LowCardinality(String), value Float64 CODEC(ZSTD),
        reduce LowCardinality(String), partial Bool""",
    Table.TEXTS: f"""
        step Nullable(Int64), {_TIME.format("Nullable(Int64)")}, name LowCardinality(Nullable(String)),
        text Nullable(String) CODEC(ZSTD)""",
    Table.TENSORS: f"""
        sample Int64, step Int64, {_TIME.format("Int64")}, kind LowCardinality(String), name LowCardinality(String),
        stage LowCardinality(String), ranks Int32, numel Int64, covers String, count Int64, sum Float64, sum_sq Float64,
        min Float64, max Float64, zeros Int64, nans Int64, pos_infs Int64, neg_infs Int64,
        buckets Array(UInt16) CODEC(ZSTD), counts Array(UInt64) CODEC(ZSTD)""",
    Table.MEDIA: f"""
        step Nullable(Int64), {_TIME.format("Nullable(Int64)")}, name LowCardinality(Nullable(String)),
        sha256 Nullable(String), mime Nullable(String), size Nullable(Int64), caption Nullable(String)""",
    Table.LOGS: f"""
        {_TIME.format("Nullable(Int64)")}, source LowCardinality(Nullable(String)),
        line Nullable(String) CODEC(ZSTD)""",
    Table.EVENTS: f"""
        {_TIME.format("Nullable(Int64)")}, step Nullable(Int64), type LowCardinality(Nullable(String)),
        json Nullable(String) CODEC(ZSTD)""",
}
_ORDER: Final = {Table.SCALARS: "stream, name, step, seq, row", Table.TENSORS: "stream, kind, name, step, seq, row"}
_RENAMED: Final = {(Table.LOGS, "stream"): "source"}
"""A column of a journal's table whose name is taken in the store: stdout or stderr of a printed line."""
_REQUIRED: Final = {Table.SCALARS: ("step", "time", "name"), Table.TENSORS: ("sample", "step", "time", "kind", "name")}
"""Rows without these say nothing, and no reader returns them."""
_FILL: Final[dict[Table, dict[str, Any]]] = {
    Table.SCALARS: {"value": float("nan"), "reduce": "mean", "partial": False},
    Table.TENSORS: {"stage": "", "covers": "", "ranks": 1},
}
_DURABLE: Final = "fsync_after_insert = 1, fsync_part_directory = 1"


_STREAMS: Final = (
    "stream UInt64, version UInt64, batch UInt64, path String, uid String, attempt UInt32, rank Int32, gone Bool, "
    "record String CODEC(ZSTD), bookmark String CODEC(ZSTD)"
)
_RUNS: Final = (
    "uid String, version UInt64, upto UInt64, streams UInt32, gone Bool, lost_at Int64, said String CODEC(ZSTD), "
    "edits String CODEC(ZSTD), shown String CODEC(ZSTD), texts Map(LowCardinality(String), String), "
    "numbers Map(LowCardinality(String), Float64), bools Map(LowCardinality(String), Bool), "
    "lists Map(LowCardinality(String), Array(String)), "
    "tensors Map(LowCardinality(String), Array(LowCardinality(String))), sources Array(LowCardinality(String))"
)
_VERDICTS: Final = "uid String, version UInt64, made_of String, findings String CODEC(ZSTD)"
_VERDICT_DAYS: Final = 90
"""Of a run that is gone nothing stays for longer; of others it is concluded again."""


def made_by(layout: Layout) -> str:
    """The comment on the table `streams`, which says what made the tables."""
    return f"torchtrack {VERSION}{layout.told}"


def statements(database: str, layout: Layout) -> list[str]:
    """The statements that make the tables where they are missing; how long rows are kept is set afterwards."""
    found = []
    for table, name in NAMES.items():
        rest = f"PARTITION BY month ORDER BY ({_ORDER.get(table, 'stream, seq, row')}) SETTINGS {_DURABLE}"
        found += layout.create(database, name, f"{_KEY}, {_COLUMNS[table]}", "MergeTree", "stream", rest, "")
    newest = "ReplacingMergeTree(version)"
    rest = f"ORDER BY stream SETTINGS {_DURABLE}"
    found += layout.create(database, "streams", _STREAMS, newest, "stream", rest, made_by(layout))
    found += layout.create(database, "runs", _RUNS, newest, "cityHash64(uid)", "ORDER BY uid", "")
    rest = f"ORDER BY uid TTL toDateTime(intDiv(version, 1000000000)) + INTERVAL {_VERDICT_DAYS} DAY"
    found += layout.create(database, "verdicts", _VERDICTS, newest, "cityHash64(uid)", rest, "")
    return found


def month_of(time_ns: int) -> int:
    """The partition of a stream by the wall time of its opening: 202511 is November 2025, 0 a time that is none."""
    try:
        when = datetime.fromtimestamp(time_ns / 1e9, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return 0
    return when.year * 100 + when.month


def stored_name(table: Table, column: str) -> str:
    """What a column of a journal's table is called in the store."""
    return _RENAMED.get((table, column), column)


class Origin(NamedTuple):
    """A frame, and how many rows it has."""

    stream: int
    seq: int
    rows: int


def to_store(table: Table, rows: pa.Table, *, month: int, frames: Sequence[Origin]) -> pa.Table:
    """The rows of some frames, one frame after the other, with their keys, as they are inserted."""
    streams, seqs = (np.array([each[key] for each in frames], np.uint64) for key in (0, 1))
    sizes = np.array([each.rows for each in frames])
    rows = _in_one_piece(rows)
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    keys = pa.table(
        {
            "month": np.full(rows.num_rows, month, np.uint32),
            "stream": np.repeat(streams, sizes),
            "seq": np.repeat(seqs, sizes),
            "row": (np.arange(rows.num_rows, dtype=np.uint64) - first).astype(np.uint32),
        }
    )
    for name in _REQUIRED.get(table, ()):
        if rows.column(name).null_count:
            there = rows.column(name).is_valid()
            rows, keys = rows.filter(there), keys.filter(there)
    for name, value in _FILL.get(table, {}).items():
        if rows.column(name).null_count:
            rows = rows.set_column(rows.schema.get_field_index(name), name, _filled(rows.column(name), value))
    columns = dict(zip(keys.column_names, keys.columns, strict=True))
    for field in SCHEMAS[table]:
        column = rows.column(field.name)
        columns[stored_name(table, field.name)] = column.cast(pa.int64()) if field.name == "time" else column
    return pa.table(columns)


def _in_one_piece(rows: pa.Table) -> pa.Table:
    """Rows whose dictionaries may differ from frame to frame, and hold nulls, which Arrow does not join."""
    for index, field in enumerate(rows.schema):
        column = rows.column(index)
        if pa.types.is_dictionary(field.type) and any(chunk.dictionary.null_count for chunk in column.chunks):
            rows = rows.set_column(index, field, column.cast(pa.string()).dictionary_encode())
    return rows.unify_dictionaries().combine_chunks()


def _filled(column: pa.ChunkedArray, value: Any) -> pa.ChunkedArray:
    plain = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    filled = pc.fill_null(plain, value)
    return filled.dictionary_encode() if pa.types.is_dictionary(column.type) else filled


def selected(table: Table) -> str:
    """The columns of a journal's table, for a SELECT that `from_store` reads."""
    return ", ".join(f"`{stored_name(table, field.name)}`" for field in SCHEMAS[table])


def from_store(table: Table, rows: pa.Table) -> pa.Table:
    """Rows as `records.decode` gives them."""
    columns = []
    for field in SCHEMAS[table]:
        column = rows.column(stored_name(table, field.name)).combine_chunks()
        if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
            column = column.cast(pa.string()).dictionary_encode()
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=SCHEMAS[table])
