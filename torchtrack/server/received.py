"""What a client sends of a stream, before any of it is kept: whole frames, each with its checksum, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torchtrack.journal import frame, wellformed
from torchtrack.journal.frame import Found, Kind

Range = tuple[int, int]
"""Seqs, first and last."""


class RefusedError(Exception):
    """Frames that were not taken.

    Attributes:
        code: gap (some are to come before), conflict (others are there under these seqs), invalid (they are no frames
            of this stream, or were damaged on the way).
        detail: what a client needs to go on.
    """

    def __init__(self, code: str, message: str, **detail: int) -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail


def verified(stream: int, first: int, data: memoryview, lost: Sequence[Range]) -> list[Found]:
    """The frames in what came: each with its checksum, in order, without holes but those declared lost.

    Args:
        stream: whose they are.
        first: seq of the first of them, as the client says.
        data: whole frames, one after the other.
        lost: seqs that the client does not have.

    Raises:
        RefusedError: they are no such frames.
    """
    came: list[Found] = []
    at, expected = 0, first
    whole = bytes(data)
    while at < len(whole):
        found = frame.read_frame(whole, at, stream) or _opening(whole, at, stream)
        if found is None:
            raise RefusedError("invalid", f"the bytes for frame {expected} do not verify", seq=expected)
        seq = found.header.seq
        if any(found.padding):
            raise RefusedError("invalid", f"frame {seq} is padded with something else than zeros", seq=seq)
        if seq != expected and not (came and covers(lost, expected, seq - 1)):
            raise RefusedError("invalid", f"frame {seq} came where frame {expected} was said to be", seq=expected)
        came.append(found)
        at, expected = found.end, seq + 1
    return came


def _opening(data: bytes, at: int, stream: int) -> Found | None:
    """The opening frame of a file of this stream: it alone is seeded with stream 0."""
    found = frame.read_frame(data, at, 0)
    if found is None or found.header.kind is not Kind.META:
        return None
    return found if found.record().get("stream") == f"{stream:016x}" else None


def check_records(frames: Sequence[Found], *, sealed: bool) -> None:
    """Whether every record says what readers understand, and nothing follows the seal.

    Args:
        frames: verified ones, in order.
        sealed: whether the seal of their stream has come before them.

    Raises:
        RefusedError: one does not.
    """
    for found in frames:
        seq = found.header.seq
        if sealed:
            raise RefusedError("conflict", f"frame {seq} follows the seal of its stream", seq=seq)
        wrong = wellformed.problem(found.record()) if found.header.kind in wellformed.RECORDS else None
        if wrong:
            raise RefusedError("invalid", f"the record in frame {seq} is none: {wrong}", seq=seq)
        sealed = found.header.kind is Kind.SEAL


def is_opening(found: Found, stream: int) -> bool:
    """Whether a verified frame begins a file: it is seeded with stream 0."""
    return found.header.kind is Kind.META and not frame.verifies(found, stream)


def by_file(frames: Sequence[Found], stream: int) -> Iterator[list[Found]]:
    """Frames in the files that they belong to: an opening begins the next one."""
    file: list[Found] = []
    for found in frames:
        if file and is_opening(found, stream):
            yield file
            file = []
        file.append(found)
    yield file


def covers(ranges: Sequence[Range], first: int, last: int) -> bool:
    """Whether all of first..last are in the ranges, which may touch each other."""
    for low, high in sorted(ranges):
        if low <= first <= high:
            first = high + 1
        if first > last:
            return True
    return first > last
