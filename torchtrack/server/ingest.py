"""How journals come in: "stream S, frames from seq N". The answer says how far each stream is durable here.

`Ingest` is the whole of it without HTTP; `router` puts it on the web. Nothing here looks into a payload: frames are
verified by their checksums and kept as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from torchtrack import wire
from torchtrack.journal.frame import TooLargeError
from torchtrack.server.auth import key_of
from torchtrack.server.budget import Budget, BusyError, Held, Limits
from torchtrack.server.disk import ADVICE, StorageError
from torchtrack.server.homes import Homes, RefusedRunError
from torchtrack.server.journals import Committer, JournalStore
from torchtrack.server.media import MediaStore, Part, folder_of
from torchtrack.server.problems import UPLOAD_RESPONSES, ApiError
from torchtrack.server.received import RefusedError
from torchtrack.server.rights import OWNER, Who
from torchtrack.server.stream_log import Position
from torchtrack.version import __version__

_STATUS: Final = {"storage": 503, "full": 507, "conflict": 409, "gap": 409, "refused": 422, "invalid": 422}
"""HTTP status by what happened to a stream; of several the worst, in this order."""
_RETRY_S: Final = {503: 5, 507: 30}
_PIECE_S: Final = 20.0
_BODY_S: Final = 120.0
"""How long the next piece of a body, and the whole of it, may take."""


class Ingest:
    """Takes bodies, keeps frames, says how far each stream is. **Threads:** any; `take` reads and writes files.

    Args:
        store: where frames go.
        limits: of a body.
        homes: who may write which runs; None: everybody who is let in.
    """

    def __init__(self, store: JournalStore, limits: Limits, homes: Homes | None = None) -> None:
        self.store = store
        self.homes = homes
        self.limits = limits
        self.instance = secrets.token_hex(8)
        """Another one after each start: clients then ask anew how far their streams are."""
        self._decompressing = threading.BoundedSemaphore(2)  # each may need a window of 128 MiB

    def handshake(self, oldest: int, newest: int) -> dict[str, Any]:
        """What both sides can.

        Args:
            oldest: protocol version that the client speaks.
            newest: likewise.

        Raises:
            ApiError: no version is common to both.
        """
        protocol = wire.common_protocol(oldest, newest)
        if protocol is None:
            ours = f"{wire.OLDEST_PROTOCOL} to {wire.PROTOCOL}"
            older = "client" if newest < wire.OLDEST_PROTOCOL else "server"
            message = f"this server speaks protocol {ours}, the client {oldest} to {newest}; update the {older}"
            raise ApiError(426, "protocol", message)
        return {
            "server": f"torchtrack {__version__}",
            "instance": self.instance,
            "protocol": protocol,
            "protocols": [wire.OLDEST_PROTOCOL, wire.PROTOCOL],
            "capabilities": list(wire.CAPABILITIES),
            "max_bytes": self.limits.body_bytes,
            "max_media_bytes": self.limits.media_bytes,
        }

    def unpack(self, body: bytes, encoding: str | None) -> tuple[dict[str, Any], list[wire.Section]]:
        """What a body holds.

        Raises:
            ApiError: it is none, or too large.
        """
        try:
            with self._decompressing:
                return wire.unpack(body, encoding, self.limits.body_bytes)
        except TooLargeError as error:
            raise ApiError(413, "too_large", f"{error}; send fewer frames at a time") from None
        except ValueError as error:
            raise ApiError(400, "bad_body", f"this is no body of frames: {error}") from None

    def receive(
        self, body: bytes, encoding: str | None, who: Who, held: Held
    ) -> tuple[dict[str, Any], list[wire.Section], dict[int, dict[str, Any]]]:
        """Unpack a body and append its frames: what was in it, and what was wrong, as `unpack` and `take` say.

        Raises:
            ApiError: it is no body of frames.
            BusyError: there is no room for it now.
        """
        head, sections = self.unpack(body, encoding)
        held.grow(sum(len(each.frames) for each in sections) if encoding else 0)
        return head, sections, self.take(sections, who)

    def take(self, sections: Sequence[wire.Section], who: Who = OWNER) -> dict[int, dict[str, Any]]:
        """Append the frames of each stream. Not durable before the store commits.

        Args:
            sections: the frames.
            who: sends them.

        Returns:
            What was wrong, for the streams that were not taken.
        """
        problems: dict[int, dict[str, Any]] = {}
        if self.homes is not None:
            refused = self.homes.check(who, sections, self.store.run_of, self.store.has_run)
            problems = {stream: {"code": "refused", "message": why} for stream, why in refused.items()}
        for each in sections:
            if each.stream in problems:
                continue
            try:
                self.store.append(each.stream, each.first, memoryview(each.frames), each.lost)
            except RefusedError as error:
                problems[each.stream] = {"code": error.code, "message": str(error), **error.detail}
            except StorageError as error:
                problems[each.stream] = _storage(error)
        return problems

    def answer(
        self, sections: Sequence[wire.Section], problems: dict[int, dict[str, Any]], failed: Mapping[int, StorageError]
    ) -> tuple[int, dict[str, Any]]:
        """HTTP status and body, once what was taken is durable, but for the streams in `failed`."""
        streams: dict[str, Any] = {}
        for stream in dict.fromkeys(each.stream for each in sections):
            if stream in failed:
                problems.setdefault(stream, _storage(failed[stream]))
            streams[f"{stream:016x}"] = {**self.position(stream), "problem": problems.get(stream)}
        codes = {problem["code"] for problem in problems.values()}
        status = next((status for code, status in _STATUS.items() if code in codes), 200)
        return status, {"streams": streams, "instance": self.instance}

    def position(self, stream: int) -> dict[str, Any]:
        """How far a stream is durable, for a client."""
        try:
            return as_json(self.store.position(stream))
        except StorageError as error:
            raise ApiError(503, "storage", str(error), retry_after_s=5) from None


def as_json(position: Position) -> dict[str, Any]:
    """A position in an answer."""
    return {**position._asdict(), "missing": [list(pair) for pair in position.missing]}


def _storage(error: StorageError) -> dict[str, Any]:
    return {"code": "full" if error.full else "storage", "message": f"the server could not write: {error}"}


def frames_router(ingest: Ingest, committer: Committer, budget: Budget) -> APIRouter:
    """The routes by which journals come in."""
    routes = APIRouter(tags=["upload"], responses=UPLOAD_RESPONSES)
    limits, takers = budget.limits, ingest.store.takers

    @routes.get("/handshake")
    async def handshake(oldest: int = 1, newest: int = wire.PROTOCOL) -> dict[str, Any]:
        """Which protocol both sides speak, what the server can do, and its limits."""
        return ingest.handshake(oldest, newest)

    @routes.post("/positions", openapi_extra=_json_body("streams"))
    async def positions(request: Request) -> dict[str, Any]:
        """How far streams are durable here: `{"streams": ["9a8b...", ...]}`."""
        names = _list_of(await json_of(request, limits), "streams", wire.MAX_STREAMS)
        try:
            streams = [wire.stream_of(name) for name in names]
        except ValueError as error:
            raise ApiError(400, "bad_body", str(error)) from None
        found = await run_in_threadpool(lambda: {f"{stream:016x}": ingest.position(stream) for stream in streams})
        return {"streams": found}

    @routes.post("/frames", openapi_extra=_BODY, response_model=dict[str, Any])
    async def frames(request: Request) -> JSONResponse:
        """Frames of any number of streams. 409 if a stream has others under the same seqs, or earlier ones are missing.

        The body of every answer says where each stream is, whatever the status.
        """
        loop = asyncio.get_running_loop()
        try:
            check_space(ingest.store, limits)
            who = key_of(request)
            budget.enter(who.id)
            with budget.hold() as held:
                came = []
                async for piece in pieces(request, limits.body_bytes):
                    held.grow(len(piece))
                    came.append(piece)
                encoding = request.headers.get("content-encoding")
                received = loop.run_in_executor(takers, ingest.receive, b"".join(came), encoding, who, held)
                head, sections, problems = await received
                failed = await asyncio.wrap_future(committer.durable())
                if problems or failed:
                    status, answer = await run_in_threadpool(ingest.answer, sections, problems, failed)
                else:  # they are all in memory
                    status, answer = ingest.answer(sections, problems, failed)
        except BusyError as error:
            raise busy(error) from None
        except StorageError as error:
            raise ApiError(503, "storage", str(error), retry_after_s=5) from None
        named = head.get("jobs")
        jobs = [str(job)[:64] for job in named[:64]] if isinstance(named, list) and named else ["?"]
        share = budget.share(jobs, str(head.get("client", "?"))[:64], waiting=bool(head.get("more")))
        headers = {"Retry-After": str(_RETRY_S[status])} if status in _RETRY_S else None
        content = {**answer, "next_after_s": share.next_after_s, "max_bytes": share.max_bytes}
        return JSONResponse(content, status, headers)

    return routes


def admission(store: JournalStore, homes: Homes | None) -> Callable[[str, Request], Awaitable[None]]:
    """What raises ApiError if the key of a request may not write to a run, or to a new one."""

    async def check(uid: str, request: Request) -> None:
        who = key_of(request)
        if homes is None or who.projects("write") is None:
            return
        try:
            await run_in_threadpool(homes.settle, who, uid, None, there=store.has_run(uid))
        except RefusedRunError as error:
            raise ApiError(403, "not_allowed", str(error)) from None

    return check


def media_router(media: MediaStore, budget: Budget, store: JournalStore, homes: Homes | None = None) -> APIRouter:
    """The routes by which files come in."""
    routes = APIRouter(tags=["upload"], responses=UPLOAD_RESPONSES)
    limits = budget.limits

    check = admission(store, homes)

    async def may_write(uid: str, request: Request) -> bool:
        """Whether the key of a request may write to a run."""
        folder_of(store.folder, uid)
        try:
            await check(uid, request)
        except ApiError:
            return False
        return True

    @routes.post("/runs/{uid}/media/missing", openapi_extra=_json_body("sha256", "from"))
    async def missing(uid: str, request: Request) -> dict[str, Any]:
        """Which of these files the run has not yet: `{"sha256": [...]}`. They come before the rows that name them.

        What the run `from` has need not come again, if whoever asks may write to that run too.
        """
        asked = await json_of(request, limits)
        names, other = [str(name) for name in _list_of(asked, "sha256", wire.MAX_STREAMS)], str(asked.get("from") or "")
        await check(uid, request)
        with answered():
            lacking = await run_in_threadpool(media.missing, uid, names)
            if lacking and other and await may_write(other, request):
                await run_in_threadpool(media.share, uid, lacking, other)
                lacking = await run_in_threadpool(media.missing, uid, lacking)
            return {"missing": lacking}

    @routes.put("/runs/{uid}/media/{sha256}", status_code=201, openapi_extra=FILE)
    async def put_media(uid: str, sha256: str, request: Request) -> dict[str, Any]:
        """One file, named by the SHA-256 of its content. 422 if it is not that."""
        with answered():
            check_space(store, limits)
            budget.enter(key_of(request).id)
            await check(uid, request)
            with media.receive(uid, sha256) as part:
                await take_file(part, request, sha256, limits.media_bytes)
        return {"stored": sha256}

    return routes


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Around what takes or reads files for an answer: what goes wrong is an ApiError."""
    try:
        yield
    except BusyError as error:
        raise busy(error) from None
    except ValueError as error:
        raise ApiError(400, "bad_name", str(error)) from None
    except OSError as error:
        raise not_stored(StorageError.of(error)) from None


async def take_file(part: Part, request: Request, sha256: str, most: int) -> None:
    """Write what comes, and keep it if it has this digest.

    Raises:
        ApiError: it has another, or more than so many bytes.
        OSError: the disk does not take it.
    """
    digest = hashlib.sha256()
    async for piece in pieces(request, most):
        digest.update(piece)
        await run_in_threadpool(part.write, piece)
    if digest.hexdigest() != sha256:
        raise ApiError(422, "damaged", "the content does not have this SHA-256; send it again")
    await run_in_threadpool(part.keep)


def not_stored(problem: StorageError) -> ApiError:
    """What to answer when the disk, or what is in its place, did not take or give a file."""
    status = 507 if problem.full else 503
    return ApiError(status, "storage", str(problem), retry_after_s=_RETRY_S[status])


def busy(error: BusyError) -> ApiError:
    """What to answer when there is too much to do."""
    return ApiError(429 if error.flooding else 503, "busy", str(error), retry_after_s=error.retry_after_s)


def check_space(store: JournalStore, limits: Limits) -> None:
    """Whether there is room for more.

    Raises:
        ApiError: there is not.
    """
    free = shutil.disk_usage(store.folder).free
    if free < limits.free_bytes:
        raise ApiError(507, "full", f"the server's disk is full: {ADVICE}", retry_after_s=30)


async def pieces(request: Request, most: int) -> AsyncIterator[bytes]:
    """A body as it comes, no longer than allowed and no slower.

    Raises:
        ApiError: it is too large, or too slow.
    """
    said = request.headers.get("content-length", "0")
    size, stream = 0, request.stream().__aiter__()
    if said.isdecimal() and int(said) > most:
        raise ApiError(413, "too_large", f"a body has at most {most} bytes")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _BODY_S
    while True:
        try:
            piece = await asyncio.wait_for(stream.__anext__(), min(_PIECE_S, max(0.0, deadline - loop.time())))
        except StopAsyncIteration:
            return
        except (TimeoutError, asyncio.TimeoutError):
            raise ApiError(408, "too_slow", "the body came too slowly") from None
        size += len(piece)
        if size > most:
            raise ApiError(413, "too_large", f"a body has at most {most} bytes")
        if piece:
            yield piece


async def json_of(request: Request, limits: Limits) -> Mapping[str, Any]:
    """A body that is a JSON object.

    Raises:
        ApiError: it is none.
    """
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise ApiError(415, "bad_type", "send application/json")
    body = b"".join([piece async for piece in pieces(request, min(limits.body_bytes, wire.MAX_HEAD))])
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "bad_body", "the body is no JSON") from None
    if not isinstance(value, dict):
        raise ApiError(400, "bad_body", "the body is no JSON object")
    return value


def _list_of(value: Mapping[str, Any], name: str, most: int) -> list[Any]:
    found = value.get(name)
    if not isinstance(found, list) or len(found) > most:
        raise ApiError(400, "bad_body", f'the body has a list "{name}" of at most {most}')
    return found


def _json_body(name: str, *texts: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        name: {"type": "array", "items": {"type": "string"}, "maxItems": wire.MAX_STREAMS},
        **{text: {"type": "string"} for text in texts},
    }
    schema = {"type": "object", "required": [name], "properties": properties}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_BODY: Final = {"requestBody": {"required": True, "content": {wire.FRAMES_TYPE: _BINARY}}}
FILE: Final = {"requestBody": {"required": True, "content": {"application/octet-stream": _BINARY}}}
