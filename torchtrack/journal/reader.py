"""Reads a stream while it is written, from any file system, and never takes a late page for damage.

A reader opens, reads and closes at every poll, and maps nothing: that is what a network file system keeps coherent. It
trusts nothing but verified frames in the order of their seqs. Whatever else it meets has one of two meanings:

- Bytes after the last verified frame are *pending*: a frame is being written, or was torn when its writer died.
- A seq that is missing before a verified frame is *pending* as well, since pages may become visible out of order. It is
  *damaged* once that cannot be the reason any more: the seal is there, or the writer is gone and the file has not
  changed for a grace period. Until then nothing behind it is returned; then it is counted, named and skipped.

Bytes between two consecutive seqs cost no frame; they are noted as damage that lost nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from torchtrack.errors import FormatVersionError
from torchtrack.journal import frame, gathered, wellformed
from torchtrack.journal.frame import HEADER_SIZE, Found, Kind
from torchtrack.journal.gather import SUFFIX
from torchtrack.version import __version__

GRACE_S: Final = 60.0
SILENCE_S: Final = 600.0
_WINDOW: Final = 1 << 20
_TAIL: Final = 4096
_STREAM: Final = re.compile(r"[0-9a-f]{16}")
PADDING: Final = "padding"
"""The reason of a Damage that is something else than zeros behind a whole frame."""
_KEPT: Final = ("opening", "joined", "ended", "seal", "gaps", "segment", "frames", "crc", "next_seq")
"""What a bookmark holds as it is."""


class Frame(NamedTuple):
    """A verified frame; the payload is decompressed."""

    seq: int
    kind: Kind
    table: int
    payload: bytes
    mono_ns: int


class Damage(NamedTuple):
    """A piece of a file that holds no frame, and the seqs that were lost with it.

    `last_seq` is `first_seq - 1` where nothing was lost.
    """

    path: Path
    offset: int
    length: int
    first_seq: int
    last_seq: int
    reason: str

    @property
    def lost(self) -> int:
        """How many frames are lost."""
        return self.last_seq - self.first_seq + 1


def find_streams(folder: Path) -> list[Path]:
    """The first file of every stream under a folder of runs, in one run's folder, or in one file.

    Those that have been gathered are named as if they were in their own places, and so is one that was lost while later
    ones of its stream are there.
    """
    if folder.is_file():
        return gathered.streams_in(folder) if folder.suffix == SUFFIX else [folder]
    patterns = ("[0-9]*/*.ttj", "nodes/*.ttj", "*/[0-9]*/*.ttj", "*/nodes/*.ttj")
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    for run in {archive.parent.parent for archive in gathered.find_archives(folder)}:
        found.update(gathered.first_files(run))
    return sorted({frame.first_path(path) for path in found if frame.FILE_NAME.fullmatch(path.name)})


def writer_gone(opening: Mapping[str, Any], silent_s: float) -> bool:
    """Whether the process that wrote this opening has ended: it ran here and does not, or has been silent for long."""
    if silent_s > SILENCE_S:
        return True
    try:
        if Path("/proc/sys/kernel/random/boot_id").read_text().strip() != opening.get("boot_id"):
            return False
        os.kill(int(opening["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError, ValueError):
        return False
    return False


class Stream:
    """All files of one stream, from the first; each poll goes on where the last one stopped.

    A file that has become shorter or belongs to another stream is read again from its start, under the same (stream,
    seq) keys.

    Args:
        path: the stream's first file. It need not exist yet.
        grace_s: how long a hole may take to become visible after the file last changed.
        clock: wall time, for comparison with the file's modification time.
        gone: tells from the opening and the seconds since the last change whether the writer has ended.
    """

    def __init__(
        self,
        path: Path,
        *,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
        gone: Callable[[Mapping[str, Any], float], bool] = writer_gone,
    ) -> None:
        self.path = Path(path)
        self._grace_s = grace_s
        self._clock = clock
        self._gone = gone
        self._start_over()

    def _start_over(self) -> None:
        name = frame.FILE_NAME.fullmatch(self.path.name)
        self.stream = int(name[1], 16) if name else 0
        self.opening: dict[str, Any] = {}
        self.joined: dict[str, Any] | None = None
        self.ended: dict[str, Any] | None = None
        self.seal: dict[str, Any] | None = None
        self.gaps: list[dict[str, Any]] = []
        self.damages: list[Damage] = []
        self.segment = 0
        self.frames = 0
        self.crc = 0
        self.torn = 0
        self.next_seq = 0
        self._offset = 0
        self._head = b""
        self._moved = False  # this file has been gathered
        self._held = False  # behind a hole that nothing proves to be damage
        self._proof = False  # a hole is damage
        self._again = False  # this file has been read once more since the next one was seen
        self._last_segment = gathered.last_segment(self.path)

    @property
    def uid(self) -> str | None:
        """The run this stream belongs to, None while no frame has told."""
        uid: str | None = self._place("uid")
        return uid

    @property
    def attempt(self) -> int | None:
        """The attempt of the run."""
        attempt: int | None = self._place("attempt")
        return attempt

    @property
    def rank(self) -> int | None:
        """The rank that wrote it, None for a node's stream."""
        rank: int | None = self._place("rank")
        return rank

    @property
    def world_size(self) -> int | None:
        """How many ranks the attempt has."""
        world_size: int | None = self._place("world_size")
        return world_size

    @property
    def role(self) -> str | None:
        """`rank` or `node`."""
        role: str | None = self._place("role")
        return role

    @property
    def offset(self) -> int:
        """Where the next frame begins in the file of the current `segment`."""
        return self._offset

    @property
    def state(self) -> str:
        """The worst that is known: damaged, then sealed, pending, ok."""
        if self.damages:
            return "damaged"
        if self.seal is not None:
            return "sealed"
        return "pending" if self.torn or self._held else "ok"

    def poll(self) -> list[Frame]:
        """The frames that are complete, verified and new since the last poll.

        Raises:
            FormatVersionError: a file was written in another format.
            JournalError: a file cannot be read.
        """
        return list(self.each())

    def each(self) -> Generator[Frame, None, None]:
        """As `poll`, one frame at a time: for those who cannot hold a whole file."""
        for found in self.stored():
            header = found.header
            try:
                payload = found.payload()
            except ValueError as error:
                self._note(self._offset - len(found.raw), len(found.raw), header.seq, header.seq, str(error))
                continue
            yield Frame(header.seq, header.kind, header.table, payload, header.mono_ns)

    def bookmark(self) -> dict[str, Any]:
        """How far this stream has been read and what was learned, as JSON: `resume` goes on from here.

        Valid between two polls, and between two frames of `each`.
        """
        kept: dict[str, Any] = {name: getattr(self, name) for name in _KEPT}
        return {
            **kept,
            "stream": f"{self.stream:016x}",
            "offset": self._offset,
            "head": self._head.hex(),
            "damages": [[str(d.path), *d[1:]] for d in self.damages],
        }

    def resume(self, bookmark: Mapping[str, Any]) -> None:
        """Go on where a bookmark of the same stream was made; if the file was replaced since, from its start."""
        for name in _KEPT:
            setattr(self, name, bookmark[name])
        self.stream = int(bookmark["stream"], 16)
        self.damages = [Damage(Path(path), *rest) for path, *rest in bookmark["damages"]]
        self._offset, self._head = bookmark["offset"], bytes.fromhex(bookmark["head"])

    def stored(self) -> Iterator[Found]:
        """As `poll`, one frame at a time, as it lies in the file of the current `segment`: for those who copy it."""
        self._proof = self._held = self._again = False
        while True:
            if (yield from self._read_file()):
                self._start_over()
                continue
            if self._held or not self._go_to_next_file():
                return

    def _place(self, key: str) -> Any:
        return (self.joined or {}).get(key, self.opening.get(key))

    def _read_file(self) -> Generator[Found, None, bool]:
        """Read on in the file of the current segment. True if it is not the one that was read before."""
        with gathered.opened(frame.segment_path(self.path, self.segment), expected=True) as file:
            if file is None:
                return False
            if self._offset and (file.size < self._offset or file.read(HEADER_SIZE, 0) != self._head):
                return True
            self._moved = file.base > 0
            size, window = file.size, _WINDOW
            while self._offset < size:
                start = self._offset
                data = file.read(window, start)
                hole = yield from self._take(data)
                if hole:
                    self._proof = self._is_proven()
                    if not self._proof:
                        self._held = True
                        break
                    continue  # what was missing may have come before the proof
                if not data or start + len(data) >= size:
                    break
                window = _WINDOW if self._offset > start else 2 * window
            self.torn = max(0, size - self._offset)
        return False

    def _take(self, data: bytes) -> Generator[Found, None, bool]:
        """Go through the frames of this window. True if it stopped at a hole."""
        base = self._offset
        opening = base == 0 and self._is_opening(data, self.segment)
        for found in frame.scan(data, self.stream, opening=opening):
            start, seq = base + found.offset, found.header.seq
            if seq < self.next_seq and start > self._offset:
                continue  # a frame that is quoted inside a payload, or was copied by damage
            if seq > self.next_seq and not self._proof:
                return True
            if seq < self.next_seq:
                self._note(start, len(found.raw), self.next_seq, self.next_seq - 1, "a repeated frame")
            elif seq > self.next_seq or start > self._offset:
                between = data[self._offset - base : found.offset]
                self._note(self._offset, len(between), self.next_seq, seq - 1, _reason(between))
            if any(found.padding):
                self._note(base + found.end - len(found.padding), len(found.padding), seq, seq - 1, PADDING)
            self._offset = base + found.end
            self._head = self._head or data[:HEADER_SIZE]
            if seq >= self.next_seq:
                self.next_seq = seq + 1
                self._learn(found, start)
                yield found
        return False

    def _is_opening(self, data: bytes, segment: int) -> bool:
        """Whether a file begins with an opening frame of this stream, which the first file's opening names."""
        version = frame.other_version(data)
        if version is not None:
            raise FormatVersionError(
                f"{frame.segment_path(self.path, segment)} is written in journal format {version}; "
                f"torchtrack {__version__} reads format {frame.FORMAT}"
            )
        found = frame.read_frame(data, 0, 0)
        if found is None or found.header.kind is not Kind.META:
            return False
        name = str(found.record().get("stream"))
        if _STREAM.fullmatch(name) is None:
            return False
        if segment == 0:
            self.stream = int(name, 16)
        return self.stream == int(name, 16)

    def _learn(self, found: Found, start: int) -> None:
        kind = found.header.kind
        if kind is not Kind.SEAL:
            self.frames += 1
            self.crc = frame.roll(self.crc, found.header.crc)
        if kind is Kind.DATA:
            return
        record = found.record()
        wrong = wellformed.problem(record)
        if wrong is not None:
            self._note(start, len(found.raw), found.header.seq, found.header.seq, f"a record is wrong: {wrong}")
        elif kind is Kind.SEAL:
            self.seal = record
        elif kind is Kind.GAP:
            self.gaps.append(record)
        elif kind is Kind.META:
            if record.get("type") == "opening":
                self.opening = self.opening or record
            elif record.get("type") == "joined":
                self.joined = record
            elif record.get("type") == "ended":
                self.ended = record

    def _note(self, offset: int, length: int, first_seq: int, last_seq: int, reason: str) -> None:
        path = frame.segment_path(self.path, self.segment)
        self.damages.append(Damage(path, offset, length, first_seq, last_seq, reason))

    def _go_to_next_file(self) -> bool:
        """Whether there is more to read, in the next file or (its end may have come after it was read) in this one."""
        following, first_seq = self._following()
        if following is None:
            return False
        if first_seq > self.next_seq and not self._again:
            self._again = True
            self._proof = self._proof or self._is_proven()
            return True
        if first_seq > self.next_seq and not self._proof:
            self._held = True
            return False
        if first_seq > self.next_seq and self.torn:
            self._note(self._offset, self.torn, self.next_seq, first_seq - 1, "a torn end")
            self.next_seq = first_seq
        self.segment = following
        self._offset = self.torn = 0
        self._head = b""
        self._again = False
        return True

    def _following(self) -> tuple[int | None, int]:
        """The next file that holds a frame, and the seq of its first."""
        segment = self.segment
        expected = self._moved and self.seal is None  # without a seal only what has a successor is gathered
        while True:
            segment += 1
            for window in (_WINDOW, 2 * frame.MAX_PAYLOAD):
                with gathered.opened(frame.segment_path(self.path, segment), expected=expected) as file:
                    if file is None and segment > self._last_segment:
                        return None, 0
                    data = b"" if file is None else file.read(window, 0)
                opening = self._is_opening(data, segment)
                for found in frame.scan(data, self.stream, opening=opening):
                    return segment, found.header.seq

    def _is_proven(self) -> bool:
        """Whether what is missing by now will not come."""
        last = frame.segment_path(self.path, max(gathered.segments(self.path), default=0))
        with gathered.opened(last) as file:
            if file is None:
                return False
            mtime, tail = file.mtime, file.read(_TAIL, max(0, file.size - _TAIL))
        if any(found.header.kind is Kind.SEAL for found in frame.scan(tail, self.stream)):
            return True
        silent_s = self._clock() - mtime
        return silent_s > self._grace_s and self._gone(self.opening, silent_s)


def _reason(between: bytes) -> str:
    if not between:
        return "frames are missing"
    if between.count(0) == len(between):
        return "zeros"
    return "unreadable bytes" if frame.read_header(between) is None else "a payload that does not match its checksum"
