"""The process that holds the engine: store, Indexer and the routes that ask it. It may be killed at any moment.

    python -m torchtrack.server.worker --runs DIR [--index DIR | --dsn DSN] --socket PATH

It listens on a Unix socket that only its user can open; the server in front of it checks who asks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import click
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from torchtrack.errors import RunNotFoundError, StoreError
from torchtrack.server import live, problems, query
from torchtrack.server.catalog import Catalog
from torchtrack.server.filters import FilterError
from torchtrack.server.indexer import Indexer
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
UPDATE_S: Final = 2.0
"""How long the table of runs is brought up to date before the journals are looked at again."""
_log = logging.getLogger("torchtrack.server")


def create_app(store: MetricsStore, runs: Path, catalog: Catalog | None = None) -> FastAPI:
    """The application: follows a folder of runs while it is up, and answers from the store.

    Args:
        store: where the rows go; closed at the end.
        runs: the folder of runs.
        catalog: what people typed, which is only read.
    """
    indexer = Indexer(runs, store)
    reader = Reader(store, lambda: indexer.batch, catalog)
    stop = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        thread = threading.Thread(target=_follow, args=(indexer, reader, stop), name="torchtrack indexer")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            store.close()

    app = FastAPI(title="torchtrack", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.indexer, app.state.reader = indexer, reader
    app.include_router(query.router(reader), prefix=API, responses=problems.RESPONSES)
    app.include_router(live.router(reader), prefix=API, responses=problems.RESPONSES)
    app.add_middleware(Tenancy)
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


def _follow(indexer: Indexer, reader: Reader, stop: threading.Event) -> None:
    """Poll until told to stop; a store that keeps failing ends the process."""
    failed, done = 0, True
    while not stop.is_set():
        try:
            indexer.poll()
            done = reader.update(UPDATE_S)
            failed = 0
        except FileNotFoundError as error:
            _log.warning("%s; looking again", error)
        except StoreError as error:
            failed += 1
            _log.error("%s (%d of %d)", error, failed, PATIENCE)
            if failed == PATIENCE:
                os.kill(os.getpid(), signal.SIGTERM)
                return
        stop.wait(PAUSE_S * (1 + failed) if done or failed else 0)


def _first_line() -> dict[str, str | None]:
    """What whoever holds the input says at first: addresses that hold passwords stand on no command line."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            raise SystemExit(0)
        line += piece
    told: dict[str, str | None] = json.loads(line)
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
    if attached:
        told = _first_line()
        dsn, catalog = told.get("dsn") or dsn, told.get("catalog") or catalog
    store = MetricsStore(dsn) if dsn else MetricsStore.in_folder(index or index_folder(runs))
    if attached:
        threading.Thread(target=_end_with_input, name="torchtrack input", daemon=True).start()
    app = create_app(store, runs, Catalog(catalog) if catalog else None)
    uvicorn.run(app, uds=str(path), log_level="warning", lifespan="on")


if __name__ == "__main__":
    main()
