"""What a person does with the page, in a real browser on real runs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Response, expect

from tests.web.conftest import Served, go, painted


def test_the_token_leaves_the_address_and_its_cookie_is_out_of_reach_of_scripts(page: Page) -> None:
    assert "token" not in page.url
    assert page.evaluate("document.cookie") == ""
    page.reload()
    expect(page.get_by_role("link", name="page", exact=True)).to_be_visible()


def test_before_the_first_run_it_shows_the_lines_that_make_one(page: Page) -> None:
    page.route("**/api/v1/projects", lambda route: route.fulfill(json=[]))
    page.reload()
    expect(page.get_by_text("torchtrack.init(")).to_be_visible()


def test_from_the_projects_to_a_curve(page: Page) -> None:
    expect(page.get_by_role("row").filter(has_text="page").get_by_role("cell")).to_contain_text(["page", "2", "0", "0"])
    page.get_by_role("link", name="page", exact=True).click()
    expect(page.get_by_role("img", name="loss: 2 lines")).to_be_visible()
    page.get_by_role("link", name="healthy-one").click()
    expect(page.get_by_role("heading", name="healthy-one")).to_be_visible()
    chart = page.get_by_role("img", name="loss: 1 line")
    expect(chart).to_be_visible()
    painted(chart)


def test_a_spike_of_one_step_in_twenty_thousand_is_drawn_at_its_height(page: Page, served: Served) -> None:
    with page.expect_response("**/series") as answer:
        go(page, served, f"p/page/r/{served.healthy}/charts?search=long/metric&smooth=0")
    request: Any = answer.value.request.post_data_json
    assert request["px"] < 2000
    expect(page.get_by_role("img", name="long/metric: 1 line")).to_be_visible()
    shown = page.request.post(f"{served.address}api/v1/series?format=json", data=request).json()
    assert len(shown["columns"]["x"]) < 2000
    assert max(value for value in shown["columns"]["max.0"] if value is not None) == 100.0


def test_a_filter_narrows_the_table_and_a_typing_error_says_where(page: Page, served: Served) -> None:
    go(page, served, "p/page/runs")
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_visible()
    field = page.get_by_role("searchbox", name="filter")
    field.fill("config.lr < 0.05")
    field.press("Enter")
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_hidden()
    expect(page.get_by_role("rowheader", name="healthy-one")).to_be_visible()
    assert "filter=config.lr" in page.url


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_filter_that_cannot_be_read_leaves_the_table_and_says_where(served: Served, chromium: Browser) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(served.url)
    page.get_by_role("heading", name="Projects").wait_for()
    go(page, served, "p/page/runs")
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_visible()
    field = page.get_by_role("searchbox", name="filter")
    field.fill("config.lr <")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be read")
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_visible()
    context.close()


def test_runs_that_are_ticked_are_compared_by_what_differs(page: Page, served: Served) -> None:
    go(page, served, "p/page/runs")
    page.get_by_role("checkbox", name="choose healthy-one").check()
    page.get_by_role("checkbox", name="choose sick-one").check()
    page.get_by_role("link", name="Compare 2 runs").click()
    expect(page.get_by_role("row", name="lr 0.01 0.1").or_(page.get_by_role("row", name="lr 0.1 0.01"))).to_be_visible()


def test_a_finding_zooms_every_panel_to_where_it_was(page: Page, served: Served) -> None:
    go(page, served, f"p/page/r/{served.sick}/stability")
    finding = page.get_by_role("complementary", name="findings").get_by_role("button", name="critical non finite")
    expect(finding.first).to_contain_text("step 45", timeout=120_000)  # the rules look at one run after the other

    def zoomed(answer: Response) -> bool:  # one that was asked for before may come after the click
        asked: Any = answer.request.post_data_json if answer.url.endswith("/heatmap") else {}
        return bool(asked.get("x") == {"from": 25, "to": 80})

    with page.expect_response(zoomed):
        finding.first.click()
    expect(page.get_by_role("button", name="steps 25 to 79").first).to_be_visible()
    assert "tensor=" in page.url
    page.keyboard.press("0")
    expect(page.get_by_role("button", name="steps 25 to 79")).to_have_count(0)


def test_layers_and_the_distribution_of_one_are_painted(page: Page, served: Served) -> None:
    go(page, served, f"p/page/r/{served.healthy}/stability")
    layers = page.get_by_role("img", name="layers by step")
    expect(layers).to_have_attribute(
        "aria-label", "layers by step, gradient, norm against its own median: 4 rows, 60 columns"
    )
    layers.locator(".u-over").click(position={"x": 5, "y": 5})
    expect(page.get_by_text("gradient of 0.weight")).to_be_visible()
    painted(page.get_by_role("img", name="histogram by step of 0.weight"))


def test_what_was_printed_is_in_the_logs(page: Page, served: Served) -> None:
    go(page, served, f"p/page/r/{served.sick}/logs")
    expect(page.get_by_role("listitem").filter(has_text="sick-one begins")).to_be_visible()


def test_the_palette_goes_to_a_run_by_a_part_of_its_name(page: Page, served: Served) -> None:
    go(page, served, "p/page/runs")
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_visible()
    page.keyboard.press("Control+k")
    page.get_by_role("textbox", name="go to").fill("sick")
    expect(page.get_by_role("option", name="sick-one")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="sick-one")).to_be_visible()


def test_a_run_that_begins_now_shows_up_by_itself(page: Page, served: Served) -> None:
    code = (
        "import sys, torchtrack;"
        "run = torchtrack.init(project='later', name=sys.argv[2], dir=sys.argv[1], sidecar=False);"
        "run.log({'loss': 1.0}); run.finish()"
    )
    begin = [sys.executable, "-c", code, str(served.folder)]
    subprocess.run([*begin, "first"], check=True, capture_output=True)
    go(page, served, "p/later/runs")
    expect(page.get_by_role("rowheader", name="first")).to_be_visible()
    subprocess.run([*begin, "newcomer"], check=True, capture_output=True)
    expect(page.get_by_role("rowheader", name="newcomer")).to_be_visible()


RUN_TABS = ("overview", "charts", "stability", "system", "logs")


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_nothing_stands_in_the_way_of_people_who_cannot_see_well(page: Page, served: Served) -> None:
    found: list[Any] = []

    def look(where: str) -> None:
        for each in Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]:
            found.append((where, each["id"], [node["html"] for node in each["nodes"]][:3]))

    page.get_by_role("link", name="page", exact=True).wait_for()
    look("projects")
    compared = f"p/page/compare?runs={served.healthy},{served.sick}"
    tabs = [f"p/page/r/{served.sick}/{tab}" for tab in RUN_TABS]
    pages = ["p/page", "p/page?show=many", "p/page/runs", compared, "p/page/alerts", "settings", "no/such/page", *tabs]
    for path in pages:
        go(page, served, path)
        page.locator("main *").first.wait_for()
        expect(page.locator("main .waiting")).to_have_count(0, timeout=120_000)  # the rules look at whole runs
        look(path)
    page.keyboard.press("?")
    look("keys")
    page.keyboard.press("?")
    page.keyboard.press("Control+k")
    page.get_by_role("textbox", name="go to").wait_for()
    look("palette")
    assert found == []
