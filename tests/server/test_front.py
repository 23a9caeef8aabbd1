"""What a client sees of a worker that is killed: an answer, 503 for a moment, the same answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute

from tests.api.journals import UID
from tests.server.samples import Make, facts, write_runs
from torchtrack import Api
from torchtrack.server import live, query
from torchtrack.server.engine import Engine
from torchtrack.server.evaluation import Board
from torchtrack.server.front import Worker, router
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.reading import Reader
from torchtrack.server.rights import OWNER
from torchtrack.server.worker import install


def let_in(request: Request) -> None:
    request.state.key = OWNER


@contextlib.contextmanager
def front(worker: Worker) -> Iterator[str]:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with worker:
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(router(worker), prefix="/api/v1", dependencies=[Depends(let_in)])
    install(app)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        while not server.started:
            threading.Event().wait(0.01)
            assert thread.is_alive()
        yield "http://{}:{}".format(*server.servers[0].sockets[0].getsockname()[:2])
    finally:
        server.should_exit = True
        thread.join()


def ask(pool: urllib3.PoolManager, url: str) -> tuple[int, Any, str | None]:
    answer = pool.request("GET", url)
    return answer.status, json.loads(answer.data), answer.headers.get("Retry-After")


def test_a_worker_that_is_killed_is_replaced_and_those_who_ask_meanwhile_are_told_to_wait(
    runs: Path, journal: Make, tmp_path: Path
) -> None:
    write_runs(journal)
    worker = Worker(Engine(runs, tmp_path / "index"))
    with front(worker) as url, contextlib.closing(Pool()) as closing:
        pool, path = closing.pool, f"{url}/api/v1/runs/{UID}"
        seen: set[int] = set()
        for starts in (1, 2):
            while (status := ask(pool, path)[0]) != 200:
                seen.add(status)
                threading.Event().wait(0.05)
            assert worker.engine.starts == starts
            if starts == 1:
                assert worker.engine.process is not None  # one was just asked
                os.kill(worker.engine.process.pid, signal.SIGKILL)
                while (first := ask(pool, path))[0] == 200:
                    threading.Event().wait(0.01)
                assert first[0] == 503
                assert first[1]["error"]["code"] == "starting"
                assert first[2] == "1"
        assert seen <= {404, 503}  # 404 while the first poll has not ended
        there, here = Api(runs).run(UID), Api(url).run(UID)
        mine = dict(facts(here))
        for what, expected in facts(there):
            assert mine[what] == expected, what
    assert worker.engine.process is not None
    assert worker.engine.process.returncode is not None
    assert not worker.engine.socket.parent.exists()


class Pool:
    def __init__(self) -> None:
        self.pool = urllib3.PoolManager(retries=False)

    def close(self) -> None:
        self.pool.clear()


def test_the_front_passes_on_all_that_the_worker_answers_and_no_more(store: MetricsStore) -> None:
    reader = Reader(store)
    each = [route for module in (query, live) for route in module.router(reader, Board()).routes]
    answered = {(method, route.path) for route in each if isinstance(route, APIRoute) for method in route.methods or ()}
    worker = Worker(Engine(Path("nowhere")))
    mine = [route for route in router(worker).routes if isinstance(route, APIRoute)]
    passed = [(method, route.path_regex) for route in mine for method in route.methods or ()]
    worker.engine.close()

    for method, path in answered:
        example = re.sub(r"\{\w+\}", "x", path)
        assert any(m == method and pattern.match(example) for m, pattern in passed), (method, path)
    assert {method for method, _ in passed} == {"GET", "POST"}
    assert not any(method == "POST" and pattern.match("/runs/x/restore") for method, pattern in passed)
    assert len(answered) > 10


def test_what_is_asked_while_the_first_worker_starts_is_answered_once_it_is_there(
    runs: Path, journal: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchtrack.server.front.STARTING_S", 600.0)
    write_runs(journal)
    with front(Worker(Engine(runs, tmp_path / "index"))) as url, contextlib.closing(Pool()) as closing:
        assert ask(closing.pool, f"{url}/api/v1/projects")[0] == 200


def test_what_the_front_fetches_itself_waits_for_the_first_worker_too(
    runs: Path, journal: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchtrack.server.front.STARTING_S", 600.0)
    write_runs(journal)

    async def fetched() -> int:
        async with Worker(Engine(runs, tmp_path / "index")) as worker:
            return (await worker.fetch("projects", None, None))[0]

    assert asyncio.run(fetched()) == 200


def test_an_engine_is_started_before_what_takes_long_is_imported() -> None:
    code = "import sys, torchtrack.server.engine; print([name for name in sys.modules if name in sys.argv[1:]])"
    slow = ["fastapi", "sqlalchemy", "numpy", "pyarrow", "httpx", "uvicorn"]
    assert subprocess.check_output([sys.executable, "-c", code, *slow], text=True).strip() == "[]"
