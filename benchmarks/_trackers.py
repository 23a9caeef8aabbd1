"""The trackers that the reliability benchmarks compare: how each logs one number offline, and how each reads it back.

A tracker is a class with `name`, `packages`, a constructor that starts a run in a folder, `log(step, value)`,
`finish()`, and a static `read(folder)` that gives the values its own reader (or, where it has none, its file) returns.
Imports are inside, so that a tracker that is not installed can be told from one that fails.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import struct
import sys
import time
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """What the benchmarks need of a tracker."""

    name: str
    packages: tuple[str, ...]

    def __init__(self, folder: Path) -> None: ...
    def log(self, step: int, value: float) -> None: ...
    def finish(self) -> None: ...
    @staticmethod
    def read(folder: Path) -> list[float]: ...


class Torchtrack:
    name = "torchtrack"
    packages = ("torchtrack",)

    def __init__(self, folder: Path) -> None:
        import torchtrack

        self._run = torchtrack.init(project="bench", dir=folder, mode="offline")

    def log(self, step: int, value: float) -> None:  # noqa: ARG002  # these count by themselves
        self._run.log({"loss": value})

    def finish(self) -> None:
        self._run.finish()

    @staticmethod
    def read(folder: Path) -> list[float]:
        import torchtrack

        [uid] = [path.name for path in folder.iterdir() if len(path.name) == 16]
        table = torchtrack.Api(folder).run(uid).history(["loss"], raw=True)
        return [value for value in table["loss"].to_pylist() if value is not None]


class TensorBoard:
    name = "torch SummaryWriter"
    packages = ("torch", "tensorboard")

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, value: float) -> None:
        self._writer.add_scalar("loss", value, step)

    def finish(self) -> None:
        self._writer.close()

    @staticmethod
    def read(folder: Path) -> list[float]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
        accumulator.Reload()
        return [event.value for event in accumulator.Scalars("loss")] if accumulator.Tags()["scalars"] else []


class Wandb:
    name = "wandb offline"
    packages = ("wandb",)

    def __init__(self, folder: Path) -> None:
        import wandb

        settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, silent=True)
        self._run = wandb.init(project="bench", dir=folder, mode="offline", settings=settings)

    def log(self, step: int, value: float) -> None:  # noqa: ARG002
        self._run.log({"loss": value})

    def finish(self) -> None:
        self._run.finish()

    @staticmethod
    def read(folder: Path) -> list[float]:
        """Every record of the transaction log that is whole: what `wandb sync` could at best upload."""
        import json

        from wandb.proto.wandb_internal_pb2 import Record

        values = []
        for path in folder.glob("wandb/offline-run-*/*.wandb"):
            for data in _leveldb_records(path.read_bytes()):
                for item in Record.FromString(data).history.item:
                    if "loss" in (item.key, *item.nested_key):
                        values.append(json.loads(item.value_json))
        return values


class Trackio:
    name = "trackio"
    packages = ("trackio",)

    def __init__(self, folder: Path) -> None:
        os.environ["TRACKIO_DIR"] = str(folder)
        import trackio

        self._trackio = trackio
        trackio.init(project="bench", name="run", embed=False, auto_log_cpu=False, auto_log_gpu=False)

    def log(self, step: int, value: float) -> None:  # noqa: ARG002
        self._trackio.log({"loss": value})

    def finish(self) -> None:
        self._trackio.finish()

    @staticmethod
    def read(folder: Path) -> list[float]:
        os.environ["TRACKIO_DIR"] = str(folder)
        from trackio.sqlite_storage import SQLiteStorage

        return [row["loss"] for row in SQLiteStorage.get_logs("bench", "run") if "loss" in row]


class MlflowSqlite:
    name = "mlflow sqlite"
    packages = ("mlflow-skinny", "sqlalchemy", "alembic")

    def __init__(self, folder: Path) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.start_run()

    def log(self, step: int, value: float) -> None:
        self._mlflow.log_metric("loss", value, step=step)

    def finish(self) -> None:
        self._mlflow.end_run()

    @staticmethod
    def read(folder: Path) -> list[float]:
        with sqlite3.connect(folder / "mlflow.db") as database:
            return [value for (value,) in database.execute("select value from metrics where key = 'loss'")]


TRACKERS: tuple[type[Tracker], ...] = (Torchtrack, TensorBoard, Wandb, Trackio, MlflowSqlite)


def tracker(name: str) -> type[Tracker]:
    return next(kind for kind in TRACKERS if kind.name == name)


def versions(kind: type[Tracker]) -> str | None:
    """The versions of a tracker's packages, None if one is not installed."""
    try:
        return " ".join(f"{name} {importlib.metadata.version(name)}" for name in kind.packages)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> str:
    """Where and when: the line under a table."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = ".".join(map(str, sys.version_info[:3]))
    date = time.strftime("%Y-%m-%d")
    return f"{platform.system()} {platform.release()}, {cores} cores, {memory_gib:.0f} GiB, Python {python}, {date}"


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table whose columns line up."""
    cells = [header, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _leveldb_records(data: bytes) -> list[bytes]:
    """The whole records of a log in blocks of 32 KiB; after damage, those that start in a later block."""
    records: list[bytes] = []
    begun: bytes | None = None
    block, header = 32 << 10, struct.Struct("<IHB")
    at = header.size  # the file starts with seven bytes of its own
    while at + header.size <= len(data):
        if block - at % block < header.size:
            at += block - at % block
            continue
        _, length, kind = header.unpack_from(data, at)
        end = at + header.size + length
        if kind not in (1, 2, 3, 4) or end > len(data):
            begun, at = None, at + block - at % block
            continue
        part = data[at + header.size : end]
        if kind == 1:
            records.append(part)
        elif kind == 2:
            begun = part
        elif begun is not None:
            begun += part
            if kind == 4:
                records.append(begun)
                begun = None
        at = end
    return records
