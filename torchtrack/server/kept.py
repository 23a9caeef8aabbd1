"""What lies in the folder of a run: every file with its size and digest; those that a script saved are given out.

    media/<sha256>     what `log` was given        files/<path>      what `save` was given
    nodes/<name>       what processes left         NNN/<name>.ttj    the journals themselves

Nothing else is listed, and no link is followed.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse

from torchtrack.journal import ring
from torchtrack.server import giving, ingest
from torchtrack.server.curation import Where
from torchtrack.server.media import MediaStore, folder_of
from torchtrack.server.problems import ApiError

Kind = Literal["media", "saved", "left", "journal"]
MOST_FILES: Final = 10_000
HASHED_BYTES: Final = 64 << 20
"""Read for the digests of one answer; the next one goes on from there."""
_JOURNALS: Final = (".ttj", ".ttg")


class KeptFiles:
    """The files of runs. **Threads:** any.

    Args:
        folder: of all runs.
        media: the files that rows name, which may lie elsewhere.
    """

    def __init__(self, folder: Path, media: MediaStore) -> None:
        self._folder = folder
        self._media = media

    def every(self, uid: str) -> tuple[list[dict[str, Any]], bool]:
        """Files as `path`, `kind`, `size` in bytes, `modified` in seconds since 1970, `sha256` where it is known.

        Returns:
            At most `MOST_FILES`, and whether there are more.

        Raises:
            ValueError: a bad uid.
            OSError: the blob store does not answer.
        """
        run = folder_of(self._folder, uid)
        media = ((f"media/{name}", "media", size, None, name) for name, size in self._media.every(uid))
        found = list(itertools.islice(itertools.chain(media, _digested(_files(run))), MOST_FILES + 1))
        names = ("path", "kind", "size", "modified", "sha256")
        return [dict(zip(names, each, strict=True)) for each in found[:MOST_FILES]], len(found) > MOST_FILES

    def saved(self, uid: str, path: str) -> Path | None:
        """Where a saved file lies, None if there is none of this name.

        Raises:
            ValueError: a bad uid, or a path that leads elsewhere.
        """
        parts = path.split("/")
        if "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise ValueError("the path of a saved file has names between slashes, and leads nowhere else")
        top = folder_of(self._folder, uid) / "files"
        file = top.joinpath(*parts)
        try:
            is_one = file.resolve() == top.parent.resolve() / "files" / Path(*parts) and file.is_file()
        except OSError:  # a name that is too long
            return None
        return file if is_one else None


def _files(run: Path) -> Iterator[tuple[Path, str, Kind]]:
    """What there is but media, by path."""
    for path in _inside(run / "files"):
        yield path, path.relative_to(run).as_posix(), "saved"
    for folder in sorted(_folders(run)):
        for path in sorted(folder.iterdir()):
            if not path.is_symlink() and path.is_file():
                inside = path.relative_to(run).as_posix()
                if path.suffix in _JOURNALS:
                    yield path, inside, "journal"
                elif folder.name == "nodes" and ring.LEFT_NAME.fullmatch(path.name):
                    yield path, inside, "left"


def _folders(run: Path) -> Iterator[Path]:
    if run.is_dir():
        own = (path for path in run.iterdir() if path.name not in ("files", "media"))
        yield from (path for path in own if path.is_dir() and not path.is_symlink())


def _inside(folder: Path) -> Iterator[Path]:
    if folder.is_symlink():
        return
    for top, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(top, name)
            if not path.is_symlink() and path.is_file():
                yield path


def _digested(files: Iterator[tuple[Path, str, Kind]]) -> Iterator[tuple[str, Kind, int, float, str | None]]:
    room = HASHED_BYTES
    for path, inside, kind in files:
        try:
            status = path.stat()
            digest = None
            if kind != "journal" and status.st_size <= room:  # a journal grows, and has checksums of its own
                before = _digest.cache_info().misses
                digest = _digest(path, status.st_size, status.st_mtime_ns)
                room -= status.st_size * (_digest.cache_info().misses - before)
        except OSError:
            continue  # removed meanwhile
        yield inside, kind, status.st_size, status.st_mtime, digest


@functools.lru_cache(maxsize=MOST_FILES)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    del size, modified_ns  # another one of these is another file
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            whole.update(piece)
    return whole.hexdigest()


def router(files: KeptFiles, where: Where | None) -> APIRouter:
    """The routes by which they are listed and read.

    Args:
        files: which.
        where: as of `giving.may_read`.
    """
    routes = APIRouter(tags=["query"])
    check = giving.may_read(where)

    @routes.get("/runs/{uid}/kept", dependencies=[Depends(check)])
    def kept(uid: str) -> dict[str, Any]:
        """Every file of a run: media, saved files, what processes left, journals; with sizes and SHA-256."""
        with ingest.answered():
            found, more = files.every(uid)
        return {"files": found, "more": more}

    @routes.get("/runs/{uid}/saved/{path:path}", response_class=FileResponse, dependencies=[Depends(check)])
    def saved(uid: str, path: str) -> FileResponse:
        """A file that the script saved, to be stored; `Range` gives a part of it. A browser never shows it."""
        with ingest.answered():
            file = files.saved(uid, path)
        if file is None:
            raise ApiError(404, "not_found", "the run has no such file")
        return FileResponse(file, media_type="application/octet-stream", filename=file.name, headers=giving.HARMLESS)

    return routes
