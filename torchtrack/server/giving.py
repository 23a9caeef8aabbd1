"""Files of runs as they are handed out: whole or in part, to be saved, or to be shown inside the page.

What a browser shows of them runs nothing: pictures, sounds and films come under their own type, a document only into a
frame that is cut off from everything else.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Annotated, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse

from torchtrack import contents
from torchtrack.server import ingest, problems
from torchtrack.server.auth import key_of
from torchtrack.server.curation import Where
from torchtrack.server.media import MediaStore, Shown, bytes_of
from torchtrack.server.problems import ApiError

HARMLESS: Final = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
"""Headers of what somebody uploaded."""
_DOCUMENT: Final = (
    "default-src 'none'; img-src data: blob:; media-src data: blob:; font-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")
_BYTES: Final = "application/octet-stream"
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
    def get_media(
        uid: str,
        sha256: str,
        request: Request,
        shown: Annotated[Shown | None, Query(alias="type", description="To be shown inside the page as this.")] = None,
        scripts: Annotated[bool, Query(description="Whether scripts in HTML run, in a frame of their own.")] = False,
    ) -> StreamingResponse:
        """A file that rows of `media` name. With `Range: bytes=FIRST-LAST` this part of it."""
        headers = {
            **(document(scripts=scripts) if shown == "text/html" else HARMLESS),
            "Content-Disposition": "inline" if shown == "text/html" else "attachment",  # a link may name it
        }
        with ingest.answered():
            size = media.size(uid, sha256)
            if size is None:
                raise ApiError(404, "not_found", "the run has no such file")
            return streamed(
                request, size, lambda first, stop: media.read(uid, sha256, first, stop), headers, shown or _BYTES
            )

    @routes.get(
        "/runs/{uid}/contents/{sha256}/{path:path}",
        response_class=StreamingResponse,
        responses=answers,
        dependencies=[Depends(may_read(where))],
    )
    def get_content(uid: str, sha256: str, path: str, request: Request) -> StreamingResponse:
        """A file of an artifact that the run logged, by the SHA-256 of its `contents`; `Range` gives a part of it."""
        with ingest.answered():
            try:
                listed = _contents(media, uid, sha256)
                held = listed.files[path]
            except LookupError:
                raise ApiError(404, "not_found", "the run has no such artifact, or it has no such file") from None
            whole = media.logged_here(held.sha256)
            if whole is None and held.parts and media.size(uid, held.parts[0]) is None:
                raise ApiError(404, "not_found", "the content of this file is not here")
            name = quote(path.rpartition("/")[2], safe="")
            headers = {**HARMLESS, "Content-Disposition": f"attachment; filename*=utf-8''{name}"}
            joined = functools.partial(_joined, media, uid, held, listed.part_bytes)
            each = functools.partial(bytes_of, whole) if whole else joined
            return streamed(request, held.size, each, headers, _BYTES)

    return routes


def streamed(
    request: Request, size: int, read: Callable[[int, int], Iterator[bytes]], headers: Mapping[str, str], mime: str
) -> StreamingResponse:
    """The bytes of a file, or the part of them that a request asks for.

    Args:
        request: asked for it.
        size: bytes of the file.
        read: gives those from the first up to before the second number, piece by piece.
        headers: further ones.
        mime: what it is.

    Raises:
        OSError: it cannot be read.
    """
    asked = span(request.headers.get("range", ""), size)
    first, stop = asked or (0, size)
    pieces = read(first, stop)
    begun = list(itertools.islice(pieces, 1))  # what goes wrong at once still has an answer of its own
    told = {
        **headers,
        "Content-Length": str(stop - first),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=86400",  # a name has one content for ever, a key does not last as long
        **({"Content-Range": f"bytes {first}-{stop - 1}/{size}"} if asked else {}),
    }
    return StreamingResponse(itertools.chain(begun, pieces), 206 if asked else 200, told, mime)


@functools.lru_cache(maxsize=8)
def _contents(media: MediaStore, uid: str, sha256: str) -> contents.Contents:
    """A list of contents, kept for the files that are asked for next.

    Raises:
        LookupError: the run has no such file.
        ValueError: a bad name, or another file.
        OSError: it cannot be read.
    """
    size = media.size(uid, sha256)
    if size is None:
        raise LookupError(sha256)
    if size > contents.MAX_BYTES:
        raise ValueError("this is no list of an artifact's contents: it is too large")
    return contents.decode(b"".join(media.read(uid, sha256, 0, size)))


def _joined(
    media: MediaStore, uid: str, held: contents.Held, part_bytes: int, first: int, stop: int
) -> Iterator[bytes]:
    """The bytes from `first` to before `stop` of a file that lies in parts."""
    for number in range(first // part_bytes, -(-stop // part_bytes)):
        start = number * part_bytes
        part = max(first - start, 0), min(stop - start, part_bytes)
        yield from media.read(uid, held.parts[number], *part)


def document(*, scripts: bool) -> dict[str, str]:
    """Headers of HTML that somebody uploaded: of an origin of its own, it loads nothing, sends nothing, is framed here.

    Args:
        scripts: whether what is written in it runs there.
    """
    sandbox = "sandbox allow-scripts; script-src 'unsafe-inline'" if scripts else "sandbox"
    return {**HARMLESS, "Content-Security-Policy": f"{sandbox}; {_DOCUMENT}"}


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
