"""The runs of the store for those who answer questions: found by name, told apart by project, summed up in rows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

from torchtrack.api.run import Run
from torchtrack.api.source import Api
from torchtrack.errors import RunNotFoundError
from torchtrack.server.catalog import Catalog, overlaid
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import Placed, placed
from torchtrack.server.series import Item
from torchtrack.server.stored import open_source
from torchtrack.server.surveys import Surveys
from torchtrack.server.tenancy import readable

FIELDS: Final = (
    "uid",
    "id",
    "name",
    "project",
    "group",
    "job_type",
    "tags",
    "notes",
    "state",
    "created",
    "duration_s",
    "world_size",
    "attempts",
    "last_step",
    "config",
    "summary",
    "archived",
    "colour",
)
"""What a row of the table of runs has, and what it can be filtered by."""
HELD_RUNS: Final = 16
"""Runs whose rows stay in memory once they were asked for."""
_ENDED: Final = ("finished", "failed", "killed", "crashed")


class Reader:
    """Answers for several threads; what it knows of runs is brought up to date when it is asked.

    Args:
        store: where the rows are.
        batch: the Indexer's counter, so that nothing is looked up while nothing has changed; None: always look.
        catalog: what people typed, which wins over what runs say.
    """

    def __init__(
        self, store: MetricsStore, batch: Callable[[], int] | None = None, catalog: Catalog | None = None
    ) -> None:
        self.store = store
        self._catalog = catalog
        self.batch = batch or (lambda: -1)
        self._source = open_source(store, batch)
        self._api = Api.of(self._source)
        self._held: OrderedDict[str, Run] = OrderedDict()
        self.surveys = Surveys(store)
        self._lock = threading.RLock()
        self._rows: dict[str, tuple[Any, dict[str, Any]]] = {}

    @contextmanager
    def run(self, name: str) -> Iterator[Run]:
        """A run by uid, or whatever else `Api.run` takes; no other thread reads runs meanwhile.

        Raises:
            RunNotFoundError: there is none, or it was deleted.
        """
        with self._lock:
            seen = readable()
            deleted = set() if self._catalog is None else self._catalog.deleted()
            mine = None
            if seen is not None:
                mine = {uid for uid, project in self.projects().items() if project in seen and uid not in deleted}
            run = self._api.run(name, among=mine)
            if run.uid in deleted:
                raise RunNotFoundError(f"run {run.uid} was deleted")
            try:
                yield run
            finally:
                self._hold(run)

    def projects(self) -> dict[str, str]:
        """The project of every run by uid, deleted ones too."""
        with self._lock, self._source.still():
            found = {run.uid: run.project for run in self._api.runs()}
        edits = {} if self._catalog is None else self._catalog.edits()
        return {uid: edits.get(uid, {}).get("project", project) for uid, project in found.items()}

    def streams(self) -> set[str] | None:
        """The streams of the runs that may be read, in hex digits; None: all of them."""
        seen = readable()
        if seen is None:
            return None
        projects = self.projects()
        with self._lock, self._source.still() as groups:
            return {row.key for uid, rows in groups.items() if projects.get(uid) in seen for row in rows}

    def _hold(self, run: Run) -> None:
        """Keep the rows of the runs that were asked for last, and no others."""
        self._held[run.uid] = run
        self._held.move_to_end(run.uid)
        while len(self._held) > HELD_RUNS:
            self._held.popitem(last=False)[1].release()

    def items(self, name: str, metric: str, rank: int | Literal["mean", "all"]) -> list[Item]:
        """The lines of a metric of a run: one, or one a rank."""
        with self.run(name) as run:
            uid, streams, start_us = run.uid, self.where(run), int(run.created.timestamp() * 1e6)
        each = sorted({one.rank for one in streams}) if rank == "all" else [rank]
        return [Item(uid, metric, n, tuple(s for s in streams if n in ("mean", s.rank)), start_us) for n in each]

    def rows(self, project: str | None = None) -> list[dict[str, Any]]:
        """A row for each run, newest first, with the keys of `FIELDS`."""
        with self._lock, self._source.still():
            rows = [self._row(run) for run in self._api.runs()]
        if self._catalog is not None:
            deleted, edits = self._catalog.deleted(), self._catalog.edits()
            rows = [overlaid(row, edits.get(row["uid"], {})) for row in rows if row["uid"] not in deleted]
        seen = readable()
        rows = rows if seen is None else [row for row in rows if row["project"] in seen]
        return [row for row in rows if project in (None, row["project"])]

    def where(self, run: Run) -> list[Placed]:
        """The streams of a run."""
        return placed(self.store, run)

    def row(self, run: Run) -> dict[str, Any]:
        """A run as a row of the table."""
        edits = {} if self._catalog is None else self._catalog.edits([run.uid]).get(run.uid, {})
        return overlaid(self._row(run), edits)

    def _row(self, run: Run) -> dict[str, Any]:
        version = run.version
        known = self._rows.get(run.uid)
        if known is not None and known[0] == version:
            if known[1]["state"] not in _ENDED:
                known[1]["state"] = run.state  # time alone may have changed it
            return known[1]
        row = {name: _FIELDS[name](run) for name in FIELDS}
        self._rows[run.uid] = version, row
        if run.uid not in self._held:
            run.release()
        return row


_FIELDS: Final[Mapping[str, Callable[[Run], Any]]] = {
    **{name: lambda run, name=name: getattr(run, name) for name in FIELDS},  # type: ignore[misc]
    "tags": lambda run: list(run.tags),
    "created": lambda run: run.created.isoformat(),
    "duration_s": lambda run: run.duration.total_seconds(),
    "attempts": lambda run: len(run.attempts),
    "archived": lambda run: False,  # noqa: ARG005  # people alone say so
    "colour": lambda run: None,  # noqa: ARG005
}
