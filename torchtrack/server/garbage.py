"""What a folder of runs holds that nobody needs: found and named first, removed only when somebody said so.

Whatever is in doubt is kept: a file that a damaged or unfinished journal may name, a file that is young, a run that was
deleted a short while ago.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from torchtrack import contents, records
from torchtrack.errors import JournalError
from torchtrack.journal.frame import Kind
from torchtrack.journal.reader import Stream, find_streams
from torchtrack.records import Table

if TYPE_CHECKING:
    from torchtrack.server.blobs import Blob, Bucket

GRACE_S: Final = 7 * 86400.0
"""How long a deleted run can be restored."""
PART_S: Final = 86400.0
"""After so long without a change nothing is written to a file any more that was to be renamed when whole."""
UNNAMED: Final = "media that no row names"
_PART: Final = re.compile(r"\..+\.[0-9a-f]{8,16}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Garbage(NamedTuple):
    """Something to remove: where it lies, its size in bytes, why nobody needs it, and what removes it."""

    place: Path | str
    size: int
    why: str
    remove: Callable[[], None]
    """Raises OSError if it cannot be removed."""


def of_path(path: Path, why: str) -> Garbage:
    """A file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        return Garbage(path, size, why, lambda: shutil.rmtree(path))
    return Garbage(path, path.stat().st_size, why, lambda: path.unlink(missing_ok=True))


def find(
    runs: Path, deleted: Collection[str] = (), now: float | None = None, bucket: Bucket | None = None
) -> Iterator[Garbage]:
    """What may go in a folder of runs, and in the bucket that has their media.

    Args:
        runs: the folder.
        deleted: uids of runs that were deleted long enough ago.
        now: seconds since 1970; None for the clock's.
        bucket: where media lie too. What lies there of runs that are not in the folder is kept: they may be another
            server's.
    """
    moment = time.time() if now is None else now
    folders = sorted(path for path in runs.iterdir() if path.is_dir() and not path.is_symlink())
    yield from (of_path(run, "deleted run") for run in folders if run.name in deleted)
    kept = [path for path in folders if path.name not in deleted]
    for run in kept:
        yield from _parts(run, moment)
    old = [path for run in kept for path in _media(run) if moment - path.stat().st_mtime > PART_S]
    found = [(path.parent.parent.name, path.name, of_path(path, UNNAMED)) for path in old]
    here = {run.name for run in kept}
    if bucket is not None:
        for blob in bucket.blobs():
            if blob.uid in deleted:
                yield _of_blob(bucket, blob, "media of a deleted run")
            elif blob.uid in here and moment - blob.put_s > PART_S:
                found.append((blob.uid, blob.name, _of_blob(bucket, blob, UNNAMED)))
    named, doubtful = _names(runs, bucket) if found else (set(), set())
    yield from (each for uid, name, each in found if name not in named and uid not in doubtful)


def _of_blob(bucket: Bucket, blob: Blob, why: str) -> Garbage:
    place = f"{bucket.url.rstrip('/')}/{blob.uid}/media/{blob.name}"
    return Garbage(place, blob.size, why, lambda: bucket.remove(blob.uid, blob.name))


def _parts(run: Path, now: float) -> Iterator[Garbage]:
    for folder in sorted(path for path in run.iterdir() if path.is_dir()):
        for path in sorted(folder.glob(".*")):
            if _PART.fullmatch(path.name) and path.is_file() and now - path.stat().st_mtime > PART_S:
                yield of_path(path, "part of a file that never came whole")


def _media(run: Path) -> list[Path]:
    return [path for path in sorted((run / "media").glob("*")) if _SHA256.fullmatch(path.name)]


def _names(runs: Path, bucket: Bucket | None) -> tuple[set[str], set[str]]:
    """The files that rows name, and the runs of which that cannot be told for sure: damaged, or still being written."""
    named: set[str] = set()
    doubtful: set[str] = set()
    for path in find_streams(runs):
        stream = Stream(path)
        lists: set[str] = set()
        try:
            for found in stream.each():
                if found.kind is Kind.DATA and found.table == Table.MEDIA:
                    named.update(records.decode(Table.MEDIA, found.payload).column("sha256").to_pylist())
                elif found.kind is Kind.DATA and found.table == Table.EVENTS:
                    lists.update(_lists(found.payload))
            uids = {path.parent.parent.name, str(stream.uid)}
            named |= lists.union(*(_listed(runs, bucket, uid, name) for uid in uids for name in lists))
            sure = stream.state == "sealed"
        except (JournalError, OSError, ValueError):
            sure = False
        if not sure:
            doubtful |= {path.parent.parent.name, str(stream.uid)}
    return named, doubtful


def _lists(payload: bytes) -> Iterator[str]:
    """The lists of contents that events name."""
    for row in records.decode(Table.EVENTS, payload).to_pylist():
        told = json.loads(row["json"]) if row["type"] in contents.NAMING else None
        if isinstance(told, dict) and contents.is_digest(told.get("contents")):
            yield told["contents"]


def _listed(runs: Path, bucket: Bucket | None, uid: str, name: str) -> set[str]:
    """The parts of what a list of contents names; none where it never came.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    path = runs / uid / "media" / name
    if path.is_file():
        data = path.read_bytes()
    elif bucket is not None and (size := bucket.size(uid, name)) is not None:
        data = b"".join(bucket.read(uid, name, 0, size))
    else:
        return set()
    return {part for held in contents.decode(data).files.values() for part in held.parts}
