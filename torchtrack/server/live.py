"""What is new, as it comes: server-sent events that a client can take up again where it lost them.

The id of an event is the Indexer's counter; what changed since is asked of the store, so nothing is kept for a client
that went away, and one that comes back misses nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import APIRouter, Header, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from torchtrack.server import overview
from torchtrack.server.evaluation import Board
from torchtrack.server.reading import Reader
from torchtrack.server.tenancy import readable

PAUSE_S: Final = 0.5
"""Changes are told at most twice a second, each run once."""
HEARTBEAT_S: Final = 15.0
KINDS: Final = {
    "points": {"scalars", "tensors", "texts", "media", "events"},
    "logs": {"logs"},
    "findings": {"findings"},
}
"""Events, and the rows of which each tells."""
_FAR: Final = 1 << 62
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def router(reader: Reader, board: Board) -> APIRouter:
    """The route `/live`."""
    routes = APIRouter(tags=["live"])

    @routes.get("/live", response_class=Response)
    async def live(
        poll: int | None = Query(None, ge=0, le=_FAR),
        last_event_id: str | None = Header(None),
    ) -> Response:
        """Events `points`, `logs`, `findings` with `{run, upto}` and `run` with `state` too, as runs change.

        `alarms` with `{project}` as alert rules fire, or somebody is told. With `poll=<cursor>` what changed since, at
        once.
        """
        if poll is not None:
            return JSONResponse(await run_in_threadpool(changed, reader, poll), headers=_HEADERS)
        known = last_event_id if last_event_id and last_event_id.isdecimal() else None
        await run_in_threadpool(reader.begun)
        since = min(int(known), _FAR) if known else max(0, reader.batch())
        return StreamingResponse(events(reader, board, since), media_type="text/event-stream", headers=_HEADERS)

    return routes


def changed(reader: Reader, since: int) -> dict[str, Any]:
    """The runs that changed after a cursor, what of them, their states, and the new cursor."""
    rows = reader.store.query(
        "SELECT uid, max(batch) AS newest, maxMap(JSONExtract(record, 'tables', 'Map(String, UInt64)')) AS tables "
        "FROM streams FINAL WHERE batch > {since:UInt64} GROUP BY uid",
        since=since,
    ).to_pylist()
    found = {row["uid"]: {name for name, batch in row["tables"] if batch > since} for row in rows if row["uid"]}
    states = overview.states(reader.store, reader.scope(), list(found))
    if readable() is not None:
        found = {uid: tables for uid, tables in found.items() if uid in states}
    return {
        "cursor": max(since, *(row["newest"] for row in rows)) if rows else since,
        "runs": sorted(found),
        "changes": {uid: [kind for kind, of in KINDS.items() if tables & of] for uid, tables in sorted(found.items())},
        "states": {uid: states[uid] for uid in sorted(found) if uid in states},
    }


async def events(reader: Reader, board: Board, since: int, *, pause_s: float = PAUSE_S) -> AsyncIterator[str]:
    """The text of the stream, without end."""
    loop = asyncio.get_running_loop()
    spoke = loop.time()
    states: dict[str, str | None] = {}
    alarms, mine = Counter(board.changes), readable()
    yield f"retry: 2000\nid: {since}\n\n"
    while True:
        if reader.batch() > since:
            news = await run_in_threadpool(changed, reader, since)
            since = news["cursor"]
            for uid in news["runs"]:
                state = news["states"].get(uid)
                told = [("run", {"run": uid, "state": state, "upto": since})] if state != states.get(uid) else []
                states[uid] = state
                told += [(kind, {"run": uid, "upto": since}) for kind in news["changes"][uid]]
                for kind, data in told:
                    yield f"id: {since}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
            spoke = loop.time()
        elif loop.time() - spoke > HEARTBEAT_S:
            spoke = loop.time()
            yield ": still here\n\n"
        before, alarms = alarms, Counter(board.changes)
        for project in alarms - before:
            if mine is None or project in mine:
                yield f"event: alarms\ndata: {json.dumps({'project': project})}\n\n"
        await asyncio.sleep(pause_s)
