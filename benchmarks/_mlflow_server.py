"""MLflow's server with the data of `query.py`, asked what its own page asks, over HTTP on loopback.

The rows are written into its SQLite database directly, since logging two million of them through it would take hours;
what is measured are answers. Its charts get at most 320 points of a run (`max_results`), picked, not bucketed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

_RUN = (
    "INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage, "
    "experiment_id, artifact_uri) VALUES (?, ?, 'LOCAL', 'me', 'FINISHED', 1, 2, 'active', 0, '')"
)
_METRIC = "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)"
_LATEST = "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, 0, ?)"


class MlflowServer:
    """One that runs."""

    def __init__(self, url: str, database: Path) -> None:
        self.url = url
        self._database = database
        self._pool = urllib3.PoolManager(retries=False, timeout=300)

    def fill(self, runs: int, rng: np.random.Generator) -> None:
        """20 runs of 100,000 points, one of 1,000,000, and as many short ones as the table has."""
        with contextlib.closing(sqlite3.connect(self._database)) as base, base:
            base.execute("PRAGMA synchronous = OFF")
            for number in range(21):
                points = 100_000 if number < 20 else 1_000_000
                base.execute(_RUN, (f"long{number}", f"long{number}"))
                values = rng.normal(size=points).tolist()
                rows = (("loss", value, step, f"long{number}", step) for step, value in enumerate(values))
                base.executemany(_METRIC, rows)
                base.execute(_LATEST, ("loss", values[-1], points - 1, points - 1, f"long{number}"))
            for number in range(runs):
                uid, row = f"short{number}", rng.random(30).tolist()
                base.execute(_RUN, (uid, uid))
                base.executemany(_METRIC, [(f"m{k}", value, 1, uid, 1) for k, value in enumerate(row)])
                base.executemany(_LATEST, [(f"m{k}", value, 1, 1, uid) for k, value in enumerate(row)])

    def lines(self, runs: list[int]) -> Any:
        """The lines of a chart as its page asks for them."""
        named = "&".join(f"run_ids=long{number}" for number in runs)
        path = f"ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?{named}&metric_key=loss&max_results=320"
        return self._json("GET", path)

    def table(self) -> Any:
        """The first page of its table, filtered and sorted."""
        body = {
            "experiment_ids": ["0"],
            "filter": "attributes.status = 'FINISHED' and metrics.m0 < 0.5 and metrics.m3 > 0.1",
            "order_by": ["metrics.m7 ASC"],
            "max_results": 50,
        }
        return self._json("POST", "ajax-api/2.0/mlflow/runs/search", body)

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        data, headers = (None, {}) if body is None else (json.dumps(body), {"Content-Type": "application/json"})
        answer = self._pool.request(method, f"{self.url}/{path}", body=data, headers=headers)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.data[:500]!r}")
        return json.loads(answer.data)


@contextlib.contextmanager
def mlflow_server(command: str, folder: Path) -> Iterator[MlflowServer]:
    """A server of its own, with one worker, and none of the processes that run its jobs: there are none.

    Args:
        command: the program `mlflow`.
        folder: for its database.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = folder / "mlflow.db"
    arguments = ["--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [command, "server", *arguments, "--workers", "1", "--default-artifact-root", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
    )
    server = MlflowServer(f"http://127.0.0.1:{port}", database)
    try:
        for _ in range(600):
            time.sleep(0.5)
            with contextlib.suppress(urllib3.exceptions.HTTPError, RuntimeError):
                server._json("POST", "ajax-api/2.0/mlflow/runs/search", {"experiment_ids": ["0"], "max_results": 1})
                break
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
