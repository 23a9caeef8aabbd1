"""The thread between log() and the journal: order, exactness, bounds; the journal is in memory, can hang or fail."""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.runs import Memory, recorder, until
from torchtrack import records
from torchtrack.columns import VALUES_PER_FRAME, Layout, is_exact, scalars_batch
from torchtrack.recorder import Recorder

STOP_S = 20.0
X = Layout(["x"], "mean")


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.gate.set()


def row(
    to: Recorder, value: float, step: int | None = None, *, layout: Layout | None = None, commit: bool = True
) -> None:
    to.row(layout or X, [value] * len((layout or X).names), step, commit=commit)


def text(number: int) -> dict[str, Any]:
    return {"step": number, "time": 1, "name": "t", "text": str(number)}


class OnDevice:
    """A number that arrives when the test says so."""

    def __init__(self, number: float, *, there: bool = False, error: Exception | None = None) -> None:
        self.number, self.there, self.error = number, there, error

    def ready(self) -> bool:
        if self.error is not None:
            raise self.error
        return self.there

    def value(self) -> float:
        return self.number


# -- order and exactness ----------------------------------------------------------------------------------------------


def test_rows_of_several_layouts_keep_the_order_they_were_logged_in(memory: Memory) -> None:
    to = recorder(memory)
    layouts = [Layout(["a"], "mean"), Layout(["a", "b"], "sum"), Layout(["c", "a"], "min")]
    for i in range(1000):
        row(to, float(i), layout=layouts[i % 3])
    assert to.stop(STOP_S)

    assert memory.values("a") == [float(i) for i in range(1000)]
    assert [r["step"] for r in memory.rows() if r["name"] == "a"] == list(range(1000))
    assert {r["reduce"] for r in memory.rows() if r["name"] == "b"} == {"sum"}


def test_a_frame_holds_a_bounded_number_of_values(memory: Memory) -> None:
    to = recorder(memory, flush_interval_s=1000.0)
    wide, narrow = Layout([f"w{i}" for i in range(300)], "mean"), Layout(["n"], "mean")
    for i in range(1000):
        row(to, float(i), layout=wide)
        row(to, float(i), layout=narrow)
    for i in range(VALUES_PER_FRAME + 10):
        row(to, float(i), layout=narrow)
    assert to.stop(STOP_S)

    assert max(frame.num_rows for _, frame in memory.frames) <= VALUES_PER_FRAME
    assert memory.values("w299") == [float(i) for i in range(1000)]
    assert len(memory.values("n")) == 1000 + VALUES_PER_FRAME + 10


def test_a_row_wider_than_a_frame_is_still_one_row(memory: Memory) -> None:
    to = recorder(memory)
    row(to, 2.0, layout=Layout([f"w{i}" for i in range(VALUES_PER_FRAME + 5)], "mean"))
    row(to, 3.0)
    assert to.stop(STOP_S)

    assert len(memory.rows()) == VALUES_PER_FRAME + 6


def test_one_wide_row_does_not_cut_the_others_into_frames_of_their_own(memory: Memory) -> None:
    to = recorder(memory, flush_interval_s=1000.0)
    for i in range(1000):
        row(to, float(i))
    row(to, 0.0, layout=Layout([f"w{i}" for i in range(VALUES_PER_FRAME)], "mean"))
    for i in range(1000, 2000):
        row(to, float(i))
    assert to.stop(STOP_S)

    assert memory.values("x") == [float(i) for i in range(2000)]
    assert len(memory.frames) <= 4


def python_calls(rows: int) -> int:
    """Function calls, of Python and of C, that one frame of so many rows takes."""
    layout = Layout([f"m{i}" for i in range(16)], "mean")
    packed = b"".join(layout.pack(i, i, i, *map(float, range(16))) for i in range(rows))
    table = np.frombuffer(packed, np.int64).reshape(rows, -1)
    other = Layout(["z"], "sum")
    one = np.frombuffer(other.pack(rows, 0, 0, 1.0), np.int64).reshape(1, -1)
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        batch = scalars_batch([(layout, table), (other, one)])
    finally:
        sys.setprofile(None)
    assert batch.num_rows == rows * 16 + 1
    return calls


def test_a_full_frame_takes_no_more_python_calls_than_a_row() -> None:
    assert python_calls(VALUES_PER_FRAME // 16) < python_calls(1) + 16


def test_integers_are_exact_up_to_2_to_the_53() -> None:
    assert is_exact(2**53)
    assert is_exact(-(2**53))
    assert not is_exact(2**53 + 1)
    assert not is_exact(np.uint64(2**64 - 1))


def test_all_writing_is_done_by_the_recorders_own_thread(memory: Memory) -> None:
    to = recorder(memory)
    for i in range(100):
        row(to, float(i))
        to.put(records.Table.TEXTS, lambda i=i: text(i))  # type: ignore[misc]
    assert to.flush(STOP_S)
    assert to.stop(STOP_S)

    assert memory.threads == {"torchtrack-recorder"}


# -- flush and stop ---------------------------------------------------------------------------------------------------


def test_flush_waits_for_all_that_was_logged(memory: Memory) -> None:
    to = recorder(memory, flush_interval_s=1000.0)
    for i in range(40_000):  # more than several turns take
        to.put(records.Table.TEXTS, lambda i=i: text(i))  # type: ignore[misc]
    row(to, 1.0)

    assert to.flush(STOP_S)
    assert [r["step"] for r in memory.rows(records.Table.TEXTS)] == list(range(40_000))
    assert memory.values("x") == [1.0]
    assert to.stop(STOP_S)


def test_flush_says_when_it_took_too_long(memory: Memory) -> None:
    to = recorder(memory)
    memory.gate.clear()
    row(to, 1.0)

    assert not to.flush(0.05)
    memory.gate.set()
    assert to.flush(STOP_S)
    assert to.stop(STOP_S)


def test_stop_calls_the_last_command_after_every_row(memory: Memory) -> None:
    to = recorder(memory, flush_interval_s=1000.0)
    seen: list[int] = []
    for i in range(40_000):
        to.put(records.Table.TEXTS, lambda i=i: text(i))  # type: ignore[misc]
    to.command(lambda _: None)
    to.later(OnDevice(5.0, there=True), "late", None)
    assert to.stop(STOP_S, lambda _: seen.append(len(memory.rows(records.Table.TEXTS)) + len(memory.values("late"))))

    assert seen == [40_001]


def test_stop_returns_in_time_when_the_disk_hangs(memory: Memory) -> None:
    to = recorder(memory)
    memory.gate.clear()
    row(to, 1.0)
    assert memory.stuck.wait(STOP_S)

    assert not to.stop(0.05)
    memory.gate.set()
    assert to.stop(STOP_S)


def test_rows_after_the_end_are_counted_and_not_kept(memory: Memory) -> None:
    to = recorder(memory)
    assert to.stop(STOP_S)
    before = len(memory.rows())
    row(to, 1.0, layout=Layout(["a", "b"], "mean"))
    to.put(records.Table.TEXTS, lambda: text(1))
    to.later(OnDevice(1.0), "z", None)

    assert to.dropped_rows == 4
    assert len(memory.rows()) == before


def test_threads_that_log_on_during_the_end_have_each_row_written_or_counted(memory: Memory) -> None:
    to = recorder(memory)
    logged, ended = [0] * 4, threading.Event()

    def work(thread: int) -> None:
        layout = Layout([f"t{thread}"], "mean")
        while not ended.is_set() or logged[thread] < 100:
            row(to, float(logged[thread]), layout=layout)
            logged[thread] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: min(logged) > 200)
    assert to.stop(STOP_S)
    ended.set()
    for thread in threads:
        thread.join()
    written = [memory.values(f"t{n}") for n in range(4)]

    assert sum(map(len, written)) + to.dropped_rows == sum(logged)
    for values in written:
        assert values == [float(i) for i in range(len(values))]


def test_a_recorder_that_was_never_started_stops_at_once() -> None:
    assert Recorder(Memory).stop(STOP_S)  # type: ignore[arg-type]


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_and_what_is_dropped_is_the_newest_counted_exactly(memory: Memory) -> None:
    layout = Layout(["a", "b"], "mean")
    room = 100 * layout.row_bytes
    to = recorder(memory, memory_bytes=room)
    to.report("_tt/dropped_rows", lambda: to.dropped_rows)
    memory.gate.clear()
    row(to, -1.0, layout=layout)
    assert memory.stuck.wait(STOP_S)
    for i in range(1000):
        row(to, float(i), layout=layout)

    assert to.step == 1001
    assert to.dropped_rows == 2 * (1000 - 99)  # the one that hangs takes room too
    memory.gate.set()
    assert to.flush(STOP_S)
    row(to, 5000.0, layout=layout)
    assert to.stop(STOP_S)
    assert memory.values("a") == [-1.0, *map(float, range(99)), 5000.0]
    assert sum(rows for rows, _ in memory.gaps) == to.dropped_rows == 1802
    assert {reason for _, reason in memory.gaps} == {"out of memory"}
    assert memory.values("_tt/dropped_rows")[-1] == 1802.0


def test_texts_and_numbers_on_devices_are_within_the_bound(memory: Memory) -> None:
    to = recorder(memory, memory_bytes=10_000)
    memory.gate.clear()
    row(to, 1.0)
    assert memory.stuck.wait(STOP_S)
    for i in range(1000):
        to.put(records.Table.TEXTS, lambda i=i: text(i), 100)  # type: ignore[misc]
        to.later(OnDevice(0.0, there=True), "late", i)
    memory.gate.set()
    assert to.stop(STOP_S)
    kept = len(memory.rows(records.Table.TEXTS)) + len(memory.values("late"))

    assert 20 < kept < 100
    assert kept + to.dropped_rows == 2000


def test_room_comes_back_when_rows_are_written(memory: Memory) -> None:
    to = recorder(memory, memory_bytes=4000, flush_interval_s=0.001)
    for i in range(50):
        row(to, float(i))
        to.put(records.Table.TEXTS, lambda i=i: text(i), 500)  # type: ignore[misc]
        to.later(OnDevice(float(i), there=True), "late", i)
        assert to.flush(STOP_S)
    assert to.stop(STOP_S)

    assert to.dropped_rows == 0
    assert len(memory.values("late")) == 50


# -- what fails on the way --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_row_that_no_column_holds_takes_no_other_with_it(memory: Memory) -> None:
    to = recorder(memory, flush_interval_s=1000.0)
    for i in range(5):
        to.put(records.Table.TEXTS, lambda i=i: text(i) if i != 2 else {**text(i), "text": "\ud800"})  # type: ignore[misc]
    to.put(records.Table.TEXTS, lambda: text(1 // 0))
    row(to, 1.0)
    assert to.stop(STOP_S)

    assert [r["step"] for r in memory.rows(records.Table.TEXTS)] == [0, 1, 3, 4]
    assert memory.values("x") == [1.0]
    assert memory.gaps == [(2, "could not be encoded")]


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_frame_that_cannot_be_encoded_is_counted_and_gives_its_room_back(memory: Memory) -> None:
    to = recorder(memory, memory_bytes=1000)
    for i in range(100):
        row(to, float(i), layout=Layout(["\ud800"], "mean"))
        assert to.flush(STOP_S)
    row(to, 7.0)
    assert to.stop(STOP_S)

    assert memory.values("x") == [7.0]
    assert to.dropped_rows == 100 == sum(rows for rows, _ in memory.gaps)


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_metric_of_our_own_that_fails_stops_nothing(memory: Memory) -> None:
    to = recorder(memory)
    to.report("_tt/broken", lambda: 1 / 0)
    to.report("_tt/sound", lambda: 3.0)
    ran = threading.Event()
    to.command(lambda _: [][0])
    to.command(lambda _: ran.set())
    row(to, 1.0)
    assert to.stop(STOP_S)

    assert ran.is_set()
    assert memory.values("x") == [1.0]
    assert memory.values("_tt/sound") == [3.0]


def test_a_row_that_cannot_be_packed_leaves_no_trace(memory: Memory) -> None:
    to = recorder(memory, flush_interval_s=1000.0)
    with pytest.raises(struct.error):
        to.row(X, ["no number"], None, commit=True)
    row(to, 1.0)
    assert to.stop(STOP_S)

    assert memory.values("x") == [1.0]


def test_a_signal_handler_may_log_while_the_same_thread_is_inside_the_recorder(memory: Memory) -> None:
    to = recorder(memory, flush_interval_s=1000.0)

    class Interrupted:
        def __float__(self) -> float:  # stands for the moment a signal arrives: row() holds the lock here
            row(to, 1.0)
            return 2.0

    to.row(X, [Interrupted()], None, commit=True)
    row(to, 3.0)
    assert to.stop(STOP_S)

    assert sorted(memory.values("x")) == [1.0, 2.0, 3.0]


# -- numbers on devices -----------------------------------------------------------------------------------------------


def test_numbers_on_devices_are_written_in_order_when_they_arrive(memory: Memory) -> None:
    to = recorder(memory)
    numbers = [OnDevice(float(i)) for i in range(4)]
    for number in numbers:
        to.later(number, "loss", None, reduce="sum", partial=True)
        to.commit()
    numbers[2].there = True
    assert not to.flush(0.01)
    assert memory.values("loss") == []
    for number in numbers:
        number.there = True
    assert to.flush(STOP_S)
    assert to.stop(STOP_S)

    assert [(r["step"], r["value"], r["reduce"], r["partial"]) for r in memory.rows() if r["name"] == "loss"] == [
        (i, float(i), "sum", True) for i in range(4)
    ]


def test_the_end_waits_for_a_number_that_is_on_its_way(memory: Memory) -> None:
    to = recorder(memory)
    number = OnDevice(4.0)
    to.later(number, "loss", None)
    stopped: list[bool] = []
    thread = threading.Thread(target=lambda: stopped.append(to.stop(STOP_S)))
    thread.start()
    until(lambda: to._stopping)
    number.there = True
    thread.join()

    assert stopped == [True]
    assert memory.values("loss") == [4.0]
    assert to.dropped_rows == 0


def test_a_number_that_never_arrives_is_dropped_and_never_guessed(memory: Memory) -> None:
    to = recorder(memory)
    to.later(OnDevice(666.0), "hung", None)
    to.later(OnDevice(1.0, there=True), "fine", None)
    row(to, 2.0)
    assert to.stop(1.0)

    assert memory.values("hung") == []
    assert (memory.values("fine"), memory.values("x")) == ([1.0], [2.0])
    assert memory.gaps == [(1, "still on the device at the end")]


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_device_that_fails_costs_its_own_numbers_only(memory: Memory) -> None:
    to = recorder(memory)
    to.later(OnDevice(1.0, error=RuntimeError("device-side assert")), "lost", None)
    to.later(OnDevice(2.0, there=True), "kept", None)
    row(to, 3.0)
    assert to.flush(STOP_S)

    assert (memory.values("kept"), memory.values("x")) == ([2.0], [3.0])
    assert to.stop(STOP_S)
    assert sum(rows for rows, _ in memory.gaps) == to.dropped_rows == 1


# -- steps and tickets ------------------------------------------------------------------------------------------------


def test_a_ticket_gets_the_step_of_the_next_committed_row() -> None:
    to = Recorder(Memory)  # type: ignore[arg-type]
    row(to, 1.0)
    first = to.ticket()
    row(to, 1.0, commit=False)
    assert first.step is None
    row(to, 1.0, 40)
    second = to.ticket()
    to.commit()

    assert [first.step, second.step] == [40, 41]


def test_tickets_stay_open_until_a_row_is_committed() -> None:
    to = Recorder(Memory)  # type: ignore[arg-type]
    row(to, 1.0, 9)
    first, second = to.ticket(), to.ticket()
    assert [first.step, second.step] == [None, None]
    row(to, 1.0, 30)

    assert [first.step, second.step] == [30, 30]


def test_only_the_tickets_that_are_handed_in_at_the_end_get_the_current_step() -> None:
    to = Recorder(Memory)  # type: ignore[arg-type]
    row(to, 1.0, 9)
    first, second = to.ticket(), to.ticket()
    to.stamp([first])

    assert [first.step, second.step] == [10, None]


def test_a_script_that_never_logs_leaves_a_bounded_number_of_tickets_open() -> None:
    to = Recorder(Memory)  # type: ignore[arg-type]
    tickets = [to.ticket() for _ in range(1000)]

    assert sum(ticket.step is None for ticket in tickets) == 64


def test_a_row_that_found_no_room_still_moves_the_step() -> None:
    to = Recorder(Memory, memory_bytes=0)  # type: ignore[arg-type]
    ticket = to.ticket()
    row(to, 1.0, 5)

    assert (to.step, ticket.step, to.dropped_rows) == (6, 5, 1)


def test_our_own_numbers_do_not_move_the_step(memory: Memory) -> None:
    to = recorder(memory)
    row(to, 1.0)
    to.number("system/cpu", 3.0, None)
    assert to.step == 1
    assert to.stop(STOP_S)

    assert [(r["step"], r["value"]) for r in memory.rows() if r["name"] == "system/cpu"] == [(1, 3.0)]


def test_a_metric_of_our_own_is_written_at_the_end_even_if_it_is_zero(memory: Memory) -> None:
    to = recorder(memory)
    to.report("_tt/dropped_rows", lambda: to.dropped_rows)
    row(to, 1.0)
    assert to.stop(STOP_S)

    assert memory.values("_tt/dropped_rows") == [0.0]


def test_batches_of_a_rare_table_go_into_frames_of_their_own(memory: Memory) -> None:
    to = recorder(memory)
    batch = pa.RecordBatch.from_pylist([text(i) for i in range(3)], schema=records.TEXTS)
    to.put(records.Table.TEXTS, lambda: batch, batch.nbytes)
    to.put(records.Table.TEXTS, lambda: text(9))
    assert to.stop(STOP_S)

    assert [frame.num_rows for which, frame in memory.frames if which is records.Table.TEXTS] == [3, 1]


def test_a_recorder_left_behind_by_a_fork_keeps_nobody_waiting(memory: Memory) -> None:
    to = recorder(memory)
    held = threading.Event()
    go_on = threading.Event()

    def hold() -> None:
        with to._lock:
            held.set()
            go_on.wait(STOP_S)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        to.abandon()
        row(to, 1.0)
        to.ticket()
        os._exit(0 if to.flush(STOP_S) and to.dropped_rows == 1 else 1)
    _, status = os.waitpid(child, 0)
    go_on.set()
    holder.join()
    assert to.stop(STOP_S)

    assert status == 0
