"""Puts frames back where a stream's files have holes: damage on the server's disk, or frames a first sender had lost.

A file is written anew beside the old one, with all that was in it, and renamed. So whenever that ends, what is there is
the old file or one that holds more. A file of which nothing is left, as after a power cut, is made again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from torchtrack.journal import frame
from torchtrack.journal.frame import Found

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


_MAX_NUMBER: Final = 1_000_000


class _File(NamedTuple):
    """The seqs of a file's first and last frame."""

    first: int
    last: int
    opened: bool
    """Whether its opening frame is there."""


def heal(
    first: Path,
    files: Mapping[int, Path],
    stream: int,
    frames: Sequence[Found],
    is_opening: Callable[[Found], bool],
    sync: Callable[[int], None],
) -> bool:
    """Put frames into the files where they belong; those whose place cannot be told are left out.

    Args:
        first: where the first file of the stream is, or would be.
        files: those that are there, by number.
        stream: its number.
        frames: verified frames that none of the files holds, in order.
        is_opening: whether a frame begins a file.
        sync: makes a file durable.

    Returns:
        Whether a file was replaced or made; their folder is to be synced.

    Raises:
        OSError: the disk did not take it; what is there is as good as before.
    """
    described = {number: _describe(path, stream, is_opening) for number, path in sorted(files.items())}
    known = {number: file for number, file in described.items() if file is not None}
    placed: dict[int, list[Found]] = {}
    for at, number in enumerate(known):
        placed[number] = _belonging(at, list(known.values()), frames, is_opening)
    left = [found for found in frames if not any(found in each for each in placed.values())]
    for number, run in _whole_files(left, known, is_opening):
        placed.setdefault(number, []).extend(run)
    for number, fresh in placed.items():
        if fresh:
            _write_anew(frame.segment_path(first, number), stream, fresh, sync)
    return any(placed.values())


def _describe(path: Path, stream: int, is_opening: Callable[[Found], bool]) -> _File | None:
    first = last = None
    for found in frame.scan(path.read_bytes(), stream, opening=True):
        first, last = first or found, found
    if first is None or last is None:
        return None
    return _File(first.header.seq, last.header.seq, is_opening(first))


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


def _whole_files(
    frames: Sequence[Found], known: Mapping[int, _File], is_opening: Callable[[Found], bool]
) -> Iterator[tuple[int, list[Found]]]:
    """The frames that make a file of which nothing is there, and its number.

    An opening says the number. Frames whose opening is lost too are of the file before the one that follows at once.
    """
    runs: list[list[Found]] = []
    for found in frames:
        if not runs or is_opening(found) or found.header.seq != runs[-1][-1].header.seq + 1:
            runs.append([])
        runs[-1].append(found)
    openings = {file.first: number for number, file in known.items() if file.opened}
    openings |= {run[0].header.seq: _number(run[0]) for run in runs if is_opening(run[0])}
    for run in runs:
        first, last = run[0].header.seq, run[-1].header.seq
        number = openings.get(first, openings.get(last + 1, 0) - 1)
        before = [file.last for other, file in known.items() if other < number]
        after = [file.first for other, file in known.items() if other > number]
        if (
            number >= 0
            and number not in known
            and all(seq < first for seq in before)
            and all(seq > last for seq in after)
        ):
            yield number, run


def _number(opening: Found) -> int:
    """What an opening says of which file it begins, -1 if that cannot be."""
    number = opening.record().get("segment")
    return number if isinstance(number, int) and 0 <= number <= _MAX_NUMBER else -1


def _write_anew(path: Path, stream: int, fresh: Sequence[Found], sync: Callable[[int], None]) -> None:
    whole = path.read_bytes() if path.exists() else b""
    stored = [(found.header.seq, found.raw) for found in frame.scan(whole, stream, opening=True)]
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
