"""What a folder of runs holds that nobody needs: found and named first, removed only when somebody said so.

Whatever is in doubt is kept: a file that a damaged or unfinished journal may name, a file that is young, a run that was
deleted a short while ago.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from torchtrack import records
from torchtrack.errors import JournalError
from torchtrack.journal.frame import Kind
from torchtrack.journal.reader import Stream, find_streams
from torchtrack.records import Table

GRACE_S: Final = 7 * 86400.0
"""How long a deleted run can be restored."""
PART_S: Final = 86400.0
"""After so long without a change nothing is written to a file any more that was to be renamed when whole."""
_PART: Final = re.compile(r"\..+\.[0-9a-f]{8,16}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Garbage(NamedTuple):
    """A file or a folder to remove, its size in bytes, and why nobody needs it."""

    path: Path
    size: int
    why: str

    def remove(self) -> None:
        """Remove it.

        Raises:
            OSError: it could not be removed.
        """
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def find(runs: Path, deleted: Collection[str] = (), now: float | None = None) -> Iterator[Garbage]:
    """What may go in a folder of runs.

    Args:
        runs: the folder.
        deleted: uids of runs that were deleted long enough ago.
        now: seconds since 1970; None for the clock's.
    """
    moment = time.time() if now is None else now
    folders = sorted(path for path in runs.iterdir() if path.is_dir() and not path.is_symlink())
    for run in (path for path in folders if path.name in deleted):
        yield Garbage(run, sum(path.stat().st_size for path in run.rglob("*") if path.is_file()), "deleted run")
    kept = [path for path in folders if path.name not in deleted]
    for run in kept:
        yield from _parts(run, moment)
    yield from _unnamed(runs, kept, moment)


def _parts(run: Path, now: float) -> Iterator[Garbage]:
    for folder in sorted(path for path in run.iterdir() if path.is_dir()):
        for path in sorted(folder.glob(".*")):
            if _PART.fullmatch(path.name) and path.is_file() and now - path.stat().st_mtime > PART_S:
                yield Garbage(path, path.stat().st_size, "part of a file that never came whole")


def _unnamed(runs: Path, kept: Sequence[Path], now: float) -> Iterator[Garbage]:
    files = [path for run in kept for path in sorted((run / "media").glob("*")) if _SHA256.fullmatch(path.name)]
    old = [path for path in files if now - path.stat().st_mtime > PART_S]
    named, doubtful = _names(runs) if old else (set(), set())
    for path in old:
        if path.name not in named and path.parent.parent.name not in doubtful:
            yield Garbage(path, path.stat().st_size, "media that no row names")


def _names(runs: Path) -> tuple[set[str], set[str]]:
    """The files that rows name, and the runs of which that cannot be told for sure: damaged, or still being written."""
    named: set[str] = set()
    doubtful: set[str] = set()
    for path in find_streams(runs):
        stream = Stream(path)
        try:
            for found in stream.each():
                if found.kind is Kind.DATA and found.table == Table.MEDIA:
                    named.update(records.decode(Table.MEDIA, found.payload).column("sha256").to_pylist())
            sure = stream.state == "sealed"
        except (JournalError, OSError, ValueError):
            sure = False
        if not sure:
            doubtful |= {path.parent.parent.name, str(stream.uid)}
    return named, doubtful
