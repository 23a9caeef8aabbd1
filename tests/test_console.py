"""Capture of printed lines: nothing changes for the program, and nothing can hang it."""

# ruff: noqa: T201  # what is tested is print
from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torchtrack.console import MAX_LINE_CHARS, ConsoleCapture


@dataclasses.dataclass
class Console:
    stdout: io.StringIO = dataclasses.field(default_factory=io.StringIO)
    stderr: io.StringIO = dataclasses.field(default_factory=io.StringIO)
    lines: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [line for _, line in self.lines]


@contextlib.contextmanager
def console() -> Iterator[Console]:
    """Streams of this test's own; pytest's would come back between the phases of a test."""
    mine = Console()
    with contextlib.redirect_stdout(mine.stdout), contextlib.redirect_stderr(mine.stderr):
        yield mine


@contextlib.contextmanager
def capturing(sink: Callable[[str, str], None] | None = None, **options: Any) -> Iterator[Console]:
    with console() as mine, ConsoleCapture(sink or (lambda *line: mine.lines.append(line)), **options):
        yield mine


def test_each_printed_line_reaches_the_sink_with_its_stream() -> None:
    with capturing() as got:
        print("one", 1)
        print("two\nthree", file=sys.stderr)
    assert got.lines == [("stdout", "one 1"), ("stderr", "two"), ("stderr", "three")]


def test_a_line_is_handed_over_as_soon_as_it_is_complete() -> None:
    with capturing() as got:
        print("one")
        assert got.lines == [("stdout", "one")]


def test_what_is_printed_still_reaches_the_original_stream() -> None:
    with capturing() as got:
        print("one")
        sys.stdout.writelines(["two", "\n"])
    assert got.stdout.getvalue() == "one\ntwo\n"
    assert got.texts == ["one", "two"]


def test_write_returns_what_the_original_returns() -> None:
    with capturing():
        assert sys.stdout.write("four") == 4


def test_a_line_is_put_together_from_its_writes() -> None:
    with capturing() as got:
        for text in ("a", "b", "c\n"):
            sys.stdout.write(text)
    assert got.lines == [("stdout", "abc")]


def test_a_progress_bar_becomes_its_last_state() -> None:
    with capturing() as got:
        for percent in range(101):
            sys.stderr.write(f"\r{percent}%")
        sys.stderr.write("\n")
    assert got.lines == [("stderr", "100%")]


def test_a_line_ended_by_carriage_return_and_newline_is_kept() -> None:
    with capturing() as got:
        sys.stdout.write("text\r\n")
    assert got.texts == ["text"]


def test_a_bar_longer_than_any_line_still_becomes_its_last_state() -> None:
    with capturing() as got:
        for count in range(20_000):
            sys.stderr.write(f"\rstep {count}")
        sys.stderr.write("\n")
    assert got.texts == ["step 19999"]


def test_a_very_long_line_is_cut() -> None:
    with capturing() as got:
        for _ in range(3):
            sys.stdout.write("x" * MAX_LINE_CHARS)
        print()
    assert [len(text) for text in got.texts] == [MAX_LINE_CHARS]


def test_stop_hands_over_an_incomplete_line() -> None:
    with capturing() as got:
        sys.stdout.write("no newline")
    assert got.texts == ["no newline"]
    assert got.stdout.getvalue() == "no newline"


def test_attributes_are_those_of_the_original_stream(tmp_path: Path) -> None:
    file = (tmp_path / "out").open("w", encoding="latin-1")
    with file, contextlib.redirect_stdout(file), ConsoleCapture(lambda *_: None):
        assert sys.stdout.fileno() == file.fileno()
        assert sys.stdout.encoding == "latin-1"
        assert not sys.stdout.isatty()
        assert sys.stdout.buffer is file.buffer


def test_stop_puts_the_original_stream_back() -> None:
    with console() as mine:
        capture = ConsoleCapture(lambda *_: None)
        capture.start()
        assert sys.stdout is not mine.stdout
        capture.stop()
        assert sys.stdout is mine.stdout


def test_stop_leaves_a_stream_that_somebody_else_replaced() -> None:
    other = io.StringIO()
    with console():
        capture = ConsoleCapture(lambda *_: None)
        capture.start()
        sys.stdout = other
        capture.stop()
        assert sys.stdout is other


def test_a_kept_reference_goes_on_printing_after_stop_and_is_not_recorded() -> None:
    with capturing() as got:
        kept = sys.stdout
    print("late", file=kept)
    assert got.stdout.getvalue() == "late\n"
    assert got.lines == []


def test_starting_twice_records_a_line_once() -> None:
    got: list[str] = []
    with console() as mine:
        capture = ConsoleCapture(lambda _, line: got.append(line))
        capture.start()
        capture.start()
        print("once")
        capture.stop()
        assert sys.stdout is mine.stdout
    assert got == ["once"]


def test_what_the_sink_prints_is_not_recorded_again() -> None:
    got: list[str] = []

    def sink(stream: str, line: str) -> None:
        got.append(line)
        print("from the sink")
        print("from the sink", file=sys.stderr)

    with capturing(sink) as mine:
        print("once")
    assert got == ["once"]
    assert mine.stdout.getvalue() == "once\nfrom the sink\n"


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_failing_sink_does_not_reach_the_program() -> None:
    def sink(stream: str, line: str) -> None:
        raise OSError("disk full")

    with capturing(sink) as mine:
        print("still here")
    assert mine.stdout.getvalue() == "still here\n"


def test_a_thread_that_prints_while_holding_the_lock_the_sink_waits_for_does_not_hang() -> None:
    lock, in_sink = threading.Lock(), threading.Event()
    got: list[str] = []

    def sink(stream: str, line: str) -> None:
        in_sink.set()
        with lock:
            got.append(line)

    with capturing(sink):
        with lock:
            other = threading.Thread(target=print, args=("one",), daemon=True)
            other.start()
            assert in_sink.wait(10)
            print("two")  # the other thread is in the sink and waits for the lock held here
        other.join(10)
    assert got == ["one", "two"]


def test_many_threads_lose_and_mix_no_line() -> None:
    def work(worker: int) -> None:
        for index in range(200):
            sys.stdout.write(f"{worker} {index}\n")

    with capturing(max_lines_per_s=10_000) as got:
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(got.texts) == sorted(f"{worker} {index}" for worker in range(4) for index in range(200))


def test_lines_beyond_the_rate_are_counted_and_one_line_says_so() -> None:
    now = 0.0
    with capturing(max_lines_per_s=2, clock=lambda: now) as got:
        for index in range(5):
            print(index)
        now = 1.0
        print("later")
    assert got.texts == ["0", "1", "[torchtrack: 3 lines not recorded, more than 2 a second]", "later"]


def test_lines_dropped_in_the_last_second_are_told_at_stop() -> None:
    with capturing(max_lines_per_s=1, clock=lambda: 0.0) as got:
        print("a\nb\nc")
    assert got.texts == ["a", "[torchtrack: 2 lines not recorded, more than 1 a second]"]


def test_a_forked_child_prints_but_records_nothing() -> None:
    context = multiprocessing.get_context("fork")
    recorded = context.Value("i", 0)

    def sink(stream: str, line: str) -> None:
        recorded.value += 1

    with capturing(sink):
        child = context.Process(target=print, args=("from the child",))
        child.start()
        child.join(10)
    assert child.exitcode == 0
    child.close()
    assert recorded.value == 0


def test_a_program_without_a_console_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with ConsoleCapture(lambda *_: None):
        assert sys.stdout is None
