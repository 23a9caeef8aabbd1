"""Files of runs as they are handed out: whole or in part, to be saved, never to be shown by a browser as a page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from torchtrack.server import ingest, problems
from torchtrack.server.auth import key_of
from torchtrack.server.curation import Where
from torchtrack.server.media import MediaStore
from torchtrack.server.problems import ApiError
from torchtrack.server.stream_log import StorageError

HARMLESS: Final = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
"""Headers of what somebody uploaded."""
_RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")
_PART: Final = {"description": "The part that `Range` asks for.", "content": {"application/octet-stream": {}}}


def may_read(where: Where | None) -> Callable[[str, Request], Awaitable[None]]:
    """What raises ApiError if the key of a request may not read a run.

    Args:
        where: says of which projects runs are; without it only a key of all projects reads them.
    """

    async def check(uid: str, request: Request) -> None:
        seen = key_of(request).projects("read")
        if seen is not None and (where is None or (await where([uid])).get(uid) not in seen):
            raise ApiError(404, "not_found", f"there is no run {uid:.16}")

    return check


def media_router(media: MediaStore, where: Where | None) -> APIRouter:
    """The route by which media are read.

    Args:
        media: the files.
        where: as of `may_read`.
    """
    routes = APIRouter(tags=["query"])
    answers = {206: _PART, **problems.also(range="The file has no such part.")}

    @routes.get(
        "/runs/{uid}/media/{sha256}",
        response_class=StreamingResponse,
        responses=answers,
        dependencies=[Depends(may_read(where))],
    )
    def get_media(uid: str, sha256: str, request: Request) -> StreamingResponse:
        """A file that rows of `media` name. With `Range: bytes=FIRST-LAST` this part of it."""
        try:
            size = media.size(uid, sha256)
            if size is None:
                raise ApiError(404, "not_found", "the run has no such file")
            asked = span(request.headers.get("range", ""), size)
            first, stop = asked or (0, size)
            pieces = media.read(uid, sha256, first, stop)
            begun = list(itertools.islice(pieces, 1))  # what goes wrong at once still has an answer of its own
        except ValueError as error:
            raise ApiError(400, "bad_name", str(error)) from None
        except OSError as error:
            raise ingest.not_stored(StorageError.of(error)) from None
        headers = {
            **HARMLESS,
            "Content-Disposition": f'attachment; filename="{sha256}"',
            "Content-Length": str(stop - first),
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=86400",  # a name has one content for ever, a key does not last as long
            **({"Content-Range": f"bytes {first}-{stop - 1}/{size}"} if asked else {}),
        }
        content = itertools.chain(begun, pieces)
        return StreamingResponse(content, 206 if asked else 200, headers, "application/octet-stream")

    return routes


def span(header: str, size: int) -> tuple[int, int] | None:
    """The bytes from, and to before, that `Range` asks for; None for all: no header, or one that is not understood.

    Raises:
        ApiError: the file has no such bytes.
    """
    found = _RANGE.fullmatch(header)
    if not found:
        return None
    if found[3]:
        first, last = max(0, size - int(found[3])), size - 1
    else:
        first, last = int(found[1]), int(found[2] or size)
        if found[2] and last < first:
            return None
    stop = min(last + 1, size)
    if first >= stop:
        raise ApiError(416, "bad_range", f"the file has {size} bytes; there are none in this range")
    return first, stop
