"""Maps of layers and distributions in a browser: two runs against each other, the limits of a format."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.web.conftest import Served, go, painted
from torchtrack import Api


def test_the_layers_of_two_runs_stand_above_each_other_and_their_ratio_below(page: Page, served: Served) -> None:
    go(page, served, f"p/page/compare?runs={served.healthy},{served.sick}")
    layers = page.get_by_role("region", name="layers of two runs")
    for name in ("layers by step of healthy-one", "layers by step of sick-one", "difference of layers by step"):
        chart = layers.get_by_role("img", name=f"{name}, gradient, norm: 4 rows, 60 columns")
        expect(chart).to_be_visible()
        painted(chart)
    plot = layers.get_by_role("img", name="difference of layers").locator(".u-over")
    plot.hover(position={"x": 1, "y": 4})
    tip = page.locator(".tip")
    expect(tip).to_contain_text("0.weight")
    said = re.search(r"step (\d+) · (\S+) and (\S+) · (\S+) .", tip.inner_text())
    assert said, tip.inner_text()
    norms = [
        run.tensors("gradient", "0.weight", int(said[1]), int(said[1]) + 1)["norm"].to_pylist()[0]
        for run in map(Api(served.folder).run, (served.healthy, served.sick))
    ]
    for text, expected in zip(said.groups()[1:], [*norms, norms[1] / norms[0]], strict=True):
        assert abs(float(text) / expected - 1) < 1e-2


def test_which_two_runs_is_chosen_and_a_layer_opens_both_of_its_distributions(page: Page, served: Served) -> None:
    go(page, served, f"p/page/compare?runs={served.healthy},{served.sick}")
    page.get_by_role("combobox", name="first run").select_option(label="sick-one")
    page.get_by_role("combobox", name="second run").select_option(label="healthy-one")
    layers = page.get_by_role("region", name="layers of two runs")
    difference = layers.get_by_role("img", name="difference of layers by step, gradient, norm: 4 rows")
    difference.locator(".u-over").click(position={"x": 5, "y": 4})
    expect(layers.get_by_role("img", name="histogram by step of 0.weight")).to_have_count(2)
    expect(layers.get_by_text("gradient of 0.weight in sick-one")).to_be_visible()
    assert f"a={served.sick}" in page.url


def test_the_limits_of_a_format_say_what_would_be_lost_in_it(page: Page, served: Served) -> None:
    go(page, served, f"p/page/r/{served.healthy}/stability?tensor=0.weight")
    expect(page.get_by_text(re.compile("In fp16, of the elements in sight that are not zero"))).to_be_visible()
    chart = page.get_by_role("img", name="histogram by step of 0.weight")
    narrow = int((chart.get_attribute("aria-label") or "").split()[-4])
    page.get_by_role("combobox", name="limits of a format").select_option("e4m3")
    expect(page.get_by_text(re.compile(r"In e4m3, .* % lie below its smallest number"))).to_be_visible()
    expect(chart).not_to_have_attribute("aria-label", re.compile(f": {narrow} rows"))
    assert "format=e4m3" in page.url
    page.get_by_role("combobox", name="limits of a format").select_option("none")
    expect(page.get_by_text("of the elements in sight")).to_have_count(0)
