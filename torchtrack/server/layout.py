"""How the tables of the metrics store are kept: on which machines of a ClickHouse cluster, and for how long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

KEPT: Final = ("scalars", "tensors", "texts", "logs")
"""Tables whose rows may go after a time. What a run says of itself (events, media, its own row) stays."""
MAX_DAYS: Final = 3650
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_LAST_S: Final = 3_900_000_000
"""In the year 2093: ten years later is still a time the engine knows. Later times are taken for this one."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Settings of the tables.

    Attributes:
        cluster: of a ClickHouse server's `system.clusters`; None: the tables lie on the server itself.
        replicated: whether each shard of the cluster keeps its rows on all its replicas.
        keep_days: for how long rows are kept, by table, counted from the time they were written at; others for ever.

    Raises:
        ValueError: there is no such layout.
    """

    cluster: str | None = None
    replicated: bool = False
    keep_days: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no statement could be made of."""
        if self.cluster is not None and not _NAME.fullmatch(self.cluster):
            raise ValueError(f"{self.cluster!r} is no name of a cluster: letters, digits and _ . - only")
        if self.replicated and self.cluster is None:
            raise ValueError("replicated tables need the name of the cluster that has the replicas")
        for table, days in self.keep_days.items():
            if table not in KEPT:
                raise ValueError(f"rows of {table!r} are not removed by their age; those of {', '.join(KEPT)} can be")
            if not 1 <= days <= MAX_DAYS:
                raise ValueError(f"{table} are kept for 1 to {MAX_DAYS} days, not for {days}")

    @property
    def told(self) -> str:
        """What the tables were made with, in words that are stored with them; retention can be changed later."""
        return f", cluster {self.cluster}{', replicated' if self.replicated else ''}" if self.cluster else ""

    @property
    def on_cluster(self) -> str:
        """For statements that every machine has to run."""
        return f" ON CLUSTER `{self.cluster}`" if self.cluster else ""

    @property
    def settings(self) -> dict[str, Any]:
        """What queries need so that they see all rows that were inserted before, once."""
        found: dict[str, Any] = {}
        if self.cluster:
            found |= {"distributed_foreground_insert": 1, "distributed_product_mode": "global"}
        if self.replicated:
            found |= {"insert_quorum": "auto", "insert_quorum_parallel": 0, "select_sequential_consistency": 1}
        return found

    def stored(self, table: str) -> str:
        """The name of the table that has the rows themselves."""
        return f"{table}_local" if self.cluster else table

    def create(
        self, database: str, table: str, columns: str, engine: str, key: str, rest: str, comment: str
    ) -> list[str]:
        """The statements that make a table.

        Args:
            database: where.
            table: the name by which it is asked.
            columns: of it.
            engine: of the MergeTree family.
            key: by which rows lie on one shard or another; rows that are combined when read have the same.
            rest: order, partition and settings.
            comment: on the table by which it is asked.
        """
        said = f" COMMENT '{comment}'" if comment else ""
        if not self.cluster:
            return [f"CREATE TABLE IF NOT EXISTS {table} ({columns}) ENGINE = {engine} {rest}{said}"]
        if self.replicated:
            name, _, arguments = engine.partition("(")
            place = f"'/clickhouse/tables/{{shard}}/{database}/{table}', '{{replica}}'"
            engine = f"Replicated{name}({', '.join(filter(None, (place, arguments.removesuffix(')'))))})"
        stored = f"`{database}`.{self.stored(table)}"
        return [
            f"CREATE TABLE IF NOT EXISTS {stored}{self.on_cluster} ({columns}) ENGINE = {engine} {rest}",
            f"CREATE TABLE IF NOT EXISTS `{database}`.{table}{self.on_cluster} AS {stored} "
            f"ENGINE = Distributed('{self.cluster}', '{database}', '{self.stored(table)}', {key}){said}",
        ]

    def expiry(self, table: str) -> str | None:
        """The moment from which on a row of a table may go, as the engine writes it; None: never.

        A row without a time stays. Times before 1970 are taken for 1970.
        """
        days = self.keep_days.get(table)
        if days is None:
            return None
        seconds = f"intDiv(ifNull(time, {_LAST_S}000000), 1000000)"
        return f"toDateTime(least(greatest({seconds}, 0), {_LAST_S})) + toIntervalDay({days})"

    def change_expiry(self, table: str, engine: str) -> str | None:
        """The statement that gives a table which is there the expiry it should have; None if it has.

        Args:
            table: its name.
            engine: `engine_full` of `system.tables`.
        """
        expiry = self.expiry(table)
        alter = f"ALTER TABLE {self.stored(table)}{self.on_cluster}"
        if expiry is None:
            return f"{alter} REMOVE TTL" if " TTL " in engine else None
        return None if f" TTL {expiry} " in f"{engine} " else f"{alter} MODIFY TTL {expiry}"


PLAIN: Final = Layout()
"""Tables of one machine that are kept for ever."""
