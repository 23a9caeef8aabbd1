"""Scalars over ranks, attempts and steps, against a naive model."""

from __future__ import annotations

import math
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.journals import START_US, UID, RankJournal
from torchtrack.api import Api
from torchtrack.api.run import Run
from torchtrack.records import Table

Make = Callable[..., RankJournal]


def the_run(runs: Path) -> Run:
    (run,) = Api(runs).runs()
    return run


def rows(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))


def test_history_has_one_row_a_step_with_a_float64_column_a_key_and_null_where_nothing_was_logged(
    runs: Path, journal: Make
) -> None:
    with journal() as rank:
        rank.log(0, {"loss": 3.0, "acc": 0.1})
        rank.log(1, {"loss": 2.0})
    history = the_run(runs).history()
    assert history.schema.names == ["step", "time", "acc", "loss"]
    assert history.schema.field("loss").type == pa.float64()
    assert str(history.schema.field("time").type) == "timestamp[us, tz=UTC]"
    assert rows(history, "step", "acc", "loss") == [(0, 0.1, 3.0), (1, None, 2.0)]


@pytest.mark.parametrize("name", ["step", "time", "rank", "attempt"])
def test_a_metric_named_as_a_column_of_the_table_is_beside_it(runs: Path, journal: Make, name: str) -> None:
    with journal() as rank:
        rank.log(7, {name: 70.0, "loss": 1.0})
    run = the_run(runs)

    for table in (run.history(), run.history(ranks="all"), run.history(attempts="all"), run.history(raw=True)):
        assert table.column("step").to_pylist() == [7]
        assert table.column(f"logged/{name}").to_pylist() == [70.0]
    assert run.history(name).column_names == ["step", "time", f"logged/{name}"]
    assert run.series(name).column("max").to_pylist() == [70.0]
    assert run.summary == {"loss": 1.0, name: 70.0}
    assert run.findings() == []


def test_nan_is_not_null_and_keeps_every_bit(runs: Path, journal: Make) -> None:
    payloads = [0x7FF8000000000001, 0xFFF80000DEADBEEF, 0x7FF8000000000000, 0x8000000000000000, 0x0000000000000001]
    values = [struct.unpack("<d", struct.pack("<Q", bits))[0] for bits in payloads]
    with journal(rank=0) as rank, journal(rank=1) as other:
        rank.log(0, {"other": 1.0})
        for step, value in enumerate(values, 1):
            rank.log(step, {"loss": value})
        other.log(0, {"other": 1.0})
    for history in (the_run(runs).history(), the_run(runs).history(ranks="all"), the_run(runs).history(raw=True)):
        column = history.column("loss").drop_null().to_numpy()
        assert [struct.unpack("<Q", struct.pack("<d", value))[0] for value in column] == payloads
        assert history.column("loss").null_count == len(history) - len(values)


def test_by_default_only_the_keys_of_the_user_are_columns(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.log(0, {"loss": 1.0, "watch/grad_norm": 2.0, "system/cpu": 3.0, "_tt/dropped_rows": 0.0})
    run = the_run(runs)
    assert run.history().schema.names == ["step", "time", "loss"]
    assert run.history(["watch/grad_norm", "loss"]).schema.names == ["step", "time", "watch/grad_norm", "loss"]
    assert run.history("system/cpu").column("system/cpu").to_pylist() == [3.0]
    assert run.keys() == ["_tt/dropped_rows", "loss", "system/cpu", "watch/grad_norm"]
    assert run.keys("watch/") == ["watch/grad_norm"]


@pytest.mark.parametrize(("reduce", "expected"), [("mean", 3.0), ("sum", 9.0), ("min", 1.0), ("max", 6.0)])
def test_ranks_are_combined_as_the_row_says(runs: Path, journal: Make, reduce: str, expected: float) -> None:
    for number, value in enumerate([2.0, 6.0, 1.0]):
        with journal(rank=number, world_size=3) as rank:
            rank.log(5, {"x": value}, reduce=reduce)
    assert rows(the_run(runs).history(), "step", "x") == [(5, expected)]


def test_the_time_of_a_row_is_that_of_the_lowest_rank_there(runs: Path, journal: Make) -> None:
    with journal(rank=1, world_size=2) as rank:
        rank.log(0, {"x": 1.0}, time_us=START_US + 5)
        rank.log(1, {"x": 1.0}, time_us=START_US + 6)
    with journal(rank=0, world_size=2) as rank:
        rank.log(0, {"x": 1.0}, time_us=START_US + 9)
    times = the_run(runs).history().column("time").cast(pa.int64()).to_pylist()
    assert times == [START_US + 9, START_US + 6]


def test_all_ranks_give_a_row_a_step_and_rank(runs: Path, journal: Make) -> None:
    for number in (1, 0):
        with journal(rank=number, world_size=2) as rank:
            rank.log(0, {"x": float(number)})
            rank.log(1, {"x": 10.0 + number})
    history = the_run(runs).history(ranks="all")
    assert history.schema.names == ["step", "time", "rank", "x"]
    assert rows(history, "step", "rank", "x") == [(0, 0, 0.0), (0, 1, 1.0), (1, 0, 10.0), (1, 1, 11.0)]


def test_one_rank_alone_and_an_unknown_rank(runs: Path, journal: Make) -> None:
    for number in (0, 2):
        with journal(rank=number, world_size=3) as rank:
            rank.log(0, {"x": float(number)})
    run = the_run(runs)
    assert rows(run.history(ranks=2), "step", "x") == [(0, 2.0)]
    with pytest.raises(ValueError, match="no rank 1: the run has 0, 2"):
        run.history(ranks=1)


def test_a_later_attempt_hides_earlier_ones_from_its_first_step_on(runs: Path, journal: Make) -> None:
    with journal(attempt=1) as rank:
        for step in range(6):
            rank.log(step, {"x": 100.0 + step})
    with journal(attempt=2) as rank:
        rank.log(0, {"system/cpu": 1.0})
        rank.log(3, {"x": 203.0})
        rank.log(7, {"x": 207.0})
    run = the_run(runs)
    assert rows(run.history(), "step", "x") == [(0, 100.0), (1, 101.0), (2, 102.0), (3, 203.0), (7, 207.0)]
    everything = run.history(attempts="all")
    assert everything.schema.names == ["step", "time", "attempt", "x"]
    assert rows(everything, "step", "attempt", "x")[-4:] == [(4, 1, 104.0), (5, 1, 105.0), (3, 2, 203.0), (7, 2, 207.0)]


def test_an_attempt_that_says_where_it_begins_takes_back_what_it_never_logs_again(runs: Path, journal: Make) -> None:
    with journal(attempt=1) as rank:
        for step in range(6):
            rank.log(step, {"loss": 100.0 + step, "val": 1.0, "system/cpu": 1.0})
            rank.tensor(step, "w", [1.0])
    with journal(attempt=2, from_step=3) as rank:
        rank.about()
        before = the_run(runs)
        assert (before.last_step, before.summary["loss"]) == (2, 102.0)
        rank.log(4, {"loss": 204.0})
    run = the_run(runs)

    assert rows(run.history(["loss", "val", "system/cpu"]), "step", "loss", "val", "system/cpu") == [
        *((step, 100.0 + step, 1.0, 1.0) for step in range(3)),
        (4, 204.0, None, None),
    ]
    assert run.tensors().column("step").to_pylist() == [0, 1, 2]
    assert (run.last_step, run.summary["loss"], run.summary["val"]) == (4, 204.0, 1.0)
    assert run.history("val", attempts="all").num_rows == 6


def test_an_attempt_that_logs_one_metric_hides_nothing_of_the_others(runs: Path, journal: Make) -> None:
    with journal(attempt=1) as rank:
        for step in range(6):
            rank.log(step, {"loss": 100.0 + step, "epoch": step // 3, "system/cpu": 1.0})
            rank.tensor(step, "w", [1.0])
    with journal(attempt=2) as rank:
        rank.log(0, {"test/acc": 0.9, "epoch": 0.0, "system/cpu": 2.0})
    run = the_run(runs)
    assert rows(run.history(), "step", "loss", "test/acc", "epoch")[:2] == [(0, 100.0, 0.9, 0.0), (1, 101.0, None, 0.0)]
    assert run.history("loss").column("step").to_pylist() == list(range(6))
    assert run.history("epoch").column("epoch").to_pylist() == [0, 0, 0, 1, 1, 1]
    assert run.history("system/cpu").column("system/cpu").to_pylist() == [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert run.tensors().column("step").to_pylist() == list(range(6))
    assert [step.step for step in run.steps()] == list(range(6))
    assert {name: run.summary[name] for name in ("loss", "epoch", "test/acc")} == {
        "loss": 105.0,
        "epoch": 1.0,
        "test/acc": 0.9,
    }
    assert run.last_step == 5


def test_a_single_step_that_was_logged_again_is_replaced_with_the_values_of_all_ranks(
    runs: Path, journal: Make
) -> None:
    for number in range(2):
        with journal(attempt=1, rank=number, world_size=2) as rank:
            for step in range(3):
                rank.log(step, {"val": 10.0 * number})
    with journal(attempt=2) as rank:
        rank.log(1, {"val": 1.0})
    assert rows(the_run(runs).history(), "step", "val") == [(0, 5.0), (1, 1.0), (2, 5.0)]


def test_the_last_of_repeated_values_counts_and_raw_gives_them_all(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.log(1, {"x": 1.0, "y": 1.5})
        rank.log(0, {"x": 2.0})
        rank.log(1, {"x": 3.0})
        rank.scalars([(1, "x", 4.0, "mean", rank.now_us), (1, "x", 5.0, "mean", rank.now_us)])
    run = the_run(runs)
    assert rows(run.history(), "step", "x", "y") == [(0, 2.0, None), (1, 5.0, 1.5)]
    raw = run.history(raw=True)
    assert raw.schema.names == ["step", "time", "rank", "attempt", "x", "y"]
    assert rows(raw, "step", "x", "y") == [
        (1, 1.0, 1.5),
        (0, 2.0, None),
        (1, 3.0, None),
        (1, 4.0, None),
        (1, 5.0, None),
    ]


def test_of_repeated_values_the_one_written_last_counts_even_if_the_clock_was_set_back(
    runs: Path, journal: Make
) -> None:
    with journal() as rank:
        rank.log(0, {"x": 1.0}, time_us=START_US + 3_600_000_000)
        rank.log(0, {"x": 2.0}, time_us=START_US)
        rank.log(1, {"x": 3.0}, time_us=START_US + 1)
    run = the_run(runs)
    assert rows(run.history(), "step", "x") == [(0, 2.0), (1, 3.0)]
    assert rows(run.history(raw=True), "step", "x") == [(0, 1.0), (0, 2.0), (1, 3.0)]
    assert rows(run.rows(Table.SCALARS), "step", "value") == [(0, 1.0), (0, 2.0), (1, 3.0)]
    assert run.summary == {"x": 3.0}


def test_raw_rows_of_several_streams_and_metrics_come_as_they_were_written(runs: Path, journal: Make) -> None:
    rank = journal()
    rank.log(4, {"x": 1.0, "y": 2.0}, time_us=START_US + 9)
    rank.log(4, {"y": 3.0}, time_us=START_US + 8)
    with journal(parent=rank.stream, start_us=START_US - 5) as child:
        child.log(3, {"y": 5.0, "x": 4.0}, time_us=START_US + 7)
    assert rows(the_run(runs).history(raw=True), "step", "x", "y") == [(4, 1.0, 2.0), (4, None, 3.0), (3, 4.0, 5.0)]


def test_of_two_streams_of_a_rank_the_one_opened_later_counts_even_if_the_clock_was_set_back(
    runs: Path, journal: Make
) -> None:
    with journal(start_us=START_US + 3_600_000_000) as first:
        first.log(0, {"x": 1.0})
    with journal(start_us=START_US) as second:
        second.log(0, {"x": 2.0})
    assert rows(the_run(runs).history(), "step", "x") == [(0, 2.0)]


def test_a_forked_child_logs_for_its_rank(runs: Path, journal: Make) -> None:
    rank = journal(rank=1, world_size=2)
    rank.log(0, {"x": 1.0})
    with journal(rank=1, world_size=2, parent=rank.stream) as child:
        child.log(1, {"x": 2.0, "val": 3.0})
    assert rows(the_run(runs).history(ranks=1), "step", "val", "x") == [(0, None, 1.0), (1, 3.0, 2.0)]


def test_an_attempt_begins_where_its_user_logs_not_where_ranks_that_never_log_stamp_what_is_ours(
    runs: Path, journal: Make
) -> None:
    for attempt, begin in ((1, 0), (2, 4)):
        with journal(rank=0, world_size=2, attempt=attempt) as rank:
            for step in range(begin, begin + 5):
                rank.log(step, {"x": 100.0 * attempt + step})
        with journal(rank=1, world_size=2, attempt=attempt) as rank:
            rank.log(0, {"watch/grad_norm": 1.0, "_tt/dropped_rows": 0.0, "system/cpu": 1.0})
            rank.tensor(0, "w", [1.0, 2.0], step=0)
    history = the_run(runs).history("x")
    assert rows(history, "step", "x")[2:6] == [(2, 102.0), (3, 103.0), (4, 204.0), (5, 205.0)]
    assert history.num_rows == 9


def test_what_watch_records_hides_nothing_before_the_texts_and_histograms_of_an_attempt_without_metrics(
    runs: Path, journal: Make
) -> None:
    for kind in ("text", "histogram"):
        folder = runs / kind
        with RankJournal(folder, attempt=1) as rank:
            for step in range(6):
                rank.log(step, {"watch/grad_norm": float(step)})
        with RankJournal(folder, attempt=2) as rank, RankJournal(folder, rank=1, attempt=2) as other:
            rank.text(3, "prompt", "hello") if kind == "text" else rank.tensor(0, "h", [1.0], step=3, kind="logged")
            rank.log(4, {"watch/grad_norm": 40.0})
            other.log(0, {"watch/grad_norm": 10.0})
        seen = rows(the_run(folder).history("watch/grad_norm", ranks=0), "step", "watch/grad_norm")
        assert seen == [(0, 0.0), (1, 1.0), (2, 2.0), (4, 40.0)]


def test_what_watch_records_hides_nothing_before_the_tensors_of_the_lowest_rank_of_an_attempt_that_logs_nothing(
    runs: Path, journal: Make
) -> None:
    with journal(rank=1, attempt=1) as rank:
        for step in range(6):
            rank.log(step, {"watch/grad_norm": float(step)})
    with journal(rank=1, attempt=2) as rank, journal(rank=2, attempt=2) as other:
        rank.log(5, {"watch/grad_norm": 50.0})
        rank.tensor(0, "w", [1.0], step=4)
        other.log(0, {"watch/grad_norm": 10.0})
        other.tensor(0, "w", [1.0], step=0)
    seen = rows(the_run(runs).history("watch/grad_norm", ranks=1), "step", "watch/grad_norm")
    assert seen == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (5, 50.0)]


@pytest.mark.parametrize(("reduce", "expected"), [("sum", 3.0), ("mean", 1.5), ("min", 1.0), ("max", 2.0)])
def test_parts_are_put_together_once_all_are_there_and_a_part_alone_is_not_the_value(
    runs: Path, journal: Make, reduce: str, expected: float
) -> None:
    for number in range(2):
        with journal(rank=number, world_size=2) as rank:
            rank.log(0, {"x": 1.0 + number}, reduce=reduce, partial=True)
            if number == 1:
                rank.log(1, {"x": 7.0}, reduce=reduce, partial=True)
    run = the_run(runs)
    assert rows(run.history(), "step", "x") == [(0, expected), (1, None)]
    assert rows(run.history(attempts="all"), "step", "x") == [(0, expected), (1, None)]
    assert rows(run.history(ranks="all"), "step", "rank", "x") == [(0, 0, 1.0), (0, 1, 2.0), (1, 1, 7.0)]
    assert rows(run.history(ranks=1), "step", "x") == [(0, 2.0), (1, 7.0)]
    assert rows(run.history(raw=True), "rank", "x") == [(0, 1.0), (1, 2.0), (1, 7.0)]
    assert run.rows(Table.SCALARS).column("reduce").to_pylist() == [reduce] * 3
    assert run.summary == {"x": expected}


def test_how_many_parts_there_must_be_is_a_matter_of_each_attempt(runs: Path, journal: Make) -> None:
    for attempt, world_size, begin in ((1, 1, 0), (2, 2, 2)):
        for number in range(world_size):
            with journal(rank=number, world_size=world_size, attempt=attempt) as rank:
                rank.log(begin, {"x": 1.0}, reduce="sum", partial=True)
        with journal(rank=0, world_size=world_size, attempt=attempt) as rank:
            rank.log(begin + 1, {"x": 1.0}, reduce="sum", partial=True)
    assert rows(the_run(runs).history(), "step", "x") == [(0, 1.0), (1, 1.0), (2, 2.0), (3, None)]


def test_a_part_that_was_logged_again_as_a_whole_is_one(runs: Path, journal: Make) -> None:
    with journal(rank=0, world_size=2) as rank:
        rank.log(0, {"x": 1.0}, partial=True)
        rank.log(0, {"x": 5.0})
    assert rows(the_run(runs).history(), "step", "x") == [(0, 5.0)]


def test_start_and_stop_are_half_open(runs: Path, journal: Make) -> None:
    with journal() as rank:
        for step in range(10):
            rank.log(step, {"x": float(step)})
    run = the_run(runs)
    assert run.history(start=3, stop=5).column("step").to_pylist() == [3, 4]
    assert run.history(start=3, stop=5, raw=True).column("step").to_pylist() == [3, 4]
    assert run.history(start=100).num_rows == 0


def test_an_unknown_key_names_what_is_near(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.log(0, {"train/loss": 1.0, "lr": 1.0})
    with pytest.raises(ValueError, match=r"no metric 'train/los' in run .*; did you mean train/loss"):
        the_run(runs).history(["train/los"])
    with pytest.raises(ValueError, match=r'attempts=.*"latest" or "all"'):
        the_run(runs).history(attempts="newest")  # type: ignore[arg-type]


def test_a_run_without_scalars_has_an_empty_history(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.about()
    run = the_run(runs)
    for history in (run.history(), run.history(ranks="all"), run.history(attempts="all"), run.history(raw=True)):
        assert history.num_rows == 0
        assert "step" in history.schema.names


def test_steps_far_apart_do_not_cost_memory(runs: Path, journal: Make) -> None:
    with journal() as rank:
        for step in (0, 1 << 60, 5, 1 << 60):
            rank.log(step, {"x": float(step)})
    assert the_run(runs).history().column("step").to_pylist() == [0, 5, 1 << 60]


def test_reading_while_writing_sees_each_new_row(runs: Path, journal: Make) -> None:
    rank = journal(start_us=time.time_ns() // 1000)
    rank.log(0, {"x": 0.0})
    run = Api(runs).run(UID)
    seen = []
    for step in range(1, 6):
        rank.log(step, {"x": float(step)})
        seen.append(run.history().num_rows)
    late = journal(rank=1)
    late.log(9, {"y": 1.0})
    assert seen == [2, 3, 4, 5, 6]
    assert run.keys() == ["x", "y"]
    assert run.state == "running"


KEYS = ["a", "b", "system/c", "watch/d"]
OURS = ("system/", "watch/")
Row = tuple[int, int, int, str, float, str]

logged = st.lists(
    st.tuples(
        st.integers(1, 3),  # attempt
        st.integers(0, 2),  # rank
        st.integers(0, 6),  # step
        st.sampled_from(KEYS),
        st.sampled_from([0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan, 1e300]),
        st.sampled_from(["mean", "sum", "min", "max"]),
    ),
    min_size=1,
    max_size=30,
)


def hides(rows_: list[Row], key: str, later: int, step: int) -> bool:
    """Whether an attempt hides what earlier ones have of a metric at a step, said without spans and folds."""
    users = [s for attempt, _, s, name, _, _ in rows_ if attempt == later and not name.startswith(OURS)]
    own = sorted({s for attempt, _, s, name, _, _ in rows_ if (attempt, name) == (later, key)})
    if not own or (key.startswith(OURS) and not users):
        return False
    first = max(own[0], min(users)) if key.startswith(OURS) else own[0]
    return step == first if first == own[-1] else first <= step if first < own[-1] else False


def naive(rows_: list[Row], keys: list[str]) -> dict[int, dict[str, float]]:
    last: dict[tuple[int, str, int], tuple[float, str]] = {}
    for attempt, rank, step, key, value, reduce in rows_:
        if not any(hides(rows_, key, later, step) for later in range(attempt + 1, 4)):
            last[step, key, rank] = (value, reduce)  # of one step only one attempt is seen, in logged order
    result: dict[int, dict[str, float]] = {}
    for step, key in {(step, key) for step, key, _ in last if key in keys}:
        cells = [last[step, key, rank] for rank in range(3) if (step, key, rank) in last]
        total, reduce = cells[0]
        for value, _ in cells[1:]:
            if reduce in ("mean", "sum"):
                total = total + value
            else:
                total = float(np.minimum(total, value) if reduce == "min" else np.maximum(total, value))
        result.setdefault(step, {})[key] = total / len(cells) if reduce == "mean" else total
    return result


def bits(value: float | None) -> bytes | None:
    return None if value is None else b"nan" if math.isnan(value) else struct.pack("<d", value)


@settings(max_examples=40)
@given(rows_=logged, clock=st.sampled_from([1, -1, 0]))
def test_history_equals_a_naive_model_whatever_the_clock_says(rows_: list[Row], clock: int) -> None:
    rows_ = sorted(rows_, key=lambda row: row[0])  # attempts follow each other
    with tempfile.TemporaryDirectory() as folder:
        writers: dict[tuple[int, int], RankJournal] = {}
        for number, (attempt, rank, step, key, value, reduce) in enumerate(rows_):
            if (attempt, rank) not in writers:
                writers[attempt, rank] = RankJournal(Path(folder), rank=rank, attempt=attempt)
            writers[attempt, rank].log(step, {key: value}, reduce=reduce, time_us=START_US + clock * number)
        for writer in writers.values():
            writer.abandon()
        run = the_run(Path(folder))
        keys = [key for key in KEYS if key in run.keys()]  # noqa: SIM118  # not a mapping
        history = run.history(keys)
    expected = naive(rows_, keys)
    assert history.column("step").to_pylist() == sorted(expected)
    for key in keys:
        wanted = [bits(expected[step].get(key)) for step in sorted(expected)]
        assert [bits(value) for value in history.column(key).to_pylist()] == wanted
