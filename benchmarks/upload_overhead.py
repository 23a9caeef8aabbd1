"""What sending a run to a server costs the training of two ranks, whatever the server does.

    python benchmarks/upload_overhead.py [--rounds 6] [--steps 300]

Jobs of two ranks (gloo, DistributedDataParallel, some milliseconds a step, five floats logged a step, gradients and
parameters watched every 20th) run in pairs, offline and online, one after the other in the same two processes; which
comes first changes from pair to pair. What is printed is the ratio of their step times, mean over a job and 99th
percentile: median over the pairs, with the interval that holds the true median in 95 of 100 cases. The server is well,
killed and started again every 2 s, frozen, answering 429, answering 500, or gone. Nodes of a cluster do not share a
machine with their server, as the ranks do here.

After each online job what is left is sent by `torchtrack sync`, and the server's tables are compared with those of the
journals row by row.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from watch_overhead import interval

import torchtrack
from torchtrack.testing import close_pool, ranks
from torchtrack.version import __version__

WARM_UP = 30
START = """
import sys, pathlib
from torchtrack.server.app import Config
from torchtrack.server.serve import serve
say = lambda address, key: print(key, file=sys.stderr, flush=True)
serve(Config(data=pathlib.Path(sys.argv[1]), queries=False), int(sys.argv[2]), say=say)
"""


def train(steps: int, folder: str, name: str, url: str | None, key: str | None) -> list[float]:
    """A job, on each rank; the seconds of every step after the first ones."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    where: dict[str, Any] = {"mode": "online", "url": url, "api_key": key} if url else {"mode": "offline"}
    run = torchtrack.init(project="bench", dir=folder, name=name, sidecar=True, finish_timeout=2.0, **where)
    run.watch(model, log_freq=20)
    batch, took = torch.randn(64, 256), []
    for step in range(steps + WARM_UP):
        began = time.perf_counter()
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss, "a": step, "b": step, "c": step, "d": step})
        took.append(time.perf_counter() - began)
    dist.barrier()
    run.finish(quiet=True)
    return took[WARM_UP:]


class Server:
    """A server in a process of its own, always at the same address."""

    def __init__(self, data: Path, port: int) -> None:
        self.data, self.port, self.url = data, port, f"http://127.0.0.1:{port}"
        self.key = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [sys.executable, "-c", START, str(self.data), str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
        assert self.process.stderr is not None
        self.key = self.process.stderr.readline().strip()

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@contextmanager
def well(server: Server) -> Iterator[None]:
    del server
    yield


@contextmanager
def killed(server: Server) -> Iterator[None]:
    stop = threading.Event()

    def again_and_again() -> None:
        while not stop.wait(2.0):
            server.end()
            server.start()

    thread = threading.Thread(target=again_and_again)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


@contextmanager
def gone(server: Server) -> Iterator[None]:
    server.end()
    try:
        yield
    finally:
        server.start()


def answering(status: int) -> Callable[[Server], AbstractContextManager[None]]:
    @contextmanager
    def condition(server: Server) -> Iterator[None]:
        class Stub(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET  # noqa: N815  # the name that the library looks for

            def log_message(self, *args: object) -> None:
                pass

        server.end()
        stub = ThreadingHTTPServer(("127.0.0.1", server.port), Stub)
        thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            stub.shutdown()
            thread.join()
            stub.server_close()
            server.start()

    return condition


CONDITIONS = {
    "well": well,
    "killed every 2 s": killed,
    "frozen": frozen,
    "429": answering(429),
    "500": answering(500),
    "gone": gone,
}


def compare(folder: Path, server: Server) -> tuple[int, int]:
    """Send what is left, and compare all tables; how many runs and rows there are."""
    environ = {**os.environ, "TORCHTRACK_API_KEY": server.key}
    command = [sys.executable, "-m", "torchtrack.cli", "sync", "--dir", str(folder), "--url", server.url]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    here, there = torchtrack.Api(folder), torchtrack.Api(server.data / "runs")
    rows = 0
    for run in here.runs():
        other = there.run(run.uid)
        for read in (lambda r: r.history(ranks="all", raw=True), lambda r: r.tensors(), lambda r: r.texts()):
            mine, theirs = read(run), read(other)
            assert str(mine.to_pylist()) == str(theirs.to_pylist()), (run.uid, mine.schema)
            rows += mine.num_rows
    return len(here.runs()), rows


def measure(rounds: int, steps: int, base: Path, server: Server, until: float) -> None:
    means: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    tails: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    offline: list[float] = []
    server.start()
    job = ranks(2, init=True)

    def one(name: str, *, online: bool) -> tuple[float, float]:
        folder = base / ("online" if online else "offline")
        with CONDITIONS[name](server) if online else contextlib.nullcontext():
            at = (server.url, server.key) if online else (None, None)
            took = job.run(train, steps, str(folder), name, *at)[0]
        return statistics.mean(took), statistics.quantiles(took, n=100)[98]

    one("well", online=False)  # the processes begin
    done = 0
    for number in range(rounds):
        if time.monotonic() > until:
            break
        done += 1
        for index, name in enumerate(CONDITIONS):
            first = bool((number + index) % 2)
            results = {online: one(name, online=online) for online in (first, not first)}
            means[name].append(results[True][0] / results[False][0])
            tails[name].append(results[True][1] / results[False][1])
            offline.append(results[False][0])
    close_pool()
    runs, rows = compare(base / "online", server)
    least, most = min(offline) * 1e3, max(offline) * 1e3
    print(f"a step offline: {statistics.median(offline) * 1e3:.2f} ms ({least:.2f} .. {most:.2f})\n")
    print("| the server is | step time online / offline | 99th percentile of steps |\n|---|---|---|")
    for name in CONDITIONS:
        cells = ["{:.3f} ({:.3f} .. {:.3f})".format(*interval(values)) for values in (means[name], tails[name])]
        print(f"| {name} | {cells[0]} | {cells[1]} |")
    print(f"\n{done} pairs each; all {rows:,} rows of {runs} runs on the server equal those of the journals.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=60.0, help="No round begins later.")
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    print(f"torchtrack {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {date.today()}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: {platform.platform()}\n", flush=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_address[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder) / "server", int(port))
        try:
            measure(given.rounds, given.steps, Path(folder), server, time.monotonic() + 60 * given.minutes)
        finally:
            server.end()
            signal_helpers(Path(folder))


def signal_helpers(folder: Path) -> None:
    """End the sidecars and uploaders of the folder: one may wait for a server that is not there any more."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            ours = any(word.startswith(str(folder)) for word in command)
            if ours and any(word.startswith("torchtrack.sidecar") for word in command):
                process.kill()


if __name__ == "__main__":
    main()
