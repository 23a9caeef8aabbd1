"""The worker as the server in front of it sees it: started, started again when it ends, and asked over its socket.

    worker = Worker(runs, index)
    app.include_router(router(worker), prefix="/api/v1")      # behind whatever checks who asks
    async with worker: ...                                     # for as long as the server is up

While there is no worker to ask, the answer is 503 with Retry-After: a crash of the engine costs a moment, and no data.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from torchtrack.server.auth import key_of
from torchtrack.server.problems import ApiError
from torchtrack.server.tenancy import header

MODULE: Final = "torchtrack.server.worker"
ROUTES: Final = (
    ("GET", "/projects"),
    ("POST", "/projects/{project}/runs/query"),
    ("GET", "/projects/{project}/keys"),
    ("GET", "/projects/{project}/alarms"),
    ("GET", "/runs/{rest:path}"),
    ("GET", "/compare"),
    ("POST", "/series"),
    ("POST", "/heatmap"),
    ("POST", "/histogram"),
    ("GET", "/streams"),
    ("GET", "/streams/{stream}/{table}"),
    ("GET", "/live"),
)
"""What the worker answers; all of it only reads."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 30.0
STOP_S: Final = 10.0
_GONE: Final = 499
"""Whoever asked has left: nobody reads this answer."""
_SENT_ON: Final = ("accept", "content-type", "last-event-id", "if-none-match")
_SENT_BACK: Final = ("content-type", "retry-after", "cache-control", "etag", "x-accel-buffering")
_log = logging.getLogger("torchtrack.server")


class Worker:
    """A worker process that is there as long as this is entered.

    Args:
        runs: the folder of runs it follows.
        index: where its index lies; None: in the user's cache.
        dsn: a ClickHouse server instead.
        catalog: the URL of what people typed.
    """

    def __init__(
        self, runs: Path, index: Path | None = None, dsn: str | None = None, catalog: str | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="torchtrack-")  # 0700; a socket's name must be short
        self.socket = Path(self._folder.name) / "worker"
        self._command = [sys.executable, "-m", MODULE, "--runs", str(runs), "--socket", str(self.socket)]
        self._command.append("--attached")  # it ends when the pipe to it does, however this process ends
        self._command += ["--index", str(index)] if index else []
        self._secrets = json.dumps({"dsn": dsn, "catalog": catalog}).encode() + b"\n"  # they may hold passwords
        self._task: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0
        """How often one was started."""
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self.socket)),
            base_url="http://worker",
            timeout=httpx.Timeout(120.0, connect=2.0),
        )

    async def __aenter__(self) -> Worker:
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.client.aclose()
        await self._stop()
        self._folder.cleanup()

    async def _keep(self) -> None:
        """Start one again whenever it ends, after a pause that doubles while they end at once."""
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE_S
        while True:
            self.socket.unlink(missing_ok=True)
            began = loop.time()
            self.process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, env=os.environ
            )
            if self.process.stdin is not None:
                self.process.stdin.write(self._secrets)
            self.starts += 1
            code = await self.process.wait()
            pause = FIRST_PAUSE_S if loop.time() - began > LONGEST_PAUSE_S else min(2 * pause, LONGEST_PAUSE_S)
            _log.warning("the worker ended with %s; another one starts in %.1f s", code, pause)
            await asyncio.sleep(pause)

    async def _stop(self) -> None:
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()

    async def schema(self) -> dict[str, Any]:
        """What the worker answers, as OpenAPI; nothing while there is none."""
        try:
            described: dict[str, Any] = (await self.client.get("/openapi.json")).json()
        except httpx.TransportError:
            return {"paths": {}}
        return described

    async def where(self, uids: Sequence[str]) -> Mapping[str, str]:
        """The projects of those runs that there are, deleted or not.

        Raises:
            ApiError: there is no worker just now.
        """
        try:
            answer = await self.client.post("/where", json=list(uids))
        except httpx.TransportError as error:
            raise _starting() from error
        found: dict[str, str] = answer.json()
        return found

    async def ask(self, request: Request) -> Response:
        """Pass a request on, and the answer back as it comes.

        Raises:
            ApiError: there is no worker just now.
        """
        headers = {name: request.headers[name] for name in _SENT_ON if name in request.headers}
        headers |= header(key_of(request).projects("read"))
        try:
            content = await request.body()
        except ClientDisconnect:
            return Response(status_code=_GONE)
        sent = self.client.build_request(
            request.method,
            _as_asked(request),
            headers=headers,
            content=content,
        )
        try:
            answer = await self.client.send(sent, stream=True)
        except httpx.TransportError as error:
            raise _starting() from error
        back = {name: answer.headers[name] for name in _SENT_BACK if name in answer.headers}
        return StreamingResponse(_pieces(answer), answer.status_code, back)


def _as_asked(request: Request) -> httpx.URL:
    """The address in the worker: byte by byte what was asked for, so that both sides read the same name in it.

    Raises:
        ApiError: it climbs, and httpx would climb with it.
    """
    path: bytes = request.scope.get("raw_path") or quote(request.url.path).encode()
    if any(part in (".", "..") for part in request.url.path.split("/")):
        raise ApiError(404, "not_found", "there is no such address")
    query: bytes = request.scope["query_string"]
    return httpx.URL("http://worker").copy_with(raw_path=path.split(b"?")[0] + (b"?" + query if query else b""))


def _starting() -> ApiError:
    return ApiError(503, "starting", "the index is being opened; ask again in a moment", retry_after_s=1)


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes; one that breaks off is broken off for the client too."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def router(worker: Worker) -> APIRouter:
    """The routes that the worker answers."""
    routes = APIRouter(tags=["query"])
    for method, path in ROUTES:
        routes.add_api_route(path, worker.ask, methods=[method], include_in_schema=False)
    return routes
