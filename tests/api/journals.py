"""Writes journals as ranks do, for tests of what reads them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from torchtrack import records
from torchtrack.histogram import Histogram
from torchtrack.journal.frame import Kind
from torchtrack.journal.writer import Writer

UID = "a1b2c3d4e5f60718"
START_US = 1_750_000_000_000_000
_streams = itertools.count(0xABCD_0000_0000_0001)


class RankJournal:
    """One rank's stream. Times count up by a millisecond a row unless given."""

    def __init__(
        self,
        runs: Path,
        uid: str = UID,
        *,
        rank: int = 0,
        attempt: int = 1,
        world_size: int = 1,
        host: str = "node0",
        start_us: int | None = None,
        role: str = "rank",
        parent: int | None = None,
        project: str | None = None,
        from_step: int | None = None,
    ) -> None:
        self.stream = next(_streams)
        self.rank = rank
        self.now_us = START_US + attempt * 3_600_000_000 if start_us is None else start_us
        opening = {
            "role": role,
            "uid": uid,
            **({} if project is None else {"project": project}),
            "attempt": attempt,
            "rank": rank,
            "local_rank": rank,
            "node": 0,
            "world_size": world_size,
            "host": host,
            "pid": 1000 + rank,
            "boot_id": "boot",
            "start_time_ns": self.now_us * 1000,
            "start_mono_ns": time.monotonic_ns(),
            "parent": None if parent is None else f"{parent:016x}",
            **({} if from_step is None else {"from_step": from_step}),
        }
        folder = runs / uid / ("nodes" if role == "node" else f"{rank // 1000:03d}")
        name = f"{self.stream:016x}" if role == "node" else f"{rank}-{self.stream:016x}"
        self.writer = Writer(folder, name, self.stream, opening, sync_interval_s=60)

    def __enter__(self) -> RankJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End as a process that says how it ended, and seal."""
        self.writer.meta({"type": "ended", "reason": "finish", "error": None, "time_ns": self.now_us * 1000})
        self.writer.seal("finish")
        self.writer.close()

    def abandon(self) -> None:
        """End as a process that died."""
        self.writer.close()

    def tick(self, time_us: int | None = None) -> int:
        """The time of the next row."""
        self.now_us = self.now_us + 1000 if time_us is None else time_us
        return self.now_us

    def joined(self, uid: str, *, rank: int | None = None, attempt: int = 1, world_size: int = 1) -> None:
        """Say where this stream belongs."""
        place = {"uid": uid, "attempt": attempt, "rank": self.rank if rank is None else rank, "world_size": world_size}
        self.writer.meta({"type": "joined", "local_rank": 0, "node": 0, **place})

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        reduce: str = "mean",
        time_us: int | None = None,
        partial: bool = False,
    ) -> None:
        """One row of scalars in a frame of its own."""
        time = self.tick(time_us)
        self.scalars([(step, name, value, reduce, time) for name, value in metrics.items()], partial=partial)

    def scalars(self, rows: Sequence[tuple[int, str, float, str, int]], *, partial: bool = False) -> None:
        """Rows of (step, name, value, reduce, time in us) in one frame."""
        step, name, value, reduce, time = zip(*rows, strict=True)
        columns = (np.array(step), list(name), np.array(value, np.float64), list(reduce), np.array(time))
        self.columns(*columns, partial=partial)

    def columns(
        self, step: Any, name: list[str], value: Any, reduce: list[str], time: Any, *, partial: bool = False
    ) -> None:
        """Whole columns of scalars in one frame."""
        arrays = [
            pa.array(step, pa.int64()),
            pa.array(time, pa.int64()).cast(records.SCALARS.field("time").type),
            pa.array(name).dictionary_encode(),
            pa.array(value),
            pa.array(reduce).dictionary_encode(),
            pa.array(np.full(len(name), partial)),
        ]
        self._append(records.Table.SCALARS, pa.RecordBatch.from_arrays(arrays, schema=records.SCALARS))

    def event(self, kind: str, data: Mapping[str, Any], *, step: int | None = None) -> None:
        """One event."""
        self._rows(records.Table.EVENTS, [{"time": self.tick(), "step": step, "type": kind, "json": json.dumps(data)}])

    def about(self, **fields: Any) -> None:
        """The event that says what the run is called."""
        self.event("run", {"id": None, "name": "calm-otter-7", "project": "llm", "tags": [], **fields})

    def text(self, step: int, name: str, text: str) -> None:
        """One logged string."""
        self._rows(records.Table.TEXTS, [{"step": step, "time": self.tick(), "name": name, "text": text}])

    def medium(self, step: int, name: str, content: bytes, mime: str, caption: str | None = None) -> str:
        """The row of one logged file, whose bytes are not stored; its SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        about = {"sha256": sha256, "mime": mime, "size": len(content), "caption": caption}
        self._rows(records.Table.MEDIA, [{"step": step, "time": self.tick(), "name": name, **about}])
        return sha256

    def line(self, stream: str, line: str) -> None:
        """One printed line."""
        self._rows(records.Table.LOGS, [{"time": self.tick(), "stream": stream, "line": line}])

    def tensor(self, sample: int, name: str, values: Any, **fields: Any) -> None:
        """Statistics of some values as one row."""
        self.tensors([tensor_row(sample, name, values, time=self.tick(), **fields)])

    def tensors(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows as `tensor_row` makes them, in one frame."""
        self._rows(records.Table.TENSORS, [dict(row) for row in rows])

    def _rows(self, table: records.Table, rows: list[dict[str, Any]]) -> None:
        self._append(table, pa.RecordBatch.from_pylist(rows, schema=records.SCHEMAS[table]))

    def _append(self, table: records.Table, batch: pa.RecordBatch) -> None:
        assert self.writer.append(Kind.DATA, records.encode(batch), table=table, rows=batch.num_rows)


def tensor_row(
    sample: int,
    name: str,
    values: Any,
    *,
    time: int = START_US,
    step: int | None = None,
    kind: str = "gradient",
    stage: str = "step",
    numel: int | None = None,
    covers: str = "",
    ranks: int = 1,
) -> dict[str, Any]:
    """The row that says what `values` hold."""
    histogram = Histogram.of(np.asarray(values, np.float32))
    buckets = np.flatnonzero(histogram.counts)
    some = histogram.finite > 0
    return {
        "sample": sample,
        "step": sample if step is None else step,
        "time": time,
        "kind": kind,
        "name": name,
        "stage": stage,
        "ranks": ranks,
        "numel": histogram.count if numel is None else numel,
        "covers": covers,
        "count": histogram.count,
        "sum": histogram.sum,
        "sum_sq": histogram.sum_sq,
        "min": histogram.min if some else math.inf,
        "max": histogram.max if some else -math.inf,
        "zeros": histogram.zeros,
        "nans": histogram.nans,
        "pos_infs": histogram.pos_infs,
        "neg_infs": histogram.neg_infs,
        "buckets": buckets.tolist(),
        "counts": histogram.counts[buckets].tolist(),
    }
