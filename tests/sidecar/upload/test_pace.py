"""When the next request goes."""

from __future__ import annotations

import random
from email.utils import formatdate

import pytest

from torchtrack.sidecar.upload.pace import LONGEST_WAIT_S, Pace, retry_after

NOW = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("31536000", LONGEST_WAIT_S),
        ("9" * 400, LONGEST_WAIT_S),
        ("-3", None),
        ("1e9", None),
        ("soon", None),
        ("\u0663", None),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        (formatdate(NOW + 1e8, usegmt=True), LONGEST_WAIT_S),
        ("Wed, 99 Foo 2026 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_never_stalls_for_ever(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, NOW) == seconds


def test_a_server_is_never_asked_earlier_than_it_said_and_not_by_all_at_once() -> None:
    waits = []
    for seed in range(200):
        clock = Clock()
        pace = Pace(clock, random.Random(seed))
        pace.failed(30.0)
        waits.append(pace.wait_s())

    assert min(waits) >= 30
    assert len(set(waits)) == 200
    assert max(waits) - min(waits) > 25


def test_without_a_word_from_the_server_the_wait_is_random_up_to_a_bound_that_doubles_to_a_minute() -> None:
    for failures, bound in [(1, 1), (2, 2), (3, 4), (7, 60), (40, 60)]:
        waits = []
        for seed in range(300):
            pace = Pace(Clock(), random.Random(seed))
            for _ in range(failures):
                pace.failed()
            waits.append(pace.wait_s())
        assert 0.9 * bound < max(waits) <= bound
        assert min(waits) < 0.1 * bound


def test_an_end_does_not_wait_for_the_interval_but_for_a_server_that_wants_peace() -> None:
    pace = Pace(Clock(), random.Random(0))
    pace.succeeded(5.0)
    pace.hurry()
    at_once = pace.wait_s()
    pace.failed(30.0)
    pace.hurry()

    assert at_once == 0
    assert pace.wait_s() >= 30


@pytest.mark.parametrize("said", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_budget_that_makes_no_sense_is_a_minute(said: float) -> None:
    pace = Pace(Clock(), random.Random(0))
    pace.succeeded(said)

    assert 50 < pace.wait_s() < 70
