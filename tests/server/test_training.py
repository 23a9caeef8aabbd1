"""Real processes: two ranks train, the uploader beside their sidecar sends, the server dies or hangs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

import torchtrack
from tests.runs import begin, until
from tests.server.simulated import stored
from tests.server.training import train
from torchtrack.cli import main
from torchtrack.journal.reader import Stream, find_streams
from torchtrack.server.serve import listener
from torchtrack.testing import ranks

ROOT = Path(__file__).parents[2]


START = """
import sys, pathlib
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits
from torchtrack.server.serve import serve
say = lambda address, key: print("listens on", address, file=sys.stderr, flush=True)
serve(Config(data=pathlib.Path(sys.argv[1]), limits=Limits(interval_s=0.2), queries=False), int(sys.argv[2]), say=say)
"""


class Process:
    """A server in a process of its own, that asks for more more often than others do."""

    def __init__(self, data: Path, port: int) -> None:
        self.data, self.port = data, port
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[str] | None = None

    @property
    def token(self) -> str:
        return (self.data / "token").read_text().strip()

    def start(self) -> None:
        command = [sys.executable, "-c", START, str(self.data), str(self.port)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
        assert "listens on" in (self.process.stderr.readline() if self.process.stderr else "")

    def end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            if self.process.stderr is not None:
                self.process.stderr.close()
            self.process = None


def free_port() -> int:
    with listener("127.0.0.1", 0) as bound:
        return int(bound.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path / "server", free_port())
    made.start()
    yield made
    made.end(signal.SIGKILL)


@pytest.fixture
def runs(tmp_path: Path, server: Process, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "runs"
    monkeypatch.setenv("TORCHTRACK_SIDECAR", "1")
    monkeypatch.setenv("TORCHTRACK_URL", server.url)
    monkeypatch.setenv("TORCHTRACK_API_KEY", server.token)
    yield folder
    for process in helpers(folder):
        process.kill()


def helpers(folder: Path) -> list[psutil.Process]:
    """Sidecars and uploaders of a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if str(folder) in command and any(word.startswith("torchtrack.sidecar") for word in command):
                found.append(process)
    return found


def frames(folder: Path) -> dict[tuple[int, int], bytes]:
    return {key: raw for path in find_streams(folder) for key, raw in stored(path).items()}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.ttj"))


def sync(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["sync", *arguments])
    return done.exit_code, done.output


def by_lookouts(folder: Path) -> set[Path]:
    """The streams of lookouts, to their ends."""
    found = set()
    for path in folder.glob("*/nodes/*.ttj"):
        stream = Stream(path)
        for _ in stream.stored():
            pass
        if stream.opening.get("by") == "lookout" and stream.seal is not None:
            found.add(path.relative_to(folder))
    return found


def test_a_run_on_two_ranks_is_on_the_server_row_by_row_though_the_server_was_killed(
    server: Process, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHTRACK_LIVE_FINDINGS", "1")
    enough = tmp_path / "enough"
    with ThreadPoolExecutor(1) as side:
        job = side.submit(ranks(2, init=True).run, train, 20, until=enough)
        try:
            until(lambda: job.done() or size(server.data) > 0)
            server.end(signal.SIGKILL)
            server.start()
        finally:
            enough.touch()
        job.result()
    until(lambda: by_lookouts(server.data / "runs"), 60)  # what the rules find comes without being asked for
    code, said = sync("--dir", str(runs))
    here, there = torchtrack.Api(runs), torchtrack.Api(server.data / "runs")
    (run,) = here.runs()

    assert (code, "synced:" in said) == (0, True), said
    assert frames(runs) == frames(server.data / "runs")
    assert there.run(run.uid).history(ranks="all") == run.history(ranks="all")
    assert len(list((server.data / "runs").rglob("media/*"))) == 1
    assert sync("--dir", str(runs), "last")[0] == 0  # again, and by name: nothing changes
    for process in helpers(runs):
        if "torchtrack.sidecar" in process.cmdline():
            process.terminate()
    until(lambda: not helpers(runs), 60)  # what sends ends by itself once its sidecar has left and all has arrived
    assert server.token.encode() not in b"".join(path.read_bytes() for path in runs.rglob("*") if path.is_file())


def test_a_frozen_server_holds_up_neither_training_nor_its_end_and_what_is_left_is_named(
    server: Process, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    took = ranks(2, init=True).run(train, 20, 2.0)
    said = capsys.readouterr().out
    server.process.send_signal(signal.SIGCONT)

    assert max(took) < 2.5
    assert re.search(r"rows of this rank are not on the server yet; they lie in \S+", said)
    assert "torchtrack sync" in said
    assert sync("--dir", str(runs))[0] == 0
    assert frames(runs) == frames(server.data / "runs")


def test_without_a_sidecar_the_end_says_that_sync_sends(
    server: Process, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(sidecar=False)
    run.log({"loss": 1.0})
    run.finish()
    said = capsys.readouterr().err

    assert run.url == f"{server.url}/#/p/uncategorized/r/{run.uid}"
    assert f"are sent by torchtrack sync {run.uid}" in said
    assert not helpers(runs)


def test_a_server_that_refuses_or_is_gone_for_the_whole_run_is_left_in_peace_and_gets_everything_later(
    server: Process, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.end(signal.SIGTERM)
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(429 if len(asked) == 1 else 500)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    stub = ThreadingHTTPServer(("127.0.0.1", server.port), Refusing)
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    ranks(2, init=True).run(train, 50)
    stub.shutdown()
    thread.join()
    stub.server_close()
    refused = capsys.readouterr().out
    ranks(2, init=True).run(train, 20)  # and now there is nobody at all
    gone = capsys.readouterr().out
    server.start()
    code, said = sync("--dir", str(runs))
    here, there = torchtrack.Api(runs), torchtrack.Api(server.data / "runs")

    assert "rows of this rank are not on the server yet" in refused
    assert "rows of this rank are not on the server yet" in gone
    assert 1 <= len(asked) < 30
    assert code == 0, said
    assert frames(runs) == frames(server.data / "runs")
    assert len(here.runs()) == 2
    for run in here.runs():
        other = there.run(run.uid)
        assert run.history(ranks="all", raw=True).equals(other.history(ranks="all", raw=True))
        assert run.texts().equals(other.texts())
