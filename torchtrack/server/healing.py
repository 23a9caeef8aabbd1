"""Puts frames back where a stream's files have holes: damage on the server's disk, or frames a first sender had lost.

A file is written anew beside the old one, with all that was in it, and renamed. So whenever that ends, what is there is
the old file or one that holds more.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from torchtrack.journal import frame
from torchtrack.journal.frame import Found

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class _File(NamedTuple):
    """A file and the seqs of its first and last frame."""

    path: Path
    first: int
    last: int
    opened: bool
    """Whether its opening frame is there."""


def heal(
    files: Sequence[Path],
    stream: int,
    frames: Sequence[Found],
    is_opening: Callable[[Found], bool],
    sync: Callable[[int], None],
) -> list[Path]:
    """Put frames into the files where they belong; those whose place cannot be told are left out.

    Args:
        files: of the stream, in order.
        stream: its number.
        frames: verified frames that none of the files holds.
        is_opening: whether a frame begins a file.
        sync: makes a file durable.

    Returns:
        The files that were replaced; their folder is to be synced.

    Raises:
        OSError: the disk did not take it; what is there is as good as before.
    """
    known = [described for path in files if (described := _describe(path, stream, is_opening)) is not None]
    healed = []
    for number, file in enumerate(known):
        fresh = _belonging(number, known, frames, is_opening)
        if fresh:
            _rewrite(file.path, stream, fresh, sync)
            healed.append(file.path)
    return healed


def _describe(path: Path, stream: int, is_opening: Callable[[Found], bool]) -> _File | None:
    first = last = None
    for found in frame.scan(path.read_bytes(), stream, opening=True):
        first, last = first or found, found
    if first is None or last is None:
        return None
    return _File(path, first.header.seq, last.header.seq, is_opening(first))


def _belonging(
    number: int, files: Sequence[_File], frames: Sequence[Found], is_opening: Callable[[Found], bool]
) -> list[Found]:
    """The frames that belong into one of the files: those inside it, and those around it whose opening tells."""
    file = files[number]
    before = files[number - 1].last if number else -1
    after = files[number + 1] if number + 1 < len(files) else None
    openings = [found.header.seq for found in frames if is_opening(found)]
    low, high = file.first, file.last
    between = [seq for seq in openings if before < seq < file.first]
    if not file.opened and len(between) == 1:
        low = between[0]
    if after is not None:
        missing = [seq for seq in openings if file.last < seq < after.first]
        if after.opened and not missing:
            high = after.first
        elif not after.opened and len(missing) == 1:
            high = missing[0]
    return [
        found
        for found in frames
        if low <= found.header.seq < high and (not is_opening(found) or found.header.seq == low)
    ]


def _rewrite(path: Path, stream: int, fresh: Sequence[Found], sync: Callable[[int], None]) -> None:
    stored = [(found.header.seq, found.raw) for found in frame.scan(path.read_bytes(), stream, opening=True)]
    seqs = {seq for seq, _ in stored}
    added = [(found.header.seq, found.raw) for found in fresh if found.header.seq not in seqs]
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, _NEW, 0o600)
    try:
        for _, raw in sorted(stored + added, key=lambda entry: entry[0]):
            left = raw
            while left:
                left = left[os.write(fd, left) :]
        sync(fd)
        temporary.rename(path)
    except OSError:
        temporary.unlink()
        raise
    finally:
        os.close(fd)
