"""The worker as the server in front of it sees it: started, started again when it ends, and asked over its socket.

    worker = Worker(Engine(runs, index))
    app.include_router(router(worker), prefix="/api/v1")      # behind whatever checks who asks
    async with worker: ...                                     # for as long as the server is up

What is asked while the first worker starts waits for it, for some seconds. After that, while there is none to ask, the
answer is 503 with Retry-After: a crash of the engine costs a moment, and no data.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from torchtrack.server.auth import key_of
from torchtrack.server.engine import Engine
from torchtrack.server.problems import ApiError
from torchtrack.server.tenancy import header
from torchtrack.wire import API

ROUTES: Final = (
    ("GET", "/projects"),
    ("POST", "/projects/{project}/runs/query"),
    ("GET", "/projects/{project}/keys"),
    ("GET", "/projects/{project}/alarms"),
    ("GET", "/runs/{rest:path}"),
    ("GET", "/compare"),
    ("GET", "/artifacts"),
    ("POST", "/series"),
    ("POST", "/series/batch"),
    ("POST", "/heatmap"),
    ("POST", "/histogram"),
    ("POST", "/logged"),
    ("POST", "/logged/names"),
    ("POST", "/logged/steps"),
    ("GET", "/streams"),
    ("GET", "/streams/{stream}/{table}"),
    ("GET", "/live"),
)
"""What the worker answers; all of it only reads."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 30.0
STARTING_S: Final = 30.0
"""How long the first worker may take until those who ask are told to come again."""
_LOOK_S: Final = 0.02
_GONE: Final = 499
"""Whoever asked has left: nobody reads this answer."""
_SENT_ON: Final = ("accept", "content-type", "last-event-id", "if-none-match")
_SENT_BACK: Final = ("content-type", "retry-after", "cache-control", "etag", "x-accel-buffering")
_log = logging.getLogger("torchtrack.server")


class Worker:
    """A worker process that is there as long as this is entered.

    Args:
        engine: starts it; may have done so already.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._task: asyncio.Task[None] | None = None
        self._ends = asyncio.Event()
        self._came = False
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(engine.socket)),
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
        await asyncio.to_thread(self.engine.close)

    async def _keep(self) -> None:
        """Start one again whenever it ends, after a pause that doubles while they end at once."""
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE_S
        while True:
            began = loop.time()
            process = self.engine.process
            if process is None or process.poll() is not None:
                process = self.engine.start()
            code = await asyncio.to_thread(process.wait)
            pause = FIRST_PAUSE_S if loop.time() - began > LONGEST_PAUSE_S else min(2 * pause, LONGEST_PAUSE_S)
            _log.warning("the worker ended with %s; another one starts in %.1f s", code, pause)
            await asyncio.sleep(pause)

    async def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Ask it; while the first is still starting, once it is there.

        Raises:
            ApiError: there is no worker just now.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + STARTING_S
        while True:
            try:
                answer = await self.client.send(request, stream=stream)
            except httpx.ConnectError as error:  # nothing was sent
                if self._came or self.engine.starts > 1 or loop.time() > ends:
                    raise _starting() from error
                await asyncio.sleep(_LOOK_S)
            except httpx.TransportError as error:
                raise _starting() from error
            else:
                self._came = True
                return answer

    async def schema(self) -> dict[str, Any]:
        """What the worker answers, as OpenAPI; nothing while there is none."""
        try:
            described: dict[str, Any] = (await self._send(self.client.build_request("GET", "/openapi.json"))).json()
        except ApiError:
            return {"paths": {}}
        return described

    async def where(self, uids: Sequence[str]) -> Mapping[str, str]:
        """The projects of those runs that there are, deleted or not.

        Raises:
            ApiError: there is no worker just now.
        """
        answer = await self._send(self.client.build_request("POST", "/where", json=list(uids)))
        found: dict[str, str] = answer.json()
        return found

    async def fetch(self, path: str, body: Any, projects: frozenset[str] | None) -> tuple[int, bytes]:
        """An answer that is used here: status and content.

        Args:
            path: below /api/v1, with a query perhaps.
            body: of a POST; None: GET.
            projects: that it may be answered from; None is all of them.

        Raises:
            ApiError: there is no worker just now.
        """
        method = "GET" if body is None else "POST"
        answer = await self._send(
            self.client.build_request(method, f"{API}/{path}", json=body, headers=header(projects))
        )
        return answer.status_code, answer.content

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
        answer = await self._send(sent, stream=True)
        back = {name: answer.headers[name] for name in _SENT_BACK if name in answer.headers}
        endless = answer.headers.get("content-type", "").startswith("text/event-stream")
        pieces = _until(self._ends, answer) if endless else _pieces(answer)
        return StreamingResponse(pieces, answer.status_code, back)

    def end_streams(self) -> None:
        """End the answers that have no end of their own: the server is about to go, and waits for all answers."""
        self._ends.set()


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


async def _until(end: asyncio.Event, answer: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes, until the event."""
    pieces, ended = _pieces(answer), asyncio.ensure_future(end.wait())
    coming = asyncio.ensure_future(anext(pieces, None))
    try:
        while await asyncio.wait({coming, ended}, return_when=asyncio.FIRST_COMPLETED):
            if not coming.done() or (piece := coming.result()) is None:
                return
            yield piece
            coming = asyncio.ensure_future(anext(pieces, None))
    finally:
        ended.cancel()
        coming.cancel()  # which closes the answer


def router(worker: Worker) -> APIRouter:
    """The routes that the worker answers."""
    routes = APIRouter(tags=["query"])
    for method, path in ROUTES:
        routes.add_api_route(path, worker.ask, methods=[method], include_in_schema=False)
    return routes
