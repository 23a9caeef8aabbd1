"""The frames of a journal: how one is written, verified, and found again after damage.

A frame is a header of 40 bytes, a payload, and zeros up to a multiple of 8:

    magic 8 (signature 7, format version 1) | length u32 | flags u32 | seq u64 | mono_ns u64
    | payload crc u32 | header crc u32

all little-endian; flags: bits 0-3 codec, bits 4-7 kind, bits 8-15 table. The header crc covers the 36 bytes before it,
so a length is never believed unless it is intact. The payload crc covers the payload as stored and is seeded with the
stream and the seq, so a frame copied to another place or file does not verify there; the opening frame of a file is
seeded with stream 0, since it is what tells the stream. Header size, signature, version byte and header crc stay where
they are in every later format: that is how a reader knows a newer file from a damaged one.
"""

from __future__ import annotations

import functools
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT: Final = 1
"""Version of the journal; equal to `records.FORMAT_VERSION`, which is not imported because that needs pyarrow."""
SIGNATURE: Final = b"\x89TTJ\r\n\x1a"
MAGIC: Final = SIGNATURE + bytes([FORMAT])
HEADER_SIZE: Final = 40
MAX_PAYLOAD: Final = 64 << 20
"""Bytes of a payload at most, stored and decompressed."""
COMPRESS_FROM: Final = 4096
FILE_NAME: Final = re.compile(r"(?:\d+-)?([0-9a-f]{16})(?:\.(\d+))?\.ttj")
"""Of a journal file: the rank, the stream, and the number of a later segment."""
_PIECE: Final = 1 << 20  # a read allocates all it may return

_FIELDS: Final = struct.Struct("<8sIIQQI")
_CRC: Final = struct.Struct("<I")
_SEED: Final = struct.Struct("<QQ")


class TooLargeError(ValueError):
    """What was compressed has more bytes than allowed."""


class Kind(IntEnum):
    """What a frame's payload is."""

    META = 1  # JSON object with a "type"
    DATA = 2  # Arrow stream with rows of one table
    GAP = 3  # JSON: rows that were dropped, counted
    SEAL = 4  # JSON: the last frame of a stream
    HEARTBEAT = 5  # JSON


class Codec(IntEnum):
    """How a payload is stored."""

    NONE = 0
    ZSTD = 1


class Header(NamedTuple):
    """The fields of a verified header."""

    length: int
    codec: Codec
    kind: Kind
    table: int
    seq: int
    mono_ns: int
    crc: int


class Found(NamedTuple):
    """A verified frame in a piece of a file."""

    offset: int
    header: Header
    raw: memoryview

    @property
    def end(self) -> int:
        """Where the next frame starts."""
        return self.offset + len(self.raw)

    @property
    def stored(self) -> memoryview:
        """The payload as it is in the file, perhaps compressed."""
        return self.raw[HEADER_SIZE : HEADER_SIZE + self.header.length]

    @property
    def padding(self) -> memoryview:
        """What follows the payload: zeros, and the only bytes no crc covers."""
        return self.raw[HEADER_SIZE + self.header.length :]

    def payload(self) -> bytes:
        """The payload as it was given to the writer.

        Raises:
            ValueError: it does not decompress to at most `MAX_PAYLOAD` bytes.
        """
        if self.header.codec is Codec.NONE:
            return bytes(self.stored)
        return decompress(self.stored)

    def record(self) -> dict[str, Any]:
        """The payload of a JSON frame; empty if it holds no JSON object."""
        try:
            record = json.loads(self.payload())
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}


def frame_size(length: int) -> int:
    """Bytes on file of a frame whose stored payload has this length."""
    return HEADER_SIZE + length + -length % 8


def encode(
    kind: Kind, payload: bytes | pa.Buffer, *, stream: int, seq: int, mono_ns: int, table: int = 0, codec: int = 0
) -> tuple[tuple[bytes, bytes | pa.Buffer, bytes], int]:
    """The three buffers of a frame, for one `writev`, and its payload crc."""
    length = memoryview(payload).nbytes
    crc = zlib.crc32(payload, zlib.crc32(_SEED.pack(stream, seq)))
    fields = _FIELDS.pack(MAGIC, length, codec | kind << 4 | table << 8, seq, mono_ns, crc)
    return (fields + _CRC.pack(zlib.crc32(fields)), payload, bytes(-length % 8)), crc


def roll(rolling: int, crc: int) -> int:
    """The rolling crc of a stream after one more frame with this payload crc."""
    return zlib.crc32(_CRC.pack(crc), rolling)


def read_header(data: bytes, at: int = 0) -> Header | None:
    """The header at an offset, None if there is no intact one of this format."""
    fields = data[at : at + _FIELDS.size]
    if not fields.startswith(MAGIC) or len(data) < at + HEADER_SIZE:
        return None
    if _CRC.unpack_from(data, at + _FIELDS.size)[0] != zlib.crc32(fields):
        return None
    _, length, flags, seq, mono_ns, crc = _FIELDS.unpack(fields)
    try:
        header = Header(length, Codec(flags & 15), Kind(flags >> 4 & 15), flags >> 8 & 255, seq, mono_ns, crc)
    except ValueError:
        return None
    return header if length <= MAX_PAYLOAD and flags < 1 << 16 else None


def other_version(data: bytes) -> int | None:
    """The format version of a file that begins with an intact header of another format than ours."""
    head = data[:HEADER_SIZE]
    if len(head) < HEADER_SIZE or not head.startswith(SIGNATURE) or head[7] == FORMAT:
        return None
    return head[7] if _CRC.unpack_from(head, _FIELDS.size)[0] == zlib.crc32(head[: _FIELDS.size]) else None


def read_frame(data: bytes, at: int, stream: int) -> Found | None:
    """The whole and verified frame at an offset, None if there is none."""
    header = read_header(data, at)
    if header is None or at + frame_size(header.length) > len(data):
        return None
    found = Found(at, header, memoryview(data)[at : at + frame_size(header.length)])
    return found if verifies(found, stream) else None


def verifies(found: Found, stream: int) -> bool:
    """Whether a frame's payload checksum is that of this stream."""
    return zlib.crc32(found.stored, zlib.crc32(_SEED.pack(stream, found.header.seq))) == found.header.crc


def scan(data: bytes, stream: int, *, opening: bool = False) -> Iterator[Found]:
    """Every verified frame of a piece of a file; what lies between two of them is damage or not there yet.

    After anything that does not verify, the search goes on at the next magic inside it, so that bytes which were
    inserted or cut out cost no more than the frames they hit.

    Args:
        data: bytes that start where a frame should start.
        stream: the stream the frames belong to.
        opening: the data is the start of a file, whose opening frame is seeded with stream 0.
    """
    at = 0
    while at >= 0:
        found = read_frame(data, at, stream)
        if found is None and opening and at == 0:
            found = read_frame(data, 0, 0)
        if found is None:
            at = data.find(MAGIC, at + 1)
            continue
        yield found
        at = found.end


def dump(record: Mapping[str, object]) -> bytes:
    """The payload of a JSON frame."""
    return json.dumps(record, separators=(",", ":")).encode()


def rank_path(directory: Path, uid: str, rank: int, stream: int) -> Path:
    """The first file of a rank's stream in the folder of runs."""
    return directory / uid / f"{rank // 1000:03d}" / f"{rank}-{stream:016x}.ttj"


def segment_path(path: Path, segment: int) -> Path:
    """The file of a later segment of the stream whose first file is `path`."""
    return path.with_suffix(f".{segment}.ttj") if segment else path


def first_path(path: Path) -> Path:
    """The first file of the stream that a file, of whichever segment, belongs to."""
    return path.with_name(f"{path.name.split('.')[0]}.ttj")


def compress(payload: bytes | pa.Buffer) -> tuple[Codec, bytes | pa.Buffer]:
    """A payload as it is stored: zstd where that makes it smaller."""
    if memoryview(payload).nbytes < COMPRESS_FROM:
        return Codec.NONE, payload
    stored = zstd(payload)
    return (Codec.ZSTD, stored) if len(stored) < memoryview(payload).nbytes else (Codec.NONE, payload)


def zstd(data: bytes | pa.Buffer) -> bytes:
    """Bytes as one zstd frame."""
    return bytes(_zstd().compress(data, asbytes=True))


def decompress(stored: bytes | memoryview, most: int | None = None) -> bytes:
    """What `compress` stored with zstd.

    Args:
        stored: the compressed bytes.
        most: how many bytes it may become; `MAX_PAYLOAD` if not given.

    Raises:
        ValueError: it is no zstd frame, or grows beyond `most`.
    """
    import pyarrow as pa

    most = MAX_PAYLOAD if most is None else most
    pieces: list[bytes] = []
    try:
        with pa.CompressedInputStream(pa.BufferReader(stored), "zstd") as stream:
            while piece := stream.read(_PIECE):
                pieces.append(piece)
                if sum(map(len, pieces)) > most:
                    raise TooLargeError(f"a payload grows beyond {most} bytes when decompressed")
    except OSError as error:
        raise ValueError(f"a payload does not decompress: {error}") from error
    return b"".join(pieces)


@functools.lru_cache(maxsize=1)
def _zstd() -> Any:
    import pyarrow as pa

    return pa.Codec("zstd", compression_level=1)
