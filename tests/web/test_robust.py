"""What pages break on: hostile texts, long names, ten thousand metrics, a server that dies; and a sick run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from tests.stability.faults import Case, train_all
from tests.web.conftest import Served, go, serving
from torchtrack.testing import ranks

PROJECT = quote("hostile <img src=x onerror=alert(0)>", safe="")
WITHIN = """node => {
    const { top, bottom, right } = node.getBoundingClientRect();
    return top >= 0 && bottom <= innerHeight && right <= innerWidth;
}"""


def test_no_text_of_a_user_becomes_markup(page: Page, served: Served) -> None:
    """The fixture fails on any message in the console, and an element that was made of a text would leave one."""
    told: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        told.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    run = f"p/{PROJECT}/r/{served.hostile}"
    for path, text in (
        ("", "alert(0)"),
        (f"p/{PROJECT}", "alert(1)"),
        (f"p/{PROJECT}?show=many", "alert(0)"),
        (f"p/{PROJECT}/runs", "alert(1)"),
        (f"p/{PROJECT}/compare?runs={served.hostile}", "alert(1)"),
    ):
        go(page, served, path)
        expect(page.get_by_text(text).first).to_be_attached()
    for tab in ("overview", "charts", "stability", "logs"):
        go(page, served, f"{run}/{tab}")
        expect(page.get_by_role("heading", level=1)).to_contain_text("<img src=x onerror=alert(1)>")
    expect(page.get_by_role("listitem").filter(has_text="<svg/onload=alert(5)>").first).to_be_visible()
    assert page.locator("#app img, #app script, #app iframe, #app [onerror], #app [onload]").count() == 0
    assert told == []


@pytest.fixture
def long_name(page: Page, served: Served) -> Iterator[str]:
    """A name of 300 characters, which the hostile run has until the end of the test."""
    name = "<img src=x " + "n" * 289
    for given in (name, None):
        renamed = page.request.patch(f"{served.address}api/v1/runs/{served.hostile}", data={"name": given})
        assert renamed.ok, renamed.text()
        if given:
            yield given


def test_a_name_of_300_characters_breaks_no_page(page: Page, served: Served, long_name: str) -> None:
    for path in (f"p/{PROJECT}", f"p/{PROJECT}/runs", f"p/{PROJECT}/r/{served.hostile}/overview"):
        go(page, served, path)
        expect(page.get_by_text(long_name).first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


def test_of_ten_thousand_metrics_those_are_drawn_that_are_looked_for(page: Page, served: Served) -> None:
    go(page, served, f"p/wide/r/{served.wide}/charts")
    expect(page.get_by_role("button", name="part0 500")).to_be_visible()
    assert page.locator("figure").count() < 100
    page.get_by_role("searchbox", name="metrics").fill("metric1234$")
    expect(page.get_by_role("img", name="part14/metric1234: 1 line")).to_be_visible()
    go(page, served, "p/wide/runs")
    expect(page.get_by_role("rowheader", name="many-metrics")).to_be_visible()
    assert page.get_by_role("cell").count() < 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_server_that_dies_and_comes_back_is_gone_on_with(served: Served, chromium: Browser, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serving(served.folder, cache) as url:
        page = chromium.new_context().new_page()
        page.goto(url)
        expect(page.get_by_text("● live")).to_be_visible()
        port = int(url.partition("#")[0].rstrip("/").rpartition(":")[2])
    expect(page.get_by_text("○ away")).to_be_visible()
    with serving(served.folder, cache, port):
        expect(page.get_by_text("● live")).to_be_visible()
        page.get_by_role("link", name="page", exact=True).click()
        expect(page.get_by_role("img", name="loss: ")).to_be_visible()
        page.context.close()


@pytest.fixture(scope="module")
def faulty(served: Served) -> str:
    """A run of the stability fault suite: one rank gets a NaN into one layer's gradient."""
    case = Case("nan", rank=1, layer="2.weight", at=16, steps=20)
    return str(ranks(2, init=True).run(train_all, served.folder, [case])[0][0])


@pytest.mark.parametrize("tab", ["", "/stability"])
def test_a_finding_with_its_layer_rank_and_step_is_on_the_first_screen(
    page: Page, served: Served, faulty: str, tab: str
) -> None:
    page.set_viewport_size({"width": 1280, "height": 720})
    go(page, served, f"p/uncategorized/r/{faulty}{tab}")
    place = page.get_by_role("complementary", name="findings") if tab else page.get_by_role("main")
    finding = place.get_by_role("button" if tab else "link", name="critical non finite")
    for text in ("2.weight", "rank 1", "16"):
        expect(finding).to_contain_text(text)
    assert finding.evaluate(WITHIN)
