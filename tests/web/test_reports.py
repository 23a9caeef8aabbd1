"""Reports in a real browser: written with a panel, read, and made a file that opens without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Page, expect

from tests.web.conftest import Served, go, homes
from tests.web.test_security import PAYLOADS
from tests.web.training import HOSTILE
from torchtrack import Api

STEPS = 60
MADE_UP = "0" * 16


def begin(page: Page, served: Served, title: str, text: str, project: str = "page") -> str:
    """Save a report; its id."""
    report = {"project": project, "title": title, "text": text}
    made = page.request.post(f"{served.address}api/v1/reports", data=report)
    assert made.status == 201, made.text()
    return str(made.json()["id"])


def panel(**fields: object) -> str:
    lines = "\n".join(f"{name.rstrip('_')}: {value}" for name, value in fields.items())
    return f"```panel\n{lines}\n```\n"


def every_panel(served: Served) -> str:
    """A panel of each kind, and of each way that lines are asked for."""
    healthy, both = served.healthy, f"{served.healthy}, {served.sick}"
    return "\n".join(
        (
            panel(metric="loss", runs=both),
            panel(metric="loss", runs=both, group="config.lr", y="log"),
            panel(metric="long/metric", runs=healthy, smooth=200, from_=12_000, to=13_000),
            panel(metric="long/metric", runs=healthy, logx=1),
            panel(metric="long/metric", runs=healthy, x="metric:tokens", from_=1e6, to=5e6),
            panel(metric="loss", runs=healthy, x="relative"),
            panel(metric="loss", runs=healthy, ranks="band"),
            panel(show="layers", runs=served.sick, from_=20, to=59),
            panel(show="layers", runs=healthy, kind="parameter", mode="absmax", depth=1),
            panel(show="distribution", runs=healthy, tensor="0.weight"),
            panel(show="ranks", runs=healthy, of="loss"),
        )
    )


@contextmanager
def opened(browser: Browser, file: Path, theme: Any = "light") -> Iterator[Page]:
    """A file in a browser without a network: it asks for nothing, and nothing is in its console."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=theme, offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    yield page
    context.close()
    assert said == []


def values(page: Page, metric: str) -> dict[int, list[str]]:
    """What the table of a panel shows, by step."""
    page.get_by_role("button", name=f"what can be done with {metric}").first.click()
    page.get_by_role("menuitem", name="Show the values").click()
    rows = page.get_by_role("region", name=f"values of {metric}").locator("tbody tr")
    texts: list[list[str]] = rows.evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    return {int(first): others for first, *others in texts}


def exported(served: Served, *arguments: str) -> str:
    """Run `torchtrack` with what it needs for the folder and for its page; what it said."""
    key = served.url.partition("#token=")[2]
    environ = {**os.environ, **homes(served.folder.parent / "cache"), "TORCHTRACK_API_KEY": key}
    command = [sys.executable, "-m", "torchtrack.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_report_is_begun_from_a_panel_written_by_keyboard_and_opens_as_a_file_with_the_same_values(
    page: Page, served: Served, chromium: Browser, tmp_path: Path
) -> None:
    go(page, served, f"p/page/r/{served.healthy}/charts?search=^loss$&smooth=0")
    expect(page.get_by_role("img", name="loss: 1 line")).to_be_visible()
    page.get_by_role("button", name="what can be done with loss").press("Enter")
    page.get_by_role("menuitem", name="Add to a new report").press("Enter")
    page.get_by_role("status").get_by_role("link", name="Open").press("Enter")
    expect(page.get_by_role("heading", name="New report")).to_be_visible()
    expect(page.get_by_role("img", name="loss: 1 line")).to_be_visible()
    page.keyboard.press("e")
    title = page.get_by_role("textbox", name="title")
    expect(title).to_have_value("New report")
    title.fill("What we saw")
    text = page.get_by_role("textbox", name="text, in Markdown")
    text.press("Control+Home")
    page.keyboard.type("It went well.\n\n")
    expect(page.get_by_role("region", name="preview")).to_contain_text("It went well.")
    text.press("Control+b")
    page.keyboard.press("Control+z")
    text.press("Control+s")
    expect(page.get_by_role("status").filter(has_text="version 2")).to_be_visible()
    page.reload()
    expect(text).to_have_value(f"It went well.\n\n```panel\nmetric: loss\nruns: {served.healthy}\n```\n")
    page.get_by_role("button", name="Done", exact=True).click()
    expect(page.get_by_role("heading", name="What we saw")).to_be_visible()

    file = tmp_path / "report.html"
    assert "What we saw" in exported(
        served, "report", "export", "What we saw", "-o", str(file), "--dir", str(served.folder)
    )
    history = Api(served.folder).run(served.healthy).history(["loss"]).to_pydict()
    with opened(chromium, file) as alone:
        expect(alone.get_by_role("img", name="loss: 1 line")).to_be_visible()
        shown = values(alone, "loss")
    assert list(shown) == history["step"] == list(range(STEPS))
    numbers = [float(cells[0]) for cells in shown.values()]
    assert numbers == pytest.approx(history["loss"], rel=1e-3)


def test_what_is_not_saved_is_kept_through_a_reload_and_what_others_saved_is_not_lost(
    served: Served, chromium: Browser
) -> None:
    context = chromium.new_context()  # of its own: the browser writes every refusal into the console
    page = context.new_page()
    page.goto(served.url)
    page.get_by_role("heading", name="Projects").wait_for()
    report = begin(page, served, "Two authors", "first")
    go(page, served, f"p/page/reports/{report}?edit=1")
    text = page.get_by_role("textbox", name="text, in Markdown")
    text.fill("mine")
    expect(page.get_by_text("not saved yet")).to_be_visible()
    theirs = page.request.put(
        f"{served.address}api/v1/reports/{report}",
        data={"title": "Two authors", "text": "theirs"},
        headers={"If-Match": "1"},
    )
    assert theirs.ok
    page.reload()
    expect(text).to_have_value("mine")
    page.get_by_role("button", name="Save", exact=True).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("somebody else changed")
    alert.get_by_role("button", name="Save mine").click()
    expect(alert).to_be_hidden()
    page.get_by_role("button", name="Done", exact=True).click()
    page.get_by_role("combobox", name="version").select_option("2")
    expect(page.get_by_text("theirs", exact=True)).to_be_visible()
    page.get_by_role("button", name="Make it the newest").click()
    expect(page.get_by_role("combobox", name="version").locator("option:checked")).to_have_text("Version 4")
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status").filter(has_text="Two authors is removed")).to_be_visible()
    expect(page.get_by_role("link", name="Two authors")).to_be_hidden()
    page.keyboard.press("Control+z")
    expect(page.get_by_role("heading", name="Two authors")).to_be_visible()
    context.close()


def test_a_panel_joins_the_report_opened_last_and_is_taken_out_again(page: Page, served: Served) -> None:
    report = begin(page, served, "The one at hand", "text")
    go(page, served, f"p/page/reports/{report}")
    expect(page.get_by_role("heading", name="The one at hand")).to_be_visible()
    go(page, served, f"p/page/r/{served.sick}/stability?kind=parameter")
    page.get_by_role("button", name="what can be done with the layers").click()
    page.get_by_role("menuitem", name="Add to The one at hand").click()
    expect(page.get_by_role("status")).to_contain_text("Added to The one at hand")
    place = f"{served.address}api/v1/reports/{report}"
    assert page.request.get(place).json()["text"] == "text\n\n" + panel(
        show="layers", runs=served.sick, kind="parameter"
    )
    page.keyboard.press("Control+z")
    expect(page.get_by_role("status")).to_contain_text("Taken out again")
    assert page.request.get(place).json()["text"] == "text"


def test_the_palette_and_the_keys_lead_to_reports(page: Page, served: Served) -> None:
    report = begin(page, served, "Found by its name", "text")
    go(page, served, "p/page/runs")
    expect(page.get_by_role("rowheader", name="healthy-one")).to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("e")
    expect(page.locator(f"a[href$='reports/{report}']")).to_be_visible()
    page.keyboard.press("Control+k")
    page.get_by_role("textbox", name="go to").fill("by its name")
    expect(page.get_by_role("option", name="Found by its name")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Found by its name")).to_be_visible()


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_every_kind_of_panel_is_drawn_and_goes_into_the_file(
    page: Page, served: Served, chromium: Browser, tmp_path: Path
) -> None:
    theme = page.evaluate("document.documentElement.dataset.theme")
    wrong = panel(metric="loss", runs=MADE_UP) + panel(metric="loss") + panel(runs=served.healthy)
    report = begin(page, served, f"Every panel, {theme}", every_panel(served) + wrong)
    drawn = every_panel(served).count("```panel")
    file = tmp_path / "report.html"
    go(page, served, f"p/page/reports/{report}")
    expect(page.locator(".pinned > .names")).to_have_count(drawn)
    expect(page.get_by_role("note")).to_have_count(3)
    file.write_bytes(page.request.get(f"{served.address}api/v1/reports/{report}/html").body())
    with opened(chromium, file, theme) as alone:
        expect(alone.locator(".pinned > .names")).to_have_count(drawn)
        expect(alone.get_by_role("img", name=", 0 columns")).to_have_count(0)
        expect(alone.get_by_role("img", name=": 0 lines")).to_have_count(0)
        expect(alone.get_by_text("not in the file")).to_have_count(0)
        found = axe(alone)
    go(page, served, f"p/page/reports/{report}?edit=1")
    expect(page.get_by_role("region", name="preview").locator(".pinned > .names")).to_have_count(drawn)
    found += axe(page)
    go(page, served, "p/page/reports")
    expect(page.get_by_role("link", name=f"Every panel, {theme}")).to_be_visible()
    assert found + axe(page) == []


def axe(page: Page) -> list[Any]:
    said = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
    return [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in said]


def test_nothing_in_a_report_becomes_markup_there_or_in_its_file(
    page: Page, served: Served, chromium: Browser, tmp_path: Path
) -> None:
    texts = [*PAYLOADS, *HOSTILE, "[a](JaVaScRiPt:alert(7))", "![b](javascript:alert(8))", "<javascript:alert(9)>"]
    texts += ["![c](http://127.0.0.1:9/seen.png)", "[d]: javascript:alert(10)\n\n[d]", "</script><script>alert(11)"]
    texts += ["&lt;script&gt;alert(12)&lt;/script&gt;", "| <b onclick=alert(13)> |\n|-|\n| <i onload=x> |"]
    hostile = "\n\n".join([*texts, *(f"# {text}\n\n- {text}\n\n> {text}\n\n`{text}`" for text in texts)])
    hostile += "\n\n" + panel(metric=HOSTILE[0], runs=served.hostile) + panel(show=HOSTILE[1], runs=served.hostile)
    report = begin(page, served, HOSTILE[0] + "</title></script>", hostile)
    told: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        told.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    file = tmp_path / "report.html"
    file.write_bytes(page.request.get(f"{served.address}api/v1/reports/{report}/html").body())
    for path in (f"p/page/reports/{report}", f"p/page/reports/{report}?edit=1", "p/page/reports"):
        go(page, served, path)
        expect(page.get_by_text("alert(1)").first).to_be_attached()
        inert(page)
    with opened(chromium, file) as alone:
        expect(alone.get_by_text("alert(12)").first).to_be_attached()
        inert(alone)
    assert told == []


def inert(page: Page) -> None:
    """Nothing in the page was made of a text that somebody typed."""
    made = "#app img, #app script, #app iframe, #app b, #app i:not(.swatch, .ramp), #app [onclick], #app [onload]"
    assert page.locator(f"{made}, #app [onerror]").count() == 0
    links = page.locator("#app a").evaluate_all("links => links.map(link => new URL(link.href).protocol)")
    assert set(links) <= {"http:", "https:"}
    assert page.evaluate("window.__pwned") is None


def test_a_run_is_a_file_with_all_its_tabs(page: Page, served: Served, chromium: Browser, tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    exported(served, "export", f"{served.address}#/p/page/r/{served.sick}", "-o", str(file))
    finding = Api(served.folder).run(served.sick).findings()[0]
    with opened(chromium, file) as alone:
        expect(alone.get_by_role("heading", name="sick-one")).to_be_visible()
        expect(alone.get_by_role("img", name="layers by step, gradient")).to_be_visible()
        findings = alone.get_by_role("complementary", name="findings")
        expect(findings).to_contain_text(finding.why)
        findings.get_by_role("button").first.click()
        expect(alone.get_by_role("img", name="histogram by step of")).not_to_have_accessible_name("0 columns")
        alone.get_by_role("link", name="Charts", exact=True).click()
        expect(alone.get_by_role("img", name="long/metric: 1 line")).to_be_visible()
        alone.get_by_role("link", name="Logs", exact=True).click()
        expect(alone.get_by_role("listitem").filter(has_text="sick-one begins")).to_be_visible()
        alone.get_by_role("link", name="Overview", exact=True).click()
        expect(alone.get_by_role("row", name="lr 0.1", exact=True)).to_be_visible()
        expect(alone.get_by_text("not in the file")).to_have_count(0)
        assert axe(alone) == []


def test_the_file_of_a_run_has_its_small_pictures_tables_and_texts(
    served: Served, chromium: Browser, tmp_path: Path
) -> None:
    file = tmp_path / "run.html"
    exported(served, "export", f"{served.address}#/p/gallery/r/{served.often}", "-o", str(file))
    with opened(chromium, file) as alone:
        expect(alone.get_by_role("banner")).to_contain_text("4 logged files are not in it")
        alone.get_by_role("link", name="Charts", exact=True).click()
        pictures = alone.get_by_role("img", name="often at 40")
        expect(pictures).to_have_count(2)
        expect(pictures.first).to_have_js_property("naturalWidth", 16)
        expect(alone.get_by_text("often says 40", exact=True)).to_be_visible()
        expect(alone.get_by_role("table", name="table predictions")).to_be_visible()
        expect(alone.get_by_role("note").filter(has_text="Not in this file").first).to_be_visible()
        assert axe(alone) == []


def test_the_file_of_a_hostile_run_is_inert(served: Served, chromium: Browser, tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    exported(served, "export", f"{served.address}#/p/hostile-gallery/r/{served.gallery}", "-o", str(file))
    with opened(chromium, file) as alone:
        alone.get_by_role("link", name="Charts", exact=True).click()
        expect(alone.get_by_role("img", name=HOSTILE[0]).first).to_be_visible()
        sources = alone.locator("#app img").evaluate_all("all => all.map(one => one.src.slice(0, 22))")
        assert set(sources) == {"data:image/png;base64,"}
        assert alone.locator("#app iframe, #app script").count() == 0
        assert alone.evaluate("window.__pwned") is None


def test_on_paper_there_are_the_words_and_the_panels_in_light_and_nothing_to_press(
    served: Served, chromium: Browser
) -> None:
    context = chromium.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(served.url)
    page.get_by_role("heading", name="Projects").wait_for()
    report = begin(page, served, "On paper", "Words\n\n" + panel(metric="loss", runs=served.healthy))
    go(page, served, f"p/page/reports/{report}")
    expect(page.get_by_role("img", name="loss: 1 line")).to_be_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    expect(page.get_by_role("img", name="loss: 1 line")).to_be_visible()
    expect(page.get_by_text("Words")).to_be_visible()
    for name in ("Edit", "Print", "what can be done with loss", "keys"):
        expect(page.get_by_role("button", name=name)).to_be_hidden()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    context.close()


def test_reports_of_a_server_are_listed_and_taken_by_their_address(page: Page, served: Served, tmp_path: Path) -> None:
    report = begin(page, served, "In the terminal", "text")
    url = served.address.rstrip("/")
    listed = json.loads(exported(served, "report", "list", "--project", "page", "--json", "--url", url))
    assert report in [one["id"] for one in listed]
    file = tmp_path / "report.html"
    exported(served, "report", "export", f"{served.address}#/p/page/reports/{report}", "-o", str(file))
    assert b"<title>In the terminal</title>" in file.read_bytes()
