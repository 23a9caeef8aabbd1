"""The language runs are filtered with."""

from __future__ import annotations

import math

import pytest

from torchtrack.server.filters import FilterError, compile_filter

FIELDS = ("state", "name", "tags", "config", "summary", "archived")
RUN = {
    "state": "running",
    "name": "llm-7b",
    "tags": ["best", "a"],
    "archived": False,
    "config": {"lr": 1e-4, "model": {"dim": 512}, "on": True, "odd key!": 1},
    "summary": {"val/loss": 0.25, "nan": math.nan},
}


@pytest.mark.parametrize(
    "text",
    [
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
    ],
)
def test_a_run_that_fits_is_found(text: str) -> None:
    assert compile_filter(text, FIELDS)(RUN)


@pytest.mark.parametrize(
    "text",
    [
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
    ],
)
def test_a_run_that_does_not_fit_is_not_found(text: str) -> None:
    assert not compile_filter(text, FIELDS)(RUN)


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
