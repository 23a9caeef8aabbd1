"""How fast the history of each tracker is imported, and whether the memory it takes grows with the history.

    python benchmarks/import.py [--steps 10000] [--times 4] [--only wandb,mlflow]

Each tracker's own writer logs five metrics a step, in a process of its own (Neptune's exporter needs a service: its
parquet is laid out as its README says). The history, and one that is `--times` as long, are imported by
`torchtrack.importers` in a process of its own each, and read back: a value that is missing ends the benchmark. Rows are
values: five a step. Memory is the peak of the process over what it takes once its imports are loaded.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torchtrack.system import describe_hardware

METRICS = ("loss", "accuracy", "lr", "grad_norm", "tokens_per_s")


def row(step: int) -> dict[str, float]:
    return {name: (step + place) * 1e-3 for place, name in enumerate(METRICS)}


def tensorboard(folder: Path, steps: int) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "logs")) as writer:
        for step in range(steps):
            for name, value in row(step).items():
                writer.add_scalar(name, value, step)
    return folder / "logs"


def wandb(folder: Path, steps: int) -> Path:
    import wandb

    run = wandb.init(project="bench", dir=str(folder), mode="offline", settings=wandb.Settings(console="off"))
    for step in range(steps):
        run.log(row(step))
    run.finish()
    return folder / "wandb"


def mlflow(folder: Path, steps: int) -> Path:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    run = client.create_run(client.create_experiment("bench")).info.run_id
    for first in range(0, steps, 200):
        part = range(first, min(first + 200, steps))
        pairs = [(step, *pair) for step in part for pair in row(step).items()]
        rows = [Metric(name, value, 1_700_000_000_000 + step, step) for step, name, value in pairs]
        client.log_batch(run, metrics=rows)
    return folder / "mlflow.db"


def neptune(folder: Path, steps: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = {"project_id": pa.string(), "run_id": pa.string(), "attribute_path": pa.string()}
    fields |= {"attribute_type": pa.string(), "step": pa.decimal128(18, 6), "timestamp": pa.timestamp("ms", tz="UTC")}
    schema = pa.schema([*fields.items(), ("float_value", pa.float64())])
    data = folder / "exports" / "data"
    data.mkdir(parents=True)
    with pq.ParquetWriter(data / "RUN-1_part_0.parquet", schema) as writer:
        for place, name in enumerate(METRICS):
            for first in range(0, steps, 10_000):
                part = range(first, min(first + 10_000, steps))
                columns = {
                    "project_id": ["space/bench"] * len(part),
                    "run_id": ["RUN-1"] * len(part),
                    "attribute_path": [name] * len(part),
                    "attribute_type": ["float_series"] * len(part),
                    "step": pa.array(list(map(str, part))).cast(pa.decimal128(18, 6)),
                    "timestamp": pa.array([1_700_000_000_000 + step for step in part], pa.timestamp("ms", tz="UTC")),
                    "float_value": [(step + place) * 1e-3 for step in part],
                }
                writer.write_table(pa.table(columns, schema=schema))
    return data


def trackio(folder: Path, steps: int) -> Path:
    os.environ.update(TRACKIO_DIR=str(folder / "trackio"), HF_HUB_OFFLINE="1")
    import trackio

    trackio.init(project="bench")
    for step in range(steps):
        trackio.log(row(step), step=step)
    trackio.finish()
    return folder / "trackio"


WRITERS: dict[str, tuple[Callable[[Path, int], Path], str]] = {
    "TensorBoard": (tensorboard, "tensorboard"),
    "wandb": (wandb, "wandb"),
    "MLflow (SQLite)": (mlflow, "mlflow-skinny"),
    "Neptune (parquet)": (neptune, "pyarrow"),
    "trackio": (trackio, "trackio"),
}


def write(name: str, folder: str, steps: int) -> None:
    print(json.dumps(str(WRITERS[name][0](Path(folder), steps))))


def bring(source: str, runs: str, steps: int) -> None:
    """Import, read back, and print seconds, rows and bytes."""
    import torchtrack
    from torchtrack.importers import find, import_run

    sources = find(Path(source)).runs
    before, began = peak(), time.perf_counter()
    rows = sum(import_run(Path(runs), run).rows for run in sources)
    took, after = time.perf_counter() - began, peak()
    (run,) = torchtrack.Api(runs).runs()
    history = run.history([name for name in run.keys() if name.rpartition("/")[2] in METRICS])  # noqa: SIM118
    values = sum(history.num_rows - history[name].null_count for name in history.column_names[2:])
    assert values == steps * len(METRICS), f"{values} values came back of {steps * len(METRICS)}"
    print(json.dumps({"seconds": took, "rows": rows, "bytes": after - before}))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(*words: str) -> str:
    """The last line that a process of this file prints; what it says else is shown if it fails."""
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words[:2])} failed:\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--only", help="some of them, with commas between")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, first, second, steps = arguments.child
        (write if what == "write" else bring)(first, second, int(steps))
        return
    hardware = describe_hardware()
    print(f"date     {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC")
    print(f"machine  {hardware['cpu']['model']}, {hardware['cpu']['logical_cores']} cores")
    print(f"rows     {len(METRICS)} a step: {arguments.steps:,} steps, then {arguments.times} times as many\n")
    columns = f"{'rows':>10} {'rows/s':>10} {'memory':>9}"
    print(f"{'source':20} {'version':>10} {columns} {columns}")
    for name, (_, package) in WRITERS.items():
        if arguments.only and not any(part.lower() in name.lower() for part in arguments.only.split(",")):
            continue
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:20} not installed")
            continue
        cells = []
        for steps in (arguments.steps, arguments.steps * arguments.times):
            with tempfile.TemporaryDirectory() as folder:
                source = json.loads(child("--child", "write", name, folder, str(steps)))
                found = json.loads(child("--child", "bring", source, f"{folder}/runs", str(steps)))
            rate, memory = found["rows"] / found["seconds"], found["bytes"] / 2**20
            cells.append(f"{found['rows']:>10,} {rate:>10,.0f} {memory:>5.0f} MiB")
        print(f"{name:20} {version:>10} {' '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
