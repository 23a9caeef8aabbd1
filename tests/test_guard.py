"""The one place that catches everything."""

from __future__ import annotations

import os
import threading

import pytest

from torchtrack import guard


@guard.never_raise("dividing", default=-1.0)
def divide(a: float, b: float) -> float:
    """A quotient."""
    return a / b


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_guarded_function_returns_its_default_and_reports_the_first_failure(caplog: pytest.LogCaptureFixture) -> None:
    assert [divide(1, 0), divide(1, 0), divide(4, 2)] == [-1.0, -1.0, 2.0]
    assert guard.failures == {"dividing: ZeroDivisionError": 2}
    (record,) = caplog.records
    assert "dividing failed and goes on without it" in record.getMessage()
    assert record.exc_info is not None


def test_a_guarded_function_keeps_its_name_and_docstring() -> None:
    assert (divide.__name__, divide.__doc__) == ("divide", "A quotient.")


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_passes(end: type[BaseException]) -> None:
    def leave() -> None:
        raise end

    for call in (guard.never_raise("x")(leave), lambda: guard.attempt("x", leave), lambda: guard.outcome(leave)):
        with pytest.raises(end):
            call()
    assert not guard.failures


@pytest.mark.usefixtures("expect_internal_failures")
def test_an_attempt_says_whether_it_worked() -> None:
    assert guard.attempt("adding", lambda a, *, b: a + b, 1, b=2)
    assert not guard.attempt("adding", lambda a, *, b: a + b, 1, b="2")
    assert guard.failures == {"adding: TypeError": 1}


def test_an_outcome_is_the_value_or_the_exception_and_is_not_reported() -> None:
    error = ValueError("no")

    def fail() -> None:
        raise error

    assert guard.outcome(int, "3") == 3
    assert guard.outcome(fail) is error
    assert not guard.failures


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_forked_child_reports_though_a_thread_of_the_parent_was_reporting() -> None:
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with guard._lock:
            held.set()
            go_on.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        guard.after_fork_in_child()
        divide(1, 0)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    holder.join()
    divide(1, 0)
