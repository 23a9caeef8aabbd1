"""How long people wait for the page, in a real browser: from `torchtrack ui` to the first chart, and every budget.

    python benchmarks/page.py [--only PART] [--small] [--home DIR]

Chromium as the system has it, without a GPU; needs `torchtrack[server,test]` and the built page. Each part makes the
runs it needs and takes some minutes at most; `--only` may be given several times, `--home` keeps the runs for the next
call. Parts, and what they are about:

    start        1,000 short runs, 20 of 24 metrics, one of 64 ranks: the index, the first chart with it and without it
    workspace    20 runs x 24 metrics x 2,000 points: panels, zoom, hover, heap
    table        1,000 runs x 60 columns, and 1,000 lines in a chart
    large        1,000,000 points, 64 ranks, 600 tensors
    bundle       bytes of JavaScript and CSS
    tensorboard  TensorBoard on the scalars of `workspace` and histograms of 100 tensors, and the page on the same

Times of the page are taken inside it, from an act to the second frame after what was waited for is there. What hovering
and scrolling cost is the processor time of the page's thread a frame, as the browser counts it. Every figure is of
this machine, and of what else it does: the load is printed.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import _page_runs as made
import numpy as np
import urllib3
from _page_runs import LARGE, METRICS, SPIKE
from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from torchtrack.server.page import BUILT
from torchtrack.version import __version__

PATIENCE_MS = 120_000
FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
UNTIL = """async ([hash, selector, count]) => {
    const frame = () => new Promise(requestAnimationFrame);
    const began = performance.now();
    if (hash !== null) location.hash = hash;
    while (document.querySelectorAll(selector).length < count) {
        if (performance.now() - began > 120_000) throw new Error(`no ${count} of ${selector}`);
        await frame();
    }
    await frame();
    await frame();
    return performance.now() - began;
}"""
"""Milliseconds from a move to another place of the page until so many of something are painted."""
ACT = """async ([selector, act, times]) => {
    const node = document.querySelector(selector);
    const { left, top } = node.getBoundingClientRect();
    for (let i = 0; i < times; i++) {
        const at = { clientX: left + 20 + 3 * i, clientY: top + 40, bubbles: true };
        if (act === "scroll") node.scrollTop = 90 * i;
        else node.dispatchEvent(new MouseEvent("mousemove", at));
        await new Promise(requestAnimationFrame);
    }
}"""
LET_GO = """() => {
    window.echoed = new Promise(done => addEventListener("mouseup", () => {
        const began = performance.now();
        requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
    }, { capture: true, once: true }));
}"""
TIMES = 60


@dataclass
class Report:
    """The table that is printed at the end: what, measured, budget, times TensorBoard."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, what: str, measured: float, budget: str = "", unit: str = "ms", ratio: float | None = None) -> float:
        """A line, and the figure for who goes on with it."""
        times = "" if ratio is None else f"{ratio:.2f}"
        digits = 1 if measured < 20 and unit else 0
        self.rows.append((what, f"{measured:,.{digits}f} {unit}".strip(), budget, times))
        print(f"  {what}: {measured:,.{digits}f} {unit}", file=sys.stderr)
        return measured

    def note(self, what: str, said: str) -> None:
        """A line without a figure."""
        self.rows.append((what, said, "", ""))

    def show(self) -> None:
        """Print it."""
        print("| what | measured | budget | times TensorBoard |\n|---|---|---|---|")
        for row in self.rows:
            print(f"| {' | '.join(row)} |")


@dataclass(frozen=True)
class Bench:
    """What a part has at hand.

    Attributes:
        browser: Chromium.
        home: where runs and indices lie.
        share: 1, or 10 for a tenth of the runs and points.
        report: where figures go.
    """

    browser: Browser
    home: Path
    share: int
    report: Report

    def runs(self, *names: str) -> Path:
        """A folder with these sets of runs, made where it is missing."""
        folder = self.home / "-".join((*names, str(self.share)))
        if not (folder / "done").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            makers: dict[str, Callable[[Path], None]] = {
                "large": lambda runs: made.large(runs, 1_000_000, 500 // self.share, np.random.default_rng(0)),
                "panels": made.panels,
                "sweep": partial(made.sweep, number=1000 // self.share),
            }
            for name in names:
                print(f"making runs: {name}", file=sys.stderr)
                makers[name](folder / "runs")
            (folder / "done").touch()
        return folder / "runs"


@contextmanager
def ui(runs: Path, cache: Path) -> Iterator[str]:
    """`torchtrack ui` on a folder: the address that it prints."""
    command = [sys.executable, "-m", "torchtrack.cli", "ui", str(runs), "--port", "0"]
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache), "XDG_DATA_HOME": str(cache)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once, not at every start
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    try:
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def shown(bench: Bench, runs: Path, height: int = 900) -> Iterator[Page]:
    """The page on a folder that is indexed to the end."""
    cache = runs.parent / "cache"
    with ui(runs, cache) as url:
        until_indexed(url, runs)
        page = bench.browser.new_context(viewport={"width": 1440, "height": height}).new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        page.get_by_role("heading", name="Projects").wait_for()
        page.get_by_text("● live").wait_for()
        yield page
        page.context.close()


def until_indexed(url: str, runs: Path) -> None:
    """Ask until all runs of the folder are there, with all streams of each."""
    address, _, token = url.partition("#token=")
    pool = urllib3.PoolManager(retries=urllib3.Retry(300, backoff_factor=0.1, backoff_max=1, status_forcelist=(503,)))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    wanted = sum(1 for path in runs.iterdir() if path.is_dir())
    streams = sum(1 for _ in runs.glob("*/000/*.ttj"))
    while True:
        projects = json.loads(pool.request("GET", f"{address}api/v1/projects", headers=headers).data)
        if sum(one["runs"] for one in projects) >= wanted:
            told = json.loads(pool.request("GET", f"{address}api/v1/streams", headers=headers).data)["streams"]
            if sum(1 for each in told if each["record"]["seal"]) >= streams:
                return
        time.sleep(0.1)


def moved(page: Page, path: str | None, selector: str, count: int = 1) -> float:
    """Milliseconds until so many of something are painted, after a move to another place of the page."""
    took: float = page.evaluate(UNTIL, [None if path is None else f"#/{path}", selector, count])
    return took


def chart(name: str) -> str:
    """The selector of a chart whose label begins so."""
    return f'[role="img"][aria-label^="{name}"]'


def first_chart(bench: Bench, runs: Path, cache: Path) -> float:
    """From the command to painted curves of a project, as a person goes there."""
    page = bench.browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    began = time.perf_counter()
    with ui(runs, cache) as url:
        page.goto(url)
        page.get_by_role("link", name="panels", exact=True).click()
        moved(page, None, chart("m00: 10 lines"))
        took = (time.perf_counter() - began) * 1e3
        page.context.close()
    return took


def drag(page: Page, selector: str) -> None:
    """Choose the middle third of a chart; the button is still down."""
    box = page.locator(selector).first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 40, steps=3)


def zoomed(page: Page, report: Report, what: str, budgets: tuple[str, str] = ("50 ms", "250 ms")) -> None:
    """From letting go of the mouse to what is there already, drawn at the new place, and to the refined curve."""
    drag(page, ".panel .u-over")
    page.evaluate(LET_GO)
    began = time.perf_counter()
    with page.expect_response(re.compile("/series(/batch)?$")):
        page.mouse.up()
    page.evaluate(FRAME)
    refined = (time.perf_counter() - began) * 1e3
    report.add(f"zoom of {what}, echo", page.evaluate("window.echoed"), budgets[0])
    report.add(f"zoom of {what}, refined", refined, budgets[1])


def busy(page: Page, selector: str, act: str) -> float:
    """Milliseconds of the page's thread for an event with all that follows of it, in a frame."""
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        metrics = client.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

    page.evaluate(ACT, [selector, act, 5])
    before = spent()
    page.evaluate(ACT, [selector, act, TIMES])
    return (spent() - before) / TIMES * 1e3


def heap(page: Page) -> float:
    """MB that the page's objects take once what nobody uses is gone."""
    client = page.context.new_cdp_session(page)
    client.send("HeapProfiler.collectGarbage")
    usage: dict[str, Any] = client.send("Runtime.getHeapUsage")
    return float(usage["usedSize"]) / 2**20


def uids(page: Page, project: str) -> list[str]:
    """The runs of a project."""
    address = page.url.partition("#")[0]
    body = {"columns": ["uid"], "limit": 1000}
    answer = page.request.post(f"{address}api/v1/projects/{project}/runs/query", data=body)
    found: list[str] = answer.json()["columns"]["uid"]
    return found


def start(bench: Bench) -> None:
    """The index, and the first chart."""
    report, runs = bench.report, bench.runs("large", "sweep", "panels")
    with tempfile.TemporaryDirectory(dir=bench.home) as cache:
        first = first_chart(bench, runs, Path(cache))
        report.add("`torchtrack ui` to the first chart, a folder that was never shown", first)
    with tempfile.TemporaryDirectory(dir=bench.home) as cache:
        began = time.perf_counter()
        with ui(runs, Path(cache)) as url:
            until_indexed(url, runs)
            report.add("index of all of it, made once", (time.perf_counter() - began) * 1e3)
        took = first_chart(bench, runs, Path(cache))
        report.add("`torchtrack ui` to the first chart, with its index", took, "2,000 ms")


def workspace(bench: Bench) -> None:
    """Panels of many runs."""
    report, runs = bench.report, bench.runs("panels")
    with shown(bench, runs) as page:
        page.reload()
        page.get_by_role("link", name="panels", exact=True).wait_for()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        report.add("first contentful paint", paint, "400 ms")
        report.add("first chart: 10 runs, panels in sight", moved(page, "p/panels", chart("m00: 10 lines")), "1,000 ms")
        zoomed(page, report, "these")
    with shown(bench, runs, height=6000) as page:
        every = "p/panels?runs=" + ",".join(uids(page, "panels"))
        took = moved(page, every, '[role="img"][aria-label*=": 20 lines"]', METRICS)
        report.add(f"{METRICS} panels x 20 runs x 2,000 points, all painted", took, "600 ms without requests")
        report.add("hover over all of them, a frame", busy(page, ".u-over", "hover"), "16 ms")
        report.add("heap", heap(page), "150 MB", "MB")


def table(bench: Bench) -> None:
    """A thousand runs."""
    report, runs = bench.report, bench.runs("sweep")
    columns = [f"config.key{k}" for k in range(30)] + [f"summary.m{k:02d}" for k in range(30)]
    number = 1000 // bench.share
    with shown(bench, runs) as page:
        took = moved(page, f"p/sweep/runs?columns={','.join(columns)}", '[role="rowheader"]', 6)
        report.add(f"table of {number:,} runs x 60 columns, first rows", took, "300 ms")
        report.add("table, a scrolled frame", busy(page, ".windowed.runs", "scroll"), "16 ms")
        every = ",".join(uids(page, "sweep"))
        took = moved(page, f"p/sweep?search=^m00$&runs={every}", chart(f"m00: {number} lines"))
        report.add(f"{number:,} lines in a chart", took, "800 ms without requests")
        zoomed(page, report, "these", ("150 ms", "250 ms"))


def large(bench: Bench) -> None:
    """A million points, 64 ranks, 600 tensors."""
    report, runs = bench.report, bench.runs("large")
    run = f"p/large/r/{LARGE}"
    with shown(bench, runs) as page:
        report.add("1,000,000 points", moved(page, f"{run}/charts?search=^loss$", chart("loss: 1 line")), "1,000 ms")
        spike(page, report)
        zoomed(page, report, "these")
        names = ("loss: 1", "layers by step", "ranks by step", "histogram by step")
        drawn = ", ".join(f"{chart(name)} canvas" for name in names[1:]) + f", {chart('Loss: 1 line')} canvas"
        took = moved(page, f"{run}/stability", drawn, 4)
        report.add("stability: 64 ranks, 600 tensors, all panels", took, "1,000 ms")


def spike(page: Page, report: Report) -> None:
    """Whether one step in a million is in the buckets of every zoom round it."""
    address, seen = page.url.partition("#")[0], 0
    zooms = [None, 500_000, 100_000, 10_000, 1000, 100]
    for width in zooms:
        x = {} if width is None else {"from": SPIKE - width // 3, "to": SPIKE + width}
        body = {"items": [{"run": LARGE, "metric": "loss"}], "x": x, "px": 1000}
        answer = page.request.post(f"{address}api/v1/series?format=json", data=body).json()
        seen += max(value for value in answer["columns"]["max.0"] if value is not None) > 500
    report.add(f"zooms of {len(zooms)} at which one step in a million is drawn", seen, "all", "")


def bundle(bench: Bench) -> None:
    """What a browser loads."""
    files = [file for file in (BUILT / "assets").iterdir() if file.suffix in (".js", ".css")]
    size = sum(len(gzip.compress(file.read_bytes())) for file in files)
    bench.report.add("JavaScript and CSS, compressed", size / 1024, "120 kB", "kB")


def tensorboard(bench: Bench) -> None:
    """The same scalars and histograms there and here, both read anew: from the command to the first chart."""
    try:
        import tensorboard.version
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except ImportError:
        bench.report.note("TensorBoard", "not installed, not run")
        return
    del tensorboard
    logs = bench.home / f"tensorboard-{bench.share}"
    if not (logs / "done").is_file():
        write_event_files(logs, made.STEPS // bench.share)
    theirs, size = board(bench, logs / "logs")
    runs = bench.runs("panels")
    with tempfile.TemporaryDirectory(dir=bench.home) as cache:
        ours = first_chart(bench, runs, Path(cache))
    report = bench.report
    report.add("TensorBoard: command to the first chart (it may not have read all)", theirs)
    report.add(
        "the page on the same scalars, never shown before: command to the first chart", ours, ratio=ours / theirs
    )
    with shown(bench, runs) as page:
        moved(page, "p/panels", chart("m00: 10 lines"))
        mine = heap(page)
    report.add("TensorBoard: heap with its first charts", size, "", "MB")
    report.add("the page: heap with its first charts", mine, "", "MB", ratio=mine / size)


def write_event_files(home: Path, points: int) -> None:
    """20 runs of 24 scalars, and in the first histograms of 100 tensors, whose names come last as their charts do."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

    print("making event files", file=sys.stderr)
    rng = np.random.default_rng(0)
    shutil.rmtree(home, ignore_errors=True)
    for i in range(20):
        with SummaryWriter(str(home / "logs" / f"run{i}")) as writer:
            for step, row in enumerate(rng.random((points, METRICS)).tolist()):
                values = [Summary.Value(tag=f"m{k:02d}", simple_value=value) for k, value in enumerate(row)]
                writer._get_file_writer().add_summary(Summary(value=values), step)  # add_scalar takes over a minute
            for step in range(20 if i == 0 else 0):
                for name in range(100):
                    writer.add_histogram(f"weight.{name}", rng.normal(size=4096), step)
    (home / "done").touch()


def board(bench: Bench, logs: Path) -> tuple[float, float]:
    """TensorBoard: milliseconds to its first chart, and MB of its heap then."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0"]
    page = bench.browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    try:
        port = next(found[1] for line in process.stderr if (found := re.search(r"http://\S+?:(\d+)", line)))
        page.goto(f"http://127.0.0.1:{port}/#timeseries")
        page.locator("line-chart canvas, line-chart svg path").first.wait_for(state="attached", timeout=PATIENCE_MS)
        page.evaluate(FRAME)
        took = (time.perf_counter() - began) * 1e3
        return took, heap(page)
    finally:
        page.context.close()
        process.terminate()
        process.wait()
        process.stderr.close()


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part for part in (start, workspace, table, large, bundle, tensorboard)
}


def machine(browser: Browser) -> str:
    """What the figures are of."""
    models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    versions = [f"torchtrack {__version__}", f"Python {platform.python_version()}", f"Chromium {browser.version}"]
    for package in ("chdb", "tensorboard"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    what = models[0] if models else platform.machine()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return f"{date.today()}; {os.cpu_count()} x {what}, load {load}; {', '.join(versions)}"


def main() -> None:
    """Run the parts, and print what they found, also if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="a part; repeat it for more")
    parser.add_argument("--small", action="store_true", help="a tenth of the runs and points")
    parser.add_argument("--home", type=Path, help="keep runs and indices here for the next call")
    options = parser.parse_args()
    if not (BUILT / "index.html").is_file():
        sys.exit("the page is not built: pip install -e .")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no browser here: make system-deps")
    report, failed = Report(), []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = options.home or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", "--no-sandbox"])
        print(machine(browser), end="\n\n")
        for name in options.only or PARTS:
            began = time.perf_counter()
            try:
                PARTS[name](Bench(browser, home, 10 if options.small else 1, report))
            except (PlaywrightError, OSError, AssertionError) as error:  # what the other parts found is printed still
                failed.append(name)
                report.note(name, f"failed: {str(error).splitlines()[0]}")
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        browser.close()
    report.show()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
