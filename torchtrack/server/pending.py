"""Frames on their way into the store: those of all streams that go to one table and month become one block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchtrack import records
from torchtrack.records import Table
from torchtrack.server import schema
from torchtrack.server.schema import Origin
from torchtrack.server.tail import Tail


class Waiting(NamedTuple):
    """A frame of rows that was read and not decoded yet."""

    tail: Tail
    stream: int
    seq: int
    payload: bytes
    stored: bool
    """Whether its rows are in the store already: then it is only looked at."""


class Pending:
    """What waits to be inserted. Decoding and inserting cost as much for one frame as for hundreds: hence together."""

    def __init__(self) -> None:
        self._frames: dict[tuple[Table, int], list[Waiting]] = {}
        self.bytes = 0
        """Of the payloads that wait."""

    def add(self, table: Table, month: int, frame: Waiting) -> None:
        """Let a frame wait."""
        self._frames.setdefault((table, month), []).append(frame)
        self.bytes += len(frame.payload)

    def clear(self) -> None:
        """Forget what waits."""
        self._frames.clear()
        self.bytes = 0

    def blocks(self) -> Iterator[tuple[Table, pa.Table]]:
        """What waits, as blocks to insert; the tails are told what came and what does not decode."""
        for (table, month), waiting in self._frames.items():
            for each in waiting:
                if each.stored:
                    _decodes(table, each)
            rows, frames, sizes = _decoded(table, [each for each in waiting if not each.stored])
            if not frames:
                continue
            _touch(table, rows, frames, sizes)
            origins = [Origin(each.stream, each.seq, size) for each, size in zip(frames, sizes, strict=True)]
            block = schema.to_store(table, rows, month=month, frames=origins)
            if block.num_rows:
                yield table, block


def _decoded(table: Table, frames: list[Waiting]) -> tuple[pa.Table, list[Waiting], list[int]]:
    """The rows of the frames that decode, those frames, and how many rows each has."""
    try:
        rows, sizes = records.decode_all(table, [each.payload for each in frames])
    except (ValueError, pa.ArrowException, OSError):
        frames = [each for each in frames if _decodes(table, each)]
        rows, sizes = records.decode_all(table, [each.payload for each in frames])
    return rows, frames, sizes


def _decodes(table: Table, frame: Waiting) -> bool:
    try:
        records.decode(table, frame.payload)
    except (ValueError, pa.ArrowException, OSError) as error:
        frame.tail.damaged(frame.seq, f"a {table.name.lower()} frame does not decode: {error}")
        return False
    return True


def _touch(table: Table, rows: pa.Table, frames: Sequence[Waiting], sizes: Sequence[int]) -> None:
    """Note of each stream which rows came."""
    for each in frames:
        each.tail.touched.add(table.name.lower())
    if table is Table.EVENTS:
        types = rows["type"].cast(pa.string())
        findings = pc.fill_null(pc.equal(types, "finding"), False).to_numpy()  # noqa: FBT003  # pyarrow's own
        for number in set(np.repeat(np.arange(len(frames)), sizes)[findings].tolist()):
            frames[number].tail.touched.add("findings")
