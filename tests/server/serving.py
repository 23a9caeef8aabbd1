"""A worker's application on a port of its own, in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3
import uvicorn
from fastapi import APIRouter, Depends, Request

from torchtrack.server.catalog import Catalog
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.rights import OWNER
from torchtrack.server.worker import create_app


class Client:
    """Asks a server on loopback."""

    def __init__(self, url: str, indexer: Indexer) -> None:
        self.url = url
        self.indexer = indexer
        self.pool = urllib3.PoolManager(retries=False)

    def ask(self, method: str, path: str, body: Any = None, **fields: Any) -> tuple[int, bytes]:
        """Status and body."""
        url = f"{self.url}/api/v1{path}"
        if fields:
            answer = self.pool.request_encode_url(method, url, fields=fields)
        else:
            data = None if body is None else json.dumps(body).encode()
            answer = self.pool.request(method, url, body=data, headers={"Content-Type": "application/json"})
        return answer.status, bytes(answer.data)

    def json(self, method: str, path: str, body: Any = None, **fields: Any) -> Any:
        """The answer, which is a success and JSON."""
        status, data = self.ask(method, path, body, **fields)
        assert status == 200, data
        return json.loads(data)


def _owner(request: Request) -> None:
    request.state.key = OWNER


@contextmanager
def serving(
    store: MetricsStore, runs: Path, catalog: Catalog | None = None, more: APIRouter | None = None
) -> Iterator[Client]:
    """A server that follows a folder; everything in it is there from the start."""
    app = create_app(store, runs, catalog)
    if more is not None:
        app.include_router(more, prefix="/api/v1", dependencies=[Depends(_owner)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    app.state.indexer.poll(everything=True)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        while not server.started:
            threading.Event().wait(0.01)
            assert thread.is_alive()
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        client = Client(f"http://{host}:{port}", app.state.indexer)
        yield client
        client.pool.clear()
    finally:
        server.should_exit = True
        thread.join()
