"""One stream on the server: append what fits, compare what is there already, refuse the rest, cut off what failed."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from torchtrack.errors import JournalError
from torchtrack.journal import frame, gathered
from torchtrack.journal.frame import HEADER_SIZE, Found, Kind
from torchtrack.journal.reader import PADDING, Damage, Stream
from torchtrack.server import disk, received
from torchtrack.server.disk import StorageError
from torchtrack.server.healing import heal
from torchtrack.server.received import Range, RefusedError, by_file, covers, is_opening

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_EVERY: Final = 1 << 18
"""Bytes of a file between two entries of the index."""
_MAX_RANK: Final = 10_000_000
_UID: Final = re.compile(r"[0-9a-f]{16}")


class Position(NamedTuple):
    """How far a stream is.

    Attributes:
        next: seq of the frame that is expected.
        frames: how many there are, the seal not counted.
        crc: rolling checksum over them, as the seal's.
        sealed: nothing can follow.
        missing: seqs before `next` that are not there, as (first, last).
    """

    next: int = 0
    frames: int = 0
    crc: int = 0
    sealed: bool = False
    missing: tuple[Range, ...] = ()


class Unsynced(NamedTuple):
    """What was written to a stream and is not durable yet.

    Attributes:
        things: files that are open, and folders with new entries.
        position: of the stream, once they are durable.
        end: segment and offset then.
        dead: whether it was lost already.
    """

    things: tuple[int | Path, ...]
    position: Position
    end: tuple[int, int]
    dead: bool


class StreamLog:
    """The files of one stream. **Hold `lock`** for all but `durable`, `loaded` and syncing, which takes it for moments.

    Args:
        folder: of all runs.
        stream: the stream's number.
        path: its first file, if there is one.
    """

    def __init__(self, folder: Path, stream: int, path: Path | None) -> None:
        self.lock = threading.Lock()
        self.path = path
        self.durable = Position()
        self.loaded = False
        self._folder = folder
        self._stream = stream
        self._dead = False
        self._start_over()

    def _start_over(self) -> None:
        self._now = Position()
        self._segment = -1
        self._offset = 0
        self._kept = (-1, 0)  # segment and offset that are durable
        self._index: list[tuple[int, int, int]] = []  # seq, segment, offset
        self._fds: list[int] = []
        self._folders: list[Path] = []

    @property
    def dirty(self) -> bool:
        """Whether something is written that is not durable."""
        return bool(self._fds or self._folders)

    # -- what is there ----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the files once, cut off a torn end, make durable what is left.

        Raises:
            StorageError: they cannot be read.
        """
        if self.loaded or self._dead:
            return
        try:
            if self.path is not None:
                self._recover(self.path)
        except JournalError as error:
            raise StorageError(str(error), full=False) from error
        except OSError as error:
            raise StorageError.of(error) from error
        self.loaded = True

    def _recover(self, path: Path) -> None:
        files = self._files(path)
        self._start_over()
        stream, end = _all_of(path), (-1, 0)
        for found in stream.stored():
            start = stream.segment, stream.offset - len(found.raw)
            self._note(found.header.seq, *start, anew=start != end)
            end = stream.segment, stream.offset
        if not stream.next_seq:
            for file in files.values():
                file.unlink()
            self.path, self.durable = None, Position()
            return
        self._segment, self._offset = stream.segment, stream.offset
        for number in [number for number in files if number > stream.segment]:
            files.pop(number).unlink()
        self._make_durable(path, files, stream.damages)
        missing = tuple((damage.first_seq, damage.last_seq) for damage in stream.damages if damage.lost > 0)
        self._now = Position(stream.next_seq, stream.frames, stream.crc, stream.seal is not None, missing)
        self.durable, self._kept = self._now, (self._segment, self._offset)

    def _make_durable(self, path: Path, files: Mapping[int, Path], damages: Sequence[Damage]) -> None:
        """What a crash left may not be on the disk yet: the last file without its torn end, the others, their names."""
        for number, file in files.items():
            fd = disk.open_old(file)
            try:
                if number == self._segment and os.fstat(fd).st_size > self._offset:
                    os.ftruncate(fd, self._offset)
                for damage in (each for each in damages if each.path == file and each.reason == PADDING):
                    disk.zero(file, damage.offset, damage.length)
                disk.fdatasync(fd)
            finally:
                os.close(fd)
        for folder in (path.parent, path.parent.parent, self._folder):
            if folder.exists():  # a stream that was gathered elsewhere has none
                disk.sync_folder(folder)

    def _files(self, path: Path) -> dict[int, Path]:
        """The files of the stream in their own places, by number: those that were found, and those made here."""
        numbers = sorted({0, *gathered.own_segments(path), *range(1, self._segment + 1)})
        files = {number: frame.segment_path(path, number) for number in numbers}
        return {number: file for number, file in files.items() if file.exists()}

    def _note(self, seq: int, segment: int, offset: int, *, anew: bool = False) -> None:
        last = self._index[-1] if self._index else (0, -1, 0)
        if anew or segment != last[1] or offset - last[2] >= _EVERY:
            self._index.append((seq, segment, offset))

    def _headers(self, first: int) -> Iterator[tuple[int, bytes]]:
        """Seq and header of the stored frames, from some frame at or before `first` on."""
        at = max(0, bisect_right(self._index, first, key=lambda entry: entry[0]) - 1)
        for number, (_, segment, offset) in enumerate(self._index[at:], at):
            end = self._offset if segment == self._segment else None
            if number + 1 < len(self._index) and self._index[number + 1][1] == segment:
                end = self._index[number + 1][2]
            yield from _headers(frame.segment_path(self._first(), segment), offset, end)

    def _first(self) -> Path:
        if self.path is None:
            raise RefusedError("gap", "nothing of this stream is stored; send it from its first frame", expected=0)
        return self.path

    # -- what comes -------------------------------------------------------------------------------------------------

    def append(self, first: int, data: memoryview, lost: Sequence[Range]) -> Position:
        """See `JournalStore.append`."""
        if self._dead:
            raise StorageError("the disk failed a moment ago; try again", full=False)
        came = received.verified(self._stream, first, data, lost)
        old = [found for found in came if found.header.seq < self._now.next]
        new = came[len(old) :]
        missing = self._compare(old)
        if missing and self._heal(missing):
            return self.append(first, data, lost)
        if new:
            self._check_start(new[0], lost)
            received.check_records(new, sealed=self._now.sealed)
            self._write(new)
        return self._now

    def _compare(self, old: list[Found]) -> list[Found]:
        """Check that frames which came again are those that are there; returns those that are missing here."""
        if not old:
            return []
        missing = [found for found in old if covers(self._now.missing, found.header.seq, found.header.seq)]
        wanted = {found.header.seq: bytes(found.raw[:HEADER_SIZE]) for found in old}
        for found in missing:
            del wanted[found.header.seq]
        if not wanted:
            return missing
        last = max(wanted)
        for seq, header in self._headers(min(wanted)):
            mine = wanted.pop(seq, None)
            if mine is not None and mine != header:
                stored, sent = frame.read_header(header), frame.read_header(mine)
                raise RefusedError(
                    "conflict",
                    f"another frame is stored as frame {seq} of this stream",
                    seq=seq,
                    stored_crc=stored.crc if stored else 0,
                    sent_crc=sent.crc if sent else 0,
                )
            if seq >= last:
                break
        if wanted:
            raise StorageError(f"frame {min(wanted)} is stored, but could not be read back", full=False)
        return missing

    def _check_start(self, found: Found, lost: Sequence[Range]) -> None:
        seq, expected = found.header.seq, self._now.next
        if seq > expected and not covers(lost, expected, seq - 1):
            message = f"frames {expected} to {seq - 1} are to come before frame {seq}"
            raise RefusedError("gap", message, expected=expected)

    # -- to the disk ------------------------------------------------------------------------------------------------

    def _write(self, new: list[Found]) -> None:
        before = self._now, self._segment, self._offset, self.path, len(self._index)
        try:
            for file in by_file(new, self._stream):
                self._put(file)
        except OSError as error:
            self._take_back(*before)
            raise StorageError.of(error) from error
        position = before[0]
        missing, expected = list(position.missing), position.next
        frames, crc = position.frames, position.crc
        for found in new:
            if found.header.seq > expected:
                missing.append((expected, found.header.seq - 1))
            expected = found.header.seq + 1
            if found.header.kind is not Kind.SEAL:
                frames, crc = frames + 1, frame.roll(crc, found.header.crc)
        sealed = new[-1].header.kind is Kind.SEAL
        self._now = Position(expected, frames, crc, sealed, tuple(missing))

    def _put(self, file: list[Found]) -> None:
        """Append frames that belong into one file; an opening begins the next one."""
        if is_opening(file[0], self._stream) or self.path is None:
            self._begin(file[0])
        fd = self._fd()
        for found in file:
            self._note(found.header.seq, self._segment, self._offset)
            left = found.raw
            while left:
                left = left[disk.write(fd, left) :]
            self._offset += len(found.raw)

    def _begin(self, found: Found) -> None:
        if self.path is None:
            self.path = self._place(found)
        path = frame.segment_path(self.path, self._segment + 1)
        self._folders += disk.make_folder(path.parent, self._folder)
        self._folders.append(path.parent)
        self._fds.append(disk.open_new(path))
        self._segment += 1
        self._offset = 0

    def _fd(self) -> int:
        """The last file, open for appending until the next commit."""
        if not self._fds:
            self._fds.append(disk.open_old(frame.segment_path(self._first(), self._segment)))
        return self._fds[-1]

    def _place(self, found: Found) -> Path:
        """Where a stream goes: what its opening says, in digits; a stream that has lost it gets a folder of its own."""
        record: dict[str, Any] = found.record() if is_opening(found, self._stream) else {}
        uid, rank = record.get("uid"), record.get("rank")
        name = f"{self._stream:016x}"
        if not (isinstance(uid, str) and _UID.fullmatch(uid)):
            uid, rank = name, 0
        if record.get("role") == "node":
            return self._folder / uid / "nodes" / f"{name}.ttj"
        known = isinstance(rank, int) and 0 <= rank < _MAX_RANK
        return frame.rank_path(self._folder, uid, rank if known and isinstance(rank, int) else 0, self._stream)

    def _take_back(self, now: Position, segment: int, offset: int, path: Path | None, entries: int) -> None:
        """After a failed write: as if nothing had come."""
        while self._segment > segment:
            with contextlib.suppress(OSError):
                frame.segment_path(self._first(), self._segment).unlink()
            if self._fds:
                os.close(self._fds.pop())
            self._segment -= 1
        self._offset, self.path, self._now = offset, path, now
        del self._index[entries:]
        if path is not None and segment >= 0:
            try:
                os.truncate(frame.segment_path(path, segment), offset)
            except OSError:
                self._die()

    def sync(self) -> StorageError | None:
        """Make what was written durable. On failure it is taken back and this object is of no more use."""
        begun = self.begin_sync()
        return self.end_sync(begun, [error for each in begun.things if (error := disk.make_durable(each))])

    def begin_sync(self) -> Unsynced:
        """What `make_durable` has to be called for, and then `end_sync`. For those who sync many streams together."""
        with self.lock:
            fds, self._fds = self._fds, []
            folders, self._folders = dict.fromkeys(self._folders), []
            return Unsynced((*fds, *folders), self._now, (self._segment, self._offset), self._dead)

    def end_sync(self, begun: Unsynced, errors: Sequence[OSError]) -> StorageError | None:
        """What was written until `begin_sync` is durable if there were no errors; see `sync`."""
        if begun.dead:
            return StorageError("the disk failed a moment ago; try again", full=False)
        with self.lock:
            if not errors:
                self.durable, self._kept = begun.position, begun.end
                return None
            self._undo()
            return StorageError.of(errors[0])

    def _undo(self) -> None:
        """Back to what is durable: pages that could not be written once cannot be trusted to be written later."""
        self._die()
        segment, offset = self._kept
        for number, file in self._files(self.path).items() if self.path else ():
            with contextlib.suppress(OSError):
                if number > segment:
                    file.unlink()
                elif number == segment:
                    os.truncate(file, offset)

    def _die(self) -> None:
        self._dead = True
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    # -- what was lost ----------------------------------------------------------------------------------------------

    def _heal(self, came: list[Found]) -> bool:
        """Put frames where they were missing. Returns whether any could be."""
        path, missing = self._first(), self._now.missing
        error = self._sync_unlocked()
        if error is not None:
            raise error
        try:
            if heal(
                path, self._files(path), self._stream, came, lambda each: is_opening(each, self._stream), disk.fdatasync
            ):
                disk.sync_folder(path.parent)
            self._recover(path)
        except OSError as failure:
            raise StorageError.of(failure) from failure
        return self._now.missing != missing

    def _sync_unlocked(self) -> StorageError | None:
        """As `sync`, for a caller that holds the lock: it is let go of meanwhile."""
        self.lock.release()
        try:
            return self.sync()
        finally:
            self.lock.acquire()


def _all_of(path: Path) -> Stream:
    """A stream whose holes are taken for damage at once: nobody else writes here."""
    return Stream(path, grace_s=float("-inf"), gone=lambda *_: True)


def _headers(path: Path, offset: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Seq and header of the frames in a stretch of a file; what does not verify ends it."""
    fd = os.open(path, _READ)
    try:
        stop = os.fstat(fd).st_size if end is None else end
        while offset < stop:
            raw = os.pread(fd, HEADER_SIZE, offset)
            header = frame.read_header(raw)
            if header is None:
                return
            yield header.seq, raw
            offset += frame.frame_size(header.length)
    finally:
        os.close(fd)
