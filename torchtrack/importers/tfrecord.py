"""Records of TensorFlow's files: length, checksum of the length, data, checksum of the data (CRC-32C, masked).

Damage costs what it hit: a record whose data does not verify is left out, and where a length does not, the next length
that does is looked for. The end of a file that is being written, or was cut off, may be half a record.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from torchtrack.importers.source import Losses

HEAD: Final = struct.Struct("<QI")
_CRC: Final = struct.Struct("<I")
_WINDOW: Final = 4 << 20
_LARGEST: Final = 1 << 30


def _table() -> npt.NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> np.uint32(1) ^ np.uint32(0x82F63B78), table >> np.uint32(1))
    return table.astype(np.uint32)


_TABLE: Final = _table()


def records(path: Path, offset: int, checksum: Callable[[bytes], int], losses: Losses) -> Iterator[tuple[int, bytes]]:
    """Each whole record of a file with the offset behind it.

    Args:
        path: of the file.
        offset: of a record, or 0.
        checksum: the masked CRC-32C of bytes.
        losses: what is damaged is counted there.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            head = file.read(HEAD.size)
            if len(head) < HEAD.size:
                losses.damage("files that end within a record: being written, or cut off")
                return
            length, crc = HEAD.unpack(head)
            if checksum(head[:8]) != crc:
                offset, skipped = _next(file.fileno(), offset + 1, size)
                losses.damage("stretches of bytes that are no records")
                losses.damage("bytes in them", skipped + 1)
                continue
            end = offset + HEAD.size + length + _CRC.size
            if end > size:
                losses.damage("files that end within a record: being written, or cut off")
                return
            data = file.read(length)
            if checksum(data) == _CRC.unpack(file.read(_CRC.size))[0]:
                yield end, data
            else:
                losses.damage("records whose checksum is wrong")
            offset = end


def _next(descriptor: int, offset: int, size: int) -> tuple[int, int]:
    """The next offset with a length that verifies, the end of the file if there is none; and how far that is."""
    start = offset
    while offset < size:
        data = np.frombuffer(os.pread(descriptor, _WINDOW + HEAD.size, offset), np.uint8)
        count = max(0, len(data) - HEAD.size + 1)
        if count:
            right = np.flatnonzero(_verifies(data, count))
            if len(right):
                return offset + int(right[0]), offset + int(right[0]) - start
        offset += max(count, 1) if len(data) >= HEAD.size else size
    return size, size - start


def _verifies(data: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.bool_]:
    """For each of the first offsets, whether a plausible length with its checksum begins there."""
    crc = np.full(count, 0xFFFFFFFF, np.uint32)
    for byte in range(8):
        crc = _TABLE[(crc ^ data[byte : byte + count]) & np.uint32(0xFF)] ^ crc >> np.uint32(8)
    crc ^= np.uint32(0xFFFFFFFF)
    masked = (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(0xA282EAD8)
    parts = [data[8 + byte : 8 + byte + count].astype(np.uint32) << np.uint32(8 * byte) for byte in range(4)]
    told = parts[0] | parts[1] | parts[2] | parts[3]
    small = np.ones(count, np.bool_)
    for byte in (4, 5, 6, 7):
        small &= data[byte : byte + count] == 0
    found: npt.NDArray[np.bool_] = small & (masked == told)
    return found
