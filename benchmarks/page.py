"""How long people wait for the page, in a real browser: from `torchtrack ui` to the first chart, and every budget.

    python benchmarks/page.py [--small] [--no-tensorboard]

Chromium as the system has it, without a GPU; needs `torchtrack[server,test]` and the built page. Runs are made first:
1,000 short ones, 20 of 24 metrics, one of 1,000,000 points, one of 64 ranks and 600 tensors. TensorBoard is given the
scalars of the 20 runs and histograms of 100 tensors, if it is installed. Every figure is of this machine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import urllib3
from playwright.sync_api import Browser, Page, sync_playwright
from query import scalars, shifted, tensors

import torchtrack
from torchtrack import records
from torchtrack.journal.frame import Kind
from torchtrack.journal.writer import Writer
from torchtrack.records import Table
from torchtrack.server.page import BUILT

RANKS = 64
LARGE = "00000000000000aa"
METRICS = 24
SPIKE = 512_345
FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
FRAMES = """async ([selector, act]) => {
    const node = document.querySelector(selector);
    const times = [];
    for (let i = 0; i < 60; i++) {
        await new Promise(requestAnimationFrame);
        const before = performance.now();
        if (act === "scroll") node.scrollTop = 90 * i;
        else {
            const { left, top } = node.getBoundingClientRect();
            const at = { clientX: left + 20 + 3 * i, clientY: top + 40, bubbles: true };
            node.dispatchEvent(new MouseEvent("mousemove", at));
        }
        const { port1, port2 } = new MessageChannel();
        await new Promise(done => { port1.onmessage = done; port2.postMessage(0); });
        times.push(performance.now() - before);
    }
    return times.sort((a, b) => a - b)[30];
}"""
"""Median time in which the page's code answers an event, in milliseconds."""


@dataclass
class Report:
    """The table that is printed at the end."""

    rows: list[tuple[str, str, str]]

    def add(self, what: str, measured: float, budget: str, unit: str = "ms") -> None:
        self.rows.append((what, f"{measured:,.0f} {unit}", budget))
        print(f"  {what}: {measured:,.0f} {unit}", file=sys.stderr)

    def show(self) -> None:
        print("| what | measured | budget |\n|---|---|---|")
        for row in self.rows:
            print(f"| {' | '.join(row)} |")


def journal(runs: Path, rank: int, frames: list[tuple[Table, pa.Table]], world: int) -> None:
    opening = {
        "role": "rank",
        "uid": LARGE,
        "attempt": 1,
        "rank": rank,
        "world_size": world,
        "start_time_ns": 1_750_000_000 * 10**9,
    }
    stream = 0xA000 + rank
    writer = Writer(runs / LARGE / "000", f"{rank}-{stream:016x}", stream, opening, sync_interval_s=60)
    for table, rows in frames:
        batch = rows.combine_chunks().to_batches()[0]
        assert writer.append(Kind.DATA, records.encode(batch), table=table, rows=batch.num_rows)
    writer.seal("finish")
    writer.close()


def named(rows: pa.Table, name: str) -> pa.Table:
    at = rows.schema.get_field_index("name")
    codes = pa.array(np.zeros(rows.num_rows, np.int32))
    return rows.set_column(at, rows.schema.field(at), pa.DictionaryArray.from_arrays(codes, pa.array([name])))


def large_run(runs: Path, points: int, samples: int, rng: np.random.Generator) -> None:
    """A million points with one spike, 64 ranks, 600 tensors."""
    one = scalars(50_000, 1, rng)
    values = rng.normal(size=points)
    values[SPIKE % points] = 1000.0
    frames = []
    for part in range(points // 50_000):
        rows = named(shifted(one, part * 50_000), "loss")
        value = pa.array(values[part * 50_000 : (part + 1) * 50_000])
        frames.append((Table.SCALARS, rows.set_column(3, rows.schema.field(3), value)))
    for part in range(samples // 20):
        rows = tensors(20, 600, rng)
        step = pa.array(rows["sample"].to_numpy() + part * 20)
        rows = rows.set_column(0, rows.schema.field(0), step).set_column(1, rows.schema.field(1), step)
        frames.append((Table.TENSORS, rows))
    own = named(scalars(2000, 1, rng), "watch/local_grad_norm")
    journal(runs, 0, [*frames, (Table.SCALARS, own)], RANKS)
    for rank in range(1, RANKS):
        journal(runs, rank, [(Table.SCALARS, own)], RANKS)


def logged_runs(runs: Path, number: int, steps: int, metrics: int, project: str, rng: np.random.Generator) -> None:
    names = [f"m{k:02d}" for k in range(metrics)]
    for _ in range(number):
        config = {f"key{k}": float(v) for k, v in enumerate(rng.random(60 - metrics if metrics < 60 else 1))}
        with redirect_stderr(StringIO()):
            run = torchtrack.init(project=project, config=config, dir=runs, system_interval=0.0, sidecar=False)
            for row in rng.random((steps, metrics)).tolist():
                run.log(dict(zip(names, row, strict=True)))
            run.finish(quiet=True)


@contextmanager
def ui(runs: Path, cache: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "torchtrack.cli", "ui", str(runs), "--port", "0"]
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ)
    assert process.stdout is not None
    try:
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def until_indexed(url: str, runs: int) -> None:
    """Ask until all runs are there, and the million points."""
    address, _, token = url.partition("#token=")
    pool = urllib3.PoolManager(retries=urllib3.Retry(300, backoff_factor=0.1, backoff_max=1, status_forcelist=(503,)))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    while True:
        projects = json.loads(pool.request("GET", f"{address}api/v1/projects", headers=headers).data)
        body = json.dumps({"items": [{"run": LARGE, "metric": "watch/local_grad_norm", "rank": 63}], "px": 10})
        last = pool.request("POST", f"{address}api/v1/series?format=json", headers=headers, body=body)
        if sum(one["runs"] for one in projects) >= runs and last.status == 200:
            return


def entered(browser: Browser, url: str, height: int = 900) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": height}).new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.get_by_role("heading", name="Projects").wait_for()
    return page


def elapsed(page: Page, act: Callable[[], object], *shown: str, count: int = 1) -> float:
    """Milliseconds from an act until charts with such names are painted."""
    began = time.perf_counter()
    act()
    for name in shown:
        page.locator(f'[role="img"][aria-label^="{name}"]').nth(count - 1).wait_for()
    page.evaluate(FRAME)
    return (time.perf_counter() - began) * 1e3


def first_chart(browser: Browser, runs: Path, cache: Path) -> float:
    """From the command to a painted curve, with the index there already."""
    began = time.perf_counter()
    with ui(runs, cache) as url:
        address = url.partition("#")[0]
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.goto(url)
        page.get_by_role("link", name="panels", exact=True).wait_for(timeout=120_000)
        page.goto(f"{address}#/p/panels")
        page.locator('[role="img"][aria-label^="m00: 10 lines"]').wait_for(timeout=120_000)
        page.evaluate(FRAME)
        took = (time.perf_counter() - began) * 1e3
        page.context.close()
    return took


def zoomed(page: Page, selector: str) -> float:
    """Milliseconds from letting go of the mouse to the refined curve."""
    box = page.locator(selector).first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 40, steps=3)
    began = time.perf_counter()
    with page.expect_response("**/series"):
        page.mouse.up()
    page.evaluate(FRAME)
    return (time.perf_counter() - began) * 1e3


def heap(page: Page) -> float:
    client = page.context.new_cdp_session(page)
    client.send("HeapProfiler.collectGarbage")
    usage: dict[str, Any] = client.send("Runtime.getHeapUsage")
    return float(usage["usedSize"]) / 2**20


def budgets(browser: Browser, url: str, report: Report) -> None:
    address = url.partition("#")[0]
    page = entered(browser, url)

    def to(path: str) -> Callable[[], object]:
        return lambda: page.goto(f"{address}#/{path}")

    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    report.add("first contentful paint", paint, "400 ms")
    report.add("10 runs x 4 panels in sight", elapsed(page, to("p/panels"), "m00: 10 lines"), "1,000 ms")
    report.add("zoom, refined", zoomed(page, ".panel .u-over"), "250 ms")
    page.context.close()

    page = entered(browser, url, height=6000)
    took = elapsed(
        page, to("p/panels?runs=" + ",".join(uids(page, address, "panels"))), f"m{METRICS - 1:02d}: 20 lines"
    )
    report.add(f"{METRICS} panels x 20 runs x 2,000 points, all painted", took, "600 ms without requests")
    report.add("hover over all of them", page.evaluate(FRAMES, [".u-over", "hover"]), "16 ms")
    report.add("heap", heap(page), "150 MB", "MB")
    page.context.close()

    page = entered(browser, url)
    every = ",".join(uids(page, address, "sweep"))
    rows = page.get_by_role("rowheader")
    began = time.perf_counter()
    to(
        "p/sweep/runs?columns="
        + ",".join([f"config.key{k}" for k in range(30)] + [f"summary.m{k:02d}" for k in range(30)])
    )()
    rows.nth(5).wait_for()
    report.add("table of 1,000 runs x 60 columns, first rows", (time.perf_counter() - began) * 1e3, "300 ms")
    report.add("table, a scrolled frame", page.evaluate(FRAMES, [".windowed.runs", "scroll"]), "16 ms")
    line = f"m00: {every.count(',') + 1} lines"
    report.add(
        "1,000 lines in a chart",
        elapsed(page, to(f"p/sweep?search=^m00$&runs={every}"), line),
        "800 ms without requests",
    )
    report.add("zoom of these, refined", zoomed(page, ".panel .u-over"), "250 ms")

    run = f"p/uncategorized/r/{LARGE}"
    report.add("1,000,000 points", elapsed(page, to(f"{run}/charts?search=^loss$"), "loss: 1 line"), "1,000 ms")
    spike(page, address, report)
    report.add("zoom of these, refined", zoomed(page, ".panel .u-over"), "250 ms")
    names = ("loss", "layers by step", "ranks by step", "histogram by step")
    report.add(
        "stability: 64 ranks, 600 tensors, all panels", elapsed(page, to(f"{run}/stability"), *names), "1,000 ms"
    )
    page.context.close()


def uids(page: Page, address: str, project: str) -> list[str]:
    body = {"columns": ["uid"], "limit": 1000}
    answer = page.request.post(f"{address}api/v1/projects/{project}/runs/query", data=body)
    found: list[str] = answer.json()["columns"]["uid"]
    return found


def spike(page: Page, address: str, report: Report) -> None:
    """Whether one step in a million is in the buckets of every zoom round it."""
    seen = 0
    zooms = [None, 500_000, 100_000, 10_000, 1000, 100]
    for width in zooms:
        x = {} if width is None else {"from": SPIKE - width // 3, "to": SPIKE + width}
        body = {"items": [{"run": LARGE, "metric": "loss"}], "x": x, "px": 1000}
        answer = page.request.post(f"{address}api/v1/series?format=json", data=body).json()
        seen += max(value for value in answer["columns"]["max.0"] if value is not None) > 500
    report.add(f"zooms of {len(zooms)} at which one step in a million is drawn", seen, "all", "")


def bundle(report: Report) -> None:
    size = sum(
        len(gzip.compress(file.read_bytes())) for file in (BUILT / "assets").iterdir() if file.suffix in (".js", ".css")
    )
    report.add("JavaScript and CSS, compressed", size / 1024, "120 kB", "kB")


def tensorboard(browser: Browser, home: Path, points: int, report: Report, rng: np.random.Generator) -> None:
    """The same scalars and histograms there: from the command to its first chart, data written and read anew."""
    try:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: F401
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        report.rows.append(("TensorBoard", "not installed, not run", ""))
        return
    assert Summary
    logs = home / "tensorboard"
    for i in range(20):
        with SummaryWriter(str(logs / f"run{i}")) as writer:
            for step, row in enumerate(rng.random((points, METRICS)).tolist()):
                for k, value in enumerate(row):
                    writer.add_scalar(f"m{k:02d}", value, step)
            if i == 0:
                for step in range(20):
                    for name in range(100):
                        writer.add_histogram(f"layers.{name}.weight", rng.normal(size=4096), step)
    command = [shutil.which("tensorboard") or "tensorboard", "--logdir", str(logs), "--port", "0", "--bind_all"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    try:
        port = next(found[1] for line in process.stderr if (found := re.search(r"http://\S+?:(\d+)", line)))
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.goto(f"http://127.0.0.1:{port}/#timeseries")
        page.locator("line-chart canvas, line-chart svg path").first.wait_for(state="attached", timeout=120_000)
        page.evaluate(FRAME)
        report.add(
            "TensorBoard: command to first chart (it may not have read all)", (time.perf_counter() - began) * 1e3, ""
        )
        report.add("TensorBoard: heap", heap(page), "", "MB")
        page.context.close()
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tenth of the runs and points")
    parser.add_argument("--no-tensorboard", action="store_true")
    options = parser.parse_args()
    if not (BUILT / "index.html").is_file():
        sys.exit("the page is not built: pip install -e .")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no browser here: make system-deps")
    rng, part, report = np.random.default_rng(0), 10 if options.small else 1, Report([])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder)
        runs = home / "runs"
        print("making runs", file=sys.stderr)
        large_run(runs, 1_000_000, 500 // part, rng)
        logged_runs(runs, 1000 // part, 5, 30, "sweep", rng)
        logged_runs(runs, 20, 2000, METRICS, "panels", rng)
        browser = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", "--no-sandbox"])
        began = time.perf_counter()
        with ui(runs, home / "cache") as url:
            until_indexed(url, 1021 // part)
            report.add("index of all of it, made once", (time.perf_counter() - began) * 1e3, "")
        report.add("`torchtrack ui` to the first chart", first_chart(browser, runs, home / "cache"), "2,000 ms")
        with ui(runs, home / "cache") as url:
            until_indexed(url, 1)
            budgets(browser, url, report)
        bundle(report)
        if not options.no_tensorboard:
            tensorboard(browser, home, 2000 // part, report, rng)
        browser.close()
    report.show()


if __name__ == "__main__":
    main()
