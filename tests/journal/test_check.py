"""What fsck says, and what a repair leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from torchtrack import records
from torchtrack.journal import Frame, Kind, Stream, check, frame
from torchtrack.records import Table

if TYPE_CHECKING:
    from tests.journal.conftest import NewWriter

Rows = Callable[[list[Frame]], list[bytes]]
SCALARS = records.encode(records.SCALARS.empty_table().to_batches()[0]) if records.SCALARS.empty_table().to_batches() else None


def lines(number: int) -> pa.Buffer:
    """A payload of the logs table with so many rows."""
    columns = [[None] * number, pa.array(["out"] * number).dictionary_encode(), ["line"] * number]
    arrays = [pa.array(column, field.type) if isinstance(column, list) else column.cast(field.type)
              for column, field in zip(columns, records.LOGS, strict=True)]
    return records.encode(pa.record_batch(arrays, schema=records.LOGS))


@pytest.fixture
def journal(new_writer: NewWriter) -> Path:
    """Twelve rows of logs in three frames over two files, sealed."""
    writer = new_writer(segment_bytes=2500)
    for number in (3, 4, 5):
        assert writer.append(Kind.DATA, lines(number), table=Table.LOGS, rows=number)
    writer.seal("finish")
    writer.close()
    return writer.path
