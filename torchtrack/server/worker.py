"""The process that holds the engine: store, Indexer and the routes that ask it. It may be killed at any moment.

    python -m torchtrack.server --runs DIR [--index DIR | --dsn DSN] --socket PATH

It listens on a Unix socket that only its user can open; the server in front of it checks who asks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from torchtrack import alerts, guard
from torchtrack.errors import RunNotFoundError, StoreError
from torchtrack.server import live, problems, query
from torchtrack.server.catalog import Catalog
from torchtrack.server.courtesy import Asked
from torchtrack.server.delivery import Delivery
from torchtrack.server.engine import beginning
from torchtrack.server.evaluation import Board, Evaluation
from torchtrack.server.filters import FilterError
from torchtrack.server.indexer import Indexer
from torchtrack.server.layout import PLAIN, Layout
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.problems import ApiError
from torchtrack.server.reading import Reader
from torchtrack.server.shown import index_folder
from torchtrack.server.tenancy import Tenancy
from torchtrack.version import __version__

API: Final = "/api/v1"
PATIENCE: Final = 5
"""Errors of the store in a row after which the process ends, for another one to begin."""
PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 2.0
"""Looking at thousands of journals takes a while; after a pause as long there is more in each."""
JUDGE_S: Final = 2.0
"""How often alert rules are judged; where that takes long, at most"""
JUDGE_SHARE: Final = 0.2
"""this share of the time goes into it."""
UPDATE_S: Final = 2.0
"""How long the table of runs is brought up to date in one piece."""
UPDATE_SHARE: Final = 0.2
"""Of the time that goes into it once all rows are there: a run of 10,000 ranks has a new one every time."""
_log = logging.getLogger("torchtrack.server")


@dataclass(frozen=True)
class Telling:
    """Whom what alert rules fire on is told.

    Attributes:
        urls: as apprise takes them. Secrets.
        page: where people see the page.
    """

    urls: tuple[str, ...] = field(default=(), repr=False)
    page: str = ""


def create_app(
    store: MetricsStore, runs: Path, catalog: Catalog | None = None, telling: Telling | None = None
) -> FastAPI:
    """The application: follows a folder of runs while it is up, and answers from the store.

    Args:
        store: where the rows go; closed at the end.
        runs: the folder of runs.
        catalog: what people typed; what alert rules fire on is written there.
        telling: who is told of it.
    """
    indexer = Indexer(runs, store)
    reader = Reader(store, lambda: indexer.batch, catalog, indexer.arrivals)
    board, stop = Board(), threading.Event()
    threads = [
        threading.Thread(target=_follow, args=(indexer, stop), name="torchtrack indexer"),
        threading.Thread(target=_sum_up, args=(reader, stop), name="torchtrack runs"),
    ]
    delivery = None
    if catalog is not None:
        delivery = _delivery(catalog, board, telling or Telling())
        evaluation = Evaluation(reader, catalog, board, delivery.wake)
        threads.append(threading.Thread(target=_judge, args=(evaluation, stop), name="torchtrack alert rules"))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for thread in threads:
            thread.start()
        if delivery is not None:
            delivery.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            if delivery is not None:
                delivery.stop()
            store.close()

    app = FastAPI(title="torchtrack", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.indexer, app.state.reader = indexer, reader
    app.include_router(query.router(reader, board), prefix=API, responses=problems.RESPONSES)
    app.include_router(live.router(reader, board), prefix=API, responses=problems.RESPONSES)
    app.add_middleware(Tenancy)
    app.add_middleware(Asked, courtesy=reader.courtesy)
    install(app)

    @app.post("/where", include_in_schema=False)
    def where(uids: list[str]) -> dict[str, str]:
        """For the front: the projects of those runs that there are."""
        projects = reader.projects()
        return {uid: projects[uid] for uid in uids if uid in projects}

    return app


def install(app: FastAPI) -> None:
    """Answer what goes wrong in one shape, with words that say what to do."""
    answers: dict[type[Exception], Callable[[Exception], ApiError]] = {
        RunNotFoundError: lambda error: ApiError(404, "not_found", str(error)),
        FilterError: lambda error: ApiError(422, "bad_filter", str(error)),
        ValueError: lambda error: ApiError(400, "bad_request", str(error)),
        StoreError: lambda error: ApiError(503, "store", str(error), retry_after_s=1),
    }

    def handler(make: Callable[[Exception], ApiError]) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
        async def answer(request: Request, error: Exception) -> JSONResponse:
            del request
            return make(error).response()

        return answer

    for kind, make in answers.items():
        app.add_exception_handler(kind, handler(make))
    problems.install(app)


def _follow(indexer: Indexer, stop: threading.Event) -> None:
    """Poll until told to stop; a store that keeps failing ends the process."""
    failed, pause = 0, 0.0
    while not stop.wait(pause * (1 + failed)):
        began = time.monotonic()
        try:
            indexer.poll()
            failed = 0
        except FileNotFoundError as error:
            _log.warning("%s; looking again", error)
        except StoreError as error:
            failed += 1
            _log.error("%s (%d of %d)", error, failed, PATIENCE)
            if failed == PATIENCE:
                os.kill(os.getpid(), signal.SIGTERM)
                return
        pause = min(max(PAUSE_S, time.monotonic() - began), LONGEST_PAUSE_S)


def _sum_up(reader: Reader, stop: threading.Event) -> None:
    """Keep the table of runs up to date until told to stop, beside the Indexer: a large run takes seconds."""
    pause = PAUSE_S
    while not stop.wait(pause):
        began, done = time.monotonic(), True
        try:
            done = reader.update(UPDATE_S)
        except StoreError as error:
            _log.error("%s", error)
        took = time.monotonic() - began
        pause = max(PAUSE_S, took * (1 / UPDATE_SHARE - 1)) if done else 0.0


def _delivery(catalog: Catalog, board: Board, telling: Telling) -> Delivery:
    """Who tells people; what cannot be used is said by its number alone."""
    notifiers: list[Any] = []
    if telling.urls and (why := alerts.missing()) is not None:
        _log.warning("%s", why)
    elif telling.urls:
        notifiers = [each for _, each in alerts.notifiers(telling.urls, lambda why: _log.warning("alerts: %s", why))]
    board.targets = tuple(map(alerts.service_of, notifiers))
    return Delivery(catalog.firings, notifiers, board.changes.update, telling.page)


def _judge(evaluation: Evaluation, stop: threading.Event) -> None:
    """Judge the alert rules until told to stop."""
    pause = 0.0
    while not stop.wait(pause):
        began = time.monotonic()
        guard.attempt("judging alert rules", evaluation.judge)
        pause = max(JUDGE_S, (time.monotonic() - began) * (1 / JUDGE_SHARE - 1))


def _first_line() -> dict[str, Any]:
    """What whoever holds the input says at first: addresses that hold passwords stand on no command line."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            raise SystemExit(0)
        line += piece
    told: dict[str, Any] = json.loads(line)
    return told


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@click.command()
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder of runs.")
@click.option("--index", type=click.Path(path_type=Path), help="Where the index lies; by default in the user's cache.")
@click.option("--dsn", help="A ClickHouse server instead: clickhouse://user:password@host:port.")
@click.option("--catalog", help="What people typed: a URL of SQLAlchemy's.")
@click.option("--attached", is_flag=True, help="Input begins with a line of JSON with further options.")
@click.option("--socket", "path", type=click.Path(path_type=Path), required=True, help="The Unix socket to listen on.")
def main(runs: Path, index: Path | None, dsn: str | None, catalog: str | None, attached: bool, path: Path) -> None:
    """Index a folder of runs and answer questions about it."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    os.umask(0o077)
    telling, layout = Telling(), PLAIN
    if attached:
        told = _first_line()
        dsn, catalog = told.get("dsn") or dsn, told.get("catalog") or catalog
        telling = Telling(tuple(told.get("alert_urls") or ()), told.get("page") or "")
        layout = Layout(**told.get("layout", {}))
    with beginning():
        store = MetricsStore(dsn, layout=layout) if dsn else MetricsStore.in_folder(index or index_folder(runs), layout)
        if attached:
            threading.Thread(target=_end_with_input, name="torchtrack input", daemon=True).start()
        app = create_app(store, runs, Catalog(catalog) if catalog else None, telling)
    uvicorn.run(app, uds=str(path), log_level="warning", lifespan="on")
