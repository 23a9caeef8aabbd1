"""A folder of runs with all that makes reading them hard, and what must be alike wherever they are read from."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.api.journals import UID, RankJournal
from torchtrack.api.run import Run
from torchtrack.records import Table
from torchtrack.server.metrics import MetricsStore

Make = Callable[..., RankJournal]
ODD_NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_DEAD_BEEF))[0]
OTHER = "b1b2b3b4b5b6b7b8"


def write_runs(journal: Make, *, seal: bool = True) -> list[RankJournal]:
    """Two runs: one of two ranks in two attempts, one of a single rank that joined late under another uid."""
    made = []
    for attempt in (1, 2):
        for rank in (0, 1):
            stream = journal(rank=rank, attempt=attempt, world_size=2)
            made.append(stream)
            _write_rank(stream, rank, attempt)
    late = journal(OTHER, start_us=1_400_000_000_000_000)
    made.append(late)
    late.about(project="vision", name="late-comer-1")
    late.log(0, {"loss": 3.0})
    late.joined("c1c2c3c4c5c6c7c8", attempt=1, world_size=1)
    late.log(1, {"loss": 2.0})
    for stream in made if seal else ():
        stream.close()
    return made


def _write_rank(stream: RankJournal, rank: int, attempt: int) -> None:
    if rank == 0:
        stream.about(name="two-ranks-2", tags=["a", "b"])
        stream.event("config", {"lr": 3e-4, "deep": {"er": [1, None, "x"]}})
    first = 0 if attempt == 1 else 6
    for step in range(first, first + 9):
        stream.log(step, {"loss": 1.0 / (1 + step) + rank, "lr": 0.1})
        stream.log(step, {"tokens": 10.0 + rank}, reduce="sum")
        stream.log(step, {"part": float(step)}, reduce="sum", partial=True)
        if step % 3 == rank:
            stream.log(step, {"loss": 5.0 + rank})  # said again at the same step
    stream.log(first + 2, {"odd": ODD_NAN, "infinite": float("inf")})
    stream.log(-3, {"before": 1.0})
    stream.text(1, "note", 'a line\nwith "quotes" \\ and 日本')
    stream.line("stdout", "hello")
    stream.event("mark", {"title": "here"}, step=4)
    generator = np.random.default_rng(attempt * 10 + rank)
    for sample in range(first, first + 6):
        values = generator.normal(size=64)
        if rank == 0:
            stream.tensor(sample, "w", np.append(values, [np.nan, np.inf]), ranks=2)
        half = f"flat:{rank * 32}-{rank * 32 + 32}"
        stream.tensor(sample, "shard", values[:32], numel=64, covers=half)
        stream.tensor(sample, "shard", values[:32], numel=64, covers=half, kind="parameter", stage="pre_clip")


def facts(run: Run, *, findings: bool = False) -> Iterator[tuple[str, Any]]:
    """Everything a run says, piece by piece, in a form that is equal only if all of it is; findings take a while."""
    for name in ("uid", "aliases", "id", "name", "project", "tags", "config", "environment", "world_size", "last_step"):
        yield name, getattr(run, name)
    yield "attempts", run.attempts
    yield "dropped", run.dropped
    yield "keys", run.keys()
    ways: list[dict[str, Any]] = [
        {},
        {"ranks": "all"},
        {"ranks": 0},
        {"attempts": "all"},
        {"raw": True},
        {"start": 2, "stop": 7},
    ]
    for how in ways:
        yield f"history {how}", bits(run.history(run.keys(), **how))
    for table in Table:
        yield table.name, bits(run.rows(table))
    yield "events", run.events()
    yield "tensors", bits(run.tensors())
    yield "summary", repr(run.summary)
    if findings:
        yield "findings", run.findings()
    for kind, name in (("gradient", "shard"), ("gradient", "*"), ("parameter", "shard")):
        if run.tensors(kind, name).num_rows:
            step = run.tensors(kind, name)["step"].to_pylist()[-1]
            histogram = run.histogram(kind, name, step)
            yield f"histogram {kind} {name}", (histogram.counts.tolist(), histogram.sum, histogram.min, histogram.max)
            yield f"heatmap {kind} {name}", run.heatmap(kind, name, 4).counts.tolist()


def bits(rows: pa.Table) -> tuple[list[str], list[list[Any]]]:
    """A table as values that compare equal bit by bit, NaNs too."""
    columns = []
    for name in rows.column_names:
        column = rows.column(name)
        if pa.types.is_floating(column.type):
            valid = column.is_valid().to_pylist()
            raw = column.combine_chunks().fill_null(0.0).to_numpy(zero_copy_only=False).view(np.int64).tolist()
            columns.append([value if there else None for value, there in zip(raw, valid, strict=True)])
        else:
            columns.append(column.to_pylist())
    return [f"{field.name}: {field.type}" for field in rows.schema], columns


def journal_files(runs: Path) -> list[Path]:
    """The journal files of all runs."""
    return sorted(runs.rglob("*.ttj"))


__all__ = ["OTHER", "UID", "bits", "facts", "journal_files", "write_runs"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that the store is asked from now on."""
    asked: list[str] = []
    query = MetricsStore.query

    def noted(self: MetricsStore, sql: str, **parameters: Any) -> pa.Table:
        asked.append(sql)
        return query(self, sql, **parameters)

    monkeypatch.setattr(MetricsStore, "query", noted)
    return asked
