"""Tensor statistics: every element counted once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.journals import RankJournal, tensor_row
from torchtrack import records
from torchtrack.api import Api
from torchtrack.api.run import Run
from torchtrack.api.tensors import parse_covers
from torchtrack.histogram import Histogram

Make = Callable[..., RankJournal]
WEIGHTS = np.linspace(-2, 3, 60, dtype=np.float32)


def the_run(runs: Path) -> Run:
    (run,) = Api(runs).runs()
    return run


def shard(rank: RankJournal, lo: int, hi: int, *, key: str = "", sample: int = 0, **fields: Any) -> None:
    rank.tensor(sample, "w", WEIGHTS[lo:hi], numel=len(WEIGHTS), covers=f"{key}:{lo}-{hi}", **fields)


def test_tensors_have_the_columns_of_the_table_and_norm_coverage_and_attempt(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.tensor(0, "w", WEIGHTS)
    table = the_run(runs).tensors()
    assert table.schema.names == [*records.TENSORS.names, "norm", "coverage", "attempt"]
    row = table.to_pylist()[0]
    assert (row["coverage"], row["attempt"], row["count"]) == (1.0, 1, 60)
    assert row["norm"] == pytest.approx(float(np.linalg.norm(WEIGHTS.astype(np.float64))))


def test_a_row_that_counted_the_whole_tensor_wins_over_parts(runs: Path, journal: Make) -> None:
    with journal(rank=0) as zero, journal(rank=1) as one:
        shard(zero, 0, 40)
        one.tensor(0, "w", WEIGHTS)
    (row,) = the_run(runs).tensors().to_pylist()
    assert (row["count"], row["covers"], row["coverage"]) == (60, "", 1.0)


def test_disjoint_parts_are_added_exactly(runs: Path, journal: Make) -> None:
    with journal(rank=0) as zero, journal(rank=1) as one:
        shard(zero, 0, 25)
        shard(one, 25, 60)
    run = the_run(runs)
    (row,) = run.tensors().to_pylist()
    assert (row["count"], row["coverage"], row["ranks"], row["covers"]) == (60, 1.0, 2, "")
    assert (row["min"], row["max"]) == (-2.0, 3.0)
    histogram = run.histogram("gradient", "w", 0)
    assert np.array_equal(histogram.counts, Histogram.of(WEIGHTS).counts)
    assert histogram.sum_sq == pytest.approx(Histogram.of(WEIGHTS).sum_sq, rel=1e-12)


def test_parts_of_different_shards_are_disjoint(runs: Path, journal: Make) -> None:
    with journal(rank=0) as zero, journal(rank=1) as one:
        zero.tensor(0, "w", WEIGHTS[:30], numel=60, covers="tp0:0-30")
        one.tensor(0, "w", WEIGHTS[30:], numel=60, covers="tp1:0-30")
    assert the_run(runs).tensors().column("count").to_pylist() == [60]


def test_a_part_counted_twice_is_added_once_and_the_rest_shows_in_coverage(runs: Path, journal: Make) -> None:
    with journal(rank=0) as zero, journal(rank=1) as one:
        shard(zero, 0, 20)
        shard(one, 0, 20)
    (row,) = the_run(runs).tensors().to_pylist()
    assert (row["count"], row["ranks"], row["covers"]) == (20, 1, ":0-20")
    assert row["coverage"] == pytest.approx(1 / 3)


def test_of_parts_that_overlap_the_larger_is_kept(runs: Path, journal: Make) -> None:
    for number, (lo, hi) in enumerate([(0, 20), (10, 50), (50, 60)]):
        with journal(rank=number) as rank:
            shard(rank, lo, hi)
    (row,) = the_run(runs).tensors().to_pylist()
    assert (row["count"], row["covers"]) == (50, ":10-50;:50-60")


def test_two_parts_without_a_range_are_never_added(runs: Path, journal: Make) -> None:
    with journal(rank=0) as zero, journal(rank=1) as one:
        zero.tensor(0, "w", WEIGHTS[:20], numel=60)
        one.tensor(0, "w", WEIGHTS[20:50], numel=60)
    assert the_run(runs).tensors().column("count").to_pylist() == [30]


def test_kind_and_name_may_be_patterns_and_steps_are_half_open(runs: Path, journal: Make) -> None:
    with journal() as rank:
        for step in (0, 10, 20):
            rank.tensor(step, "layers.0.weight", WEIGHTS)
            rank.tensor(step, "layers.1.bias", WEIGHTS)
            rank.tensor(step, "layers.1.bias", WEIGHTS, kind="parameter")
    run = the_run(runs)
    assert run.tensors("gradient", "layers.*", start=10, stop=20).column("name").to_pylist() == [
        "layers.0.weight",
        "layers.1.bias",
    ]
    assert run.tensors("parameter").column("step").to_pylist() == [0, 10, 20]
    assert run.tensors("parameter", "*.weight").num_rows == 0


def test_a_name_with_brackets_finds_itself(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.tensor(0, "blocks[0].w", WEIGHTS)
    assert the_run(runs).tensors(name="blocks[0].w").num_rows == 1


def test_a_later_attempt_hides_earlier_tensors_from_its_first_step_on(runs: Path, journal: Make) -> None:
    with journal(attempt=1) as rank:
        for step in (0, 5, 10):
            rank.tensor(step, "w", WEIGHTS)
    with journal(attempt=2) as rank:
        rank.tensor(1, "w", WEIGHTS[:3], step=5)
        rank.tensor(2, "w", WEIGHTS[:4], step=9)
    table = the_run(runs).tensors()
    assert list(
        zip(table["step"].to_pylist(), table["attempt"].to_pylist(), table["count"].to_pylist(), strict=True)
    ) == [
        (0, 1, 60),
        (5, 2, 3),
        (9, 2, 4),
    ]


def test_samples_of_two_attempts_are_never_combined(runs: Path, journal: Make) -> None:
    with journal(attempt=1) as rank:
        shard(rank, 0, 30, step=0)
    with journal(attempt=2) as rank:
        shard(rank, 30, 60, step=100)
    assert the_run(runs).tensors().column("count").to_pylist() == [30, 30]


def test_parts_of_a_sample_take_the_step_and_time_of_the_lowest_rank(runs: Path, journal: Make) -> None:
    for number, (lo, hi) in enumerate([(0, 20), (20, 40), (40, 60)]):
        with journal(rank=number, world_size=3) as rank:
            for sample in range(2):
                step = 100 + 10 * sample if number == 0 else 0  # only rank 0 logs
                shard(rank, lo, hi, sample=sample, step=step)
    run = the_run(runs)
    for start, stop, found in ((None, None, [100, 110]), (0, 100, []), (100, 101, [100]), (105, None, [110])):
        table = run.tensors(start=start, stop=stop)
        assert table.column("step").to_pylist() == found
        assert table.column("coverage").to_pylist() == [1.0] * len(found)
    times = run.rows(records.Table.TENSORS)
    assert run.tensors().column("time").to_pylist() == times.filter(times["step"].to_numpy() > 0)["time"].to_pylist()
    assert run.histogram("gradient", "w", 110).count == 60


def test_the_step_is_the_lowest_ranks_even_if_another_counted_more(runs: Path, journal: Make) -> None:
    with journal(rank=0) as zero, journal(rank=1) as one:
        shard(zero, 0, 20, step=7)
        one.tensor(0, "w", WEIGHTS, step=0)
    (row,) = the_run(runs).tensors().to_pylist()
    assert (row["step"], row["count"]) == (7, 60)


def test_a_tensor_only_a_silent_rank_holds_takes_the_step_of_its_sample(runs: Path, journal: Make) -> None:
    with journal(rank=0) as zero, journal(rank=1) as one:
        zero.tensor(0, "a", WEIGHTS, step=50)
        zero.tensor(0, "critic/a", WEIGHTS, step=70)
        zero.tensor(0, "h", WEIGHTS, step=1, kind="logged")
        one.tensor(0, "b", WEIGHTS, step=0)
        one.tensor(0, "critic/b", WEIGHTS, step=0)
        one.tensor(0, "h", WEIGHTS, step=2, kind="logged")
    table = the_run(runs).tensors()
    assert list(zip(table["name"].to_pylist(), table["step"].to_pylist(), strict=True)) == [
        ("h", 1),
        ("h", 2),
        ("a", 50),
        ("b", 50),
        ("critic/a", 70),
        ("critic/b", 70),
    ]


def test_a_later_attempt_hides_whole_samples_of_the_earlier_one(runs: Path, journal: Make) -> None:
    for attempt, first in ((1, 0), (2, 10)):
        with journal(rank=0, attempt=attempt) as zero, journal(rank=1, attempt=attempt) as one:
            for sample, step in enumerate((first, first + 10)):
                zero.log(step, {"x": 1.0})
                shard(zero, 0, 30, sample=sample, step=step)
                shard(one, 30, 60, sample=sample, step=0)
    table = the_run(runs).tensors()
    assert list(zip(table["step"].to_pylist(), table["attempt"].to_pylist(), strict=True)) == [(0, 1), (10, 2), (20, 2)]
    assert table["coverage"].to_pylist() == [1.0, 1.0, 1.0]


def test_a_model_that_is_watched_again_in_an_attempt_hides_none_of_its_earlier_samples(
    runs: Path, journal: Make
) -> None:
    with journal() as rank:
        for step in (0, 500):
            rank.tensor(0, "w", WEIGHTS, step=step)
    assert the_run(runs).tensors().column("step").to_pylist() == [0, 500]


def test_histograms_the_user_logged_are_told_apart_by_step_and_the_last_counts(runs: Path, journal: Make) -> None:
    with journal() as rank:
        for step, size in ((0, 5), (1, 7), (1, 6)):
            rank.tensor(0, "h", WEIGHTS[:size], step=step, kind="logged")
    assert the_run(runs).tensors("logged").column("count").to_pylist() == [5, 6]


def test_of_several_samples_at_one_step_the_histogram_is_the_last(runs: Path, journal: Make) -> None:
    with journal() as rank:
        for sample, size in ((7, 5), (8, 6), (9, 4)):
            rank.tensor(sample, "w", WEIGHTS[:size], step=3)
    assert the_run(runs).histogram("gradient", "w", 3).count == 4


def test_a_histogram_of_a_step_that_was_not_sampled_names_the_nearest(runs: Path, journal: Make) -> None:
    with journal() as rank:
        for step in (0, 100, 200):
            rank.tensor(step, "w", WEIGHTS)
    run = the_run(runs)
    with pytest.raises(ValueError, match="was not sampled at step 120; the nearest sampled steps are 0, 100, 200"):
        run.histogram("gradient", "w", 120)
    with pytest.raises(ValueError, match="no gradient 'ww' was recorded; did you mean w"):
        run.histogram("gradient", "ww", 100)


def test_without_a_stage_the_earliest_is_taken_and_none_is_added_to_another(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.tensor(0, "w", WEIGHTS, stage="step")
        rank.tensor(0, "w", WEIGHTS[:7], stage="pre_clip")
    run = the_run(runs)
    assert run.histogram("gradient", "w", 0).count == 7
    assert run.histogram("gradient", "w", 0, stage="step").count == 60


def test_a_histogram_over_a_pattern_adds_the_tensors(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.tensor(0, "a.w", WEIGHTS)
        rank.tensor(0, "b.w", [np.nan, np.inf, 0.0])
    histogram = the_run(runs).histogram("gradient", "*.w", 0)
    assert (histogram.count, histogram.nans, histogram.pos_infs, histogram.zeros) == (63, 1, 1, 1)


def test_covers_that_cannot_be_read_stand_for_the_whole_tensor() -> None:
    assert parse_covers("a:0-5,7-9") == {"a:": [(0, 5), (7, 9)]}
    assert parse_covers("a:0-5;b:1-2") == {"a:": [(0, 5)], "b:": [(1, 2)]}
    assert parse_covers("") == {"": []}
    assert parse_covers("nonsense") == {"": []}


SIZE = 16
spans = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted).filter(lambda span: span[0] < span[1])
parts = st.lists(st.tuples(st.integers(0, 2), st.lists(spans, min_size=1, max_size=2)), min_size=1, max_size=8)


def covered(span_list: list[list[int]]) -> set[int]:
    return {i for lo, hi in span_list for i in range(lo, hi)}


@settings(max_examples=40)
@given(parts=parts)
def test_no_element_is_ever_counted_twice(parts: list[tuple[int, list[list[int]]]]) -> None:
    parts = [
        (rank, span_list)
        for rank, span_list in parts
        if len(covered(span_list)) == sum(hi - lo for lo, hi in span_list)
    ]
    values = 2.0 ** np.arange(SIZE)  # each element has a bucket of its own
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(3):
            with RankJournal(Path(folder), rank=rank, world_size=3) as journal:
                for owner, span_list in parts:
                    if owner == rank:
                        text = "k:" + ",".join(f"{lo}-{hi}" for lo, hi in span_list)
                        mine = sorted(covered(span_list))
                        journal.tensors([tensor_row(0, "w", values[mine], numel=SIZE, covers=text)])
        table = the_run(Path(folder)).tensors()
    taken: set[int] = set()
    best = sorted(parts, key=lambda part: -len(covered(part[1])))
    if best and len(covered(best[0][1])) == SIZE:
        taken = set(range(SIZE))
    for row in table.to_pylist():
        assert max(row["counts"]) == 1
        assert row["count"] == len(row["buckets"]) <= SIZE
        assert row["count"] >= max(len(covered(span_list)) for _, span_list in parts)
        assert row["coverage"] == row["count"] / SIZE
        taken = taken or covered(
            [span for region in parse_covers(row["covers"]).values() for span in map(list, region)]
        )
        assert row["sum"] == sum(values[sorted(taken)])
        for _, span_list in parts:
            assert covered(span_list) & taken, "a part that overlaps none of the others was left out"
