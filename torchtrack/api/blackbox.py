"""Black boxes: what ranks that did not end well left, what was kept of a spike, and what still lies on this node."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa

from torchtrack.journal import ring

if TYPE_CHECKING:
    from torchtrack.api.streams import Rows

_SCHEMA: Final = pa.schema(
    [
        ("step", pa.int64()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("rank", pa.int64()),
        ("attempt", pa.int64()),
        ("name", pa.string()),
        ("norm", pa.float32()),
        ("absmax", pa.float32()),
        ("nonfinite", pa.uint32()),
        ("skipped", pa.bool_()),
    ]
)


class Left(NamedTuple):
    """A file that a rank left: a ring (.ttb), Python stacks (.stacks), or a flight recorder's dump."""

    path: Path
    rank: int
    attempt: int
    stream: str
    why: str
    """What it was kept for, such as "spike-120"; "" if it is from the end of the process."""
    is_salvaged: bool
    """False if it lies where the process wrote it: that lives, or nobody has seen it end."""
    is_live: bool
    """Whether the process may still write to it."""


def salvaged(folder: Path) -> list[Path]:
    """The files that lie in the folder of a run."""
    return sorted((folder / "nodes").glob("*-*"))


def left(streams: Iterable[Rows], find: Callable[[Path], list[Path]] = salvaged) -> list[Left]:
    """Every such file of these streams' processes.

    Args:
        streams: of a run.
        find: gets those in the folder of a run.
    """
    streams = list(streams)
    folders = sorted({stream.path.parent.parent for stream in streams})
    by_stream: dict[str, list[Path]] = {}
    for path in (path for folder in folders for path in find(folder)):
        by_stream.setdefault(path.name.partition("-")[0], []).append(path)
    found = []
    for stream in streams:
        here = ring.left_by(stream.key)  # first: what is salvaged meanwhile is then in the folder
        saved = by_stream.get(stream.key, [])
        names = {path.name for path in saved}
        here = [path for path in here if path.name.removeprefix(ring.prefix("")) not in names]
        lives = not any(path.suffix == ".ttb" and _is_over(path) for path in here)
        for path in [*saved, *here]:
            _, _, why = path.name.removeprefix(ring.prefix("")).partition(".")[0].partition("-")
            _, _, why = why.partition("-")
            found.append(
                Left(path, stream.rank, stream.attempt, stream.key, why, path in saved, path in here and lives)
            )
    return found


def _is_over(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        return ring.is_over(ring.describe(file.read(ring.HEAD_BYTES)))
    return False


def table(streams: Iterable[Rows], find: Callable[[Path], list[Path]] = salvaged) -> pa.Table:
    """The steps in these streams' rings, a row a step and gradient; a step that several hold once."""
    known: dict[tuple[str, str, int], tuple[Left, list[str], ring.Record]] = {}
    for file in left(streams, find):
        if file.path.suffix == ".ttb":
            ordinal = file.path.name.removeprefix(ring.prefix("")).split("-")[1].partition(".")[0]
            for names, record in _records(file.path):
                known[file.stream, ordinal, record.number] = file, names, record
    rows = []
    for file, names, record in sorted(known.values(), key=lambda one: (one[0].attempt, one[2].step, one[0].rank)):
        time = np.datetime64(record.time_ns // 1000, "us").item()
        rows += [
            (record.step, time, file.rank, file.attempt, name, *row, record.skipped)
            for name, row in zip(names, record.rows.tolist(), strict=True)
            if row[2] != ring.ABSENT
        ]
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA)


def _records(path: Path) -> Iterator[tuple[list[str], ring.Record]]:
    """What is whole of a ring; nothing of one that is not, or is gone."""
    with contextlib.suppress(OSError, ValueError):
        names, records, _ = ring.read(path.read_bytes())
        yield from ((names, record) for record in records)
