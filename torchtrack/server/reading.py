"""The runs of the store for those who answer questions: found by name, told apart by project, summed up in rows."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

from torchtrack.api import summary
from torchtrack.api.held import HeldRows
from torchtrack.api.run import Run
from torchtrack.api.source import Api, find_uid
from torchtrack.errors import RunNotFoundError
from torchtrack.records import SCHEMAS, Table
from torchtrack.server import overview
from torchtrack.server.arrivals import Arrivals
from torchtrack.server.catalog import Catalog
from torchtrack.server.courtesy import Courtesy
from torchtrack.server.judging import Judge, newest
from torchtrack.server.ledger import LIVE, Entry, Ledger
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.overview import Scope
from torchtrack.server.placement import Placed, placed
from torchtrack.server.rollup import Rollup, rollups
from torchtrack.server.series import Item
from torchtrack.server.stored import open_source
from torchtrack.server.surveys import Surveys
from torchtrack.server.tenancy import readable
from torchtrack.stability import Finding

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
        arrivals: the Indexer's, to wait for runs that are still to be read; None: what is there is all there is.
    """

    def __init__(
        self,
        store: MetricsStore,
        batch: Callable[[], int] | None = None,
        catalog: Catalog | None = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        self.store = store
        self._catalog = catalog
        self.batch = batch or (lambda: -1)
        self._arrivals = arrivals
        self._source = open_source(store, batch)
        self._api = Api.of(self._source)
        self._held: OrderedDict[str, Run] = OrderedDict()
        self.courtesy = Courtesy()
        self._judge = Judge(store, batch, courtesy=self.courtesy)
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
        self._await([name])
        with self._lock:
            run = self._named(name, self._deleted())
            self._hold(run)
            yield run

    def findings(self, name: str) -> list[Finding]:
        """What the stability rules conclude of a run. Of a large one that takes minutes: others read runs meanwhile.

        Raises:
            RunNotFoundError: as `run`.
            ApiError: the rules are looking at runs, and nothing is known of this one yet.
        """
        with self.run(name) as run:
            uid = run.uid
        return self._judge.findings(uid)

    @property
    def missing(self) -> int:
        """How many runs of the folder no question about many runs finds yet."""
        return self.pending + (0 if self._arrivals is None else self._arrivals.unread)

    def begun(self) -> bool:
        """Whether the newest runs can be asked about; waits some seconds for them. The others follow."""
        return self._arrivals is None or self._arrivals.wait(None, PATIENCE_S)

    def _await(self, names: Iterable[str]) -> None:
        """Have runs read that are asked for and were not yet, before all others."""
        arrivals = self._arrivals
        if arrivals is None or arrivals.all_read:
            return
        for name in names:
            with self._lock:
                known = self._api.with_uid(name) is not None
            if not known:
                arrivals.wait(name, PATIENCE_S)

    def _named(self, name: str, deleted: frozenset[str]) -> Run:
        run = self._api.with_uid(name)
        if run is None or not self._may_read(run):
            run = self._called(name)
        if run.uid in deleted:
            raise RunNotFoundError(f"run {run.uid} was deleted")
        return run

    @contextmanager
    def several(self, uids: Sequence[str]) -> Iterator[list[Run]]:
        """Those of these runs that there are; no other thread reads runs meanwhile, and no rows are kept for later."""
        with self._lock, self._source.still() as groups:
            runs = [run for uid in uids if uid in groups and (run := self._api.with_uid(uid)) is not None]
            yield runs
            for run in runs:
                if run.uid not in self._held:
                    run.release()

    def _may_read(self, run: Run) -> bool:
        seen = readable()
        if seen is None:
            return True
        return self._edits_of(run.uid).get("project", run.project) in seen and run.uid not in self._deleted()

    def firings(self, project: str | None, limit: int) -> list[dict[str, Any]]:
        """What alert rules fired on, the newest first; of a project or of all, whoever asks."""
        return [] if self._catalog is None else self._catalog.firings.of(project, limit)

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

    def of_runs(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Mapping[str, Any]]]:
        """Rows with a `stream`, those of runs that may be read and were not deleted, in their order.

        Returns:
            For each: the uid, the project the run is in, and the row.
        """
        seen, projects, deleted = readable(), self.projects(), self._deleted()
        with self._lock, self._source.still() as groups:
            uids = {row.number: uid for uid, streams in groups.items() for row in streams if isinstance(row, HeldRows)}
        found = [(uids.get(row["stream"]), row) for row in rows]
        return [
            (uid, projects[uid], row)
            for uid, row in found
            if uid in projects and uid not in deleted and (seen is None or projects[uid] in seen)
        ]

    def own_projects(self, uids: Iterable[str]) -> dict[str, str]:
        """The projects that runs say they are in, whatever project they were moved to; each is read for that."""
        with self._lock, self._source.still():
            runs = {uid: self._api.with_uid(uid) for uid in uids}
            return {uid: run.project for uid, run in runs.items() if run is not None}

    def along(self, project: str | None, metrics: Iterable[str]) -> dict[str, str]:
        """What runs of a project, or of all, put along x of metrics by `define_metric`; what was said last wins."""
        rows = self.store.query(
            "SELECT stream, json FROM events WHERE type = 'metric' ORDER BY time, stream, seq, row"
        ).to_pylist()
        mine = [json.loads(row["json"]) for _, home, row in self.of_runs(rows) if project in (None, home)]
        said = [each for each in mine if isinstance(each, dict)]
        found = {name: summary.definition(name, said).get("step_metric") for name in metrics} if said else {}
        return {name: str(metric) for name, metric in found.items() if metric}

    def _hold(self, run: Run) -> None:
        """Keep the rows of the runs that were asked for last, and no others."""
        self._held[run.uid] = run
        self._held.move_to_end(run.uid)
        while len(self._held) > HELD_RUNS:
            self._held.popitem(last=False)[1].release()

    def items(self, asked: Sequence[tuple[str, str, int | Literal["mean", "all"], str | None]]) -> list[list[Item]]:
        """The lines of each run, metric and rank, one or one a rank, along a metric or None.

        A run is looked up once, however often named; what was said of its metrics only where one lies along x.

        Raises:
            RunNotFoundError: as `run`.
        """
        known: dict[str, tuple[str, tuple[Placed, ...], int]] = {}
        apart: dict[tuple[str, str], str] = {}
        along: dict[str, set[str]] = {}
        for name, metric, _, x in asked:
            along.setdefault(name, set()).update([metric] if x is not None else ())
        self._await(along)
        with self._lock, self._source.still():
            deleted = self._deleted()
            for name, metrics in along.items():
                run = self._named(name, deleted)
                known[name] = run.uid, tuple(self.where(run)), int(run.created.timestamp() * 1e6)
                for metric in metrics:
                    said = run.definition(metric)
                    if said.get("step_sync") is False and isinstance(said.get("step_metric"), str):
                        apart[name, metric] = said["step_metric"]
                self._hold(run)
        lines = []
        for name, metric, rank, _ in asked:
            uid, streams, start_us = known[name]
            each = sorted({one.rank for one in streams}) if rank == "all" else [rank]
            lines.append([Item(uid, metric, n, streams, start_us, apart.get((name, metric))) for n in each])
        return lines

    def scope(self, project: str | None = None) -> Scope:
        """The runs that whoever asks sees, of a project or of all; the table of runs has them."""
        self.update()
        return Scope(project, self._deleted(), readable())

    def where(self, run: Run) -> list[Placed]:
        """The streams of a run."""
        return placed(run)

    def streams_of(self, names: Sequence[str]) -> dict[str, list[Placed]]:
        """The streams of several runs, by uid."""
        found = {}
        for name in names:
            with self.run(name) as run:
                found[run.uid] = self.where(run)
        return found

    def row(self, run: Run) -> dict[str, Any]:
        """A run as a row of the table: as it stands there, or made anew if something new of the run came since."""
        upto, streams = newest(run.every_stream())
        sql = f"SELECT said FROM {LIVE} AND uid = {{uid:String}} AND upto = {{upto:UInt64}} AND streams = {{n:UInt32}}"
        known = self.store.query(sql, uid=run.uid, upto=upto, n=streams)["said"].to_pylist()
        said = json.loads(known[0]) if known else self._entries([run])[0].said
        return {**said, **self._edits_of(run.uid), "state": run.state}

    def give_events(self, runs: Sequence[Run]) -> None:
        """Fetch the events of runs together, so that each stream need not."""
        streams = [stream for run in runs for stream in run.every_stream() if isinstance(stream, HeldRows)]
        events = self.store.rows_of_each(Table.EVENTS, {stream.number: stream.frames for stream in streams})
        for stream in streams:
            stream.give(Table.EVENTS, events.get(stream.number, SCHEMAS[Table.EVENTS].empty_table()))

    # -- the table of runs ---------------------------------------------------------------------------------------------

    def update(self, budget_s: float | None = None) -> bool:
        """Bring the table of runs up to date.

        Args:
            budget_s: how long that may take; without, all is done unless that is more than a question should wait for.

        Returns:
            Whether it is.
        """
        if budget_s is None and (not self.begun() or self.pending > BACKLOG):
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
                now = {uid: newest(groups[uid]) for uid in own}
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
        self.give_events(runs)
        found = rollups(self.store, [self.where(run) for run in runs])
        return [self._entry(run, rollup) for run, rollup in zip(runs, found, strict=True)]

    def _entry(self, run: Run, rollup: Rollup) -> Entry:
        whole = run.summary_of(rollup.last) if rollup.whole else None
        said = {name: _FIELDS[name](run) for name in FIELDS if name not in ("summary", "last_step")}
        said |= {"summary": run.summary if whole is None else whole, "last_step": rollup.last_step}
        lost_at = run.lost_at_ns
        upto, streams = newest(run.every_stream())
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


_FIELDS: Final[Mapping[str, Callable[[Run], Any]]] = {
    **{name: lambda run, name=name: getattr(run, name) for name in FIELDS},  # type: ignore[misc]
    "tags": lambda run: list(run.tags),
    "created": lambda run: run.created.isoformat(),
    "duration_s": lambda run: run.duration.total_seconds(),
    "attempts": lambda run: len(run.attempts),
    "archived": lambda run: False,  # noqa: ARG005  # people alone say so
    "colour": lambda run: None,  # noqa: ARG005
}
