"""One stream as it is sent: from the seq the server asks for, in pieces, without ever holding more than a piece."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from torchtrack.journal.frame import Found, Kind
from torchtrack.journal.reader import Stream
from torchtrack.wire import Section

_NAMING: Final = (4, 6)  # records.Table.MEDIA and EVENTS; importing it would import pyarrow


class _Entry(NamedTuple):
    """A frame that was read and is not sent yet, and the stream's count and checksum with it."""

    seq: int
    raw: bytes
    frames: int
    crc: int
    naming: bool
    """Whether its rows may name files."""


class Mark(NamedTuple):
    """A place between two frames, as both sides must see it."""

    next: int
    frames: int
    crc: int


class DivergedError(Exception):
    """The server's stream of this number is another one than ours."""


class Tail:
    """Reads a stream for the server. For one thread.

    Args:
        path: the stream's first file; it need not exist yet.
        priority: streams with a lower one are sent first.
    """

    def __init__(self, path: Path, priority: int = 2) -> None:
        self.path = path
        self.priority = priority
        self.turn = 0
        """Among those of one priority, the one that was sent longest ago is next."""
        self.want: int | None = None
        """The seq the server expects; None while it has not been asked."""
        self.acked = 0
        self.sealed_there = False
        self.problem: str | None = None
        """Why it is not sent any more."""
        self.trouble: str | None = None
        """Why it could not be read when it was last tried."""
        self.hurried = False
        self.damaged_on_the_way = 0
        self.missing_there: tuple[tuple[int, int], ...] = ()
        self.lost: list[tuple[int, int]] = []
        """Seqs that are lost here."""
        self._expected: Mark | None = None
        self._tried: set[tuple[int, int]] = set()
        self._read = 0
        self._start_over()

    def _start_over(self) -> None:
        self._stream = Stream(self.path)
        self._ahead: _Entry | None = None
        self._at = Mark(0, 0, 0)
        self.lost = []

    @property
    def number(self) -> int:
        """The stream's number."""
        return self._stream.stream

    @property
    def uid(self) -> str:
        """The run it belongs to, as far as is known."""
        return self._stream.uid or self.path.parent.parent.name

    @property
    def opening(self) -> dict[str, Any]:
        """Its opening record, once it has been read."""
        return self._stream.opening

    @property
    def at(self) -> Mark:
        """How far it has been read for sending."""
        return self._at

    @property
    def sealed(self) -> bool:
        """Whether its end has been read."""
        return self._stream.seal is not None and self._ahead is None

    @property
    def done(self) -> bool:
        """Whether the server has all of it, and nothing can follow."""
        return self.sealed and self.sealed_there and self.acked >= self._at.next

    @property
    def pending(self) -> bool:
        """Whether there are bytes that may be frames one day."""
        return self._stream.state == "pending"

    def read_bytes(self) -> int:
        """Bytes that were read since the last call."""
        size, self._read = self._read, 0
        return size

    def asked(self, position: Mark, *, sealed: bool, missing: Sequence[tuple[int, int]] = ()) -> None:
        """The server has told how far it has this stream."""
        self.acked, self.sealed_there = position.next, sealed
        self.missing_there = tuple(missing)
        self.seek(position.next, position)

    def seek(self, want: int, expected: Mark | None = None) -> None:
        """Go on from this seq: forward over what the server has, or back to what it has not any more.

        Args:
            want: the seq.
            expected: the server's count and checksum there, to be compared with ours.
        """
        if want < self._at.next:
            self._start_over()
        self.want, self._expected = want, expected

    def take(self, most: int) -> tuple[Section, bool, bool] | None:
        """The next frames that the server wants, at least one if there is any; None if there is none.

        Args:
            most: bytes.

        Returns:
            The frames, whether there are more, and whether rows among them may name files.

        Raises:
            DivergedError: what the server has is not what is here.
            JournalError: the journal cannot be read.
        """
        want = self.want
        if want is None:
            return None
        taken: list[_Entry] = []
        lost: list[tuple[int, int]] = []
        size, more = 0, False
        for entry in self._entries():
            if entry.seq < want:
                self._pass(entry)
                continue
            if not taken:
                self._compare(want)
            if taken and size + len(entry.raw) > most:
                self._ahead, more = entry, True
                break
            if entry.seq > max(want, self._at.next):
                lost.append((max(want, self._at.next), entry.seq - 1))
            self._pass(entry)
            taken.append(entry)
            size += len(entry.raw)
        if not taken:
            if self._at.next == want:
                self._compare(want)
            return None
        self.want = taken[-1].seq + 1
        self._expected = None
        # What is lost before the first frame is told too: the section begins with the seq that the server expects.
        section = Section(self.number, taken[0].seq, b"".join(entry.raw for entry in taken), tuple(lost))
        return section, more, any(entry.naming for entry in taken)

    def heal(self, most: int) -> list[Section]:
        """Frames that the server is missing and that are here, about so many bytes of them; each hole is tried once."""
        ranges = [each for each in self.missing_there if each not in self._tried and each not in self.lost]
        self._tried.update(ranges)
        sections: list[Section] = []
        run: list[Found] = []
        for found in Stream(self.path).stored() if ranges else ():
            seq = found.header.seq
            inside = any(low <= seq <= high for low, high in ranges)
            if run and (not inside or seq != run[-1].header.seq + 1):
                sections.append(_section(self.number, run))
                run = []
            if most <= 0 or seq > ranges[-1][1]:
                break
            if inside:
                run.append(found)
                most -= len(found.raw)
        if run:
            sections.append(_section(self.number, run))
        return sections

    def _entries(self) -> Iterator[_Entry]:
        if self._ahead is not None:
            entry, self._ahead = self._ahead, None
            yield entry
        stream, frames = self._stream, self._at.frames
        for found in stream.stored():
            frames += found.header.kind is not Kind.SEAL
            if stream.frames != frames:  # the file was replaced or its beginning damaged: it is read from its start
                self._start_over()
                yield from self._entries()
                return
            naming = found.header.kind is Kind.DATA and found.header.table in _NAMING
            yield _Entry(found.header.seq, _raw(found), stream.frames, stream.crc, naming)

    def _pass(self, entry: _Entry) -> None:
        if entry.seq > self._at.next:
            self.lost.append((self._at.next, entry.seq - 1))
        self._read += len(entry.raw)
        self._at = Mark(entry.seq + 1, entry.frames, entry.crc)

    def _compare(self, want: int) -> None:
        """Whether what the server has before `want` is what is here."""
        expected = self._expected
        if expected is None or expected.next != want or self._at.next != want:
            return
        if tuple(self.lost) == self.missing_there and expected != self._at:
            raise DivergedError(
                f"the server has {expected.frames} frames of this stream with checksum {expected.crc:08x}, here are "
                f"{self._at.frames} with {self._at.crc:08x}: one of them is not the original"
            )


def _raw(found: Found) -> bytes:
    """A frame's bytes, with the zeros that belong behind it whatever is there."""
    padding = len(found.padding)
    return bytes(found.raw[: len(found.raw) - padding]) + bytes(padding)


def _section(stream: int, run: Sequence[Found]) -> Section:
    return Section(stream, run[0].header.seq, b"".join(_raw(found) for found in run))


def rows_from(path: Path, position: int, deadline: float) -> int:
    """How many rows a stream holds from a seq on, as far as they can be counted until then (`time.monotonic`)."""
    from torchtrack import records

    rows = 0
    for found in Stream(path).stored():
        if time.monotonic() > deadline:
            break
        if found.header.seq >= position and found.header.kind is Kind.DATA:
            try:
                rows += records.decode(records.Table(found.header.table), found.payload()).num_rows
            except (ValueError, OSError):
                continue
    return rows
