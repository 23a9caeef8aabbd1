"""Pictures, sounds, tables, HTML and texts in a browser: at one step, of one run or several, and as files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Locator, Page, expect

from tests.web.conftest import Served, go
from tests.web.training import HOSTILE
from torchtrack import Api


@pytest.fixture
def visitor(served: Served, chromium: Browser) -> Iterator[Page]:
    """A page in whose console something may stand: a file that is not there, a script that was not let run."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(served.url)
    page.get_by_role("heading", name="Projects").wait_for()
    yield page
    context.close()


def slider(page: Page, name: str) -> Locator:
    return page.get_by_role("slider", name=f"step of {name}")


def test_pictures_are_shown_at_the_last_step_and_by_keyboard_at_every_other(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/charts?search=^samples$")
    pictures = page.get_by_role("img", name="often at 40")
    expect(pictures).to_have_count(2)
    slider(page, "samples").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("img", name="often at 35")).to_have_count(2)
    page.keyboard.press("Home")
    expect(page.get_by_role("img", name="often at 0")).to_have_count(2)
    expect(slider(page, "samples")).to_have_attribute("aria-valuetext", "step 0")
    expect(page.get_by_role("img", name="often at 0").first).to_have_js_property("naturalWidth", 16)
    assert "media=0" in page.url
    page.keyboard.press("End")
    expect(pictures).to_have_count(2)
    assert "media=" not in page.url


def test_all_panels_of_what_was_logged_are_at_one_step(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/charts?search=^(samples|said)$&media=20")
    expect(page.get_by_text("often says 20", exact=True)).to_be_visible()
    slider(page, "samples").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("often says 25", exact=True)).to_be_visible()


def test_several_runs_stand_side_by_side_at_the_same_step_and_say_where_theirs_is_another(
    page: Page, served: Served
) -> None:
    go(page, served, "p/gallery?search=^samples$&media=25")
    sides = page.get_by_role("group", name="samples of 2 runs").locator("section")
    often, seldom = (sides.filter(has=page.get_by_role("heading", name=name)) for name in ("often", "seldom"))
    expect(often.get_by_role("img", name="often at 25")).to_have_count(2)
    expect(seldom.get_by_role("img", name="seldom at 20")).to_have_count(2)
    expect(seldom.get_by_role("heading")).to_contain_text("step 20")
    expect(often.get_by_role("heading")).not_to_contain_text("step")


def test_a_table_is_windowed_sorted_and_filtered(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/charts?search=predictions")
    table = page.get_by_role("table", name="table predictions")
    expect(table).to_have_attribute("aria-rowcount", "500")
    assert table.get_by_role("row").count() < 60
    table.get_by_role("button", name="id").click()
    table.get_by_role("button", name="id").click()
    expect(table.get_by_role("columnheader", name="id")).to_have_attribute("aria-sort", "descending")
    expect(table.get_by_role("row").nth(1)).to_contain_text("499")
    page.get_by_role("searchbox", name="filter rows of predictions").fill("id < 10 and word = word 3")
    expect(page.get_by_text("1 of 500 rows")).to_be_visible()
    expect(table.get_by_role("row").nth(1)).to_contain_text("word 3")


def test_html_is_shown_in_a_frame_that_is_cut_off(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/charts?search=^report")
    expect(page.frame_locator("iframe[title='HTML: report']").get_by_role("heading", name="Report")).to_be_visible()
    expect(page.locator("iframe")).to_have_attribute("sandbox", "")


def test_its_scripts_run_when_somebody_says_so_and_are_of_no_origin(visitor: Page, served: Served) -> None:
    go(visitor, served, f"p/gallery/r/{served.often}/charts?search=^scripted")
    frame = visitor.frame_locator("iframe")
    expect(frame.get_by_role("heading", name="Drawn")).to_be_visible()
    expect(frame.get_by_text("scripts ran")).to_have_count(0)
    visitor.get_by_role("button", name="run its scripts").click()
    expect(frame.get_by_text("scripts ran")).to_be_visible()
    assert visitor.frames[-1].evaluate("window.origin") == "null"


def test_a_sound_can_be_played(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/charts?search=speech")
    sound = page.locator("audio")
    expect(sound).to_have_attribute("aria-label", "a tone")
    expect(sound).to_have_js_property("duration", 0.5)


def test_one_panel_fills_the_window_and_arrows_go_to_the_next(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/charts?search=^(samples|said)$")
    page.get_by_role("button", name="fill the window with said").click()
    expect(page.get_by_text("often says 40", exact=True)).to_be_visible()
    expect(page.get_by_role("img", name="often at 40")).to_have_count(0)
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("img", name="often at 40")).to_have_count(2)


@pytest.fixture
def missing(served: Served) -> Iterator[str]:
    """The SHA-256 of a picture of `seldom` that is not there for as long as the test runs."""
    run = Api(served.folder).run(served.seldom)
    row = next(row for row in run.media().to_pylist() if row["caption"] == "seldom at 0")
    path = served.folder / served.seldom / "media" / row["sha256"]
    path.rename(path.with_suffix(".away"))
    yield row["sha256"]
    path.with_suffix(".away").rename(path)


def test_a_file_that_has_not_come_says_so(visitor: Page, served: Served, missing: str) -> None:
    go(visitor, served, f"p/gallery/r/{served.seldom}/charts?search=^samples$&media=0")
    expect(visitor.get_by_role("note")).to_contain_text("Not here: it was logged, but its file has not come")
    expect(visitor.get_by_role("img", name="seldom at 0")).to_have_count(1)
    go(visitor, served, f"p/gallery/r/{served.seldom}/files?q={missing}")
    expect(visitor.get_by_role("row").filter(has_text="samples")).to_contain_text("not here")


def test_files_lists_what_a_run_keeps_with_digest_preview_and_download(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/files")
    table = page.get_by_role("table", name="files of the run")
    expect(table.get_by_role("row").filter(has_text="notes.txt")).to_contain_text("13 B")
    digest = hashlib.sha256(b"what I saved\n").hexdigest()
    page.get_by_role("searchbox", name="files that contain").fill(digest[:12])
    row = table.get_by_role("row").filter(has_text="saved")
    row.get_by_role("button", name="notes.txt").focus()
    page.keyboard.press("Enter")
    preview = page.get_by_role("complementary", name="preview of notes.txt")
    expect(preview.locator("pre")).to_have_text("what I saved\n")
    expect(preview).to_contain_text(digest)
    with page.expect_download() as download:
        row.get_by_role("link", name="save notes.txt").click()
    assert download.value.suggested_filename == "notes.txt"
    assert Path(download.value.path()).read_bytes() == b"what I saved\n"
    artifacts = page.get_by_role("region", name="artifacts")
    expect(artifacts.get_by_role("row").nth(1)).to_contain_text("weights:v0")
    artifacts.get_by_label("files of gallery/weights:v0").click()
    with page.expect_download() as download:
        artifacts.get_by_role("link", name="save notes.txt").click()
    assert Path(download.value.path()).read_bytes() == b"what I saved\n"


def test_a_logged_file_is_found_by_its_caption_shown_and_saved_as_what_it_is(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/files?q=often at 15")
    rows = page.get_by_role("table", name="files of the run").get_by_role("row").filter(has_text="samples")
    expect(rows).to_have_count(2)
    rows.first.get_by_role("button").click()
    expect(page.get_by_role("img", name="often at 15")).to_be_visible()
    with page.expect_download() as download:
        rows.first.get_by_role("link").click()
    assert download.value.suggested_filename.endswith(".png")
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_the_output_is_saved_as_text(page: Page, served: Served) -> None:
    go(page, served, f"p/page/r/{served.sick}/files")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the output").click()
    assert "rank 0 stderr sick-one begins\n" in Path(download.value.path()).read_text()


def test_no_caption_table_html_or_file_name_becomes_a_part_of_the_page(visitor: Page, served: Served) -> None:
    told: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        told.append(dialog.message)
        dialog.dismiss()

    visitor.on("dialog", dismiss)
    run = f"p/hostile-gallery/r/{served.gallery}"
    name = quote(f"files/{HOSTILE[0]}")
    for path in ("p/hostile-gallery", f"{run}/charts", f"{run}/files", f"{run}/files?file={name}"):
        go(visitor, served, path)
        expect(visitor.get_by_text("onerror=alert(1)").first).to_be_attached()
        assert visitor.locator("#app script, #app [onerror], #app [onload]").count() == 0
        assert visitor.locator("#app iframe:not([sandbox=''])").count() == 0
    go(visitor, served, f"{run}/charts?search=page|words|table")
    frame = visitor.frame_locator("iframe")
    expect(frame.get_by_text("constructor").first).to_be_visible()
    visitor.get_by_role("button", name="run its scripts").click()
    expect(visitor.locator("iframe")).to_have_attribute("sandbox", "allow-scripts")
    expect(frame.get_by_text("constructor").first).to_be_visible()
    assert visitor.title() != "pwned"
    assert told == []


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_nothing_of_it_stands_in_the_way_of_people_who_cannot_see_well(page: Page, served: Served) -> None:
    found = []
    run = f"p/gallery/r/{served.often}"
    for path, shown in (
        ("p/gallery?search=^(%3F!scripted)", "often at 40"),
        (f"{run}/charts?search=^(%3F!scripted)", "often at 40"),
        (f"{run}/files?file=files/notes.txt", "notes.txt"),
        (f"p/page/compare?runs={served.healthy},{served.sick}&tensor=0.weight", "difference of layers"),
    ):
        go(page, served, path)
        expect(page.locator(f"[alt*='{shown}'], [aria-label*='{shown}'], h2:has-text('{shown}')").first).to_be_visible()
        found += [
            (path, each["id"], [node["html"] for node in each["nodes"]][:3])
            for each in Axe()
            .run(page, options={"runOnly": ["wcag2a", "wcag2aa"], "iframes": False})
            .response["violations"]
        ]
    assert found == []


def test_a_table_that_asks_for_it_is_drawn_and_its_rows_are_a_press_away(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/charts?search=^(curve|confusion)$")
    expect(page.get_by_role("img", name="ROC: tpr over fpr, 2 lines").locator("polyline")).to_have_count(2)
    matrix = page.get_by_role("img", name="2 by 2")
    expect(matrix.locator("rect")).to_have_count(4)
    page.locator("figure", has=matrix).get_by_role("button", name="its rows").first.click()
    expect(page.get_by_role("table", name="table confusion")).to_contain_text("nPredictions")


def test_of_a_figure_of_plotly_its_traces_are_named_and_its_json_is_there(page: Page, served: Served) -> None:
    go(page, served, f"p/gallery/r/{served.often}/charts?search=^elsewhere$")
    held = page.get_by_role("region", name="what the figure holds")
    expect(held).to_contain_text("A figure of plotly, which is not drawn here: How many.")
    expect(held.get_by_role("row", name="counts bar 2")).to_be_visible()
    expect(held.get_by_role("row", name="2 scatter 3")).to_be_visible()
    held.get_by_text("JSON", exact=True).click()
    expect(held.locator("pre")).to_contain_text('"cat"')
    expect(page.get_by_role("link", name="save elsewhere")).to_be_visible()
