"""The black box's file: the last steps of one rank, in memory of the node that outlives the process.

    8 bytes magic, u32 length of the description, u32 its crc, the description (JSON), padding to 8, then the records

The k-th record lies in slot k % slots: u64 number of the optimizer step + 1, i64 step, i64 time in ns, u32 crc of the
rest, u32 1 if the step was left out, then float32 norm, float32 absmax and uint32 non-finite count of every row. A
record that was being written when the process died has a wrong crc and is left out. The writer makes no system call
after the file has been made.

The description names the rows (`names`), the size of a record (`record`), the runs folder and the run (`directory`,
`uid`), the process (`process`, see `process`), and where PyTorch's flight recorder writes (`flight_recorder`).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import shutil
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import numpy.typing as npt

MAGIC: Final = b"TTRING01"
MAX_BYTES: Final = 64 << 20
LEFT_NAME: Final = re.compile(
    r"([0-9a-f]{16})-(?:[0-9]{1,6}|process)(?:-(?:spike|nonfinite|stall)-[0-9]{1,20})?\.(?:ttb|stacks|flight|flight\.json)"
)
"""Names of files that processes left in the `nodes` folder of their run; the first group is the stream."""
HEAD_BYTES: Final = 8 << 20
"""A description is not longer."""
STEPS: Final = 256
"""So many steps are kept, fewer where they would not fit."""
ABSENT: Final = 0xFFFFFFFF
"""The count of a row that had no gradient."""
_HEAD: Final = struct.Struct("<8sII")
_RECORD: Final = struct.Struct("<QqqII")
_ROW: Final = [("norm", "<f4"), ("absmax", "<f4"), ("nonfinite", "<u4")]
_ROW_BYTES: Final = 12
_SHARE: Final = 8
"""Shared memory is used if so many times the size is free: data loaders need it too."""


class Record(NamedTuple):
    """One step as it was read."""

    number: int
    step: int
    time_ns: int
    skipped: bool
    rows: npt.NDArray[Any]


def places() -> list[Path]:
    """Folders of this node that a ring may lie in: shared memory, else where temporary files go."""
    return [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108  # names are random and opened exclusively


def place(size: int) -> Path:
    """The folder for a file of so many bytes."""
    shared, other = places()
    return shared if shared.is_dir() and shutil.disk_usage(shared).free > size * _SHARE else other


def process(pid: int) -> list[str]:
    """What tells a process from all others that this machine has or had: boot, namespace, number, start.

    Raises:
        OSError: there is no such process, or no /proc.
    """
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  # a magic link, not a path
    return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(namespace), str(pid), started]


def is_over(described: dict[str, Any]) -> bool:
    """Whether the process that wrote a ring is known to have ended: it was one of this boot and namespace."""
    written = described.get("process")
    if not isinstance(written, list) or len(written) != len(mine := process(os.getpid())) or written[:2] != mine[:2]:
        return False
    try:
        stat = Path(f"/proc/{int(written[2])}/stat").read_text()
    except (OSError, ValueError):
        return True
    fields = stat.rpartition(")")[2].split()
    return fields[0] in "ZX" or fields[19] != written[3]


def prefix(stream: int | str) -> str:
    """What the names of a stream's files begin with."""
    return f"torchtrack-{stream if isinstance(stream, str) else f'{stream:016x}'}"


def left_by(stream: str) -> list[Path]:
    """The files that a stream left on this node, of this user only."""
    found = [path for place in places() for path in sorted(place.glob(f"{prefix(stream)}-*"))]
    return [path for path in dict.fromkeys(found) if _is_ours(path)]


def discard(stream: str) -> None:
    """Remove what a stream left on this node."""
    for path in left_by(stream):
        path.unlink(missing_ok=True)


def rings() -> list[Path]:
    """The rings that lie on this node, of this user only."""
    found = [path for place in places() for path in sorted(place.glob(f"{prefix('')}*.ttb"))]
    return [path for path in dict.fromkeys(found) if _is_ours(path)]


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(OSError):
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_size <= MAX_BYTES
    return False


class Ring:
    """Writes the ring of one rank. **Threads:** one at a time; never waits once made.

    Args:
        stream: whose it is.
        ordinal: number of the watch.
        names: of the rows.
        about: what else a reader or the sidecar is told.

    Raises:
        OSError: there is no room on the node.
        ValueError: not even one record fits.
    """

    def __init__(self, stream: int, ordinal: int, names: Sequence[str], about: dict[str, Any]) -> None:
        import numpy as np

        self._size = -(-(_RECORD.size + len(names) * _ROW_BYTES) // 8) * 8
        described = json.dumps({**about, "names": list(names), "record": self._size}).encode()
        self._at = -(-(_HEAD.size + len(described)) // 8) * 8
        self._slots = min(STEPS, (MAX_BYTES - self._at) // self._size)
        if self._slots < 1:
            raise ValueError(f"{len(names)} tensors are too many for a black box of {MAX_BYTES} bytes")
        self.rows = np.zeros(len(names), _ROW)
        self._number, self._count = -1, -1
        self.path = self._make(f"{prefix(stream)}-{ordinal}.ttb", self._at + self._slots * self._size)
        self._map[: _HEAD.size] = _HEAD.pack(MAGIC, len(described), zlib.crc32(described))
        self._map[_HEAD.size : _HEAD.size + len(described)] = described

    def _make(self, name: str, size: int) -> Path:
        path = place(size) / name
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # else a full node would end the process with SIGBUS
            self._map = mmap.mmap(file, size)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(file)
        return path

    def write(self, number: int, step: int, time_ns: int, rows: npt.NDArray[Any], *, skipped: bool = False) -> None:
        """Write a record; the one before it anew if it has the same number."""
        self._count += number != self._number
        self._number = number
        data = rows.tobytes()
        crc = zlib.crc32(data, zlib.crc32(_RECORD.pack(number + 1, step, time_ns, 0, skipped)))
        at = self._at + self._count % self._slots * self._size
        self._map[at : at + _RECORD.size] = _RECORD.pack(number + 1, step, time_ns, crc, skipped)
        self._map[at + _RECORD.size : at + _RECORD.size + len(data)] = data

    def close(self, *, remove: bool) -> None:
        """Unmap it; what is left goes to the sidecar unless it is removed."""
        self._map.close()
        if remove:
            self.path.unlink(missing_ok=True)


def describe(data: bytes) -> dict[str, Any]:
    """What a ring says of itself.

    Raises:
        ValueError: it is none, or damaged.
    """
    if len(data) < _HEAD.size:
        raise ValueError("too short for a black box")
    magic, length, crc = _HEAD.unpack_from(data)
    text = data[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or zlib.crc32(text) != crc:
        raise ValueError("no black box, or a damaged one")
    described: dict[str, Any] = json.loads(text)
    return described


def read(data: bytes) -> tuple[list[str], list[Record], int]:
    """Names of the rows, the whole records in order, and how many were torn.

    Raises:
        ValueError: the file is no ring, or damaged at its head.
    """
    described = describe(data)
    names, size = described["names"], described["record"]
    at = -(-(_HEAD.size + _HEAD.unpack_from(data)[1]) // 8) * 8
    records, torn = [], 0
    for record in _records(data, at, size, len(names)):
        if record is None:
            torn += 1
        else:
            records.append(record)
    return names, sorted(records, key=lambda record: record.number), torn


def _records(data: bytes, at: int, size: int, rows: int) -> Iterator[Record | None]:
    import numpy as np

    for begin in range(at, len(data) - size + 1, size):
        number, step, time_ns, crc, skipped = _RECORD.unpack_from(data, begin)
        if not number:
            continue
        body = data[begin + _RECORD.size : begin + _RECORD.size + rows * _ROW_BYTES]
        whole = zlib.crc32(body, zlib.crc32(_RECORD.pack(number, step, time_ns, 0, skipped))) == crc
        yield Record(number - 1, step, time_ns, bool(skipped), np.frombuffer(body, _ROW)) if whole else None
