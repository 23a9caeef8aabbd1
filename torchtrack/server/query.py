"""What can be asked of a server: routes under /api/v1, for the page, for scripts, for `Api("http://...")`.

Charts come as binary frames unless another `format` is asked for: see `answers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import pyarrow.compute as pc
from fastapi import APIRouter, Path, Query, Response
from pydantic import Field, model_validator

from torchtrack.records import Table
from torchtrack.server import artifacts as versions_of
from torchtrack.server import axes, distributions, logged, overview, series
from torchtrack.server.about import about
from torchtrack.server.alarms import alarms
from torchtrack.server.answers import Answer, Format, frames_response, jsonable, table_response
from torchtrack.server.bodies import HEX16, Body
from torchtrack.server.evaluation import Board
from torchtrack.server.filters import compile_filter
from torchtrack.server.problems import ApiError
from torchtrack.server.reading import FIELDS, Reader
from torchtrack.server.stored import changes

_FAR: Final = 1 << 62
Step = Annotated[int, Field(ge=-_FAR, le=_FAR)]
Edge = Annotated[float, Field(ge=-_FAR, le=_FAR, allow_inf_nan=False)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
Name = Annotated[str, Field(min_length=1, max_length=1024)]
Uid = Annotated[str, Path(min_length=1, max_length=256)]
Rank = Annotated[int, Field(ge=0, le=1 << 31)] | Literal["mean", "all"]
MAX_ITEMS: Final = 1000
MAX_SIDES: Final = 100
"""Runs that are looked at side by side."""


class Steps(Body):
    """Which steps: half-open."""

    mode: Literal["step"] = "step"
    start: Step | None = Field(default=None, alias="from")
    stop: Step | None = Field(default=None, alias="to")


class X(Body):
    """The x axis, and what is shown of it: half-open, in its units.

    Steps; seconds since the run began (`relative`); seconds since 1970 (`time`); or another metric, at the same step.
    """

    mode: axes.Mode = "step"
    metric: Name | None = None
    start: Edge | None = Field(default=None, alias="from")
    stop: Edge | None = Field(default=None, alias="to")

    @model_validator(mode="after")
    def _check(self) -> X:
        if (self.mode == "metric") != (self.metric is not None):
            raise ValueError('`metric` names the x axis of mode "metric", and of no other')
        return self


class Smooth(Body):
    """A decayed mean: a value that lies tau back on the x axis, in its units, counts 1/e."""

    kind: Literal["ema"] = "ema"
    tau: float = Field(gt=0, le=1e9)


class Line(Body):
    """One line of a chart; `rank` "all" gives one line a rank."""

    run: Name
    metric: Name
    rank: Rank = "mean"


class SeriesQuery(Body):
    """The lines of the charts in view."""

    items: list[Line] = Field(max_length=MAX_ITEMS)
    x: X = X()
    px: Pixels = 1000
    smooth: Smooth | None = None


class SeriesBatch(Body):
    """Charts that are wanted together, such as those in sight."""

    charts: list[SeriesQuery] = Field(min_length=1, max_length=MAX_ITEMS)


class TensorQuery(Body):
    """Tensors of a run over steps; `name` may be a pattern."""

    run: Name
    kind: Name = "gradient"
    name: Name = "*"
    stage: Literal["pre_clip", "step", "skipped"] | None = None
    x: Steps = Steps()
    px: Pixels = 500


class HeatmapQuery(TensorQuery):
    """A statistic of each tensor over steps."""

    stat: distributions.Stat = "norm"
    norm: distributions.Norm = "abs"
    pool: distributions.Pool = "max"


class HistogramQuery(TensorQuery):
    """Histograms over steps; `at` gives that of one step."""

    at: Step | None = None


class RunsOf(Body):
    """Which runs."""

    runs: list[Name] = Field(max_length=MAX_SIDES)


class NamedQuery(RunsOf):
    """What was logged under one name that is no number."""

    name: Name
    source: logged.Source = "media"


class LoggedQuery(NamedQuery):
    """The same, as it was at a step; without one at the end."""

    at: Step | None = None


class RunsQuery(Body):
    """A table of runs. `sort` takes fields, descending with a minus before; `agg` is what a group's numbers become."""

    filter: str = Field("", max_length=4000)
    sort: list[Name] = Field(default=["-created"], max_length=8)
    group: list[Name] = Field(default=[], max_length=4)
    columns: list[Name] = Field(default=list(FIELDS), max_length=500)
    agg: Literal["mean", "min", "max"] = "mean"
    limit: int = Field(100, ge=1, le=10_000)
    cursor: int = Field(0, ge=0, le=_FAR)


def router(reader: Reader, board: Board) -> APIRouter:
    """The routes, answered from a store."""
    routes = APIRouter(tags=["query"])
    _about_runs(routes, reader, board)
    _of_a_run(routes, reader)
    _exports(routes, reader)
    _charts(routes, reader)
    _logged(routes, reader)
    _for_scripts(routes, reader)
    return routes


def _about_runs(routes: APIRouter, reader: Reader, board: Board) -> None:
    @routes.get("/projects")
    def projects() -> list[dict[str, Any]]:
        """The projects: runs, those that are running or did not end well, and when the newest began."""
        return overview.projects(reader.store, reader.scope())

    @routes.post("/projects/{project}/runs/query")
    def query_runs(project: Uid, query: RunsQuery) -> dict[str, Any]:
        """A table of runs, filtered, sorted, grouped: a list a column. `-` as the project asks for all of them."""
        where = compile_filter(query.filter, FIELDS)
        scope = reader.scope(None if project == "-" else project)
        n, rows = overview.page(reader.store, scope, where, query.sort, query.limit, query.cursor)
        more = query.cursor + query.limit < n
        groups = None
        if query.group:
            groups = overview.groups(reader.store, scope, where, query.sort, query.group, query.columns, query.agg)
        return {
            "n": n,
            "columns": {name: [overview.value(row, name) for row in rows] for name in query.columns},
            "groups": groups,
            "cursor": query.cursor + query.limit if more else None,
            "pending": reader.missing,
        }

    @routes.get("/projects/{project}/keys")
    def keys(project: Uid, q: str = Query("", max_length=256)) -> dict[str, Any]:
        """What runs of the project have, and how many: metrics, those of the machine, settings, tensors, logs.

        `along` names for a metric the one that `define_metric` puts along x of it.
        """
        which = None if project == "-" else project
        found: dict[str, Any] = overview.keys(reader.store, reader.scope(which), q)
        return {**found, "along": reader.along(which, (each["key"] for each in found["metric"]))}

    @routes.get("/projects/{project}/alarms")
    def of_many(project: Uid, runs: int = Query(50, ge=1, le=500)) -> dict[str, Any]:
        """Findings and alerts of the newest runs of the project, and what alert rules fired on; the newest first."""
        return {**alarms(reader, project, runs), "targets": list(board.targets)}

    @routes.get("/artifacts")
    def artifacts(
        project: Annotated[str, Query(min_length=1, max_length=256)],
        name: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
    ) -> list[dict[str, Any]]:
        """The versions of a project's artifacts, or of one of them, from the oldest on: aliases, run, `contents`."""
        return [jsonable(version) for version in versions_of.versions(reader, project, name)]

    @routes.get("/compare")
    def compare(runs: str = Query(max_length=20_000)) -> dict[str, Any]:
        """What differs between runs (uids with commas between): config, summary and environment, a list a key."""
        found = []
        for name in runs.split(","):
            with reader.run(name) as run:
                found.append({"config": run.config, "summary": run.summary, "environment": run.environment})
        different: dict[str, Any] = {}
        for part in ("config", "summary", "environment"):
            names = sorted({key for one in found for key in one[part]})
            values = {key: [jsonable(one[part].get(key)) for one in found] for key in names}
            different[part] = {key: each for key, each in values.items() if any(value != each[0] for value in each)}
        return different


def _of_a_run(routes: APIRouter, reader: Reader) -> None:
    @routes.get("/runs/{uid}")
    def run(uid: Uid) -> dict[str, Any]:
        """What a run is: its row of the table, environment, attempts, mesh, metrics, and what its journals lost."""
        with reader.run(uid) as run:
            return about(reader, run)

    @routes.get("/runs/{uid}/findings")
    def findings(uid: Uid) -> list[dict[str, Any]]:
        """What the stability rules conclude."""
        return [jsonable(finding.as_dict()) for finding in reader.findings(uid)]

    @routes.get("/runs/{uid}/logs")
    def logs(
        uid: Uid,
        rank: int | None = Query(None, ge=0, le=1 << 31),
        q: str = Query("", max_length=256),
        after: int = Query(0, ge=0, le=_FAR),
        limit: int = Query(1000, ge=1, le=100_000),
    ) -> dict[str, Any]:
        """Printed lines in the order of time, from the `after`-th of those that match on."""
        with reader.run(uid) as run:
            rows = run.logs()
        if rank is not None:
            rows = rows.filter(pc.equal(rows["rank"], rank))
        if q:
            rows = rows.filter(pc.fill_null(pc.match_substring(rows["line"], q), fill_value=False))
        page = rows.slice(after, limit)
        more = after + limit < rows.num_rows
        return {"n": rows.num_rows, "lines": jsonable(page.to_pylist()), "after": after + limit if more else None}

    @routes.get("/runs/{uid}/media")
    def media(
        uid: Uid, after: int = Query(0, ge=0, le=_FAR), limit: int = Query(1000, ge=1, le=10_000)
    ) -> dict[str, Any]:
        """Rows of logged files in the order of time, from the `after`-th on: name, step, rank, SHA-256, type, size."""
        with reader.run(uid) as run:
            rows = run.media()
        more = after + limit < rows.num_rows
        page = [jsonable(logged.described(row)) for row in rows.slice(after, limit).to_pylist()]
        return {"n": rows.num_rows, "rows": page, "after": after + limit if more else None}

    @routes.get("/runs/{uid}/artifacts")
    def artifacts(uid: Uid) -> list[dict[str, Any]]:
        """The artifacts that the run logged and used: what was said of them; `contents` names the list of files."""
        with reader.run(uid) as run:
            return [
                jsonable({**event.data, "time": event.time, "rank": event.rank}) for event in run.events("artifact")
            ]

    @routes.get("/runs/{uid}/saved")
    def saved(uid: Uid) -> list[dict[str, Any]]:
        """The files that were saved with the run and sent: `path` in its folder, size, sha256, time, `contents`."""
        with reader.run(uid) as run:
            return [jsonable({"path": path, **about}) for path, about in run.saved.items()]


def _exports(routes: APIRouter, reader: Reader) -> None:
    @routes.get("/runs/{uid}/history")
    def history(
        uid: Uid,
        keys: Annotated[list[Name] | None, Query(max_length=1000)] = None,
        ranks: Literal["mean", "all"] = "mean",
        start: Step | None = None,
        stop: Step | None = None,
        format: Format = "json",  # noqa: A002
    ) -> Response:
        """Metrics, a row a step: what `Run.history` gives."""
        with reader.run(uid) as run:
            rows = run.history(keys, ranks=ranks, start=start, stop=stop)
        return table_response(rows, format)

    @routes.get("/runs/{uid}/tensors")
    def tensors(
        uid: Uid,
        kind: Name | None = None,
        name: Name | None = None,
        start: Step | None = None,
        stop: Step | None = None,
        format: Literal["json", "arrow", "csv", "parquet"] = "json",  # noqa: A002
    ) -> Response:
        """Statistics of tensors, every element counted once: what `Run.tensors` gives."""
        with reader.run(uid) as run:
            rows = run.tensors(kind, name, start, stop)
        return table_response(rows, format)


def _charts(routes: APIRouter, reader: Reader) -> None:
    @routes.post("/series", response_class=Response)
    def post_series(query: SeriesQuery, format: Format = "frame") -> Response:  # noqa: A002
        """Lines on one grid that keep every spike."""
        return _lines(reader, [query])[0].response(format)

    @routes.post("/series/batch", response_class=Response)
    def post_series_of_many(batch: SeriesBatch) -> Response:
        """The lines of several charts, at most 1,000 in all: a frame a chart, one after the other."""
        return frames_response(_lines(reader, batch.charts))

    @routes.post("/heatmap", response_class=Response)
    def post_heatmap(query: HeatmapQuery, format: Format = "frame") -> Response:  # noqa: A002
        """A statistic of each tensor over steps."""
        with reader.run(query.run) as run:
            where = reader.where(run)
            answer = distributions.heatmap(
                reader.store, run, where, _window(query), query.stat, norm=query.norm, pool=query.pool
            )
        return answer.response(format)

    @routes.post("/histogram", response_class=Response)
    def post_histogram(query: HistogramQuery, format: Format = "frame") -> Response:  # noqa: A002
        """Histograms of the tensors that match, added exactly, over steps."""
        window = _window(query)
        if query.at is not None:
            window = distributions.Window(window.kind, window.name, window.stage, query.at, query.at + 1, 1)
        with reader.run(query.run) as run:
            answer = distributions.histogram(reader.store, run, reader.where(run), window)
        return answer.response(format)


def _lines(reader: Reader, queries: Sequence[SeriesQuery]) -> list[Answer]:
    """What each chart asks for; those that show the same span are answered together."""
    asked = reader.items(
        [(line.run, line.metric, line.rank, query.x.metric) for query in queries for line in query.items]
    )
    number = sum(map(len, asked))
    if number > MAX_ITEMS:
        raise ApiError(422, "too_many", f"{number} lines are asked for, at most {MAX_ITEMS} at once")
    found, alike = iter(asked), dict[series.Span, dict[int, list[series.Item]]]()
    for place, query in enumerate(queries):
        axis, tau = axes.Axis(query.x.mode, query.x.metric), query.smooth.tau if query.smooth else None
        span = series.Span(query.x.start, query.x.stop, query.px, tau, axis)
        items = [item for _ in query.items for item in next(found)]
        alike.setdefault(span, {})[place] = items
    answers: dict[int, Answer] = {}
    for span, each in alike.items():
        of_span = series.charts(reader.store, list(each.values()), span, reader.surveys)
        answers.update(zip(each, of_span, strict=True))
    return [answers[place] for place in range(len(queries))]


def _logged(routes: APIRouter, reader: Reader) -> None:
    @routes.post("/logged/names")
    def logged_names(query: RunsOf) -> list[dict[str, Any]]:
        """What runs logged that is no number, by name: `source` (media or texts), kinds, rows, steps."""
        return logged.names(reader.store, reader.streams_of(query.runs))

    @routes.post("/logged/steps")
    def logged_steps(query: NamedQuery) -> list[int]:
        """The steps at which one of the runs logged something under a name."""
        return logged.steps(reader.store, reader.streams_of(query.runs), query.source, query.name)

    @routes.post("/logged")
    def logged_at(query: LoggedQuery) -> list[dict[str, Any]]:
        """What each run logged last under a name, up to a step: `{run, step, n, rows}`, the rows of that step."""
        return logged.at(reader.store, reader.streams_of(query.runs), query.source, query.name, query.at)


def _for_scripts(routes: APIRouter, reader: Reader) -> None:
    @routes.get("/streams")
    def streams(since: int = Query(0, ge=0, le=_FAR)) -> dict[str, Any]:
        """The records of all streams that changed after a cursor: what `Api("http://...")` builds its runs from."""
        cursor, changed = changes(reader.store, since)
        mine = reader.streams()
        changed = changed if mine is None else [each for each in changed if each["stream"] in mine]
        return {"cursor": cursor, "streams": changed}

    @routes.get("/streams/{stream}/{table}", response_class=Response)
    def rows(
        stream: Annotated[str, Path(pattern=HEX16)],
        table: Literal["scalars", "texts", "tensors", "media", "logs", "events"],
        first: int = Query(0, ge=0, le=_FAR),
        stop: int = Query(_FAR, ge=0, le=_FAR),
    ) -> Response:
        """Rows of a stream as they were written, frames `first` to `stop`, as an Arrow stream."""
        mine = reader.streams()
        if mine is not None and stream not in mine:
            raise ApiError(404, "not_found", "there is no such stream")
        found = reader.store.rows(Table[table.upper()], [int(stream, 16)], first, stop)
        return table_response(found, "arrow")


def _window(query: TensorQuery) -> distributions.Window:
    return distributions.Window(query.kind, query.name, query.stage, query.x.start, query.x.stop, query.px)


__all__ = ["router"]
