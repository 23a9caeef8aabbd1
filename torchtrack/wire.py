r"""What a node and a server say to each other: the body of an upload, and which versions of that both speak.

A body is one line of JSON and then raw frames of the streams it names, in that order:

    {"streams": [{"stream": "9a8b...", "first": 12, "size": 4096, "lost": [[10, 11]]}, ...]}\n  frames  frames ...

as a whole zstd-compressed if that makes it smaller (`Content-Encoding: zstd`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from torchtrack.journal import frame

PROTOCOL: Final = 1
"""The newest version spoken here."""
OLDEST_PROTOCOL: Final = 1
"""The oldest version spoken here: the one before the newest, once there are two."""
API: Final = "/api/v1"
FRAMES_TYPE: Final = "application/vnd.torchtrack.frames"
CAPABILITIES: Final = ("files", "lost", "media", "zstd")
MAX_HEAD: Final = 1 << 20
MAX_STREAMS: Final = 4096
"""Of one request."""
COMPRESS_FROM: Final = 512
_STREAM: Final = re.compile(r"[0-9a-f]{16}")
_MAX_SEQ: Final = 1 << 63


class Section(NamedTuple):
    """Frames of one stream.

    Attributes:
        stream: the stream they belong to.
        first: seq of the first of them.
        frames: whole frames, one after the other, as they lie in the journal.
        lost: seqs, as (first, last), that the sender has lost and that will not come.
    """

    stream: int
    first: int
    frames: bytes | memoryview
    lost: tuple[tuple[int, int], ...] = ()


def common_protocol(oldest: int, newest: int) -> int | None:
    """The newest version that both sides speak, None if there is none."""
    common = min(newest, PROTOCOL)
    return common if common >= max(oldest, OLDEST_PROTOCOL) else None


def pack(sections: Sequence[Section], *, zstd: bool = True, **about: object) -> tuple[bytes, str | None]:
    """A body and its content encoding.

    Args:
        sections: what it carries.
        zstd: whether the other side takes compressed bodies.
        about: further members of the line of JSON.
    """
    streams = [
        {"stream": f"{each.stream:016x}", "first": each.first, "size": len(each.frames), "lost": each.lost}
        for each in sections
    ]
    body = b"".join([frame.dump({"streams": streams, **about}), b"\n", *(each.frames for each in sections)])
    if zstd and len(body) >= COMPRESS_FROM:
        packed = frame.zstd(body)
        if len(packed) < len(body):
            return packed, "zstd"
    return body, None


def unpack(body: bytes, encoding: str | None, most: int) -> tuple[dict[str, Any], list[Section]]:
    """The line of JSON and the sections of a body.

    Args:
        body: as it came.
        encoding: its content encoding.
        most: how many bytes it may have once it is decompressed.

    Raises:
        frame.TooLargeError: it has more.
        ValueError: it is no such body; says why.
    """
    if encoding == "zstd":
        body = frame.decompress(body, most)
    elif encoding not in (None, "identity"):
        raise ValueError(f"the content encoding {encoding!r} is not known; it is zstd or none")
    if len(body) > most:
        raise frame.TooLargeError(f"a body has at most {most} bytes")
    line, newline, _ = body[: MAX_HEAD + 1].partition(b"\n")
    if not newline:
        raise ValueError("a body begins with a line of JSON")
    try:
        head = json.loads(line)
    except RecursionError:
        raise ValueError("the line of JSON is nested too deeply") from None
    streams = head.get("streams") if isinstance(head, dict) else None
    if not isinstance(streams, list) or len(streams) > MAX_STREAMS:
        raise ValueError(f'the line of JSON has a list "streams" of at most {MAX_STREAMS}')
    rest, at, sections = memoryview(body), len(line) + 1, []
    for each in streams:
        stream, first, size, lost = _section(each)
        if size > len(rest) - at:
            raise ValueError(f"stream {stream:016x} is said to have {size} bytes, {len(rest) - at} are there")
        sections.append(Section(stream, first, rest[at : at + size], lost))
        at += size
    if at != len(rest):
        raise ValueError(f"{len(rest) - at} bytes belong to no stream")
    return head, sections


def stream_of(name: object) -> int:
    """The number of a stream by its 16 hex digits.

    Raises:
        ValueError: these are none.
    """
    if not isinstance(name, str) or _STREAM.fullmatch(name) is None:
        raise ValueError("a stream is named by 16 hex digits")
    return int(name, 16)


def _section(each: object) -> tuple[int, int, int, tuple[tuple[int, int], ...]]:
    if not isinstance(each, Mapping):
        raise ValueError('each of "streams" is an object')
    first, size, lost = each.get("first"), each.get("size"), each.get("lost", [])
    if not (_is_count(first) and _is_count(size) and isinstance(lost, list)):
        raise ValueError('each of "streams" has "stream", "first" and "size"; "lost" is a list')
    ranges = []
    for pair in lost:
        if not (isinstance(pair, list) and len(pair) == 2 and _is_count(pair[0]) and _is_count(pair[1])):
            raise ValueError('"lost" holds pairs of a first and a last seq')
        ranges.append((int(pair[0]), int(pair[1])))
    return stream_of(each.get("stream")), int(first), int(size), tuple(ranges)  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_SEQ
