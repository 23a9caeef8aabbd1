"""What a server takes: a large job's samples, a herd of clients that is told to wait, rows from Arrow into chDB.

    python benchmarks/ingest.py [--nodes 1250] [--seconds 60] [--storm-s 40]

1. `--nodes` simulated nodes of 8 ranks, each rank with a sample of 20 scalars every 5 s, against a server in processes
   of its own (front, and the worker with chDB), over one kept connection a node. The bodies are those of the uploader;
   what makes and sends them is cheaper, since nodes do not share a machine with their server. First as the server
   tells a job to by default: 5 requests a second for all its nodes together, so that a node comes less often with more
   (the nodes that are due in the time are simulated, each with all it has by then). Then with the limit raised until
   each node comes every 5 s, which no server of ours asks for.
2. What a request costs the front, in processor time: the first of a node, and later ones.
3. 256 uploaders against a server that answers 429 with Retry-After: requests in each second, over real sockets.
4. Rows of scalars from Arrow into chDB, a second of wall time and of processor time of all threads.
5. What the Indexer costs a journal that it follows, in processor time, by how many short frames are new in it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import queue
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pyarrow as pa

from torchtrack import records, wire
from torchtrack.journal import frame
from torchtrack.journal.frame import Kind
from torchtrack.records import Table
from torchtrack.server import schema
from torchtrack.server.budget import Limits
from torchtrack.server.engine import MODULE
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore
from torchtrack.sidecar.upload.engine import Uploader
from torchtrack.sidecar.upload.pace import Pace, retry_after
from torchtrack.sidecar.upload.transport import Http, UnreachableError
from torchtrack.version import __version__

RANKS, SCALARS, EVERY_S = 8, 20, 5.0
VARIANTS = 64
LAG_S = 180.0
"""How long the index is waited for."""
THREADS = 96
"""Requests under way at one time, at most; each node has a connection of its own."""
OTHERS = """
Beside it what other trackers document. Weights & Biases: 500 filestream requests and 120 MB a second a project, 2
requests a second a run (https://docs.wandb.ai/platform/hosting/hosting-options/dedicated-cloud/rate-limits). MLflow: at
most 1000 metrics in a request of at most 1 MB, of one run (https://docs.databricks.com/api/experiments/v1/log-batch):
this job would be {metrics:.0f} such requests a second as one run, {ranks:.0f} as a run for each rank."""
COLUMNS = (
    "limit of the job",
    "a node comes every",
    "requests/s",
    "on the wire a second (as frames)",
    "rows/s",
    "inserts/s",
    "answer: median, p99",
    "index behind at the end",
    "front, a request",
    "cores: front, worker, clients",
    "memory: front, worker",
    "load of the machine",
)
START = """
import sys, pathlib
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits
from torchtrack.server.serve import serve
say = lambda address, key: print(address, key, file=sys.stderr, flush=True)
limits = Limits(job_requests_per_s=float(sys.argv[2]), key_requests_per_s=1000)
serve(Config(data=pathlib.Path(sys.argv[1]), limits=limits), 0, say=say)
"""


def rows_of(count: int, rng: np.random.Generator) -> pa.Table:
    """So many scalars of one step."""
    code = pa.array(np.arange(count, dtype=np.int32))
    arrays = [
        pa.array(np.full(count, int(rng.integers(1 << 20)))),
        pa.array(np.full(count, time.time_ns() // 1000)).cast(pa.timestamp("us", tz="UTC")),
        pa.DictionaryArray.from_arrays(code, pa.array([f"metric/{i}" for i in range(count)])),
        pa.array(rng.normal(size=count)),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array(["mean"])),
        pa.array(np.zeros(count, np.bool_)),
    ]
    return pa.table(arrays, schema=records.SCALARS)


class Node:
    """A node of the job: what its ranks have by now, and when it may send."""

    def __init__(self, number: int, uid: str, payloads: list[bytes], first_at: float) -> None:
        self.number, self.uid, self.payloads = number, uid, payloads
        self.pace = Pace(time.monotonic, random.Random(number))
        self.name = f"{number:016x}"
        self.at = first_at
        """When its next sample is there."""
        self.seqs = [0] * RANKS
        self.due = 0
        """Samples that are there and not sent."""
        self.connection: http.client.HTTPConnection | None = None

    def body(self) -> tuple[bytes, str | None, int]:
        """What it has, as the uploader packs it, and how many bytes the frames are."""
        sections = []
        for local in range(RANKS):
            rank = self.number * RANKS + local
            stream, seq, frames = (1 << 40) + rank, self.seqs[local], []
            if not seq:
                place = {"role": "rank", "uid": self.uid, "attempt": 1, "rank": rank, "local_rank": local}
                opening = {"type": "opening", "format": 1, "stream": f"{stream:016x}", "segment": 0, **place}
                about = {"node": self.number, "world_size": 0, "start_time_ns": time.time_ns()}
                frames.append(_raw(Kind.META, frame.dump({**opening, **about}), 0, 0))
            for sample in range(self.due):
                payload = self.payloads[(rank * 7 + seq + sample) % VARIANTS]
                frames.append(_raw(Kind.DATA, payload, stream, seq + len(frames)))
            sections.append(wire.Section(stream, seq, b"".join(frames)))
            self.seqs[local] = seq + len(frames)
        body, encoding = wire.pack(sections, client=self.name, jobs=[self.uid], more=False)
        return body, encoding, sum(len(each.frames) for each in sections)


def _raw(kind: Kind, payload: bytes, seed: int, seq: int) -> bytes:
    table = Table.SCALARS if kind is Kind.DATA else 0
    buffers, _ = frame.encode(kind, payload, stream=seed, seq=seq, mono_ns=time.monotonic_ns(), table=table)
    return b"".join(bytes(each) for each in buffers)


class Job:
    """All nodes, served by some threads as each falls due."""

    def __init__(self, url: str, key: str, nodes: int, until_s: float, turn_s: float) -> None:
        rng = np.random.default_rng(0)
        uid = f"{random.Random(1).getrandbits(64):016x}"
        payloads = [bytes(records.encode(rows_of(SCALARS, rng).to_batches()[0])) for _ in range(VARIANTS)]
        parts = urlsplit(url)
        self.place, self.key = (str(parts.hostname), int(parts.port or 80)), key
        self.began = time.monotonic() + 1.0
        self.until = self.began + until_s
        self.turn = turn_s
        backlog_s = turn_s if turn_s > EVERY_S else 0.0
        spread = until_s if backlog_s else EVERY_S
        self.nodes = [Node(n, uid, payloads, self.began + spread * n / nodes) for n in range(nodes)]
        for node in self.nodes:
            node.due = int(backlog_s / EVERY_S)
        self.queue: queue.PriorityQueue[tuple[float, int]] = queue.PriorityQueue()
        for node in self.nodes:
            self.queue.put((node.at, node.number))
        self.statuses: Counter[int] = Counter()
        self.sent = self.raw = self.samples = self.connections = 0
        self.took: list[float] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        threads = [threading.Thread(target=self._serve) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for node in self.nodes:
            if node.connection is not None:
                node.connection.close()

    def _serve(self) -> None:
        while True:
            try:
                at, number = self.queue.get_nowait()
            except queue.Empty:
                return
            if at > self.until:
                continue
            time.sleep(max(0.0, at - time.monotonic()))
            node = self.nodes[number]
            while node.at <= time.monotonic():
                node.due, node.at = node.due + 1, node.at + EVERY_S
            wait = node.pace.wait_s()
            if not wait and node.due:
                self._send(node)
                wait = node.pace.wait_s()
            self.queue.put((max(time.monotonic() + wait, node.at), number))

    def _send(self, node: Node) -> None:
        before = list(node.seqs)
        body, encoding, raw = node.body()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": wire.FRAMES_TYPE}
        headers |= {"Content-Encoding": encoding} if encoding else {}
        began = time.monotonic()
        reply, answer = self._ask(node, body, headers)
        took = time.monotonic() - began
        with self._lock:
            self.statuses[reply.status] += 1
            self.took.append(took)
            if reply.status == 200:
                self.sent, self.raw, self.samples = (
                    self.sent + len(body),
                    self.raw + raw,
                    self.samples + node.due * RANKS,
                )
        if reply.status == 200:
            node.due = 0
            # A server that hears of a part of the nodes alone would have them come more often.
            node.pace.succeeded(max(float(answer["next_after_s"]), self.turn))
        else:
            node.seqs = before
            node.pace.failed(retry_after(reply.headers.get("retry-after")))

    def _ask(
        self, node: Node, body: bytes, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, dict[str, float]]:
        """The answer; over a new connection if the server has closed the one that was kept."""
        while True:
            if node.connection is None:
                node.connection = http.client.HTTPConnection(*self.place, timeout=60)
                self.connections += 1
            try:
                node.connection.request("POST", f"{wire.API}/frames", body, headers)
                reply = node.connection.getresponse()
                return reply, json.loads(reply.read())
            except (http.client.HTTPException, OSError):
                node.connection.close()
                node.connection = None


class Watched(threading.Thread):
    """Memory of the front and of the worker, looked at every second."""

    def __init__(self, front: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.front, self.stop = front, threading.Event()
        while (found := _worker_of(front)) is None:
            time.sleep(0.1)
        self.worker = found
        self.peak = [0, 0]
        self._before = self._cpu()

    def _cpu(self) -> list[float]:
        times = [each.cpu_times() for each in (self.front, self.worker)]
        return [each.user + each.system for each in times]

    def run(self) -> None:
        while not self.stop.wait(1.0):
            for index, each in enumerate((self.front, self.worker)):
                self.peak[index] = max(self.peak[index], each.memory_info().rss)

    def cpu(self) -> list[float]:
        """Processor seconds of each since this was made."""
        return [now - before for now, before in zip(self._cpu(), self._before, strict=True)]


def _worker_of(front: psutil.Process) -> psutil.Process | None:
    return next((each for each in front.children() if MODULE in each.cmdline()), None)


@contextmanager
def served(data: Path, job_requests_per_s: float) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    command = [sys.executable, "-c", START, str(data), str(job_requests_per_s)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stderr is not None
            address, key = process.stderr.readline().split()
            threading.Thread(target=process.stderr.read, daemon=True).start()
            while not _answers(Http(address, lambda: key)):
                time.sleep(0.2)
            yield process, address, key
        finally:
            process.terminate()


def _answers(pool: Http) -> bool:
    try:
        return pool.ask("GET", "/api/v1/projects").status == 200
    except UnreachableError:
        return False


def large_job(nodes: int, seconds: float, job_requests_per_s: float) -> None:
    """One row of the table."""
    turn = max(EVERY_S, nodes / job_requests_per_s)
    due = nodes if turn <= EVERY_S else max(1, round(job_requests_per_s * seconds))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with served(data, job_requests_per_s) as (process, url, key):
            watched = Watched(psutil.Process(process.pid))
            job = Job(url, key, due, seconds, turn)
            watched.start()
            began, clients = time.monotonic(), time.process_time()
            job.run()
            took, clients = time.monotonic() - began, time.process_time() - clients
            front = watched.cpu()[0]
            behind = _until_indexed(url, key, job.samples)
            watched.stop.set()
            watched.join()
            cpu = watched.cpu()
        store = MetricsStore.in_folder(data / "index")
        rows = store.query("SELECT count() AS n FROM scalars")["n"][0].as_py()
        parts = "SELECT sum(m) AS n FROM (SELECT max(max_block_number) AS m FROM system.parts WHERE database = "
        inserts = store.query(f"{parts}'{store.database}' GROUP BY table, partition)")["n"][0].as_py()
        store.close()
    requests = job.statuses.total()
    refused = requests - job.statuses[200]
    complete = "" if rows == job.samples * SCALARS else f" (of {job.samples * SCALARS / took:,.0f} sent)"
    latency = statistics.quantiles(job.took, n=100)
    limit = Limits().job_requests_per_s
    cells = [
        f"{job_requests_per_s:g} requests/s{', the default' if job_requests_per_s == limit else ''}",
        f"{turn:.0f} s",
        f"{requests / took:.1f} ({refused} refused, {job.connections} connections)",
        f"{job.sent / took / 1e6:.2f} MB ({job.raw / took / 1e6:.1f})",
        f"{rows / took:,.0f}{complete}",
        f"{inserts / (took + behind):.1f}",
        f"{latency[49] * 1e3:.0f}, {latency[98] * 1e3:.0f} ms",
        f"{behind:.0f} s",
        f"{front / requests * 1e3:.2f} ms",
        f"{front / took:.2f}, {cpu[1] / (took + behind):.2f}, {clients / took:.2f}",
        f"{watched.peak[0] / 1e6:.0f}, {watched.peak[1] / 1e6:.0f} MB",
        f"{os.getloadavg()[0]:.1f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def front(nodes: int = 250, turns: int = 8, clients: int = 32) -> None:
    """What a request costs the front: the first of a node, which makes its files, and later ones."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), 1000.0) as (process, url, key):
        job, asked = Job(url, key, nodes, 0.0, EVERY_S), psutil.Process(process.pid)
        costs, began = [], time.process_time()
        with ThreadPoolExecutor(clients) as threads:
            for _ in range(turns + 1):
                before = asked.cpu_times()
                for node in job.nodes:
                    node.due = 1
                list(threads.map(job._send, job.nodes))
                after = asked.cpu_times()
                costs.append((after.user + after.system - before.user - before.system) / nodes * 1e3)
        took = (time.process_time() - began) / (turns + 1) / nodes * 1e3
        assert set(job.statuses) == {200}, job.statuses
    later = costs[1:]
    print(
        f"\nProcessor time of the front for a request of {RANKS} journals, {nodes} nodes with a connection each, "
        f"{clients} requests at a time: {costs[0]:.2f} ms for the first of a node, which makes its files, then "
        f"{statistics.median(later):.2f} ms ({min(later):.2f} .. {max(later):.2f} over {turns} turns of all nodes). "
        f"The clients took {took:.2f} ms. Load {os.getloadavg()[0]:.1f}."
    )


def _until_indexed(url: str, key: str, samples: int) -> float:
    """Seconds until the worker has told of every frame."""
    began, cursor = time.monotonic(), 0
    known: dict[str, int] = {}
    while sum(known.values()) < samples and time.monotonic() < began + LAG_S:
        request = urllib.request.Request(f"{url}/api/v1/streams?since={cursor}")  # noqa: S310  # on loopback
        request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request) as reply:  # noqa: S310  # on loopback
            said = json.load(reply)
        cursor = said["cursor"]
        known.update((each["stream"], each["record"]["next_seq"] - 1) for each in said["streams"])
        time.sleep(1.0)
    return time.monotonic() - began


def storm(clients: int, seconds: float, wait_s: int = 10) -> None:
    """All begin in the same second, and are told for some seconds to come again in `wait_s`; then they are let in."""
    arrivals: list[float] = []
    began = time.monotonic()

    class Storm(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            arrivals.append(time.monotonic() - began)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(429 if arrivals[-1] < seconds else 200)
            body = b"{}" if arrivals[-1] < seconds else json.dumps({"capabilities": [], "streams": {}}).encode()
            self.send_header("Retry-After", str(wait_s))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815  # the name that the library looks for

        def log_message(self, *args: object) -> None:
            pass

    class Many(ThreadingHTTPServer):
        request_queue_size = 512
        daemon_threads = True

    server = Many(("127.0.0.1", 0), Storm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    uploaders = [Uploader(Http(url, lambda: "k"), rng=random.Random(number)) for number in range(clients)]
    due = dict.fromkeys(range(clients), time.monotonic())
    while due:
        number = min(due, key=due.__getitem__)
        time.sleep(max(0.0, due[number] - time.monotonic()))
        wait = uploaders[number].step()
        due[number] = time.monotonic() + wait
        if uploaders[number].idle:
            del due[number]
    server.shutdown()
    by_second = Counter(int(at) for at in arrivals)
    early = sum(by_second[second] for second in range(1, wait_s))
    later = [by_second[second] for second in range(wait_s, int(seconds))]
    after = [by_second[second] for second in range(int(seconds), max(by_second) + 1)]
    print(
        f"\n{clients} clients, 429 with Retry-After {wait_s} for {seconds:.0f} s: {by_second[0]} requests in the first "
        f"second, {early} until second {wait_s}, then {statistics.mean(later):.1f} a second, at most {max(later)}; one "
        f"request a client every {wait_s} s would be {clients / wait_s:.1f}. After it all {clients} were through in "
        f"{len(after)} s, with at most {max(after)} requests in a second.",
        flush=True,
    )


def arrow(rows: int = 4_000_000, batch: int = 500_000) -> None:
    """How fast chDB takes scalars."""
    rng = np.random.default_rng(0)
    steps = batch // 50
    code = pa.array(np.tile(np.arange(50, dtype=np.int32), steps))
    with tempfile.TemporaryDirectory() as folder:
        store = MetricsStore.in_folder(Path(folder))
        times = []
        for number in range(rows // batch + 1):
            columns = [
                pa.array(np.repeat(np.arange(steps), 50) + number * steps),
                pa.array(1_750_000_000_000_000 + np.arange(batch)).cast(pa.timestamp("us", tz="UTC")),
                pa.DictionaryArray.from_arrays(code, pa.array([f"metric/{i}" for i in range(50)])),
                pa.array(rng.normal(size=batch)),
                pa.DictionaryArray.from_arrays(pa.array(np.zeros(batch, np.int32)), pa.array(["mean"])),
                pa.array(np.zeros(batch, np.bool_)),
            ]
            frames = [schema.Origin(1, number, batch)]
            made = schema.to_store(
                Table.SCALARS, pa.table(columns, schema=records.SCALARS), month=202511, frames=frames
            )
            wall, cpu = time.perf_counter(), time.process_time()
            store.insert("scalars", made)
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
        store.close()
    walls, cpus = zip(*times[1:], strict=True)  # the first one opens the engine
    print(
        f"\n{rows:,} scalars from Arrow into chDB, {batch:,} a batch, synced: {rows / sum(walls):,.0f} rows/s of wall "
        f"time, {rows / sum(cpus):,.0f} rows/s of processor time of all threads "
        f"({batch / max(cpus):,.0f} .. {batch / min(cpus):,.0f} over {len(cpus)} batches)."
    )


def short_frames(ranks: int = 400) -> None:
    """What a look at the journals of a run costs, when each has some frames of a few rows more than before."""
    payload = bytes(records.encode(rows_of(SCALARS, np.random.default_rng(0)).to_batches()[0]))
    uid = f"{random.Random(2).getrandbits(64):016x}"
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        paths = [frame.rank_path(runs, uid, rank, (1 << 40) + rank) for rank in range(ranks)]
        for rank, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            place = {"role": "rank", "uid": uid, "attempt": 1, "rank": rank, "start_time_ns": time.time_ns()}
            opening = {"type": "opening", "format": 1, "stream": f"{(1 << 40) + rank:016x}", "segment": 0, **place}
            path.write_bytes(_raw(Kind.META, frame.dump(opening), 0, 0))
        store = MetricsStore.in_folder(Path(folder) / "index")
        indexer, seq, costs = Indexer(runs, store), 1, []
        indexer.poll(everything=True)
        for new in (1, 0, 1, 4, 16):  # the first one warms up
            for rank, path in enumerate(paths):
                with path.open("ab") as file:
                    file.writelines(_raw(Kind.DATA, payload, (1 << 40) + rank, seq + each) for each in range(new))
            seq += new
            began = time.process_time()
            indexer.poll()
            costs.append(f"{(time.process_time() - began) / ranks * 1e6:,.0f} us with {new}")
        store.close()
    print(
        f"\nA look at {ranks} journals, processor time of all threads for each, by its new frames of {SCALARS} rows: "
        f"{', '.join(costs[1:])}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1250)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--storm-s", type=float, default=40.0)
    parser.add_argument("--budget", type=float, nargs="*", help="Requests a second of a job; by default the two above.")
    parser.add_argument("--only", choices=["job", "front", "storm", "arrow", "frames"])
    given = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    print(f"torchtrack {__version__}, Python {platform.python_version()}, pyarrow {pa.__version__}, {date.today()}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: {platform.platform()}\n")
    if given.only in (None, "job"):
        print(
            f"{given.nodes} nodes of {RANKS} ranks, {SCALARS} scalars a rank every {EVERY_S:g} s, {given.seconds:g} s\n"
        )
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for rate in given.budget or (Limits().job_requests_per_s, given.nodes / EVERY_S):
            large_job(given.nodes, given.seconds, rate)
        ranks = given.nodes * RANKS / EVERY_S
        print(OTHERS.format(metrics=ranks * SCALARS / 1000, ranks=ranks))
    if given.only in (None, "front"):
        front()
    if given.only in (None, "storm"):
        storm(256, given.storm_s)
    if given.only in (None, "arrow"):
        arrow()
    if given.only in (None, "frames"):
        short_frames()


if __name__ == "__main__":
    main()
