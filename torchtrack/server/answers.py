"""Answers as bytes: the page's frame, JSON, Arrow, CSV or Parquet.

A frame is `u32 length of the header | JSON header, padded to 8 | columns, each padded to 8`, little-endian; the header
lists each column's name, dtype and number of values, in the order they lie there. Several may follow each other.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from fastapi import Response

Format = Literal["frame", "json", "arrow", "csv", "parquet"]
FRAME_TYPE: Final = "application/vnd.torchtrack.frame;v=1"
_TYPES: Final = {
    "frame": FRAME_TYPE,
    "json": "application/json",
    "arrow": "application/vnd.apache.arrow.stream",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}


@dataclass(frozen=True)
class Answer:
    """Columns for a chart, and how to make a table of the same for people who export it."""

    columns: Mapping[str, npt.NDArray[Any]]
    make_table: Callable[[], pa.Table]
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pa.Table:
        """The table."""
        return self.make_table()

    def response(self, format: Format) -> Response:  # noqa: A002
        """The answer in a format."""
        if format == "frame":
            return Response(frame(self.header, self.columns), media_type=FRAME_TYPE)
        if format == "json":
            lists = {name: plain(column) for name, column in self.columns.items()}
            return Response(json.dumps({**self.header, "columns": lists}, allow_nan=False), media_type=_TYPES["json"])
        return table_response(self.table, format)


def frames_response(answers: Sequence[Answer]) -> Response:
    """Several answers as frames, one after the other."""
    frames = (frame(answer.header, answer.columns) for answer in answers)
    return Response(b"".join(frames), media_type=FRAME_TYPE)


def table_response(table: pa.Table, format: Format) -> Response:  # noqa: A002
    """A table in a format; JSON is an object of columns."""
    sink = io.BytesIO()
    if format == "json":
        lists = {name: plain(table.column(name)) for name in table.column_names}
        return Response(json.dumps({"n": table.num_rows, "columns": lists}, allow_nan=False), media_type=_TYPES[format])
    if format == "frame":
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        return Response(frame({"n": table.num_rows}, columns), media_type=FRAME_TYPE)
    if format == "arrow":
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    elif format == "csv":
        pa.csv.write_csv(_flat(table), sink)
    else:
        pa.parquet.write_table(table, sink)
    return Response(sink.getvalue(), media_type=_TYPES[format])


def _flat(table: pa.Table) -> pa.Table:
    """A table CSV can hold: lists become text."""
    for at, field_ in enumerate(table.schema):
        if pa.types.is_list(field_.type):
            values = [None if value is None else json.dumps(value) for value in table.column(at).to_pylist()]
            table = table.set_column(at, field_.name, pa.array(values, pa.string()))
        elif pa.types.is_dictionary(field_.type):
            table = table.set_column(at, field_.name, table.column(at).cast(pa.string()))
    return table


def frame(header: Mapping[str, Any], columns: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The bytes of a frame."""
    arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    listed = [{"name": name, "dtype": array.dtype.str[1:], "n": array.size} for name, array in arrays.items()]
    text = json.dumps({**header, "columns": listed}, allow_nan=False).encode()
    text += b" " * (-(4 + len(text)) % 8)
    parts = [struct.pack("<I", len(text)), text]
    for array in arrays.values():
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        parts += [data, bytes(-len(data) % 8)]
    return b"".join(parts)


def read_frame(data: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The header and the columns of a frame, the first of several."""
    return next(read_frames(data))


def read_frames(data: bytes) -> Iterator[tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]]:
    """The header and the columns of each frame."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        header = json.loads(data[at + 4 : at + 4 + length])
        at, columns = at + 4 + length, {}
        for column in header["columns"]:
            array = np.frombuffer(data, np.dtype("<" + column["dtype"]), column["n"], at)
            columns[column["name"]] = array
            at += array.nbytes + -array.nbytes % 8
        yield header, columns


def plain(column: Any) -> list[Any]:
    """Values for JSON, which knows no NaN and no infinity: they are null; times are ISO 8601."""
    values = column.to_pylist() if isinstance(column, pa.ChunkedArray | pa.Array) else column.tolist()
    return [jsonable(value) for value in values]


def jsonable(value: Any) -> Any:
    """One value for JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    return value.isoformat() if hasattr(value, "isoformat") else value
