"""What is new, as it comes: server-sent events that a client can take up again where it lost them.

The id of an event is the Indexer's counter; what changed since is asked of the store, so nothing is kept for a client
that went away, and one that comes back misses nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import APIRouter, Header, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from torchtrack.server.reading import Reader
from torchtrack.server.tenancy import readable

PAUSE_S: Final = 0.5
"""Changes are told at most twice a second, each run once."""
HEARTBEAT_S: Final = 15.0
_FAR: Final = 1 << 62
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def router(reader: Reader) -> APIRouter:
    """The route `/live`."""
    routes = APIRouter(tags=["live"])

    @routes.get("/live", response_class=Response)
    async def live(
        poll: int | None = Query(None, ge=0, le=_FAR),
        last_event_id: str | None = Header(None),
    ) -> Response:
        """Events `points` with `{run, upto}` as runs change; with `poll=<cursor>` what changed since, at once."""
        if poll is not None:
            return JSONResponse(await run_in_threadpool(changed, reader, poll), headers=_HEADERS)
        known = last_event_id if last_event_id and last_event_id.isdecimal() else None
        since = min(int(known), _FAR) if known else max(0, reader.batch())
        return StreamingResponse(events(reader, since), media_type="text/event-stream", headers=_HEADERS)

    return routes


def changed(reader: Reader, since: int) -> dict[str, Any]:
    """The runs that changed after a cursor, and the new cursor."""
    rows = reader.store.query(
        "SELECT max(batch) AS cursor, groupUniqArray(uid) AS runs FROM streams FINAL WHERE batch > {since:UInt64}",
        since=since,
    ).to_pylist()[0]
    runs, seen = sorted(uid for uid in rows["runs"] if uid), readable()
    if seen is not None and runs:
        projects = reader.projects()
        runs = [uid for uid in runs if projects.get(uid) in seen]
    return {"cursor": max(since, rows["cursor"]), "runs": runs}


async def events(reader: Reader, since: int, *, pause_s: float = PAUSE_S) -> AsyncIterator[str]:
    """The text of the stream, without end."""
    loop = asyncio.get_running_loop()
    spoke = loop.time()
    yield f"retry: 2000\nid: {since}\n\n"
    while True:
        if reader.batch() > since:
            news = await run_in_threadpool(changed, reader, since)
            since = news["cursor"]
            for uid in news["runs"]:
                yield f"id: {since}\nevent: points\ndata: {json.dumps({'run': uid, 'upto': since})}\n\n"
            spoke = loop.time()
        elif loop.time() - spoke > HEARTBEAT_S:
            spoke = loop.time()
            yield ": still here\n\n"
        await asyncio.sleep(pause_s)
