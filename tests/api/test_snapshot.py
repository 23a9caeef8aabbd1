"""A run in a notebook."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from tests.api.journals import UID, RankJournal
from torchtrack.api import Api

Make = Callable[..., RankJournal]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
TAGS = {"div", "p", "strong", "code", "svg", "polyline", "table", "tr", "td"}
ATTRIBUTES = {
    "role", "aria-label", "width", "height", "viewbox", "points", "fill", "stroke", "stroke-width", "style",
}  # fmt: skip
"""All that a snapshot is made of: nothing of it loads or runs anything."""


class Parts(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_name_state_last_values_and_a_curve_that_keeps_a_spike(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.about(name="calm-otter-7")
        for step in range(1000):
            rank.log(step, {"loss": 9.0 if step == 500 else 1.0})
    text = Api(runs).run(UID)._repr_html_()
    assert "calm-otter-7" in text
    assert "finished" in text
    assert "<td>loss</td>" in text
    points = re.search('points="([^"]*)"', text)
    assert points is not None
    heights = [float(pair.partition(",")[2]) for pair in points[1].split()]
    assert min(heights) == 2.0
    assert sorted(heights)[1] == 62.0


def test_texts_of_a_run_are_shown_as_text_in_a_notebook(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.about(name=HOSTILE, project=HOSTILE.replace("/", ""))
        for step in range(3):
            rank.log(step, {HOSTILE: float(step)})
            rank.text(step, "said", HOSTILE)
    parts = Parts(Api(runs).run(UID)._repr_html_())
    assert parts.text.count(HOSTILE) >= 3
    assert parts.tags <= TAGS
    assert parts.attributes <= ATTRIBUTES


def test_a_run_that_has_logged_nothing_shows_itself_too(runs: Path, journal: Make) -> None:
    with journal():
        pass
    assert UID in Api(runs).run(UID)._repr_html_()
