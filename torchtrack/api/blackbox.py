"""Black boxes that the sidecar has salvaged, as one table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

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
    ]
)


def table(streams: Iterable[Rows]) -> pa.Table:
    """What these streams' processes left, a row a step and gradient."""
    rows = []
    streams = list(streams)
    folders = {stream.path.parent.parent / "nodes" for stream in streams}
    for stream in streams:
        for path in (path for folder in folders for path in sorted(folder.glob(f"{stream.key}-*.ttb"))):
            names, records, _ = ring.read(path.read_bytes())
            for record in records:
                time = np.datetime64(record.time_ns // 1000, "us").item()
                rows += [
                    (record.step, time, stream.rank, stream.attempt, name, *row)
                    for name, row in zip(names, record.rows.tolist(), strict=True)
                    if row[2] != ring.ABSENT
                ]
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA)
