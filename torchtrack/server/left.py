"""Black boxes and stacks of received runs: nodes/<name> in the run's folder, as beside a local journal.

The name says of which process a file is and of what kind; no other name is taken, read or listed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from torchtrack import wire
from torchtrack.journal import ring
from torchtrack.server import giving, ingest
from torchtrack.server.auth import key_of
from torchtrack.server.budget import Budget
from torchtrack.server.curation import Where
from torchtrack.server.homes import Homes
from torchtrack.server.journals import JournalStore
from torchtrack.server.media import Part, folder_of, incoming
from torchtrack.server.problems import UPLOAD_RESPONSES, ApiError


class LeftStore:
    """The files in the folders of runs. **Threads:** any.

    Args:
        folder: of all runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, uid: str, name: str) -> Path:
        """Where a file lies, or would.

        Raises:
            ValueError: a bad name.
        """
        run = folder_of(self._folder, uid)
        if not ring.LEFT_NAME.fullmatch(name):
            raise ValueError("this is no name of a black box, of stacks or of a flight recorder's dump")
        return run / "nodes" / name

    def every(self, uid: str) -> list[dict[str, Any]]:
        """Name and size in bytes of a run's files.

        Raises:
            ValueError: a bad name.
        """
        folder = self.path(uid, f"{0:016x}-0.ttb").parent
        found = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            with contextlib.suppress(OSError):
                if ring.LEFT_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    found.append({"name": path.name, "size": path.stat().st_size})
        return found

    def missing(self, uid: str, digests: Mapping[str, str]) -> list[str]:
        """Those that are not there with this SHA-256.

        Raises:
            ValueError: a bad name.
        """
        return [name for name, digest in digests.items() if _digest(self.path(uid, name)) != digest]

    @contextlib.contextmanager
    def receive(self, uid: str, name: str) -> Iterator[Part]:
        """A file that is coming in; it is there, in place of an earlier one, only once it is kept.

        Raises:
            ValueError: a bad name.
            OSError: the disk does not take it.
        """
        with incoming(self.path(uid, name)) as part:
            yield part


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def taking(left: LeftStore, budget: Budget, store: JournalStore, homes: Homes | None = None) -> APIRouter:
    """The routes by which such files come in."""
    routes = APIRouter(tags=["upload"], responses=UPLOAD_RESPONSES)
    limits = budget.limits
    check = ingest.admission(store, homes)

    @routes.post("/runs/{uid}/files/missing", openapi_extra=_MISSING)
    async def missing(uid: str, request: Request) -> dict[str, Any]:
        """Which of these files the run has not yet with this content: `{"files": {name: sha256}}`."""
        files = (await ingest.json_of(request, limits)).get("files")
        if not isinstance(files, dict) or len(files) > wire.MAX_STREAMS:
            raise ApiError(400, "bad_body", f'the body has an object "files" of at most {wire.MAX_STREAMS}')
        await check(uid, request)
        with ingest.answered():
            return {"missing": await run_in_threadpool(left.missing, uid, files)}

    @routes.put("/runs/{uid}/files/{name}", status_code=201, openapi_extra=ingest.FILE)
    async def put_file(uid: str, name: str, sha256: str, request: Request) -> dict[str, Any]:
        """One file that a process left, and the SHA-256 of its content. 422 if it is not that."""
        with ingest.answered():
            ingest.check_space(store, limits)
            budget.enter(key_of(request).id)
            await check(uid, request)
            with left.receive(uid, name) as part:
                await ingest.take_file(part, request, sha256, min(limits.media_bytes, ring.MAX_BYTES))
        return {"stored": name}

    return routes


def showing(left: LeftStore, where: Where | None) -> APIRouter:
    """The routes by which they are read.

    Args:
        left: the files.
        where: as of `giving.may_read`.
    """
    routes = APIRouter(tags=["query"])
    check = giving.may_read(where)

    @routes.get("/runs/{uid}/files", dependencies=[Depends(check)])
    def files(uid: str) -> dict[str, Any]:
        """Name and size of what processes left in the folder of this uid: black boxes, stacks, dumps."""
        with ingest.answered():
            return {"files": left.every(uid)}

    @routes.get("/runs/{uid}/files/{name}", response_class=FileResponse, dependencies=[Depends(check)])
    def file(uid: str, name: str) -> FileResponse:
        """One of them, to be saved: it is never shown in a browser."""
        with ingest.answered():
            path = left.path(uid, name)
        if not path.is_file() or path.is_symlink():
            raise ApiError(404, "not_found", "the run has no such file")
        return FileResponse(path, media_type="application/octet-stream", filename=name, headers=giving.HARMLESS)

    return routes


_DIGESTS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_MISSING_BODY: Final = {"type": "object", "required": ["files"], "properties": {"files": _DIGESTS}}
_MISSING: Final = {"requestBody": {"required": True, "content": {"application/json": {"schema": _MISSING_BODY}}}}
