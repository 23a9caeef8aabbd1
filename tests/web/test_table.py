"""Runs and workspace in a browser: columns, groups, changes of many runs, saved views, by mouse and by keyboard."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import Served, go
from torchtrack import Api


def test_columns_are_chosen_and_each_change_is_undone_by_itself_however_quickly_it_came(
    page: Page, served: Served
) -> None:
    go(page, served, 'p/page/runs?filter=name ~ "*-one"')
    loss, ranks = (page.get_by_role("columnheader", name=name) for name in ("summary.loss", "Ranks"))
    page.get_by_role("button", name="Columns").click()
    page.get_by_role("searchbox", name="find a column").fill("loss")
    page.get_by_role("checkbox", name="summary.loss").uncheck()
    page.get_by_role("button", name="Only what differs").click()
    expect(ranks).to_be_hidden()
    expect(page.get_by_role("columnheader", name="config.lr")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+z")
    expect(ranks).to_be_visible()
    expect(loss).to_be_hidden()
    page.keyboard.press("Control+z")
    expect(loss).to_be_visible()


def test_a_group_says_how_many_runs_it_has_and_their_mean(page: Page, served: Served) -> None:
    go(page, served, 'p/page/runs?filter=state %3D finished and name ~ "*-one"&group=state')
    group = page.get_by_role("row").filter(has=page.get_by_role("button", name="finished 2"))
    expect(group).to_contain_text("0.055 ± 0.0636")
    group.get_by_role("button").click()
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_hidden()


def test_a_run_is_chosen_tagged_deleted_and_brought_back_by_keyboard(page: Page, served: Served) -> None:
    go(page, served, 'p/page/runs?filter=name ~ "*-one"&sort=name')
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_visible()
    page.keyboard.press("j")
    page.keyboard.press("x")
    expect(page.get_by_role("checkbox", name="choose healthy-one")).to_be_checked()
    page.get_by_role("button", name="Tags").click()
    page.keyboard.type("kept, by-hand")
    page.keyboard.press("Enter")
    expect(page.get_by_role("rowheader", name="healthy-one")).to_contain_text("by-hand")
    page.keyboard.press("Control+z")
    expect(page.get_by_role("rowheader", name="healthy-one")).not_to_contain_text("by-hand")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("rowheader", name="healthy-one")).to_be_hidden()
    page.keyboard.press("Control+z")
    expect(page.get_by_role("rowheader", name="healthy-one")).to_be_visible()


def test_a_filter_is_completed_as_one_types(page: Page, served: Served) -> None:
    go(page, served, "p/page/runs")
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("config.l")
    expect(page.get_by_role("option", name="config.lr")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.type("> 0.05")
    page.keyboard.press("Enter")
    expect(page.get_by_role("rowheader", name="healthy-one")).to_be_hidden()
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_visible()


def test_the_table_is_saved_as_csv(page: Page, served: Served) -> None:
    go(page, served, 'p/page/runs?filter=name ~ "*-one"&columns=config.lr')
    expect(page.get_by_role("rowheader", name="sick-one")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    rows = Path(download.value.path()).read_text().splitlines()
    assert rows[0] == "uid,name,tags,config.lr"
    assert sorted(row.partition(",")[2] for row in rows[1:]) == ["healthy-one,[],0.01", "sick-one,[],0.1"]


def test_settings_stand_against_results(page: Page, served: Served) -> None:
    go(page, served, "p/page?show=many")
    expect(page.get_by_role("img", name="parallel coordinates")).to_be_visible()
    expect(page.get_by_role("img", name="against config.lr")).to_be_visible()


def test_a_group_of_runs_is_a_mean_with_a_band(page: Page, served: Served) -> None:
    go(page, served, "p/page?group=group&search=^loss$&smooth=0&logx=1")
    plot = page.get_by_role("img", name="loss: 1 line").locator(".u-over")
    box = plot.bounding_box()
    assert box is not None
    plot.hover(position={"x": box["width"] / 5, "y": box["height"] / 2})  # there neither run is NaN yet
    reading = page.locator(".reading").filter(has_text="2 of them")
    expect(reading).to_be_visible()
    found = re.fullmatch(r"step (\d+)\D+?([\d.]+)\s+([\d.]+) … ([\d.]+), 2 of them", reading.inner_text())
    assert found, reading.inner_text()
    runs = [Api(served.folder).run(uid).history(["loss"])["loss"].to_pylist() for uid in (served.healthy, served.sick)]
    here = [losses[int(found[1])] for losses in runs]
    assert [float(text) for text in found.groups()[1:]] == pytest.approx([sum(here) / 2, *sorted(here)], rel=1e-3)
    page.get_by_role("combobox", name="Group by").select_option("config.lr")
    expect(page.get_by_role("img", name="loss: 2 lines; 0.")).to_be_visible()
    page.get_by_role("combobox", name="Group by").select_option("")
    expect(page.get_by_role("img", name="loss: 2 lines; ")).not_to_have_accessible_name("loss: 2 lines; 0.")


def test_a_view_is_saved_under_a_name_and_opened_again(page: Page, served: Served) -> None:
    go(page, served, "p/page?search=long&y=log")
    expect(page.get_by_role("img", name="long/metric: 2 lines")).to_be_visible()
    page.get_by_role("button", name="Save view").click()
    page.get_by_role("textbox", name="name of the view").fill("the long one")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Saved as the long one")
    go(page, served, "p/page?search=loss")
    expect(page.get_by_role("img", name="long/metric")).to_be_hidden()
    views = page.get_by_role("combobox", name="saved views")
    view = views.locator("option").filter(has_text="the long one")
    views.select_option(value=view.get_attribute("value"))
    expect(page.get_by_role("img", name="long/metric: 2 lines")).to_be_visible()
    expect(page.get_by_role("combobox", name="scale of y")).to_have_value("log")
    page.get_by_role("button", name="Remove").click()
    expect(view).to_have_count(0)
