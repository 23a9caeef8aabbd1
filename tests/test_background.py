"""The thread for what may be slow and may fail."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.runs import until
from torchtrack import guard
from torchtrack.background import QUEUE_LENGTH, Background

WAIT_S = 20.0


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background()
    background.start()
    yield background
    assert background.close(WAIT_S)


def test_jobs_run_in_order_on_one_thread_of_its_own(background: Background) -> None:
    seen: list[tuple[int, str]] = []
    for i in range(100):
        assert background.submit("job", lambda i=i: seen.append((i, threading.current_thread().name)))  # type: ignore[misc]
    assert background.close(WAIT_S)

    assert seen == [(i, "torchtrack-background") for i in range(100)]


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_job_that_fails_is_reported_and_the_next_one_runs(background: Background) -> None:
    ran = threading.Event()
    background.submit("sums", lambda: 1 / 0)
    background.submit("next", ran.set)

    assert ran.wait(WAIT_S)
    assert guard.failures == {"sums: ZeroDivisionError": 1}


def test_a_full_queue_refuses_and_never_waits(background: Background) -> None:
    started, go_on = threading.Event(), threading.Event()
    background.submit("slow", started.set)
    background.submit("slower", lambda: go_on.wait(WAIT_S))
    assert started.wait(WAIT_S)
    until(lambda: not background._jobs)
    taken = [background.submit("job", int) for _ in range(QUEUE_LENGTH + 5)]
    go_on.set()

    assert taken == [True] * QUEUE_LENGTH + [False] * 5


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_repeated_job_runs_at_once_and_again_even_if_it_fails(background: Background) -> None:
    times: list[int] = []
    often = threading.Event()

    def job() -> None:
        times.append(1)
        if len(times) == 5:
            often.set()
        raise ValueError("every time")

    background.every(0.001, "clock", job)

    assert often.wait(WAIT_S)


def test_a_repeated_job_waits_for_its_interval(background: Background) -> None:
    times: list[int] = []
    background.every(1000.0, "clock", lambda: times.append(1))
    for _ in range(10):
        done = threading.Event()
        background.submit("job", done.set)
        assert done.wait(WAIT_S)

    assert times == [1]


def test_close_runs_what_is_queued_and_takes_nothing_more(background: Background) -> None:
    seen: list[int] = []
    background.every(0.0, "clock", int)
    background.submit("job", lambda: seen.append(1))
    assert background.close(WAIT_S)

    assert seen == [1]
    assert not background.submit("late", int)


def test_close_says_when_a_job_hangs() -> None:
    background = Background()
    background.start()
    started, go_on = threading.Event(), threading.Event()
    background.submit("works", started.set)
    background.submit("hangs", lambda: go_on.wait(WAIT_S))

    assert started.wait(WAIT_S)
    assert not background.close(0.01)
    go_on.set()
    assert background.close(WAIT_S)


def test_one_that_was_never_started_closes_at_once() -> None:
    assert Background().close(WAIT_S)


def test_what_is_queued_just_before_it_is_told_to_end_is_done() -> None:
    background, done = Background(), list[str]()

    class Jobs(deque[tuple[str, Callable[[], Any]]]):
        """Found empty, and filled before the thread goes on: as if it had been held up there."""

        def __bool__(self) -> bool:
            found = len(self) > 0
            if not found and background.submit("late", lambda: done.append("late")):
                background._stopping = True
            return found

    background._jobs = Jobs()
    background.start()

    assert background.close(10.0)
    assert done == ["late"]
