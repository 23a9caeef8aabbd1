"""The language runs are filtered with, asked of the table of runs."""

from __future__ import annotations

import math

import pytest

from torchtrack.server.filters import FilterError, compile_filter
from torchtrack.server.ledger import Entry, Ledger
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.overview import Scope, page

FIELDS = ("state", "name", "tags", "config", "summary", "archived")
RUN = {
    "uid": "run",
    "state": "running",
    "name": "llm-7b",
    "tags": ["best", "a"],
    "archived": False,
    "config": {
        "lr": 1e-4,
        "model": {"dim": 512},
        "on": True,
        "odd key!": 1,
        "odd": "a",
        "seed": 7,
        "words": "x y",
        "sizes": [512, "a"],
        "none": None,
        "a": {"b.c": 1},
    },
    "summary": {"val/loss": 0.25, "nan": math.nan},
}


FITS = [
    "",
    "state = running",
    "state=running and config.lr<3e-4 and (name ~ 'llm-*' or \"worst\" in tags)",
    "not config.missing = 3",
    "config.model.dim = 512",
    "summary.val/loss < 0.3",
    "`summary.val/loss` < .3",
    "`config.odd key!` = 1",
    "state in [finished, running]",
    "best in tags",
    "config.lr",
    'name = "llm-7b" AND NOT state = crashed',
    "state = crashed or state = running and config.lr = 1e-4",
    "archived = false",
    "config.on = true",
    "name ~ '*7b'",
    "config.odd in [a, 1]",
    "config.seed = '7'",
    "config.seed != seven",
    "config.lr != word",
    "config.words != 3",
    "config.sizes",
    "512 in config.sizes",
    "lm in name",
    "tags ~ '*best*'",
]
FITS_NOT = [
    "state = finished",
    "config.lr >= 1",
    "config.missing != 3",
    "config.missing",
    "summary.nan < 1 or summary.nan >= 1",
    "config.on = 1",
    "config.model < 3",
    "state = running and not state = running",
    "(state = crashed or state = running) and config.lr > 1",
    "worst in tags",
    "512.5 in config.sizes",
    "'512' in config.sizes",
    "config.words < 3",
    "config.lr = true",
    "config.lr != true",
    "config.on = yes",
    "config.none",
    "state = lost",
    "name = 3 or name < 3",
    "config.a.b = 1",
]


def asked(store: MetricsStore, text: str) -> list[str]:
    _, rows = page(store, Scope(), compile_filter(text, FIELDS), ["-created"], 10, 0)
    return [row["uid"] for row in rows]


def test_a_run_is_found_by_what_fits_it_and_by_nothing_else(store: MetricsStore) -> None:
    ledger = Ledger(store)
    ledger.load()
    ledger.put([Entry(RUN, 1, 1)], {})

    for text in FITS:
        assert asked(store, text) == ["run"], text
    for text in FITS_NOT:
        assert asked(store, text) == [], text
        assert asked(store, f"not ({text})") == ["run"], text


def test_a_run_that_gives_no_sign_of_life_is_lost_without_being_written_anew(store: MetricsStore) -> None:
    ledger = Ledger(store)
    ledger.load()
    ledger.put([Entry(RUN, 1, 1, lost_at_us=1 << 60)], {})
    assert asked(store, "state = running") == ["run"]
    ledger.put([Entry(RUN, 2, 1, lost_at_us=1)], {})
    assert asked(store, "state = lost") == ["run"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("state = ", r"at its end; .*a \"text\""),
        ("state == running andd x", r"at character 23; .*and.*or"),
        ("stat = running", "no field 'stat'.*there are archived, config, name, state, summary, tags"),
        ("(state = a", r"at its end; .*\)"),
        ("state = a)", "at character 10; .*and, or"),
        ("config.lr <> 3", "at character 12; .*a number"),
        ("'x", "at character 1"),
        ("a = 1 and " * 200 + "a = 1", "at most 1000 characters"),
    ],
)
def test_what_is_no_filter_is_told_where_and_what_could_stand_there(text: str, says: str) -> None:
    with pytest.raises(FilterError, match=says):
        compile_filter(text, FIELDS)
