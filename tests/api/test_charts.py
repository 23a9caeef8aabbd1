"""Series and heatmaps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.api.journals import START_US, UID, RankJournal
from torchtrack.api import Api
from torchtrack.histogram import Histogram

Make = Callable[..., RankJournal]


def test_a_series_keeps_the_spike_of_every_bucket(runs: Path, journal: Make) -> None:
    value = np.ones(10_000)
    value[4321], value[77] = 900.0, -5.0
    with journal() as rank:
        steps = np.arange(len(value))
        rank.columns(steps, ["x"] * len(value), value, ["mean"] * len(value), START_US + steps)
    series = Api(runs).run(UID).series("x", max_points=100)
    assert series.num_rows == 100
    assert max(series["max"].to_pylist()) == 900.0
    assert min(series["min"].to_pylist()) == -5.0
    assert sum(series["count"].to_pylist()) == len(value)
    assert series["step"].to_pylist()[1] == series["last_step"].to_pylist()[0] + 1


def test_a_series_counts_what_is_not_finite_and_leaves_it_out_of_min_and_max(runs: Path, journal: Make) -> None:
    with journal() as rank:
        for step, value in enumerate([1.0, math.nan, 3.0, math.inf, math.nan, math.nan]):
            rank.log(step, {"x": value})
    series = Api(runs).run(UID).series("x", max_points=3)
    assert series["min"].to_pylist() == [1.0, 3.0, None]
    assert series["max"].to_pylist() == [1.0, 3.0, None]
    assert series["nonfinite"].to_pylist() == [1, 1, 2]


def test_a_series_over_all_ranks_shows_their_spread(runs: Path, journal: Make) -> None:
    for number in range(2):
        with journal(rank=number, world_size=2) as rank:
            rank.log(0, {"x": float(number)})
    series = Api(runs).run(UID).series("x", ranks="all")
    assert (series["min"].to_pylist(), series["max"].to_pylist(), series["mean"].to_pylist()) == ([0.0], [1.0], [0.5])


def test_a_heatmap_adds_adjacent_samples_exactly(runs: Path, journal: Make) -> None:
    samples = [np.float32(2.0) ** np.arange(step, step + 4) for step in range(9)]
    with journal() as rank:
        for step, values in enumerate(samples):
            rank.tensor(step, "w", values, step=step * 10)
    run = Api(runs).run(UID)
    whole = run.heatmap("gradient", "w")
    assert whole.first_step.tolist() == whole.last_step.tolist() == [step * 10 for step in range(9)]
    merged = run.heatmap("gradient", "w", max_columns=2)
    assert merged.counts.shape == (2, 328)
    assert (merged.first_step.tolist(), merged.last_step.tolist()) == ([0, 40], [30, 80])
    assert np.array_equal(merged.counts[0], Histogram.of(np.concatenate(samples[:4])).counts)
    assert np.array_equal(merged.counts[1], Histogram.of(np.concatenate(samples[4:])).counts)


def test_a_heatmap_of_nothing_is_empty(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.log(0, {"x": 1.0})
    run = Api(runs).run(UID)
    assert run.heatmap("gradient", "w").counts.shape == (0, 328)
    with pytest.raises(ValueError, match="max_columns=0: it is at least 1"):
        run.heatmap("gradient", "w", max_columns=0)
