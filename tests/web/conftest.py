"""A real browser on the page of real runs: `torchtrack ui` in a process of its own, Chromium as the system has it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import urllib3
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from tests.runs import until
from torchtrack.server.page import BUILT
from torchtrack.testing import leaks

expect.set_options(timeout=30_000)
SCRIPT = Path(__file__).parent / "training.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser that shares two cores may miss a deadline: what fails here is run once more, and counted as a rerun."""
    for item in items:
        if item.path.is_relative_to(SCRIPT.parent):
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=[".*"]))


@dataclass(frozen=True)
class Served:
    """A folder of runs and the page that shows it.

    Attributes:
        folder: of the runs.
        url: what `torchtrack ui` printed, with the token.
        sick: uid of a run whose gradients end in NaN; `healthy` of one whose do not.
        hostile: uid of a run whose texts would run in a page that took them for markup.
        wide: uid of a run of 10,000 metrics.
        often: uid of a run that logs pictures every 5 steps, and one of everything else that is no number; `seldom` of
            one that does so every 20 steps; `gallery` of one whose captions, HTML and file names are hostile.
    """

    folder: Path
    url: str
    healthy: str
    sick: str
    hostile: str
    wide: str
    often: str
    seldom: str
    gallery: str

    @property
    def address(self) -> str:
        """Without the token."""
        return self.url.partition("#")[0]


PAINTED = """canvas => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const seen = new Set();
    for (let i = 0; i < pixels.length; i += 4) seen.add((pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2]);
    return seen.size;
}"""
"""How many colours a canvas holds: axes and text alone are a few greys."""


def go(page: Page, served: Served, path: str) -> None:
    """Another place of the page that is open."""
    page.goto(f"{served.address}#/{path}")


def painted(chart: Locator) -> None:
    """Wait until there is more in a chart than its axes: it is there before it is drawn."""
    canvas = chart.locator("canvas")
    until(lambda: canvas.evaluate(PAINTED) > 20)


def wait_for_steps(served: Served, uid: str, last_step: int) -> None:
    """Wait until the server has read a run up to a step: a page that comes before that shows a part of it."""
    headers = {"Authorization": f"Bearer {served.url.partition('#token=')[2]}"}
    url = f"{served.address}api/v1/runs/{uid}"
    with urllib3.PoolManager() as pool:
        until(lambda: pool.request("GET", url, headers=headers).json().get("last_step") == last_step, 60)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two runs of one project, a metric of 20,000 steps with a spike in the first, and the page."""
    if not (BUILT / "index.html").is_file():
        pytest.skip("the page is not built: pip install -e . (TORCHTRACK_SKIP_WEB unset)")
    home = tmp_path_factory.mktemp("web")
    folder = home / "runs"
    made = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=True)
    uids = made.stdout.split()
    with serving(folder, home / "cache") as url:
        yield Served(folder, url, *uids)


@contextmanager
def serving(folder: Path, cache: Path, port: int = 0) -> Iterator[str]:
    """`torchtrack ui` on a folder until the end of the block: the address that it printed."""
    command = [sys.executable, "-m", "torchtrack.cli", "ui", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_with(homes(cache)))
    assert process.stdout is not None
    try:
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
        _wait_until_it_answers(url)
        yield url
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _wait_until_it_answers(url: str) -> None:
    """The engine opens its tables: until then the answer is 503."""
    address, _, token = url.partition("#token=")
    pool = urllib3.PoolManager(retries=urllib3.Retry(100, backoff_factor=0.1, backoff_max=1, status_forcelist=(503,)))
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{address}api/v1/projects"

    def has_read_all() -> bool:  # it answers before that
        projects = pool.request("GET", url, headers=headers).data
        return all(name in projects for name in (b'"wide"', b'"hostile-gallery"')) or threading.Event().wait(
            0.1
        )  # the cores are for what is waited for

    until(has_read_all, 60)


def homes(cache: Path) -> dict[str, str]:
    """Where the page keeps what it makes, and what people type."""
    return {"XDG_CACHE_HOME": str(cache), "XDG_DATA_HOME": str(cache / "data")}


def _with(extra: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **extra}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser."""
    program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no browser here: make system-deps")
    before = set(psutil.Process().children())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", "--no-sandbox"])
        mine = {child.pid for child in set(psutil.Process().children()) - before}
        leaks.exempt_processes.update(mine)  # a browser starts some of its processes once the first test is under way
        yield browser
        browser.close()
    leaks.exempt_processes.difference_update(mine)


@pytest.fixture(params=["light"])
def page(request: pytest.FixtureRequest, served: Served, chromium: Browser) -> Iterator[Page]:
    """A page that was let in; at its end nothing may stand in its console."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, color_scheme=request.param)
    page = context.new_page()
    page.set_default_timeout(30_000)
    said: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        busy = "503 (Service Unavailable)" in message.text  # the server said so, and is asked again
        if message.type in ("error", "warning") and not busy:
            said.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(served.url)
    page.get_by_role("heading", name="Projects").wait_for()
    yield page
    context.close()
    assert said == []
