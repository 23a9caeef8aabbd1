"""Copies finished journal files into one file a node, and only then deletes them: large jobs leave fewer files.

A gathered file is append-only, has one writer, and holds journal files byte for byte, each between two frames of its
own that say what it is:

    opening | begin, the bytes of a journal file, end | begin, ... | ...

Those are frames like any other, seeded with the stream of the gathered file; the opening is seeded with stream 0. The
journal file's frames keep their stream, seqs and checksums, so that (stream, seq) names a frame here as well. A file
counts once its `end` is there. What is gathered is on the disk before the file it was copied from is deleted; while
both are there readers take the file (`gathered`), so a crash at any point loses nothing and doubles nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic_ns
from typing import Final

from torchtrack.journal import frame
from torchtrack.journal.frame import HEADER_SIZE, Kind
from torchtrack.version import __version__

SUFFIX: Final = ".ttg"
_TAIL: Final = 4096
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class _NotWholeError(Exception):
    """A journal file that is not frame after frame from its first byte to its last."""


class Gatherer:
    """The writer of one gathered file. For one thread.

    Args:
        folder: of the run's nodes; the file is made with the first journal file that it takes.
        opening: what the opening frame says besides type, format, stream and writer.
    """

    def __init__(self, folder: Path, opening: Mapping[str, object]) -> None:
        self._folder = folder
        self._opening = dict(opening)
        self._start()

    def _start(self) -> None:
        self._stream = secrets.randbits(64)
        self.path = self._folder / f"{self._stream:016x}{SUFFIX}"
        self._fd = -1
        self._seq = 0

    def take(self, path: Path, stream: int, *, ended: bool) -> int:
        """Gather what is finished of one stream: files that have a successor, and the last one if it is sealed.

        A file that is damaged stays where it is, for `fsck` to find.

        Args:
            path: the stream's first file, whether it is still there or not.
            stream: its number.
            ended: nobody writes to it any more.

        Returns:
            How many files are now gathered and gone.

        Raises:
            OSError: the disk is full or fails; what was gathered before is.
        """
        files = sorted(_segments(path).items())
        if files and not (ended and _is_sealed(files[-1][1], stream)):
            files.pop()
        return sum(self._take(file, stream) for _, file in files)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._start()

    def _take(self, file: Path, stream: int) -> bool:
        source = os.open(file, _READ)
        try:
            stat = os.fstat(source)
            self._open()
            start, seq = os.fstat(self._fd).st_size, self._seq
            record = {"path": f"{file.parent.name}/{file.name}", "length": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            try:
                self._put({"type": "begin", **record})
                for raw in _frames(source, stream, stat.st_size):
                    self._append(raw)
                self._put({"type": "end", **record})
                os.fsync(self._fd)
            except (OSError, _NotWholeError) as error:
                self._cut(start, seq)
                if isinstance(error, OSError):
                    raise
                return False
        finally:
            os.close(source)
        file.unlink()
        return True

    def _open(self) -> None:
        if self._fd >= 0:
            return
        self._folder.mkdir(0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.path, _WRITE, 0o600)
        fixed = {"type": "opening", "format": frame.FORMAT, "stream": f"{self._stream:016x}"}
        try:
            self._put({**fixed, "writer": f"torchtrack {__version__}", **self._opening}, stream=0)
            _sync_folder(self._folder)
            _sync_folder(self._folder.parent)
        except OSError:
            self.path.unlink()
            self.close()
            raise

    def _put(self, record: Mapping[str, object], stream: int | None = None) -> None:
        buffers, _ = frame.encode(
            Kind.META,
            frame.dump(record),
            stream=self._stream if stream is None else stream,
            seq=self._seq,
            mono_ns=monotonic_ns(),
        )
        self._append(b"".join(buffers))
        self._seq += 1

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]

    def _cut(self, start: int, seq: int) -> None:
        """Take back what was begun. A file that cannot be cut is left, with the rest, and another one is begun."""
        try:
            os.ftruncate(self._fd, start)
            self._seq = seq
        except OSError:
            self.close()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _segments(path: Path) -> dict[int, Path]:
    """The files of a stream that are there, by number."""
    names = {other: frame.FILE_NAME.fullmatch(other.name) for other in path.parent.glob(f"{path.stem}.*ttj")}
    return {int(name[2] or 0): other for other, name in names.items() if name}


def _is_sealed(file: Path, stream: int) -> bool:
    with file.open("rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        tail = os.pread(opened.fileno(), _TAIL, max(0, size - _TAIL))
    return any(found.header.kind is Kind.SEAL for found in frame.scan(tail, stream))


def _frames(fd: int, stream: int, size: int) -> Iterator[bytes]:
    """The bytes of a journal file, frame by verified frame.

    Raises:
        _NotWholeError: something else is among them.
    """
    at, seq = 0, None
    while at < size:
        header = frame.read_header(os.pread(fd, HEADER_SIZE, at))
        data = os.pread(fd, frame.frame_size(header.length), at) if header else b""
        found = frame.read_frame(data, 0, stream if at else 0)
        if found is None or any(found.padding) or seq not in (None, found.header.seq):
            raise _NotWholeError
        if at == 0 and found.record().get("stream") != f"{stream:016x}":
            raise _NotWholeError
        yield data
        at, seq = at + len(data), found.header.seq + 1
