"""Curves in a real browser: what is drawn is what was logged, at every zoom, and it can be taken away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, Response, expect

from tests.api.journals import RankJournal
from tests.web.conftest import Served, go, painted, wait_for_steps
from torchtrack import Api
from torchtrack.server.answers import read_frame, read_frames


def drag(page: Page, chart: Locator, start: float, stop: float) -> None:
    """Zoom to a part of a chart, in shares of its width."""
    plot = chart.locator(".u-over")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + start * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + stop * box["width"], box["y"] + 30, steps=4)
    page.mouse.up()


def answered(page: Page, metric: str) -> Any:
    """The next answer with the lines of one metric."""

    def is_it(response: Response) -> bool:
        return "/series" in response.url and metric in (response.request.post_data or "")

    return page.expect_response(is_it)


def lines(response: Response, metric: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The frame with the lines of one metric, in an answer that may hold those of several charts."""
    question: Any = response.request.post_data_json
    asked = [chart["items"][0]["metric"] for chart in question.get("charts", [question])]
    return list(read_frames(response.body()))[asked.index(metric)]


GAP, SPIKE, POINTS = range(300_000, 400_000), 512_345, 1_000_000
"""Of the long run: the steps at which it is NaN, the one at which it is a hundred times as high, and how many steps."""
COLUMN = """(canvas, share) => {
    const over = canvas.parentElement.querySelector(".u-over");
    const ratio = canvas.width / canvas.clientWidth;
    const x = Math.round((over.offsetLeft + share * over.clientWidth) * ratio);
    const [top, height, width] = [over.offsetTop * ratio, over.clientHeight * ratio, 9].map(Math.round);
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [canvas.width, canvas.height];
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(x - 4, top, width, height);
    const found = { line: [], mark: [] };
    for (let i = 0; i < data.length; i += 4) {
        const [r, g, b, alpha] = data.subarray(i, i + 4);
        const isMark = r < 40 && g > 140 && b > 160;
        const isLine = Math.max(r, g, b) - Math.min(r, g, b) > 40;
        if (alpha > 100 && (isMark || isLine)) found[isMark ? "mark" : "line"].push(Math.floor(i / 4 / width) / height);
    }
    return found;
}"""
"""At a place along x: how far from the top, as shares, there are pixels of a line, and of the mark of a NaN."""


@pytest.fixture(scope="module")
def long(served: Served) -> str:
    """The uid of a run with a metric of a million steps: a wave, a spike of one step, a stretch of NaN."""
    uid, step = "10000000000000aa", np.arange(POINTS)
    value = 1.0 + np.sin(step / 1e4)
    value[GAP.start : GAP.stop], value[SPIKE] = np.nan, 200.0
    with RankJournal(served.folder, uid) as rank:
        rank.about(project="long", name="a-million")
        for start in range(0, POINTS, 100_000):
            part = step[start : start + 100_000]
            rank.columns(part, ["wave"] * len(part), value[part], ["mean"] * len(part), part)
    wait_for_steps(served, uid, POINTS - 1)
    return uid


def afresh(page: Page, served: Served, path: str) -> None:
    """A place in a page loaded anew: what its chart then holds was drawn for this place."""
    page.goto("about:blank")
    go(page, served, path)


def pixels(chart: Locator, share: float) -> dict[str, list[float]]:
    """What is painted at a place along x."""
    found: dict[str, list[float]] = chart.locator("canvas").evaluate(COLUMN, share)
    return found


def test_a_spike_of_one_step_in_a_million_is_drawn_at_its_height_at_every_zoom(
    page: Page, served: Served, long: str
) -> None:
    chart = page.get_by_role("img", name="wave: 1 line; a-million ends")
    for width in (POINTS, 300_000, 30_000, 3000, 300, 30):
        low = 0 if width == POINTS else SPIKE - width // 3
        afresh(page, served, f"p/long/r/{long}/charts?search=wave&smooth=0&range={low}..{low + width}")
        painted(chart)
        here, away = (pixels(chart, (at - low) / width)["line"] for at in (SPIKE, SPIKE + width // 4))
        assert min(here) < 0.1, width
        assert min(away) > 0.8, width


def test_what_is_nan_is_marked_and_nothing_is_drawn_across_it(page: Page, served: Served, long: str) -> None:
    chart = page.get_by_role("img", name="wave: 1 line; a-million ends")
    afresh(page, served, f"p/long/r/{long}/charts?search=wave&smooth=0&range=200000..500000")
    painted(chart)

    for share in (0.4, 0.5, 0.6):
        found = pixels(chart, share)
        assert [at for at in found["line"] if at > 0.1] == []  # above it lie the blurred edges of marks
        assert max(found["mark"]) < 0.1
    for share in (0.1, 0.9):
        found = pixels(chart, share)
        assert found["line"]
        assert found["mark"] == []


def test_a_trend_is_the_same_curve_at_two_zooms_and_a_spike_is_in_both(page: Page, served: Served) -> None:
    with answered(page, "long/metric") as first:
        go(page, served, f"p/page/r/{served.healthy}/charts?search=long/metric&smooth=7")
    chart = page.get_by_role("img", name="long/metric: 1 line")
    expect(chart).to_be_visible()
    with answered(page, "long/metric") as second:
        drag(page, chart, 0.6, 0.64)
    (coarse, wide), (fine, near) = read_frame(first.value.body()), read_frame(second.value.body())

    assert coarse["bucket"] > 1
    assert fine["bucket"] < coarse["bucket"]
    assert max(wide["max.0"]) == max(near["max.0"]) == 100.0
    known = dict(zip((near["x"] + fine["bucket"] - 1).tolist(), near["smooth.0"].tolist(), strict=True))
    both = [
        (value, known[end])
        for end, value in zip((wide["x"] + coarse["bucket"] - 1).tolist(), wide["smooth.0"].tolist(), strict=True)
        if end in known
    ]
    assert len(both) > 5
    coarse_values, fine_values = np.array(both).T
    np.testing.assert_allclose(coarse_values, fine_values, rtol=1e-3)


def test_all_charts_zoom_together_and_brackets_go_back_and_forth(page: Page, served: Served) -> None:
    go(page, served, f"p/page/r/{served.healthy}/charts?search=^(loss|long/metric)$")
    expect(page.get_by_role("img", name="loss: 1 line")).to_be_visible()
    with answered(page, '"loss"'):
        drag(page, page.get_by_role("img", name="long/metric: 1 line"), 0.25, 0.5)
    chip = page.get_by_role("button", name="steps ")
    expect(chip).to_be_visible()
    page.keyboard.press("[")
    expect(chip).to_be_hidden()
    page.keyboard.press("]")
    expect(chip).to_be_visible()


def test_a_zoom_is_in_the_address_survives_a_reload_and_back_undoes_it(page: Page, served: Served) -> None:
    go(page, served, f"p/page/r/{served.healthy}/charts?search=long/metric")
    chart, chip = page.get_by_role("img", name="long/metric: 1 line"), page.get_by_role("button", name="steps ")
    expect(chart).to_be_visible()
    with answered(page, "long/metric"):
        drag(page, chart, 0.25, 0.5)
    expect(chip).to_be_visible()
    said = chip.inner_text()
    assert "range=" in page.url
    page.go_back()
    expect(chip).to_be_hidden()
    page.go_forward()
    expect(chip).to_have_text(said)
    with answered(page, "long/metric") as answer:
        page.reload()
    assert answer.value.request.post_data_json["x"]["from"] > 1000
    expect(chip).to_have_text(said)
    page.get_by_role("link", name="Stability").click()
    expect(page.get_by_role("button", name="steps ").first).to_have_text(said)


@pytest.mark.parametrize("axis", ["relative", "time", "metric:tokens"])
def test_time_or_a_metric_lies_along_x(page: Page, served: Served, axis: str) -> None:
    go(page, served, f"p/page/r/{served.healthy}/charts?search=long/metric")
    expect(page.get_by_role("img", name="long/metric: 1 line")).to_be_visible()
    with answered(page, "long/metric") as answer:
        page.get_by_role("combobox", name="what lies along x").select_option(axis)
    header, columns = read_frame(answer.value.body())
    assert header["axis"]["mode"] == axis.partition(":")[0]
    assert np.nanmax(columns["max.0"]) == 100.0
    expect(page.get_by_role("img", name="long/metric: 1 line")).to_be_visible()


def test_what_is_not_a_number_is_said_and_never_interpolated(page: Page, served: Served) -> None:
    go(page, served, f"p/page/r/{served.sick}/charts?search=^loss$&smooth=0")
    chart = page.get_by_role("img", name="loss: 1 line")
    expect(chart).to_be_visible()
    page.get_by_role("button", name="what can be done with loss").click()
    page.get_by_role("menuitem", name="Show the values").click()
    rows = page.get_by_role("region", name="values of loss").get_by_role("row")
    expect(rows.filter(has=page.get_by_role("rowheader", name="50", exact=True))).to_contain_text("NaN")


@pytest.mark.parametrize(
    ("item", "ending", "begins"),
    [("PNG", "png", b"\x89PNG"), ("SVG", "svg", b"<svg"), ("CSV", "csv", b'"run"'), ("Parquet", "parquet", b"PAR1")],
)
def test_a_panel_is_saved_as(page: Page, served: Served, item: str, ending: str, begins: bytes) -> None:
    go(page, served, f"p/page/r/{served.healthy}/charts?search=^loss$")
    expect(page.get_by_role("img", name="loss: 1 line; healthy-one ends")).to_be_visible()
    page.get_by_role("button", name="what can be done with loss").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name=item).click()
    assert download.value.suggested_filename == f"loss.{ending}"
    saved = Path(download.value.path()).read_bytes()
    assert saved.startswith(begins)
    if ending == "svg":
        assert saved.count(b"<path") > 4
        assert b"NaN" not in saved


def test_the_python_of_a_panel_runs_and_reads_the_same_values(page: Page, served: Served, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    go(page, served, f"p/page/r/{served.healthy}/charts?search=^loss$")
    expect(page.get_by_role("img", name="loss: 1 line")).to_be_visible()
    page.get_by_role("button", name="what can be done with loss").click()
    page.get_by_role("menuitem", name="Copy as Python").click()
    expect(page.get_by_role("status")).to_contain_text("Copied")
    code = page.evaluate("navigator.clipboard.readText()")
    script = tmp_path / "panel.py"
    script.write_text(f"{code}\nimport json\nprint(json.dumps(tables[uid]['loss'].to_pylist()))\n")
    key = served.url.partition("#token=")[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TORCHTRACK_API_KEY": key},
    )
    expected = Api(served.folder).run(served.healthy).history(["loss"])["loss"].to_pylist()
    assert done.stdout.strip() == str(expected)


def test_a_column_of_the_heatmap_is_the_histogram_of_its_step(page: Page, served: Served) -> None:
    with page.expect_response("**/histogram") as answer:
        go(page, served, f"p/page/r/{served.healthy}/stability?tensor=0.weight")
    header, columns = read_frame(answer.value.body())
    counts = columns["counts"].reshape(header["shape"])
    run = Api(served.folder).run(served.healthy)
    assert header["bucket"] == 1
    for step in (0, 31, 59):
        column = counts[columns["x"].tolist().index(step)]
        assert column.tolist() == np.asarray(run.histogram("gradient", "0.weight", step).counts).tolist()
    expect(page.get_by_role("img", name="histogram by step of 0.weight")).to_be_visible()


def test_a_metric_lies_over_what_the_run_says_until_people_choose_otherwise(page: Page, served: Served) -> None:
    with answered(page, "by/epoch") as first:
        go(page, served, f"p/page/r/{served.healthy}/charts?search=^(by/epoch|by/hidden|loss)$")
    _, columns = lines(first.value, "by/epoch")

    assert columns["x"].tolist() == [0.0, 1.0, 2.0]
    expect(page.get_by_role("img", name="loss: 1 line")).to_be_visible()
    expect(page.locator("figure", has_text="by/hidden")).to_have_count(0)
    with answered(page, "by/epoch") as second:
        page.get_by_label("what lies along x").select_option("step")
    assert len(lines(second.value, "by/epoch")[1]["x"]) == 30


def test_what_is_pinned_comes_first(page: Page, served: Served) -> None:
    go(page, served, f"p/page/r/{served.healthy}/overview")
    rows = page.locator("section", has_text="Configuration").get_by_role("rowheader")

    expect(rows.first).to_have_text("seed")


def test_losses_lead_and_a_panel_that_is_alone_needs_no_section(page: Page, served: Served) -> None:
    go(page, served, "p/page")
    names = page.locator("figure.panel figcaption .of")
    expect(names.first).to_have_text("loss")
    expect(page.get_by_role("heading", name="by 3")).to_be_visible()
    expect(page.get_by_role("heading", name="long")).to_have_count(0)
    expect(page.locator("section").first).to_contain_text("long/metric")


def test_a_panel_says_the_last_value_of_each_line_while_the_pointer_is_elsewhere(page: Page, served: Served) -> None:
    go(page, served, "p/page?search=^loss$")
    loss = Api(served.folder).run(served.healthy).summary["loss"]
    reading = page.locator(".reading")
    expect(reading).to_contain_text("last")
    expect(reading).to_contain_text(f"{loss:.4g}")
    expect(reading).to_contain_text("not finite")  # the other run ends so
