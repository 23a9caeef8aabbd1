"""The runs of the store for those who answer questions: found by name, told apart by project, summed up in rows."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

from torchtrack.api.held import HeldRows
from torchtrack.api.run import Run
from torchtrack.api.source import Api, find_uid
from torchtrack.api.streams import Rows
from torchtrack.errors import RunNotFoundError
from torchtrack.records import SCHEMAS, Table
from torchtrack.server import overview
from torchtrack.server.catalog import Catalog
from torchtrack.server.ledger import Entry, Ledger
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.overview import Scope
from torchtrack.server.placement import Placed, placed
from torchtrack.server.rollup import Rollup, rollups
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


CHUNK: Final = 64
"""Runs that are brought up to date in the table of runs at a time, while nobody else reads runs."""
BACKLOG: Final = 256
"""Of so many runs a question does not wait until the table has them: it is told that they are missing."""
PATIENCE_S: Final = 10.0


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
        self._ledger = Ledger(store)
        self._updating = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self.pending = 0
        """Runs that the table of runs does not have as they are now."""

    @contextmanager
    def run(self, name: str) -> Iterator[Run]:
        """A run by uid, or whatever else `Api.run` takes; no other thread reads runs meanwhile.

        Raises:
            RunNotFoundError: there is none, it may not be read, or it was deleted.
        """
        with self._lock:
            run = self._api.with_uid(name)
            if run is None or not self._may_read(run):
                run = self._called(name)
            if run.uid in self._deleted():
                raise RunNotFoundError(f"run {run.uid} was deleted")
            try:
                yield run
            finally:
                self._hold(run)

    def _may_read(self, run: Run) -> bool:
        seen = readable()
        if seen is None:
            return True
        return self._edits_of(run.uid).get("project", run.project) in seen and run.uid not in self._deleted()

    def _deleted(self) -> frozenset[str]:
        return frozenset() if self._catalog is None else frozenset(self._catalog.deleted())

    def _edits_of(self, uid: str) -> dict[str, Any]:
        return {} if self._catalog is None else self._catalog.edits([uid]).get(uid, {})

    def _called(self, name: str) -> Run:
        """A run by another name than its uid, among those that may be read."""
        self.update()
        seen = readable()
        # Who may read everything is told that a run was deleted; to others no error names one.
        known = overview.names(
            self.store, Scope(readable=seen, deleted=self._deleted() if seen is not None else frozenset())
        )
        run = self._api.with_uid(find_uid(name, known, self._source))
        if run is None:
            raise RunNotFoundError(f"run {name!r} is gone")
        return run

    def projects(self) -> dict[str, str]:
        """The project of every run by uid, deleted ones too."""
        self.update()
        return {each.uid: each.project for each in overview.names(self.store, Scope())}

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

    def scope(self, project: str | None = None) -> Scope:
        """The runs that whoever asks sees, of a project or of all; the table of runs has them."""
        self.update()
        return Scope(project, self._deleted(), readable())

    def where(self, run: Run) -> list[Placed]:
        """The streams of a run."""
        return placed(self.store, run)

    def row(self, run: Run) -> dict[str, Any]:
        """A run as a row of the table."""
        entry = self._entries([run])[0]
        return {**entry.said, **self._edits_of(run.uid), "state": run.state}

    # -- the table of runs ---------------------------------------------------------------------------------------------

    def update(self, budget_s: float | None = None) -> bool:
        """Bring the table of runs up to date.

        Args:
            budget_s: how long that may take; without, all is done unless that is more than a question should wait for.

        Returns:
            Whether it is.
        """
        if budget_s is None and self.pending > BACKLOG:
            return False
        if not self._updating.acquire(timeout=PATIENCE_S if budget_s is None else budget_s):
            return False
        try:
            return self._update(budget_s)
        finally:
            self._updating.release()

    def _update(self, budget_s: float | None) -> bool:
        self._ledger.load()
        state = self.store.generation, self.batch()
        edits = {} if self._catalog is None else self._catalog.edits()
        if state != self._seen or state[1] < 0:
            with self._lock, self._source.still() as groups:
                own = [
                    uid for uid in groups if self._source.resolve(uid, whole=True) == [uid]
                ]  # not another's at first
                now = {uid: _newest(groups[uid]) for uid in own}
            stale = self._ledger.stale(now)
            self.pending = len(stale)
            ends = None if budget_s is None else time.monotonic() + budget_s
            while stale and (len(stale) <= BACKLOG if ends is None else time.monotonic() < ends):
                chunk, stale = stale[:CHUNK], stale[CHUNK:]
                with self._lock, self._source.still() as groups:
                    entries = self._entries(
                        [run for uid in chunk if uid in groups and (run := self._api.with_uid(uid))]
                    )
                self._ledger.put(entries, edits)
                self.pending = len(stale)
            if stale:
                return False
            self._seen = state
        self._ledger.edit(edits)
        return True

    def _entries(self, runs: Sequence[Run]) -> list[Entry]:
        """Rows of the table; what is needed for them is fetched for all runs together."""
        streams = [stream for run in runs for stream in run.every_stream() if isinstance(stream, HeldRows)]
        events = self.store.rows_of_each(Table.EVENTS, {stream.number: stream.frames for stream in streams})
        for stream in streams:
            stream.give(Table.EVENTS, events.get(stream.number, SCHEMAS[Table.EVENTS].empty_table()))
        found = rollups(self.store, [self.where(run) for run in runs])
        return [self._entry(run, rollup) for run, rollup in zip(runs, found, strict=True)]

    def _entry(self, run: Run, rollup: Rollup) -> Entry:
        summary = run.summary_of(rollup.last) if rollup.whole else None
        said = {name: _FIELDS[name](run) for name in FIELDS if name not in ("summary", "last_step")}
        said |= {"summary": run.summary if summary is None else summary, "last_step": rollup.last_step}
        lost_at = run.lost_at_ns
        upto, streams = _newest(run.every_stream())
        if run.uid not in self._held:
            run.release()
        return Entry(
            {name: said[name] for name in FIELDS},
            upto,
            streams,
            0 if lost_at is None else lost_at // 1000,
            {kind: sorted(names) for kind, names in rollup.tensors.items()},
            sorted(rollup.sources),
        )


def _newest(streams: Sequence[Rows]) -> tuple[int, int]:
    """What changes when something new of a run is in the store."""
    return max((stream.batch for stream in streams if isinstance(stream, HeldRows)), default=0), len(streams)


_FIELDS: Final[Mapping[str, Callable[[Run], Any]]] = {
    **{name: lambda run, name=name: getattr(run, name) for name in FIELDS},  # type: ignore[misc]
    "tags": lambda run: list(run.tags),
    "created": lambda run: run.created.isoformat(),
    "duration_s": lambda run: run.duration.total_seconds(),
    "attempts": lambda run: len(run.attempts),
    "archived": lambda run: False,  # noqa: ARG005  # people alone say so
    "colour": lambda run: None,  # noqa: ARG005
}
