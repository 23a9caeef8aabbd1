"""Runs for the benchmark of the page, written as ranks write them, but without training: a few seconds for each set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from query import scalars, shifted, tensors

from torchtrack import records
from torchtrack.journal.frame import Kind
from torchtrack.journal.writer import Writer
from torchtrack.records import Table

LARGE = "00000000000000aa"
"""The uid of the large run."""
RANKS = 64
TENSORS = 600
SPIKE = 512_345
"""The one step of the large run's loss that is unlike the others."""
METRICS = 24
STEPS = 2000
_BEGAN_NS = 1_750_000_000 * 10**9
Frames = Sequence[tuple[Table, pa.Table]]


def journal(runs: Path, uid: str, number: int, frames: Frames, *, rank: int = 0, ranks: int = 1) -> None:
    """One rank's journal.

    Args:
        runs: the folder of runs.
        uid: of the run.
        number: of the run among others: it began so many minutes after the first.
        frames: the rows.
        rank: which.
        ranks: how many there are.
    """
    place = {"role": "rank", "uid": uid, "attempt": 1, "rank": rank, "world_size": ranks}
    stream = int(uid, 16) ^ (0xA << 60) ^ (rank << 40)
    opening = {**place, "start_time_ns": _BEGAN_NS + number * 60 * 10**9}
    writer = Writer(runs / uid / "000", f"{rank}-{stream:016x}", stream, opening, sync_interval_s=60)
    for table, rows in frames:
        batch = rows.combine_chunks().to_batches()[0]
        assert writer.append(Kind.DATA, records.encode(batch), table=table, rows=batch.num_rows)
    writer.meta({"type": "ended", "reason": "finish", "error": None, "time_ns": opening["start_time_ns"] + 10**9})
    writer.seal("finish")
    writer.close()


def about(name: str, project: str, config: dict[str, float]) -> tuple[Table, pa.Table]:
    """What a run is called, and how it is set up."""
    said = {"run": {"id": None, "name": name, "project": project, "tags": []}, "config": config}
    began = _BEGAN_NS // 1000
    events = [{"time": began, "step": None, "type": kind, "json": json.dumps(data)} for kind, data in said.items()]
    return Table.EVENTS, pa.Table.from_pylist(events, schema=records.EVENTS)


def large(runs: Path, points: int, samples: int, rng: np.random.Generator) -> None:
    """A loss of so many points with one spike, statistics of 600 tensors, and norms of 64 ranks."""
    one = scalars(50_000, 1, rng)
    values = rng.normal(size=points)
    values[SPIKE % points] = 1000.0
    frames = [about("large", "large", {})]
    for start in range(0, points, 50_000):
        part = pa.array(values[start : start + 50_000])
        rows = _called(shifted(one, start).slice(0, len(part)), "loss")
        frames.append((Table.SCALARS, rows.set_column(3, rows.schema.field(3), part)))
    for start in range(0, samples, 20):
        rows = tensors(20, TENSORS, rng)
        step = pa.array(rows["sample"].to_numpy() + start)
        rows = rows.set_column(0, rows.schema.field(0), step).set_column(1, rows.schema.field(1), step)
        frames.append((Table.TENSORS, rows))
    own = (Table.SCALARS, _called(scalars(STEPS, 1, rng), "watch/local_grad_norm"))
    journal(runs, LARGE, 0, [*frames, own], ranks=RANKS)
    for rank in range(1, RANKS):
        journal(runs, LARGE, 0, [own], rank=rank, ranks=RANKS)


def many(runs: Path, number: int, steps: int, metrics: int, settings: int, project: str, seed: int) -> None:
    """Runs of one rank: so many metrics of so many steps each, and so many settings."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        rows = scalars(steps, metrics, rng)
        names = rows["name"].combine_chunks()
        called = pa.DictionaryArray.from_arrays(names.indices, pa.array([f"m{k:02d}" for k in range(metrics)]))
        rows = rows.set_column(2, rows.schema.field(2), called)
        config = {f"key{k}": float(v) for k, v in enumerate(rng.random(settings))}
        uid = f"{(seed + 1) << 32 | i:016x}"
        journal(runs, uid, i, [about(f"{project}-{i}", project, config), (Table.SCALARS, rows)])


def panels(runs: Path) -> None:
    """20 runs of 24 metrics."""
    many(runs, 20, STEPS, METRICS, 4, "panels", seed=1)


def sweep(runs: Path, number: int) -> None:
    """Many short runs of 60 columns."""
    many(runs, number, 5, 30, 30, "sweep", seed=2)


def _called(rows: pa.Table, name: str) -> pa.Table:
    at = rows.schema.get_field_index("name")
    codes = pa.array(np.zeros(rows.num_rows, np.int32))
    return rows.set_column(at, rows.schema.field(at), pa.DictionaryArray.from_arrays(codes, pa.array([name])))
