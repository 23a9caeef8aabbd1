"""A fork and the threads that are inside Arrow keep clear of each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.runs import until
from torchtrack import forks


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    forks.after_in_child()


def test_a_fork_waits_for_a_thread_that_is_at_work() -> None:
    said: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with forks.at_work():
            inside.set()
            leave.wait()
            said.append("worked")

    def fork() -> None:
        forks.before()
        said.append("forked")
        forks.after_in_parent()

    worker, forker = threading.Thread(target=work), threading.Thread(target=fork)
    worker.start()
    inside.wait()
    forker.start()
    assert until(lambda: forks._forks == 1)
    leave.set()
    worker.join()
    forker.join()

    assert said == ["worked", "forked"]


def test_no_thread_begins_while_a_fork_is_under_way() -> None:
    said: list[str] = []
    begun = threading.Event()

    def work() -> None:
        begun.set()
        with forks.at_work():
            said.append("worked")

    forks.before()
    worker = threading.Thread(target=work)
    worker.start()
    begun.wait()
    said.append("forked")
    forks.after_in_parent()
    worker.join()

    assert said == ["forked", "worked"]


def test_a_thread_that_is_at_work_itself_forks_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PATIENCE_S", 1e9)
    with forks.at_work():
        forks.before()
        forks.after_in_parent()


def test_a_fork_gives_up_on_a_thread_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PATIENCE_S", 0.01)
    inside, leave = threading.Event(), threading.Event()

    def hang() -> None:
        with forks.at_work():
            inside.set()
            leave.wait()

    worker = threading.Thread(target=hang)
    worker.start()
    inside.wait()
    forks.before()
    forks.after_in_parent()
    leave.set()
    worker.join()


def test_in_the_child_nobody_is_at_work() -> None:
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with forks.at_work():
            inside.set()
            leave.wait()

    worker = threading.Thread(target=work)
    worker.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        forks.after_in_child()
        forks.before()
        os._exit(7 if not forks._at_work else 1)
    leave.set()
    worker.join()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
