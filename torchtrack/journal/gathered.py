"""Reads journal files wherever they are: in their own place, or in a gathered file of their run (see `gather`).

A gathered file is walked once, from one of its own frames to the next, and then followed as it grows. A damaged frame
of its own costs no journal file while the other one of the pair is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from torchtrack.errors import JournalError
from torchtrack.journal import frame
from torchtrack.journal.frame import HEADER_SIZE, Found
from torchtrack.journal.gather import SUFFIX

_WINDOW: Final = 1 << 20
_MAX_OWN: Final = 64 << 10
"""Bytes of a frame of the gathered file's own at most; the longest is the opening."""


_PLACE: Final = re.compile(rf"([0-9]+)/{frame.FILE_NAME.pattern}")


class Opened(NamedTuple):
    """A journal file that is open for reading."""

    fd: int
    base: int
    size: int
    mtime: float

    def read(self, length: int, offset: int) -> bytes:
        """Bytes of the journal file from an offset on."""
        return os.pread(self.fd, max(0, min(length, self.size - offset)), self.base + offset)


class Place(NamedTuple):
    """Where the bytes of a journal file lie in a gathered file."""

    archive: Path
    offset: int
    length: int
    mtime: float


class Gap(NamedTuple):
    """Bytes of a gathered file that are neither a journal file nor a frame of its own."""

    offset: int
    length: int


class Archive:
    """One gathered file, as far as it has been read.

    Attributes:
        places: the journal files in it, by the names of their folder and their own.
        gaps: what is damaged.
        torn: bytes behind the last whole journal file: one is being gathered, or was when the writer died.
        error: why it cannot be read; empty if it can.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_over()

    def _start_over(self) -> None:
        self.places: dict[str, Place] = {}
        self.gaps: list[Gap] = []
        self.torn = 0
        self.error = ""
        self._stream = 0
        self._offset = 0
        self._size = 0

    def read(self) -> None:
        """Take what was gathered since the last time. Never raises: see `error`."""
        try:
            with self.path.open("rb", buffering=0) as file:
                fd, size = file.fileno(), os.fstat(file.fileno()).st_size
                if size < self._offset:
                    self._start_over()
                if size != self._size and self._knows_stream(fd):
                    self._walk(fd, size)
                    self._size = size
                self.torn = max(0, size - self._offset)
        except OSError as error:
            self.error = error.strerror or type(error).__name__

    def _knows_stream(self, fd: int) -> bool:
        """The stream is in the file's name and in its opening frame; one of them is enough."""
        head = os.pread(fd, HEADER_SIZE, 0)
        version = frame.other_version(head)
        self.error = "" if version is None else f"journal format {version} is not read here"
        if version is None and not self._stream:
            opening = self._own(fd, 0)
            names = [self.path.stem, str(opening.record().get("stream")) if opening else ""]
            self._stream = next((int(name, 16) for name in names if frame.FILE_NAME.fullmatch(f"{name}.ttj")), 0)
        return version is None

    def _walk(self, fd: int, size: int) -> None:
        while self._offset < size:
            found = self._own(fd, self._offset) or self._next_own(fd, self._offset, size)
            if found is None or not self._keep(fd, found, size):
                return

    def _keep(self, fd: int, found: Found, size: int) -> bool:
        """Note what a frame of the archive's own says. False if what it begins is not all there yet."""
        record = found.record()
        length = int(record.get("length", 0))
        if record.get("type") == "begin":
            end = self._own(fd, found.end + length) or self._next_own(fd, found.end + length, size)
            if end is None:
                return False
            self._pass(found.offset)
            self._place(record, found.end)
            self._pass(end.offset)
            self._offset = end.end if end.record().get("type") == "end" else end.offset
            return True
        if record.get("type") == "end":  # the frame before the bytes is damaged
            self._pass(found.offset - length)
            self._place(record, found.offset - length)
        self._pass(found.offset)
        self._offset = found.end
        return True

    def _place(self, record: Mapping[str, Any], offset: int) -> None:
        name, length = str(record.get("path")), int(record.get("length", 0))
        if _PLACE.fullmatch(name):
            self.places[name] = Place(self.path, offset, length, int(record.get("mtime_ns", 0)) / 1e9)
        self._offset = offset + length

    def _pass(self, offset: int) -> None:
        """What lies before this offset is damage, if it has not been accounted for."""
        if offset > self._offset:
            self.gaps.append(Gap(self._offset, offset - self._offset))

    def _own(self, fd: int, at: int) -> Found | None:
        header = frame.read_header(os.pread(fd, HEADER_SIZE, at))
        if header is None or frame.frame_size(header.length) > _MAX_OWN:
            return None
        data = os.pread(fd, frame.frame_size(header.length), at)
        found = frame.read_frame(data, 0, self._stream if at else 0)
        return found and found._replace(offset=at)

    def _next_own(self, fd: int, at: int, size: int) -> Found | None:
        while at < size:
            for found in frame.scan(os.pread(fd, _WINDOW + _MAX_OWN, at), self._stream):
                return found._replace(offset=at + found.offset)
            at += _WINDOW
        return None


class _Run:
    """The gathered files of one run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._archives: dict[Path, Archive] = {}
        self.places: dict[str, Place] = {}
        self.segments: dict[str, list[int]] = {}
        """By the name of a stream's first file: the numbers of those that are gathered."""
        self.refresh()

    def refresh(self) -> None:
        found = self._folder.glob(f"nodes/*{SUFFIX}")
        self._archives = {path: self._archives.get(path) or Archive(path) for path in found}
        for archive in self._archives.values():
            archive.read()
        self.places = {name: place for each in self._archives.values() for name, place in each.places.items()}
        self.segments = {}
        for name in self.places:
            first, number = _first_of(name)
            self.segments.setdefault(first, []).append(number)


_runs: Final[dict[str, _Run]] = {}
_listed: Final[dict[str, tuple[int, dict[str, list[int]]]]] = {}
"""By folder of journals: when it changed last, and what `_later_in` found then."""
_lock: Final = threading.Lock()


def _run(folder: str, *, fresh: bool = False) -> _Run:
    with _lock:
        if folder not in _runs:
            _runs[folder] = _Run(Path(folder))
        elif fresh:
            _runs[folder].refresh()
        return _runs[folder]


def _first_of(name: str) -> tuple[str, int]:
    """The name of the stream's first file, and the number of this one."""
    number = frame.FILE_NAME.fullmatch(name.rpartition("/")[2])
    if number is None or number[2] is None:
        return name, 0
    return name.removesuffix(f".{number[2]}.ttj") + ".ttj", int(number[2])


def _place_of(path: Path) -> tuple[str, str]:
    """The folder of its run, and what a journal file is called there: asked at every look at a stream, so in words."""
    folder, name = os.path.split(path)
    run, rank = os.path.split(folder)
    return run or ".", f"{rank}/{name}"


def first_files(run: Path) -> list[Path]:
    """The first files of streams that are gathered in a run's folder, as if they were in their own places."""
    return [run / name for name in _run(str(run), fresh=True).segments]


def segments(path: Path) -> list[int]:
    """The numbers of the later files of the stream whose first file is `path`, wherever they are."""
    numbers = (other.suffixes[-2][1:] for other in path.parent.glob(f"{path.stem}.*.ttj"))
    here = [int(number) for number in numbers if number.isdecimal()]
    folder, name = _place_of(path)
    return here + _run(folder).segments.get(name, [])


def own_segments(path: Path) -> list[int]:
    """The numbers of the later files of a stream in their own places, as their folder was when it changed last.

    One listing serves all streams of a folder: a thousand that are met for the first time would each read all of it.
    """
    where, first = os.path.split(path)
    with _lock:
        try:
            changed = path.parent.stat().st_mtime_ns
            if where not in _listed or _listed[where][0] != changed:
                _listed[where] = changed, _later_in(where or ".")
        except OSError:
            _listed[where] = -1, {}
        return _listed[where][1].get(first, [])


def last_segment(path: Path) -> int:
    """The number of the newest file of a stream, 0 for the first; see `own_segments`."""
    folder, name = _place_of(path)
    return max((*own_segments(path), *_run(folder).segments.get(name, [])), default=0)


def _later_in(folder: str) -> dict[str, list[int]]:
    """The numbers of the later files of each stream in a folder that has more than one."""
    later: dict[str, list[int]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            first, number = _first_of(entry.name)
            if number:
                later.setdefault(first, []).append(number)
    return later


def streams_in(archive: Path) -> list[Path]:
    """The first files of the streams in one gathered file."""
    found = Archive(archive)
    found.read()
    return sorted({archive.parent.parent / _first_of(name)[0] for name in found.places})


def find_archives(folder: Path) -> list[Path]:
    """The gathered files under a folder of runs, in one run's folder, or the file itself if it is one."""
    if folder.is_file():
        return [folder] if folder.suffix == SUFFIX else []
    return sorted(path for pattern in ("nodes/*", "*/nodes/*") for path in folder.glob(pattern + SUFFIX))


@contextlib.contextmanager
def opened(path: Path, *, expected: bool = False) -> Iterator[Opened | None]:
    """A journal file, None if it is not there (yet, or as far as the network knows).

    Args:
        path: its own place.
        expected: it must be somewhere. Only then are the gathered files looked at again.

    Raises:
        JournalError: it is there and cannot be read.
    """
    fd = None
    try:
        fd, place = _open(path, expected=expected)
        if fd is None:
            yield None
        elif place is None:
            stat = os.fstat(fd)
            yield Opened(fd, 0, stat.st_size, stat.st_mtime)
        else:
            yield Opened(fd, place.offset, place.length, place.mtime)
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        if fd is not None:
            os.close(fd)


def _open(path: Path, *, expected: bool) -> tuple[int | None, Place | None]:
    fd, place = _open_file(path), None
    for fresh in (False, True) if expected else (False,):
        if fd is None:
            folder, name = _place_of(path)
            place = _run(folder, fresh=fresh).places.get(name)
            fd = _open_file(place.archive) if place else None
    return fd, place


def _open_file(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
