"""What an alert is and how often people are told."""

from __future__ import annotations

import importlib.util
import itertools
import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runs import begin
from torchtrack import alerts
from torchtrack.alerts import PER_MINUTE, Alert, Limiter


@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from("abc")), max_size=150), st.floats(0, 90))
def test_no_title_within_its_wait_no_more_messages_than_the_limit_and_none_lost(
    arrivals: list[tuple[float, str]], wait_s: float
) -> None:
    limiter, now, told, sent = Limiter(), 0.0, 0, []
    taken: dict[str, list[float]] = {}
    for pause, title in arrivals:
        now += pause
        if limiter.take(Alert(title, wait_s=wait_s, time_s=now)):
            taken.setdefault(title, []).append(now)
        for message in limiter.due(now):
            sent.append(now)
            told += int(message.title.split()[0]) if message.title.endswith(" alerts") else 1
    for message in limiter.due(now, last=True):
        told += int(message.title.split()[0]) if message.title.endswith(" alerts") else 1

    assert told == sum(map(len, taken.values()))
    for times in taken.values():
        assert all(b - a >= wait_s for a, b in itertools.pairwise(times))
    assert all(sum(at - 60 < other <= at for other in sent) <= PER_MINUTE for at in sent)


@pytest.mark.parametrize("mark", [{"cause": "loss_spike-2"}, {"again": True}, {"withdrawn": True}])
def test_what_was_told_before_or_is_told_with_another_is_no_alert(mark: dict[str, object]) -> None:
    finding = {"rule": "non_finite", "severity": "critical", "first_step": 3, "why": "NaN"}
    assert Alert.of_event("finding", finding, 1.0, "info") is not None
    assert Alert.of_event("finding", {**finding, **mark}, 1.0, "info") is None


def test_an_alert_says_which_grave_thing_followed() -> None:
    parts = [{"rule": "loss_spike", "severity": "warning", "first_step": 4, "why": "It rose."}]
    parts.append({"rule": "non_finite", "severity": "critical", "first_step": 5, "why": "It is NaN."})
    cause = {"rule": "gradient_spike", "severity": "critical", "why": "Up.", "look_at": "Look."}
    alert = Alert.of_event("finding", {**cause, "consequences": parts}, 1.0, "critical")
    assert alert is not None
    assert alert.text == "Up.\nthen non_finite at step 5: It is NaN.\nLook."


def test_findings_are_alerts_from_a_severity_on_and_told_once() -> None:
    finding = {"rule": "spike", "severity": "critical", "first_step": 4, "why": "it rose"}
    alert = Alert.of_event("finding", finding, 1.0, "critical")
    assert alert is not None
    assert (alert.level, alert.wait_s) == ("error", math.inf)
    assert Alert.of_event("finding", {**finding, "severity": "warning"}, 1.0, "critical") is None
    assert Alert.of_event("finding", finding, 1.0, "none") is None
    assert Alert.of_event("finding", {**finding, "cause": "x-1"}, 1.0, "critical") is None


def test_wait_durations_are_seconds_or_timedeltas() -> None:
    assert alerts.seconds_of(None) == 60
    assert alerts.seconds_of(timedelta(minutes=2)) == 120
    with pytest.raises(TypeError, match="seconds or a timedelta"):
        alerts.seconds_of("soon")


def test_without_apprise_one_line_names_the_command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    begin(sidecar=True, mode="offline", alert_urls="json://127.0.0.1:1/").finish(quiet=True)
    assert "pip install 'torchtrack[alerts]'" in caplog.text
