"""The tables every part of torchtrack speaks: what a rank writes, a server checks and a reader returns.

One Arrow schema a table, long form: a new metric is a new row, never a new column. A journal frame names its table by
the number given here, so the numbers are part of the format and never reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

if TYPE_CHECKING:
    from torchtrack.histogram import Histogram

FORMAT_VERSION: Final = 1
"""Version of the tables and of the journal around them; a reader accepts its own and the one before."""
LOCAL_NORM: Final = "watch/local_grad_norm"
"""Metric of each rank: the norm of its own gradients before the average."""
UPDATE_LOST: Final = "watch/update_lost_bf16"
"""Share of the changed elements of a step that would be as before in bf16."""
UPDATE_UNCHANGED: Final = "watch/update_unchanged"
"""Share of the elements of a step that are as before."""
OF_LAYERS: Final = (f"{LOCAL_NORM}/", f"{UPDATE_LOST}/", f"{UPDATE_UNCHANGED}/")
"""What the same of a layer begins with; the rest is the layer's name."""
RESERVED: Final = ("watch/", "system/", "_tt/")
"""What names begin with that are not the user's."""
MAX_NAME: Final = 1024
"""Characters of a name."""


class Table(IntEnum):
    """Number of a table in a frame header. 0 means the frame carries no table."""

    SCALARS = 1
    TEXTS = 2
    TENSORS = 3
    MEDIA = 4
    LOGS = 5
    EVENTS = 6


_name = pa.dictionary(pa.int32(), pa.string())
_time = pa.timestamp("us", tz="UTC")

SCALARS: Final = pa.schema(
    [
        ("step", pa.int64()),
        ("time", _time),
        ("name", _name),
        ("value", pa.float64()),
        ("reduce", _name),  # "mean" | "sum" | "min" | "max": how readers combine ranks
        ("partial", pa.bool_()),  # True: one rank's part of a value that only all ranks together have
    ]
)
TEXTS: Final = pa.schema([("step", pa.int64()), ("time", _time), ("name", _name), ("text", pa.string())])
TENSORS: Final = pa.schema(
    [
        ("sample", pa.int64()),
        ("step", pa.int64()),
        ("time", _time),
        ("kind", _name),  # gradient | parameter | update | activation | optimizer | logged (a Histogram passed to log)
        ("name", _name),
        ("stage", _name),  # pre_clip | step | skipped
        ("ranks", pa.int32()),  # how many ranks' counts are merged in this row
        ("numel", pa.int64()),  # elements of the whole tensor
        ("covers", pa.string()),  # the part that was counted: "" = whole, else "key:lo-hi,lo-hi" (flat, half-open)
        ("count", pa.int64()),  # elements that were counted
        ("sum", pa.float64()),  # over finite values, as are the next three
        ("sum_sq", pa.float64()),
        ("min", pa.float64()),
        ("max", pa.float64()),
        ("zeros", pa.int64()),
        ("nans", pa.int64()),
        ("pos_infs", pa.int64()),
        ("neg_infs", pa.int64()),
        ("buckets", pa.list_(pa.uint16())),  # ids of the non-empty buckets, ascending
        ("counts", pa.list_(pa.uint64())),
    ]
)
MEDIA: Final = pa.schema(
    [
        ("step", pa.int64()),
        ("time", _time),
        ("name", _name),
        ("sha256", pa.string()),
        ("mime", pa.string()),
        ("size", pa.int64()),
        ("caption", pa.string()),
    ]
)
LOGS: Final = pa.schema([("time", _time), ("stream", _name), ("line", pa.string())])
EVENTS: Final = pa.schema([("time", _time), ("step", pa.int64()), ("type", _name), ("json", pa.string())])

SCHEMAS: Final = {
    Table.SCALARS: SCALARS,
    Table.TEXTS: TEXTS,
    Table.TENSORS: TENSORS,
    Table.MEDIA: MEDIA,
    Table.LOGS: LOGS,
    Table.EVENTS: EVENTS,
}


def encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which no UTF-8 file can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def histogram_row(name: str, histogram: Histogram, step: int, time_us: int) -> dict[str, Any]:
    """A histogram that somebody logged, as a row of the tensors table; `time_us` since the epoch."""
    buckets, counts = histogram.sparse()
    return {
        "sample": step,
        "step": step,
        "time": time_us,
        "kind": "logged",
        "name": name,
        "stage": "step",
        "ranks": 1,
        "numel": histogram.count,
        "covers": "",
        "count": histogram.count,
        "sum": histogram.sum,
        "sum_sq": histogram.sum_sq,
        "min": histogram.min,
        "max": histogram.max,
        "zeros": histogram.zeros,
        "nans": histogram.nans,
        "pos_infs": histogram.pos_infs,
        "neg_infs": histogram.neg_infs,
        "buckets": buckets.tolist(),
        "counts": counts.tolist(),
    }


def encode(batch: pa.RecordBatch) -> pa.Buffer:
    """A self-contained Arrow IPC stream of one batch: the payload of a data frame."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue()


def decode(table: Table, payload: bytes | memoryview | pa.Buffer) -> pa.Table:
    """The rows of a data frame, fully validated.

    Raises:
        ValueError: the payload's schema is not that of the table.
        pyarrow.ArrowInvalid: the payload is no valid Arrow stream.
    """
    return decode_all(table, [payload])[0]


def decode_all(table: Table, payloads: Sequence[bytes | memoryview | pa.Buffer]) -> tuple[pa.Table, list[int]]:
    """The rows of data frames of a table, one frame after the other, and how many each has.

    Raises:
        ValueError: as `decode`, for any of them.
        pyarrow.ArrowInvalid: likewise.
    """
    parts = []
    for payload in payloads:
        with pa.ipc.open_stream(payload) as stream:
            parts.append(stream.read_all())
    rows = pa.concat_tables(
        parts or [SCHEMAS[table].empty_table()]
    )  # copies nothing, so nothing is touched before it is validated
    if not rows.schema.equals(SCHEMAS[table]):
        names = rows.schema.names
        raise ValueError(f"a {table.name.lower()} frame has the columns {names}, expected {SCHEMAS[table].names}")
    rows.validate(full=True)
    return rows, [part.num_rows for part in parts]
