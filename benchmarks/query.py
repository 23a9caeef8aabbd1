"""How fast the metrics store takes rows in, and how fast it answers what a page asks.

    python benchmarks/query.py [--runs 20000] [--skip-ingest] [--mlflow PROGRAM [--skip-ours] [--rounds 5]]

In one process with chDB. Rows a second are of wall time, and of processor time of all threads together; answers are
medians and 95th percentiles, through the functions behind the routes, without HTTP. `--mlflow` names the program
`mlflow` of an environment that has it (`pip install mlflow`; `mlflow-skinny` has no server); its server is then asked
the same over HTTP, each question `--rounds` times: see `_mlflow_server.py`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from _mlflow_server import mlflow_server

from torchtrack import records
from torchtrack.histogram import Histogram
from torchtrack.journal.frame import Kind
from torchtrack.journal.writer import Writer
from torchtrack.records import Table
from torchtrack.server import distributions, overview, schema
from torchtrack.server.axes import Axis
from torchtrack.server.filters import compile_filter
from torchtrack.server.indexer import Indexer
from torchtrack.server.ledger import Entry, Ledger
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import Placed
from torchtrack.server.reading import FIELDS
from torchtrack.server.series import Item, Span, series
from torchtrack.server.surveys import Surveys
from torchtrack.version import __version__

REPEATS = 15
QUESTIONS = "\n| question | median ms | p95 ms |\n|---|---|---|"
MONTH = 202511


def scalars(steps: int, names: int, rng: np.random.Generator) -> pa.Table:
    """So many steps of so many metrics, as a frame has them."""
    n = steps * names
    code = pa.array(np.tile(np.arange(names, dtype=np.int32), steps))
    mean = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["mean"]))
    arrays = [
        pa.array(np.repeat(np.arange(steps), names)),
        pa.array(1_750_000_000_000_000 + np.arange(n)).cast(pa.timestamp("us", tz="UTC")),
        pa.DictionaryArray.from_arrays(code, pa.array([f"metric/{i}" for i in range(names)])),
        pa.array(rng.normal(size=n)),
        mean,
        pa.array(np.zeros(n, np.bool_)),
    ]
    return pa.table(arrays, schema=records.SCALARS)


def shifted(rows: pa.Table, by: int) -> pa.Table:
    step = pa.array(rows["step"].to_numpy() + by)
    return rows.set_column(0, rows.schema.field(0), step)


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def stored(table: Table, rows: pa.Table, stream: int, seq: int) -> pa.Table:
    """The rows of one frame, as they are inserted."""
    return schema.to_store(table, rows, month=MONTH, frames=[schema.Origin(stream, seq, rows.num_rows)])


def ingest(store: MetricsStore, rng: np.random.Generator) -> None:
    print("rows of scalars into chDB, 50 metrics, batches of 500,000\n")
    print("| from | rows | rows/s | rows/s of processor time |\n|---|---|---|---|")
    batch = scalars(10_000, 50, rng)
    parts = [stored(Table.SCALARS, shifted(batch, i * 10_000), 1, i) for i in range(8)]
    store.insert("scalars", parts[0])
    times = [timed(lambda part=part: store.insert("scalars", part)) for part in parts[1:]]
    report("Arrow, as the Indexer inserts it", sum(part.num_rows for part in parts[1:]), times)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        write_journal(runs, [shifted(batch.slice(0, 50_000), i * 1000) for i in range(60)])
        indexer = Indexer(runs, store)
        report("journals, read, checked, decoded", 3_000_000, [timed(lambda: indexer.poll(everything=True))])


def report(label: str, rows: int, times: list[tuple[float, float]]) -> None:
    wall, cpu = (sum(each) for each in zip(*times, strict=True))
    print(f"| {label} | {rows:,} | {rows / wall:,.0f} | {rows / cpu:,.0f} |")


def write_journal(runs: Path, frames: list[pa.Table]) -> None:
    uid, stream = "00000000000000aa", 0xABC
    opening = {
        "role": "rank",
        "uid": uid,
        "attempt": 1,
        "rank": 0,
        "world_size": 1,
        "start_time_ns": 1_763_000_000 * 10**9,
    }
    writer = Writer(runs / uid / "000", f"0-{stream:016x}", stream, opening, sync_interval_s=60)
    for rows in frames:
        batch = rows.combine_chunks().to_batches()[0]
        assert writer.append(Kind.DATA, records.encode(batch), table=Table.SCALARS, rows=batch.num_rows)
    writer.seal("finish")
    writer.close()


def ask(label: str, call: Callable[[], Any], repeats: int = REPEATS) -> None:
    call()
    walls = sorted(timed(call)[0] * 1e3 for _ in range(repeats))
    print(f"| {label} | {statistics.median(walls):.0f} | {walls[round(0.95 * (repeats - 1))]:.0f} |", flush=True)


def charts(store: MetricsStore, rng: np.random.Generator) -> None:
    one = scalars(1_000_000, 1, rng)
    short = one.slice(0, 100_000)
    for stream in range(100, 120):
        store.insert("scalars", stored(Table.SCALARS, short, stream, 1))
    for half in range(2):
        part = one.slice(half * 500_000, 500_000)
        store.insert("scalars", stored(Table.SCALARS, part, 200, half))
    line = {
        stream: Item(str(stream), "metric/0", "mean", (Placed(stream, 1, 0, 1, frames=9),), 1_750_000_000_000_000)
        for stream in [*range(100, 120), 200]
    }
    many = [line[stream] for stream in range(100, 120)]
    known, seconds = Surveys(store), Span(None, None, 1000, axis=Axis("relative"))
    whole, part, slow = Span(None, None, 1000), Span(50_000, 55_000, 1000), Span(None, None, 1000, tau=100.0)
    ask("20 runs x 100,000 points to 1,000 buckets, the first time", lambda: series(store, many, whole))
    ask("the same, again", lambda: series(store, many, whole, known))
    ask("the same, over seconds since each run began", lambda: series(store, many, seconds, known))
    ask("the same over steps, zoomed to 5 %", lambda: series(store, many, part, known))
    ask("1 run x 1,000,000 points to 1,000 buckets, the first time", lambda: series(store, [line[200]], whole))
    ask("the same, again", lambda: series(store, [line[200]], whole, known))
    ask("the same, smoothed", lambda: series(store, [line[200]], slow, known))


def tensors(rows: int, names: int, rng: np.random.Generator) -> pa.Table:
    """Whole tensors, 40 buckets each, so many samples of so many names."""
    one = Histogram.of(rng.normal(size=4096).astype(np.float32))
    used = np.flatnonzero(one.counts)[:40]
    n = rows * names
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["gradient"]))
    name = pa.DictionaryArray.from_arrays(
        pa.array(np.tile(np.arange(names, dtype=np.int32), rows)),
        pa.array([f"layers.{i}.weight" for i in range(names)]),
    )
    stage = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["step"]))
    sample = pa.array(np.repeat(np.arange(rows), names))
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * len(used))
    whole, none, positive = pa.array(np.full(n, 4096)), pa.array(np.zeros(n, np.int64)), pa.array(rng.random(n))
    arrays = [sample, sample, pa.array(np.arange(n)).cast(pa.timestamp("us", tz="UTC")), text, name, stage]
    arrays += [pa.array(np.ones(n, np.int32)), whole, pa.array([""] * n), whole, *[positive] * 4, *[none] * 4]
    arrays += [pa.ListArray.from_arrays(offsets, pa.array(np.tile(used.astype(np.uint16), n)))]
    arrays += [pa.ListArray.from_arrays(offsets, pa.array(np.tile(one.counts[used], n)))]
    return pa.table(arrays, schema=records.TENSORS)


def maps(store: MetricsStore, rng: np.random.Generator) -> None:
    for part in range(20):
        rows = tensors(100, 600, rng)
        rows = rows.set_column(0, rows.schema.field(0), pa.array(rows["sample"].to_numpy() + part * 100))
        rows = rows.set_column(1, rows.schema.field(1), rows["sample"])
        store.insert("tensors", stored(Table.TENSORS, rows, 300, part))
    where = [Placed(300, 1, 0, 1)]
    run: Any = SimpleNamespace(events=lambda type: [])  # noqa: A006, ARG005  # says nothing of its model
    window = distributions.Window("gradient", pixels=2048)
    ask(
        "600 tensors x 2,000 columns",
        lambda: distributions.heatmap(store, run, where, window, "norm", norm="abs", pool="max"),
    )
    one = distributions.Window("gradient", "layers.7.weight", pixels=1000)
    ask("histograms of 1 tensor over 2,000 samples", lambda: distributions.histogram(store, run, where, one))
    block = distributions.Window("gradient", "layers.1?.weight", pixels=1000)
    ask("the same, 10 tensors added", lambda: distributions.histogram(store, run, where, block))


def table_of_runs(store: MetricsStore, number: int, rng: np.random.Generator) -> None:
    values = rng.random((number, 30))
    ledger = Ledger(store)
    ledger.load()
    for start in range(0, number, 1000):
        rows = [
            {
                "uid": f"{i:016x}",
                "project": "llm",
                "state": "finished",
                "created": f"2026-01-01T00:00:{i:06}",
                "tags": ["a"],
                "config": {"lr": v[0], "seed": i, "model": {"dim": 512}},
                "summary": {f"m{k}": v[k] for k in range(30)},
            }
            for i, v in enumerate(values[start : start + 1000].tolist(), start)
        ]
        ledger.put([Entry(row, 1, 1) for row in rows], {})
    where = compile_filter("state = finished and config.lr < 0.5 and summary.m3 > 0.1", FIELDS)
    every, scope = compile_filter("", FIELDS), overview.Scope("llm")
    ask(
        f"{number:,} runs, filtered and sorted, the first 50",
        lambda: overview.page(store, scope, where, ["summary.m7"], 50, 0),
    )
    ask("the same, the newest 50", lambda: overview.page(store, scope, every, ["-created"], 50, 0))
    by_uid = compile_filter(f'uid = "{number // 2:016x}"', FIELDS)
    ask("the same, one by its uid", lambda: overview.page(store, scope, by_uid, ["-created"], 50, 0))
    ask("the same, metrics and settings there are", lambda: overview.keys(store, scope, ""))


def sizes(store: MetricsStore) -> None:
    """What the rows above take on disk."""
    print("\non disk, as inserted here\n\n| table | rows | bytes a row |\n|---|---|---|")
    found = store.query(
        "SELECT table, sum(rows) AS n, sum(bytes_on_disk) AS size FROM system.parts "
        "WHERE active AND database = currentDatabase() GROUP BY table HAVING n > 0 ORDER BY table"
    )
    for row in found.to_pylist():
        print(f"| {row['table']} | {row['n']:,} | {row['size'] / row['n']:,.1f} |")


def mlflow(command: str, folder: Path, number: int, rng: np.random.Generator, rounds: int) -> None:
    with mlflow_server(command, folder) as server:
        server.fill(number, rng)
        version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        print(f"\n{version}, {rounds} calls, load {os.getloadavg()[0]:.1f}\n{QUESTIONS}")
        ask("MLflow: 20 runs x 100,000 points to 320", lambda: server.lines(list(range(20))), rounds)
        ask("MLflow: 1 run x 1,000,000 points to 320", lambda: server.lines([20]), rounds)
        ask(f"MLflow: {number:,} runs, filtered and sorted, the first 50", server.table, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--skip-ingest", action="store_true")
    parser.add_argument("--mlflow")
    parser.add_argument("--skip-ours", action="store_true", help="only what --mlflow names")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each question to MLflow")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"torchtrack {__version__}, Python {platform.python_version()}, {date.today()}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: {platform.platform()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if not options.skip_ours:
            ours(Path(folder), options.runs, rng, ingests=not options.skip_ingest)
        if options.mlflow:
            mlflow(options.mlflow, Path(folder), options.runs, rng, options.rounds)


def ours(folder: Path, runs: int, rng: np.random.Generator, *, ingests: bool) -> None:
    store = MetricsStore.in_folder(folder / "index")
    if ingests:
        ingest(store, rng)
    print(f"\nanswers, {REPEATS} calls, load {os.getloadavg()[0]:.1f}\n{QUESTIONS}")
    charts(store, rng)
    maps(store, rng)
    table_of_runs(store, runs, rng)
    sizes(store)
    store.close()


if __name__ == "__main__":
    main()
