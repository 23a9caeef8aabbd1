"""What sending a run to a server costs the training of two ranks, whatever the server does.

    python benchmarks/upload_overhead.py [--minutes 5] [--pairs 20] [--steps 40]

Jobs of two ranks (gloo, DistributedDataParallel, some milliseconds a step, five floats logged a step, gradients and
parameters watched every 20th). A rank does the same online and offline: what sends is a process of its own. So within
a job that process is stopped (SIGSTOP) for a block of steps and goes on for the next one; which comes first changes
from pair to pair. What it was kept from is sent in the other block, and the server asks for it every 0.2 s in place
of every 5, so this is more than it costs. A block counts by the mean of its steps, by the clock and by processor time
of the training thread; what is printed is the median over the pairs, with the interval that holds the true one in 95
of 100 cases, and how much of a core the sending process took. The server is well, killed and started again every 2 s,
frozen, answering 429, answering 500, or gone. Nodes of a cluster do not share a machine with their server, as the
ranks do here.

At the end what is left is sent by `torchtrack sync`, and the server's tables are compared with those of the journals
row by row.
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

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from watch_overhead import Cost, interval, middle, timed

import torchtrack
from torchtrack.testing import close_pool, ranks
from torchtrack.version import __version__

WARM_UP = 30
SETTLING = 3
"""Steps after the sender was stopped or goes on that are not counted."""
START = """
import sys, pathlib
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits
from torchtrack.server.serve import serve
say = lambda address, key: print(key, file=sys.stderr, flush=True)
limits = Limits(job_requests_per_s=1000, interval_s=0.2)
serve(Config(data=pathlib.Path(sys.argv[1]), queries=False, limits=limits), int(sys.argv[2]), say=say)
"""


def train(pairs: int, steps: int, folder: str, name: str, url: str, key: str) -> tuple[list[tuple[Cost, Cost]], float]:
    """A job, on each rank: the steps of each pair of blocks, with a sender and without, and the sender's cores."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    where: dict[str, Any] = {"mode": "online", "url": url, "api_key": key}
    run = torchtrack.init(project="bench", dir=folder, name=name, sidecar=True, finish_timeout=2.0, **where)
    run.watch(model, log_freq=20)
    batch = torch.randn(64, 256)

    def step() -> None:
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss, "a": 1, "b": 2, "c": 3, "d": 4})

    for _ in range(WARM_UP):
        step()
    with Sender(Path(folder)) as sender:
        turns = [in_turn(step, sender, steps, sends_first=bool(number % 2)) for number in range(pairs)]
        cores = sender.cores()
    run.finish(quiet=True)
    return turns, cores


def in_turn(step: Callable[[], None], sender: Sender, steps: int, *, sends_first: bool) -> tuple[Cost, Cost]:
    """Means of the steps of two blocks: with a sender, and without."""
    costs = {}
    for sends in (sends_first, not sends_first):
        sender.let(sends)
        for _ in range(SETTLING):
            step()
        clock, cpu = zip(*(timed(step) for _ in range(steps)), strict=True)
        costs[sends] = statistics.fmean(clock), statistics.fmean(cpu)
    return costs[True], costs[False]


class Sender:
    """The process that sends for this node, stopped and let go on by rank 0."""

    def __init__(self, folder: Path) -> None:
        self.processes = list(senders(folder))
        while not self.processes:  # it begins beside the job
            time.sleep(0.1)
            self.processes = list(senders(folder))
        self.began = time.monotonic()
        self.before = self._cpu()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *error: object) -> None:
        self.let(True)  # noqa: FBT003

    def let(self, sends: bool) -> None:
        dist.barrier()
        for process in self.processes if dist.get_rank() == 0 else ():
            process.send_signal(signal.SIGCONT if sends else signal.SIGSTOP)
        dist.barrier()

    def cores(self) -> float:
        return (self._cpu() - self.before) / (time.monotonic() - self.began)

    def _cpu(self) -> float:
        times = [process.cpu_times() for process in self.processes]
        return sum(each.user + each.system for each in times)


def senders(folder: Path) -> Iterator[psutil.Process]:
    """The processes that send what is in a folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if "torchtrack.sidecar.upload" in command and str(folder) in command:
                yield process


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


def measure(pairs: int, steps: int, base: Path, server: Server, until: float) -> None:
    """Print a row for each state of the server."""
    ratios: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CONDITIONS}
    cores: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    without: list[Cost] = []
    server.start()
    job = ranks(2, init=True)

    def one(name: str) -> None:
        with CONDITIONS[name](server):
            turns, took = job.run(train, pairs, steps, str(base / "runs"), name, server.url, server.key)[0]
        for with_it, alone in turns:
            for values, more, less in zip(ratios[name], with_it, alone, strict=True):
                values.append(more / less)
            without.append(alone)
        cores[name].append(took)

    while time.monotonic() < until or not all(cores.values()):
        one(min(CONDITIONS, key=lambda name: len(cores[name])))
    close_pool()
    runs, rows = compare(base / "runs", server)
    clock, cpu = middle(without)
    print(f"a step with no sender: {clock:.2f} ms, {cpu:.2f} ms of processor time\n")
    print("| the server is | pairs | step time with a sender / without | processor time | cores of the sender |")
    print("|---|---|---|---|---|")
    for name, both in ratios.items():
        cells = ["{:.3f} ({:.3f} .. {:.3f})".format(*interval(values)) for values in both]
        print(f"| {name} | {len(both[0])} | {cells[0]} | {cells[1]} | {statistics.median(cores[name]):.3f} |")
    print(
        f"\nall {rows:,} rows of {runs} runs on the server equal those of the journals; load {os.getloadavg()[0]:.1f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="No job begins later.")
    parser.add_argument("--pairs", type=int, default=20, help="Of blocks, in a job.")
    parser.add_argument("--steps", type=int, default=40, help="Of a block.")
    given = parser.parse_args()
    print(f"torchtrack {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {date.today()}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: {platform.platform()}\n", flush=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_address[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder) / "server", int(port))
        try:
            measure(given.pairs, given.steps, Path(folder), server, time.monotonic() + 60 * given.minutes)
        finally:
            server.end()
            signal_helpers(Path(folder))


def signal_helpers(folder: Path) -> None:
    """End the sidecars and uploaders of the folder: one may wait for a server that is not there any more."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            ours = any(word.startswith(str(folder)) for word in command)
            if ours and any(word.startswith("torchtrack.sidecar") for word in command):
                process.kill()


if __name__ == "__main__":
    main()
