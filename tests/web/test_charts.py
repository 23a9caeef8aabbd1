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

from tests.web.conftest import Served
from torchtrack import Api
from torchtrack.server.answers import read_frame


def go(page: Page, served: Served, path: str) -> None:
    page.goto(f"{served.address}#/{path}")


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
        return response.url.endswith("/series") and metric in (response.request.post_data or "")

    return page.expect_response(is_it)


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
