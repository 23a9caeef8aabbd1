"""Files of received runs: media/<sha256> in the run's folder, as beside a local journal. Elsewhere: `blobs`."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

Shown = Literal[
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
    "image/avif",
    "image/bmp",
    "image/svg+xml",
    "audio/wav",
    "audio/mpeg",
    "audio/flac",
    "audio/ogg",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "text/html",
]
"""Types that a browser shows and in which nothing runs; HTML only in a frame that is cut off."""
_UID: Final = re.compile(r"[0-9a-f]{16}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PIECE: Final = 1 << 20


class MediaStore:
    """The files beside the journals. **Threads:** any.

    Args:
        folder: of all runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def missing(self, uid: str, names: Sequence[str]) -> list[str]:
        """Those that are not there.

        Raises:
            ValueError: one is no SHA-256, or `uid` is none.
            OSError: it cannot be told.
        """
        return [name for name in names if self.size(uid, name) is None]

    def size(self, uid: str, name: str) -> int | None:
        """Bytes of a file, None if it is not there.

        Raises:
            ValueError: a bad name.
            OSError: it cannot be told.
        """
        path = self._path(uid, name)
        return path.stat().st_size if path.is_file() and not path.is_symlink() else None

    def every(self, uid: str) -> Iterator[tuple[str, int]]:
        """Name and size of the files of a run, by name.

        Raises:
            ValueError: a bad uid.
            OSError: it cannot be told.
        """
        folder = folder_of(self._folder, uid) / "media"
        if not folder.is_dir() or folder.is_symlink():
            return
        with os.scandir(folder) as entries:
            found = [
                (entry.name, entry.stat().st_size)
                for entry in entries
                if _SHA256.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            ]
        yield from sorted(found)

    def share(self, uid: str, names: Sequence[str], other: str) -> None:
        """Let files of another run be files of this one too; those that it has not are left out.

        Raises:
            ValueError: a bad name.
            OSError: it cannot be done.
        """
        for name in names:
            if MediaStore.size(self, other, name) is None:
                continue
            source, target = self._path(other, name), self._path(uid, name)
            for made in (target.parent.parent, target.parent):
                made.mkdir(0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.link(source, target, follow_symlinks=False)
            os.utime(target)  # it is young again: the row that names it is still to come

    def logged_here(self, name: str) -> Path | None:
        """A file of an artifact that was logged into this folder itself, as one that `torchtrack ui` shows."""
        path = self._folder / "artifacts" / ".content" / name
        return path if _SHA256.fullmatch(name) and path.is_file() and not path.is_symlink() else None

    def read(self, uid: str, name: str, first: int, stop: int) -> Iterator[bytes]:
        """The bytes from `first` to before `stop` of a file that is there, piece by piece.

        Raises:
            ValueError: a bad name.
            OSError: it cannot be read.
        """
        yield from bytes_of(self._path(uid, name), first, stop)

    def whole(self, uid: str, name: str, most: int) -> bytes | None:
        """All of a file, None if it is not there or has more than `most` bytes.

        Raises:
            ValueError: a bad name.
            OSError: it cannot be read.
        """
        size = self.size(uid, name)
        return None if size is None or size > most else b"".join(self.read(uid, name, 0, size))

    @contextlib.contextmanager
    def receive(self, uid: str, name: str) -> Iterator[Part]:
        """A file that is coming in; it is there only once it is kept.

        Raises:
            ValueError: a bad name.
            OSError: the disk does not take it.
        """
        with incoming(self._path(uid, name)) as part:
            yield part

    def _path(self, uid: str, name: str) -> Path:
        run = folder_of(self._folder, uid)
        if not _SHA256.fullmatch(name):
            raise ValueError("a file is named by its SHA-256, 64 hex digits")
        return run / "media" / name


def folder_of(folder: Path, uid: str) -> Path:
    """Where a run lies, or would, in the folder of all.

    Raises:
        ValueError: this is no uid.
    """
    if not _UID.fullmatch(uid):
        raise ValueError("a run is named by 16 hex digits here")
    return folder / uid


def bytes_of(path: Path, first: int, stop: int) -> Iterator[bytes]:
    """The bytes from `first` to before `stop` of a file, piece by piece.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        file.seek(first)
        while piece := file.read(min(_PIECE, stop - file.tell())):
            yield piece


@contextlib.contextmanager
def incoming(path: Path) -> Iterator[Part]:
    """A file that is coming in, in a folder of a run: both folders are made.

    Raises:
        OSError: the disk does not take it.
    """
    for made in (path.parent.parent, path.parent):
        made.mkdir(0o700, exist_ok=True)
    part = Part(path)
    try:
        yield part
    finally:
        part.drop()


class Part:
    """A file under another name, which begins with a dot, until it is whole and durable.

    Args:
        path: what it is then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._directory = os.open(path.parent, flags)
        self._name = f".{path.name}.{secrets.token_hex(8)}"
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self._name, new, 0o600, dir_fd=self._directory)
        except OSError:
            os.close(self._directory)
            raise

    def write(self, piece: bytes) -> None:
        """Append."""
        left = memoryview(piece)
        while left:
            left = left[os.write(self._fd, left) :]

    def keep(self) -> None:
        """Make it durable under its own name."""
        os.fsync(self._fd)
        os.rename(self._name, self._path.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        for folder in (self._path.parent, self._path.parent.parent, self._path.parent.parent.parent):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def drop(self) -> None:
        """Let go of it, and remove it if it was not kept."""
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)
