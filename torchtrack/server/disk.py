"""How the server's files reach the disk: what makes them durable, and what is said when the disk does not take them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

ADVICE: Final = "make room on the server (torchtrack gc --data says what may go); nothing is lost, it is sent later"
"""What to do about a full disk."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD: Final = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
write: Final = os.write
fdatasync: Final = getattr(os, "fdatasync", os.fsync)


class StorageError(Exception):
    """The disk did not take it. `full` tells whether that is for lack of space."""

    def __init__(self, message: str, *, full: bool) -> None:
        super().__init__(message)
        self.full = full

    @classmethod
    def of(cls, error: OSError) -> StorageError:
        """The same of an error of the system."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        said = error.strerror or type(error).__name__
        return cls(f"{said}: {ADVICE}" if full else said, full=full)


def open_new(path: Path) -> int:
    """A file that is not there yet, for appending."""
    return os.open(path, _NEW, 0o600)


def open_old(path: Path) -> int:
    """A file that is there, for appending."""
    return os.open(path, _OLD)


def make_durable(thing: int | Path) -> OSError | None:
    """Sync a file that is open, and close it; or a folder. Returns what went wrong."""
    try:
        if isinstance(thing, Path):
            sync_folder(thing)
            return None
        try:
            fdatasync(thing)
        finally:
            os.close(thing)
    except OSError as error:
        return error
    return None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path, top: Path) -> list[Path]:
    """Make a folder and its missing parents below `top`, 0700 under any umask; the folders that have a new entry."""
    missing = []
    while folder != top and not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        made.mkdir(0o700, exist_ok=True)
        made.chmod(0o700)
    return [made.parent for made in missing]


def zero(path: Path, offset: int, length: int) -> None:
    """Write zeros over a stretch of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
