"""The metrics store: rows of journals in ClickHouse's dialect, in process (chDB) or on a server, by the DSN.

One insert is one block of one partition, so it is there as a whole or not at all, and is on disk when the call returns.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import clickhouse_connect
import numpy as np
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from torchtrack.errors import StoreError
from torchtrack.records import Table
from torchtrack.server import schema
from torchtrack.server.layout import KEPT, PLAIN, Layout

DATABASE: Final = "torchtrack"
CLIENTS: Final = 4
"""Queries that run at the same time; more wait."""
_ONE_BLOCK: Final = {
    "max_insert_block_size": 1 << 31,
    "min_insert_block_size_rows": 1 << 31,
    "min_insert_block_size_bytes": 0,
    "max_insert_threads": 1,
    "insert_deduplicate": 0,  # equal rows may come back after they were removed
}
_ARROW: Final = {"output_format_arrow_low_cardinality_as_dictionary": 1, "output_format_arrow_string_as_string": 1}


class MetricsStore:
    """Tables of one database.

    Args:
        dsn: `chdb:///folder` for an engine in this process (one folder a process, one process a folder), or
            `clickhouse://user:password@host:port`.
        database: its name; made if it is missing, and emptied if another version of torchtrack made it.
        layout: on which machines the tables lie, and for how long rows are kept.

    Raises:
        StoreError: the engine does not open, since another process may have the folder; or the tables lie elsewhere.
    """

    def __init__(self, dsn: str, database: str = DATABASE, layout: Layout = PLAIN) -> None:
        self.database = database
        self.layout = layout
        self.label = re.sub(r"//[^/@]*@", "//", dsn)
        """The DSN without user and password."""
        self._dsn = dsn
        self._free = threading.BoundedSemaphore(CLIENTS)
        self._idle: list[Client] = []  # append and pop are atomic
        self.generation = 0
        """How often it was emptied."""
        self._create()

    @classmethod
    def in_folder(cls, folder: Path, layout: Layout = PLAIN) -> MetricsStore:
        """The store that lies in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(f"chdb://{folder.resolve()}", layout=layout)

    def close(self) -> None:
        """Let go of the engine; calls that are running must have ended."""
        while self._idle:
            self._idle.pop().close()

    def insert(self, table: str, rows: pa.Table) -> None:
        """Insert rows of one partition as one block.

        Args:
            table: its name.
            rows: what `schema.to_store` made.

        Raises:
            StoreError: it is unknown whether the rows are there; see `settle`.
        """
        self._call(lambda client: client.insert_arrow(table, rows.combine_chunks(), settings=_ONE_BLOCK))

    def settle(self) -> None:
        """Return when no insert into this database is under way: on a server one may outlive the call that sent it."""
        if not self._dsn.startswith("chdb:"):
            where = "query_kind = 'Insert' AND current_database = {database:String} AND user = currentUser()"
            self.command(f"KILL QUERY{self.layout.on_cluster} WHERE {where} SYNC", database=self.database)

    def query(self, sql: str, **parameters: Any) -> pa.Table:
        """The rows a SELECT gives, its `{name:Type}` filled in by the engine, never by us.

        Raises:
            StoreError: the engine refused or failed.
        """
        rows: pa.Table = self._call(lambda client: client.query_arrow(sql, parameters=parameters))
        return rows

    def command(self, sql: str, **parameters: Any) -> None:
        """Run a statement that gives no rows.

        Raises:
            StoreError: the engine refused or failed.
        """
        self._call(lambda client: client.command(sql, parameters=parameters))

    def rows(self, table: Table, streams: Sequence[int], first_seq: int = 0, stop_seq: int | None = None) -> pa.Table:
        """Rows of streams in the order written, as `records.decode` gives them; of the seqs in the range given."""
        sql = (
            f"SELECT {schema.selected(table)} FROM {schema.NAMES[table]} WHERE stream IN {{streams:Array(UInt64)}} "
            "AND seq >= {first:UInt64} AND seq < {stop:UInt64} ORDER BY stream, seq, row"
        )
        stop = (1 << 64) - 1 if stop_seq is None else stop_seq
        return schema.from_store(table, self.query(sql, streams=list(streams), first=first_seq, stop=stop))

    def rows_of_each(self, table: Table, frames: Mapping[int, int]) -> dict[int, pa.Table]:
        """The rows of each stream in its first so many frames, in the order written; none for one without any."""
        found = self.query(
            f"SELECT stream AS of_stream, {schema.selected(table)} FROM {schema.NAMES[table]} WHERE stream IN "
            "{streams:Array(UInt64)} AND seq < transform(stream, {streams:Array(UInt64)}, {stops:Array(UInt64)}, "
            "toUInt64(0)) ORDER BY stream, seq, row",
            streams=list(frames),
            stops=list(frames.values()),
        )
        owner, rows = found["of_stream"].to_numpy(), schema.from_store(table, found)
        numbers, starts, sizes = np.unique(owner, return_index=True, return_counts=True)
        places = zip(numbers.tolist(), starts.tolist(), sizes.tolist(), strict=True)
        return {number: rows.slice(start, size) for number, start, size in places}

    def newest_seqs(self, table: Table, streams: Iterable[int]) -> dict[int, int]:
        """The last frame of each stream of which the table has rows."""
        found = self.query(
            f"SELECT stream, max(seq) AS seq FROM {schema.NAMES[table]} "
            "WHERE stream IN {streams:Array(UInt64)} GROUP BY stream",
            streams=list(streams),
        )
        return dict(zip(found["stream"].to_pylist(), found["seq"].to_pylist(), strict=True))

    def forget(self, stream: int) -> None:
        """Remove all rows of a stream from the tables of rows."""
        for name in schema.NAMES.values():
            alter = f"ALTER TABLE {self.layout.stored(name)}{self.layout.on_cluster}"
            self.command(f"{alter} DELETE WHERE stream = {{stream:UInt64}} SETTINGS mutations_sync = 2", stream=stream)

    def drop(self) -> None:
        """Remove the database."""
        self.command(f"DROP DATABASE `{self.database}`{self.layout.on_cluster} SYNC")

    def clear(self) -> None:
        """Remove everything, for an index that is built anew."""
        self.close()
        self._create(anew=True)
        self.generation += 1

    def _create(self, *, anew: bool = False) -> None:
        client, on_cluster = self._connect(None), self.layout.on_cluster
        with contextlib.closing(client):  # to the end: an engine in this process goes with its last client
            self._make_database(client, on_cluster, anew=anew)
            for statement in schema.statements(self.database, self.layout):
                self.command(statement)
        self._set_expiry()

    def _make_database(self, client: Client, on_cluster: str, *, anew: bool) -> None:
        """Make the database if there is none, and anew if another version made it, or if that is wished."""
        try:
            client.command(f"CREATE DATABASE IF NOT EXISTS `{self.database}`{on_cluster}")
            where = f"database = '{self.database}' AND name = 'streams'"
            found = client.query(f"SELECT comment FROM system.tables WHERE {where}").result_rows
            made_by = str(found[0][0]) if found else None
            self._check_layout(made_by)
            if anew or (made_by is not None and made_by != schema.made_by(self.layout)):
                client.command(f"DROP DATABASE `{self.database}`{on_cluster} SYNC")
                client.command(f"CREATE DATABASE `{self.database}`{on_cluster}")
        except ClickHouseError as error:
            raise self._failed(error) from error

    def _check_layout(self, made_by: str | None) -> None:
        """Refuse tables that lie on other machines: rows that were left there would come back one day."""
        if made_by is None or made_by.partition(",")[2] == self.layout.told.partition(",")[2]:
            return
        made_with = made_by.partition(", ")[2] or "no cluster"
        raise StoreError(
            f"the tables in {self.label} were made with {made_with}: start with the same settings, or drop the "
            f"database {self.database} on all its machines first; it is made again from the journals"
        )

    def _set_expiry(self) -> None:
        """Let rows go at the age that is set now, also in tables that were there."""
        where = "WHERE database = {database:String}"
        found = self.query(f"SELECT name, engine_full AS engine FROM system.tables {where}", database=self.database)
        engines = dict(zip(found["name"].to_pylist(), found["engine"].to_pylist(), strict=True))
        for table in KEPT:
            statement = self.layout.change_expiry(table, engines[self.layout.stored(table)])
            if statement:
                self.command(statement)

    def _connect(self, database: str | None) -> Client:
        try:
            return clickhouse_connect.get_client(
                dsn=self._dsn, database=database, settings={**_ARROW, **self.layout.settings}
            )
        except ClickHouseError as error:
            raise self._failed(error) from error

    def _failed(self, error: ClickHouseError) -> StoreError:
        hint = "; another process may have it open" if "EmbeddedServer" in str(error) else ""
        return StoreError(f"the metrics store {self.label} failed: {error}{hint}")

    def _call(self, use: Callable[[Client], Any]) -> Any:
        with self._free:
            try:
                client = self._idle.pop()
            except IndexError:
                client = self._connect(self.database)
            try:
                return use(client)
            except ClickHouseError as error:
                raise self._failed(error) from error
            finally:
                self._idle.append(client)
