"""Writes one stream: append-only, one `writev` a frame, one writer a file, no locks on files, nothing mapped.

What is promised, and how:
- A frame that `append` returned True for survives the death of the process at any instant: the kernel has all of it.
- It survives a power cut after at most `sync_interval_s`: a thread of its own runs fdatasync.
- A disk that is full or fails never leaves half a frame in the middle of a file and never raises: the file is cut back
  to its last whole frame, frames wait in a bounded backlog, writing is tried again by itself, and rows that did not fit
  are counted, in `dropped_rows` and, once writing works again, in a gap frame.
- A file that cannot be cut back, has vanished or may not grow is left as it is and the stream goes on in a new segment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Final, NamedTuple

from torchtrack.journal import frame
from torchtrack.journal.background import RESERVE, RETRY_S, Background
from torchtrack.journal.frame import Codec, Kind
from torchtrack.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

SYNC_S: Final = 2.0
_ROOM_TO_SEAL: Final = 64 << 10
_EVENTS: Final = 6  # records.Table.EVENTS; importing it would import pyarrow
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class _Item(NamedTuple):
    """A frame that has no seq yet: it gets one when it is written."""

    kind: Kind
    payload: bytes | pa.Buffer
    table: int
    rows: int
    codec: Codec
    mono_ns: int

    @property
    def size(self) -> int:
        return frame.frame_size(memoryview(self.payload).nbytes)

    @property
    def vital(self) -> bool:
        """Says how the run went, rather than one of its many rows."""
        return self.kind is not Kind.DATA or self.table == _EVENTS


class _Gap(NamedTuple):
    """Rows that were dropped, all between two wall times."""

    rows: int
    reason: str
    since_ns: int
    until_ns: int

    def item(self, mono_ns: int) -> _Item:
        return _Item(Kind.GAP, frame.dump(self._asdict()), 0, self.rows, Codec.NONE, mono_ns)


class _Segment:
    """One file, open for appending, that ends at a whole frame unless it is `spoiled`."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, _FLAGS, 0o600)
        with contextlib.suppress(OSError):  # a file system with fixed modes
            os.fchmod(self.fd, 0o600)  # an odd umask takes the owner's bits too
        self.offset = 0
        self.frames = 0
        self.spoiled = False

    def put(self, buffers: tuple[bytes, bytes | pa.Buffer, bytes], size: int) -> None:
        """Append one frame, whole or not at all.

        Raises:
            OSError: nothing was appended.
        """
        try:
            done = os.writev(self.fd, buffers)
            while done < size:  # the rest tells why it was short
                more = os.write(self.fd, b"".join(buffers)[done:])
                if not more:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += more
        except OSError as error:
            self._cut()
            # A file without rows is kept for the next try: a disk that stays broken must not be littered with files.
            elsewhere = (errno.EFBIG, errno.EIO) if self.frames > 1 else ()
            self.spoiled |= error.errno in (errno.ESTALE, errno.EBADF, *elsewhere)
            raise
        self.offset += size
        self.frames += 1

    def _cut(self) -> None:
        try:
            if os.fstat(self.fd).st_size != self.offset:
                os.ftruncate(self.fd, self.offset)
        except OSError:
            self.spoiled = True


class Writer:
    """The one writer of one stream. For one thread; in a forked child every call does nothing.

    On a full disk `seal` still works: 1 MiB is allocated beside the journal while there is space, in a file without a
    name, and given back when the seal needs it. With it the frames that say how the run went are written first (all
    that are no rows of data, and events), then the oldest rows that fit, a gap frame that counts the others, the seal.
    That holds where allocated space is space (ext4, xfs, tmpfs, NFS); a file system that copies on write may refuse.

    Args:
        folder: where the files go; it is made, as are its parents, when the first frame is appended.
        name: of the first file, without ".ttj".
        stream: random 64-bit id of the stream.
        opening: what the opening frame of each file says besides type, format, stream, writer and segment.
        sync_interval_s: how often what was written is made durable.
        segment_bytes: a file that would grow beyond this is followed by the next.
        backlog_bytes: how much may wait in memory while nothing can be written; later rows are dropped and counted.
        clock: the time that frames carry, in ns; it goes with `start_mono_ns` of the opening. An import tells that of
            its source.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        stream: int,
        opening: Mapping[str, object],
        *,
        sync_interval_s: float = 5.0,
        segment_bytes: int = 128 << 20,
        backlog_bytes: int = 16 << 20,
        clock: Callable[[], int] | None = None,
    ) -> None:
        if sync_interval_s <= 0:
            raise ValueError(f"sync_interval_s must be positive, got {sync_interval_s}")
        self.path = folder / f"{name}.ttj"
        self.stream = stream
        self.seq = 0
        self.bytes = 0
        self.dropped_rows = 0
        self.errors: Counter[str] = Counter()
        self._opening = dict(opening)
        self._segment_bytes = segment_bytes
        self._backlog_bytes = backlog_bytes
        self._clock = clock or (lambda: monotonic_ns())
        self._file: _Segment | None = None
        self._segments = 0
        self._rows = 0
        self._crc = 0
        self._backlog: deque[_Item] = deque()
        self._backlog_size = 0
        self._gap: _Gap | None = None
        self._reason = ""
        self._retry_at = 0
        self._ended = False
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._background = Background(sync_interval_s, self._retry, self._count)

    @property
    def committed(self) -> int:
        """Seq of the last frame on file, -1 before the first."""
        return self.seq - 1

    def append(self, kind: Kind, payload: bytes | pa.Buffer, *, table: int = 0, rows: int = 0) -> bool:
        """Write one frame. True if it is on file; else it waits in the backlog, or was dropped and its rows counted."""
        if os.getpid() != self._pid:
            return False
        codec, stored = frame.compress(payload) if kind is Kind.DATA else (Codec.NONE, payload)
        item = _Item(kind, stored, table, rows, codec, self._clock())
        with self._lock:
            if self._ended:
                self.dropped_rows += rows
                return False
            if memoryview(payload).nbytes > frame.MAX_PAYLOAD:
                self._drop(item, "frame too large")
            elif self._resume() and self._write(item):
                return True
            else:
                self._keep(item)
        self._background.retry_soon()
        return False

    def meta(self, record: Mapping[str, object]) -> bool:
        """Write a META frame."""
        return self.append(Kind.META, frame.dump(record))

    def gap(self, rows: int, reason: str, since_ns: int, until_ns: int) -> bool:
        """Write a GAP frame: so many rows were dropped, between these wall times, before they came here."""
        return self.append(Kind.GAP, _Gap(rows, reason, since_ns, until_ns).item(self._clock()).payload, rows=rows)

    def sync(self, timeout_s: float = SYNC_S) -> bool:
        """Make all that is on file durable now; True if that was done in time and no sync has failed so far."""
        return os.getpid() == self._pid and self._background.sync(timeout_s)

    def seal(self, reason: str) -> bool:
        """Write what waits and then the last frame of the stream. True if that is on file; nothing can follow it.

        What the seal counts is made durable before it, so that whoever sees the seal can see all of it.
        """
        if os.getpid() != self._pid:
            return False
        with self._lock:
            if self._ended or not (self.seq or self._backlog or self._gap):
                return False
            self._retry_at = 0
            if not self._resume():
                self._background.release_reserve()
                self._shed()
                self._retry_at = 0
                self._resume()
        self._background.sync(SYNC_S)
        with self._lock:
            record = {"rows": self._rows, "frames": self.seq, "crc": self._crc, "reason": reason, "time_ns": time_ns()}
            seal = _Item(Kind.SEAL, frame.dump(record), 0, 0, Codec.NONE, self._clock())
            self._ended = self._resume() and self._write(seal)
            sealed = self._ended
        if sealed:
            self._background.sync(SYNC_S)
        return sealed

    def close(self) -> None:
        """Try once more to write what waits, count what cannot be, and let go of the files."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._retry_at = 0
            if not self._ended and not self._resume():
                self.dropped_rows += sum(item.rows for item in self._backlog if item.kind is Kind.DATA)
                self._backlog.clear()
            self._ended = True
            file, self._file = self._file, None
        if file is not None:
            self._attempt(os.close, file.fd)
        self._background.stop(SYNC_S)

    def _retry(self) -> bool:
        with self._lock:
            return self._ended or self._resume()

    def _resume(self) -> bool:
        """Write what waits, in order, and then what was dropped meanwhile. True if nothing waits any more."""
        if not self._backlog and self._gap is None:
            return True
        if monotonic_ns() < self._retry_at:
            return False
        while self._backlog:
            if not self._write(self._backlog[0]):
                return False
            self._backlog_size -= self._backlog.popleft().size
        if self._gap is not None and not self._write(self._gap.item(self._clock())):
            return False
        self._gap = None
        return True

    def _write(self, item: _Item) -> bool:
        for _ in range(2):  # once more, in a new file, if this one is spoiled
            try:
                self._put(self._file_for(item), item, self.stream)
                return True
            except OSError as error:
                self._count(error)
                self._reason = _name(error)
            if self._file is None or not self._file.spoiled:
                break
        self._retry_at = monotonic_ns() + int(RETRY_S * 1e9)
        return False

    def _file_for(self, item: _Item) -> _Segment:
        """The file that takes this frame, with its opening frame in place."""
        file = self._file
        if file is None or file.spoiled:
            file = self._next_file()
        elif file.frames > 1 and file.offset + item.size > self._segment_bytes:
            with contextlib.suppress(OSError):  # a file that is too long is better than none
                file = self._next_file()
        if not file.frames:
            fixed = {"type": "opening", "format": frame.FORMAT, "stream": f"{self.stream:016x}"}
            record = {**fixed, "writer": f"torchtrack {__version__}", **self._opening, "segment": self._segments - 1}
            self._put(file, _Item(Kind.META, frame.dump(record), 0, 0, Codec.NONE, self._clock()), 0)
        return file

    def _next_file(self) -> _Segment:
        created = _make_folders(self.path.parent)
        file = _Segment(frame.segment_path(self.path, self._segments))
        if self._file is not None:
            self._attempt(os.close, self._file.fd)
        self._file = file
        self._segments += 1
        self._background.adopt(file.fd, [self.path.parent, *(folder.parent for folder in created)])
        return file

    def _put(self, file: _Segment, item: _Item, stream: int) -> None:
        buffers, crc = frame.encode(
            item.kind,
            item.payload,
            stream=stream,
            seq=self.seq,
            mono_ns=item.mono_ns,
            table=item.table,
            codec=item.codec,
        )
        file.put(buffers, item.size)
        self.seq += 1
        self.bytes += item.size
        self._rows += item.rows if item.kind is Kind.DATA else 0
        self._crc = frame.roll(self._crc, crc)
        self._background.dirty = True

    def _keep(self, item: _Item) -> None:
        limit = self._backlog_bytes + (RESERVE if item.vital else 0)
        # Once rows are dropped all further rows are, so that what is missing is one stretch of time.
        if self._backlog_size + item.size > limit or (self._gap is not None and not item.vital):
            self._drop(item, self._reason)
        else:
            self._backlog.append(item)
            self._backlog_size += item.size

    def _drop(self, item: _Item, reason: str) -> None:
        now = time_ns()
        gap = self._gap or _Gap(0, reason, now, now)
        self._gap = gap._replace(rows=gap.rows + item.rows, until_ns=now)
        self.dropped_rows += item.rows if item.kind is Kind.DATA else 0

    def _shed(self) -> None:
        """Drop what the reserve cannot hold."""
        room = RESERVE - _ROOM_TO_SEAL
        kept: set[int] = set()
        for number, item in sorted(enumerate(self._backlog), key=lambda pair: not pair[1].vital):
            if item.size <= room:
                room -= item.size
                kept.add(number)
        items, self._backlog = list(self._backlog), deque()
        self._backlog_size = 0
        for number, item in enumerate(items):
            if number in kept:
                self._backlog.append(item)
                self._backlog_size += item.size
            else:
                self._drop(item, self._reason)

    def _attempt(self, call: Callable[[int], object], fd: int) -> None:
        try:
            call(fd)
        except OSError as error:
            self._count(error)

    def _count(self, error: OSError) -> None:
        self.errors[_name(error)] += 1


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and its missing parents, 0700 under any umask; those that were made."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another rank was faster
            made.mkdir(0o700)
            if made.stat().st_mode & 0o777 != 0o700:
                made.chmod(0o700)
    return missing
