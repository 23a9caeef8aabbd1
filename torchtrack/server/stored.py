"""The runs in the metrics store, read by the same code as the runs in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from torchtrack.api.held import Shelf
from torchtrack.api.source import Source
from torchtrack.records import Table
from torchtrack.server.metrics import MetricsStore


def changes(store: MetricsStore, cursor: int) -> tuple[int, list[dict[str, Any]]]:
    """The records of streams that changed after a cursor, and the new cursor; 0 is the beginning."""
    rows = store.query(
        "SELECT lower(leftPad(hex(stream), 16, '0')) AS stream, batch, path, gone, record FROM streams FINAL "
        "WHERE batch > {cursor:UInt64} ORDER BY batch",
        cursor=cursor,
    ).to_pylist()
    for row in rows:
        row["record"] = {**json.loads(row["record"]), "batch": row["batch"]}
        cursor = max(cursor, row.pop("batch"))
    return cursor, rows


def open_source(store: MetricsStore, batch: Callable[[], int] | None = None) -> Source:
    """Everything in the store as runs.

    Args:
        store: where they are.
        batch: the Indexer's counter of what it wrote: while it stands still, nothing is looked for.
    """

    def fetch(stream: int, table: Table, first_seq: int, stop_seq: int) -> pa.Table:
        return store.rows(table, [stream], first_seq, stop_seq)

    def changed(cursor: int) -> tuple[int, list[dict[str, Any]]]:
        return (cursor, []) if batch is not None and cursor == batch() else changes(store, cursor)

    return Source(Shelf("this server", changed, fetch))  # what errors say: a DSN holds a password


def counts(store: MetricsStore) -> Iterator[tuple[str, int, int]]:
    """Name, rows and different keys of each table of rows; the last two are equal, or something is very wrong."""
    for table in Table:
        name = table.name.lower()
        found = store.query(f"SELECT count() AS n, uniqExact(stream, seq, row) AS keys FROM {name}").to_pylist()[0]
        yield name, found["n"], found["keys"]
