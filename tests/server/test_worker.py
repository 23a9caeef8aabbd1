"""The worker as a process of its own, killed again and again while it takes in what is being written."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.api.journals import UID
from tests.server.samples import Make, write_runs
from torchtrack import Api
from torchtrack.records import Table
from torchtrack.server.shown import index_folder


class Unix(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("worker", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def ask(path: Path, what: str) -> Any:
    connection = Unix(path)
    try:
        connection.request("GET", f"/api/v1{what}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return json.loads(answer.read())
    finally:
        connection.close()


@contextmanager
def worker(runs: Path, index: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "torchtrack.server", "--runs", runs, "--index", index, "--socket", path]
    process = subprocess.Popen([*map(str, command)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(process: subprocess.Popen[bytes], path: Path, runs: Path) -> None:
    """Until it has taken in all there is."""
    frames = {stream.key: stream for run in Api(runs).runs() for stream in run.streams()}
    while process.poll() is None:
        try:
            told = {each["record"]["opening"]["stream"]: each["record"] for each in ask(path, "/streams")["streams"]}
        except OSError:
            told = {}
        if told.keys() == frames.keys() and all(record["seal"] for record in told.values()):
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"the worker ended with {process.returncode}")


def test_killed_at_any_moment_it_has_every_row_once(
    runs: Path, journal: Make, tmp_path: Path, rng: random.Random
) -> None:
    made = write_runs(journal, seal=False)
    index, path = tmp_path / "index", tmp_path / "socket"
    for _ in range(3):
        with worker(runs, index, path) as process:
            for step in range(100, 130):
                for rank in made:
                    rank.log(step, {"loss": rng.random()})
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.5, 3.0))  # somewhere between its first import and its last insert
    for rank in made:
        rank.close()
    with worker(runs, index, path) as process:
        wait_for(process, path, runs)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)

    counts = json.loads(subprocess.check_output([sys.executable, "-c", _COUNT, str(index)]))
    expected = {table.name.lower(): sum(run.rows(table).num_rows for run in Api(runs).runs()) for table in Table}
    assert counts == [[name, n, n] for name, n in expected.items()]
    assert Api(runs).run(UID).history("loss").num_rows > 30


_COUNT = """
import json, pathlib, sys
from torchtrack.server import stored
from torchtrack.server.metrics import MetricsStore
print(json.dumps(list(stored.counts(MetricsStore.in_folder(pathlib.Path(sys.argv[1]))))))
"""


def test_the_index_lies_in_the_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = index_folder(tmp_path / "a"), index_folder(tmp_path / "b")

    assert first.parent == second.parent == tmp_path / "cache" / "torchtrack" / "index"
    assert first != second
    assert index_folder(tmp_path / "b" / ".." / "a") == first
