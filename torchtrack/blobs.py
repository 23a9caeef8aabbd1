"""Files beside the journal, named by the SHA-256 of their content."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Blob:
    """An encoded file."""

    data: bytes
    mime: str
    caption: str | None
    meta: dict[str, Any]
    """What a reader wants to know before it fetches the bytes, such as width and height."""


def store(blob: Blob, folder: Path) -> str:
    """Write a file to media/<sha256> in a run's folder, durably and at once; a file that is there is left alone.

    Returns:
        The SHA-256 of the content in hex, which is the file's name.

    Raises:
        OSError: it cannot be written; then nothing is left behind. Also where media is a symbolic link.
    """
    name = hashlib.sha256(blob.data).hexdigest()
    media = folder / "media"
    _make_private(media)
    directory = os.open(media, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _is_file_of_size(name, len(blob.data), directory):
            _write_whole(blob.data, name, directory)
            os.fsync(directory)
    finally:
        os.close(directory)
    return name


def _is_file_of_size(name: str, size: int, directory: int) -> bool:
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(there.st_mode) and there.st_size == size


def _write_whole(data: bytes, name: str, directory: int) -> None:
    temporary = name + secrets.token_hex(8)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask took away
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise


def _make_private(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_private(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return  # another thread or rank was faster
    folder.chmod(0o700)  # whatever the umask took away
