"""What pages cost, in counts: questions, plots made, times drawn. Times are printed by benchmarks/page.py."""

from __future__ import annotations

from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.api.journals import RankJournal
from tests.web.conftest import Served, wait_for_steps

RUNS, METRICS, STEPS = 10, 6, 40
COUNTING = """
    window.drawn = 0;
    window.written = 0;
    const clear = CanvasRenderingContext2D.prototype.clearRect;
    CanvasRenderingContext2D.prototype.clearRect = function (...at) {
        window.drawn += 1;
        return clear.apply(this, at);
    };
    const stringify = JSON.stringify;
    JSON.stringify = (...what) => { window.written += 1; return stringify(...what); };
"""
"""uPlot clears its canvas whenever it draws; a panel writes what it asks for whenever it is made up anew."""
SETTLED = """async () => {
    const frame = () => new Promise(requestAnimationFrame);
    for (let still = 0, before = -1; still < 10; still = window.drawn === before ? still + 1 : 0) {
        before = window.drawn;
        await frame();
    }
}"""


@pytest.fixture(scope="module")
def dozen(served: Served) -> str:
    """A project of many lines: so many runs of so many metrics."""
    for i in range(RUNS):
        with RankJournal(served.folder, f"d0{i:014x}") as rank:
            rank.about(project="dozen", name=f"run-{i}")
            for k in range(METRICS):
                steps = np.arange(STEPS)
                rank.columns(steps, [f"m{k}"] * STEPS, np.sin(steps / (i + 2)) + k, ["mean"] * STEPS, steps)
    for i in range(RUNS):
        wait_for_steps(served, f"d0{i:014x}", STEPS - 1)
    return "dozen"


@pytest.fixture
def counted(page: Page, served: Served, dozen: str) -> tuple[Page, Counter[str]]:
    """The workspace of that project in a page that counts, and how often it has asked for what."""
    page.get_by_role("link", name=dozen, exact=True).wait_for()
    page.add_init_script(COUNTING)
    page.goto(f"{served.address}#/p/{dozen}?smooth=0")
    asked: Counter[str] = Counter()

    def note(request: Request) -> None:
        asked[urlsplit(request.url).path.rpartition("/api/v1/")[2]] += 1

    page.on("request", note)
    page.reload()
    expect(page.get_by_role("img", name=f": {RUNS} lines")).to_have_count(METRICS)
    page.evaluate(SETTLED)
    return page, asked


def draws(page: Page) -> int:
    """How often a chart was drawn since this was asked the last time, once all have come to rest."""
    page.evaluate(SETTLED)
    return int(page.evaluate("() => { const drawn = window.drawn; window.drawn = 0; return drawn; }"))


def test_a_page_asks_for_each_thing_once_and_for_all_its_curves_together(counted: tuple[Page, Counter[str]]) -> None:
    page, asked = counted
    expect(page.get_by_text("● live")).to_be_visible()
    page.evaluate(SETTLED)

    assert asked["series/batch"] == 1
    assert asked["series"] == 0
    assert asked["projects/dozen/runs/query"] == 1
    assert asked["projects/dozen/keys"] == 1
    assert asked["live"] == 1


def test_a_chart_is_made_and_drawn_once(counted: tuple[Page, Counter[str]]) -> None:
    page, _ = counted
    assert page.locator(".panel canvas").count() == METRICS
    assert draws(page) == METRICS


def test_hovering_draws_no_chart_makes_no_panel_anew_and_moves_no_point_for_each_of_many_lines(
    counted: tuple[Page, Counter[str]],
) -> None:
    page, asked = counted
    draws(page)
    page.evaluate("window.written = 0")
    before = asked.total()
    for i in range(5):
        page.locator(".u-over").first.hover(position={"x": 40 + 20 * i, "y": 40})
    expect(page.locator(".reading").last).to_contain_text("step")

    assert draws(page) == 0
    assert page.evaluate("window.written") == 0
    assert page.locator(".u-cursor-pt").count() == 0
    assert asked.total() == before


def test_a_zoom_is_one_question_and_each_chart_is_drawn_at_once_and_when_the_answer_is_there(
    counted: tuple[Page, Counter[str]],
) -> None:
    page, asked = counted
    draws(page)
    box = page.locator(".u-over").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 40, steps=3)
    with page.expect_response("**/series/batch"):
        page.mouse.up()

    assert draws(page) == 2 * METRICS
    assert asked["series/batch"] == 2
    assert page.locator(".panel canvas").count() == METRICS


def test_the_first_page_asks_for_the_projects_once(served: Served, chromium: Browser) -> None:
    context = chromium.new_context()
    other, asked = context.new_page(), Counter[str]()
    other.on("request", lambda request: asked.update([urlsplit(request.url).path.rpartition("/")[2]]))
    other.goto(served.url)
    expect(other.get_by_text("● live")).to_be_visible()
    expect(other.get_by_role("link", name="page", exact=True)).to_be_visible()

    assert asked["projects"] == 1
    context.close()
