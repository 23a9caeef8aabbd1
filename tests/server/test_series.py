"""Charts from the store: what they show is what `Run.history` says, bucket by bucket."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.api.journals import UID, RankJournal
from tests.server.samples import Make, counted, write_runs
from torchtrack import Api
from torchtrack.api.run import Run
from torchtrack.server import stored
from torchtrack.server.answers import Answer
from torchtrack.server.axes import Axis, bucket_width
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import Placed, placed
from torchtrack.server.series import Item, Span, charts, series
from torchtrack.server.surveys import Surveys


def chart(
    store: MetricsStore, metrics: list[str], span: Span, rank: int | Literal["mean"] = "mean", uid: str = UID
) -> Answer:
    run = Api.of(stored.open_source(store)).run(uid)
    streams = tuple(one for one in placed(run) if rank in ("mean", one.rank))
    start = int(run.created.timestamp() * 1e6)
    return series(store, [Item(uid, metric, rank, streams, start) for metric in metrics], span)


def history_over(run: Run, metric: str, axis: Axis, rank: int | Literal["mean"]) -> tuple[np.ndarray, np.ndarray]:
    """X in the axis's units and values, in the order of x, as `Run.history` has them."""
    rows = run.history([metric, *filter(None, [axis.metric])], ranks=rank)
    if axis.metric not in (None, metric):  # the last value there was
        rows = rows.set_column(3, axis.metric, pc.fill_null_forward(rows[axis.metric]))
    for name in rows.column_names[2:]:
        rows = rows.filter(rows[name].is_valid())
    time = rows["time"].cast(pa.int64()).to_numpy()
    if axis.metric is not None:
        x = rows[axis.metric].to_numpy()
    else:
        x = {"step": rows["step"].to_numpy(), "time": time, "relative": time - int(run.created.timestamp() * 1e6)}[
            axis.mode
        ]
    order = np.argsort(x, kind="stable")
    return x[order], rows[metric].to_numpy()[order]


@pytest.mark.parametrize("rank", ["mean", 0, 1])
@pytest.mark.parametrize("pixels", [2, 4, 100])
def test_every_bucket_says_of_the_history_what_is_true_of_it(
    runs: Path, journal: Make, store: MetricsStore, rank: int | Literal["mean"], pixels: int
) -> None:
    write_runs(journal)
    Indexer(runs, store).poll()
    run = Api(runs).run(UID)
    metrics = ["loss", "tokens", "part", "odd", "infinite", "before"]
    answer = chart(store, metrics, Span(None, None, pixels), rank)
    width = answer.header["bucket"]

    for number, metric in enumerate(metrics):
        history = run.history(metric, ranks=rank)
        history = history.filter(history[metric].is_valid())
        step, value = history["step"].to_numpy(), history[metric].to_numpy()
        column = {name: answer.columns[f"{name}.{number}"] for name in ("first", "min", "max", "last", "mean")}
        count, nonfinite = answer.columns[f"count.{number}"], answer.columns[f"nonfinite.{number}"]
        assert int(count.sum() + nonfinite.sum()) == len(step)
        for at, x in enumerate(answer.columns["x"].astype(int)):
            inside = value[(step >= x) & (step < x + width)]
            finite = inside[np.isfinite(inside)]
            assert (count[at], nonfinite[at]) == (len(finite), len(inside) - len(finite))
            ends = (inside[0], inside[-1]) if len(inside) else (math.nan, math.nan)
            spread = (finite.min(), finite.max(), finite.mean()) if len(finite) else (math.nan,) * 3
            got = [column[name][at] for name in ("first", "last", "min", "max", "mean")]
            np.testing.assert_allclose(got, [*ends, *spread], rtol=1e-6)


def test_a_spike_of_one_step_in_a_million_is_there_at_every_zoom(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    rank = journal()
    n, at, gap = 1_000_000, 512_345, 777
    value = np.sin(np.arange(n) / 100)
    value[at], value[gap] = 1e6, math.nan
    for start in range(0, n, 100_000):
        steps = np.arange(start, start + 100_000)
        rank.columns(steps, ["loss"] * len(steps), value[steps], ["mean"] * len(steps), steps)
    Indexer(runs, store).poll()

    for pixels in (1, 7, 100, 1000):
        answer = chart(store, ["loss"], Span(None, None, pixels))
        assert len(answer.columns["x"]) <= pixels
        assert np.nanmax(answer.columns["max.0"]) == 1e6
        assert answer.columns["nonfinite.0"].sum() == 1
    for width in (2**k for k in range(1, 20)):
        zoomed = chart(store, ["loss"], Span(at - width // 3, at - width // 3 + width, 1000))
        assert np.nanmax(zoomed.columns["max.0"]) == 1e6, width
        assert zoomed.header["raw"] is (width <= 2000)
    assert zoomed.columns["x"][0] % zoomed.header["bucket"] == 0


def test_points_that_arrive_move_no_bucket(runs: Path, journal: Make, store: MetricsStore) -> None:
    rank = journal()
    indexer = Indexer(runs, store)
    before: dict[float, float] = {}
    for start in (0, 1000, 1100):
        n = 100 if start else 1000
        rank.columns(np.arange(start, start + n), ["loss"] * n, np.arange(n) % 17, ["mean"] * n, np.arange(n))
        indexer.poll()
        answer = chart(store, ["loss"], Span(None, None, 100))
        assert answer.header["bucket"] == 16
        now = dict(zip(answer.columns["x"].tolist(), answer.columns["mean.0"].tolist(), strict=True))
        assert {x: now[x] for x in list(before)[:-1]} == dict(list(before.items())[:-1])
        before = now


def test_smoothing_is_the_same_at_every_zoom(runs: Path, journal: Make, store: MetricsStore) -> None:
    rank = journal()
    n = 4000
    value = np.random.default_rng(0).normal(size=n)
    rank.columns(np.arange(n), ["loss"] * n, value, ["mean"] * n, np.arange(n))
    Indexer(runs, store).poll()
    whole = chart(store, ["loss"], Span(None, None, 4000, tau=20.0))
    part = chart(store, ["loss"], Span(3000, 3100, 100, tau=20.0))

    expected = [np.average(value[: i + 1], weights=np.exp(-np.arange(i, -1, -1) / 20.0)) for i in range(3000, 3100)]
    np.testing.assert_allclose(whole.columns["smooth.0"][3000:3100], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(part.columns["smooth.0"], expected, rtol=2e-3, atol=2e-3)


def test_charts_that_are_wanted_together_are_what_each_is_alone(runs: Path, journal: Make, store: MetricsStore) -> None:
    write_runs(journal)
    Indexer(runs, store).poll()
    run = Api.of(stored.open_source(store)).run(UID)
    streams = tuple(placed(run))
    own = [Item(UID, metric, 1, tuple(one for one in streams if one.rank == 1)) for metric in ("loss", "lr", "odd")]
    shared = [Item(UID, metric, "mean", streams) for metric in ("tokens", "part", "before", "nothing")]
    for span in (Span(None, None, 3, tau=2.0), Span(2, 9, 2), Span(None, None, 100, tau=1.0, axis=Axis("time"))):
        wanted = [own, shared[:2], shared[2:], [], own[:1]]
        for together, items in zip(charts(store, wanted, span), wanted, strict=True):
            alone = series(store, items, span)
            assert together.header == alone.header
            assert together.columns.keys() == alone.columns.keys()
            for name, column in alone.columns.items():
                np.testing.assert_array_equal(together.columns[name], column, err_msg=name)


def test_many_lines_are_as_few_questions_to_the_store_as_one(
    runs: Path, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = [f"m{k}" for k in range(24)]
    for i in range(5):
        with RankJournal(runs, f"{i:016x}") as rank:
            for step in range(3):
                rank.log(step, dict.fromkeys(metrics, float(i + step)))
    Indexer(runs, store).poll()
    found = {run.uid: tuple(placed(run)) for run in Api.of(stored.open_source(store)).runs()}
    wanted = [[Item(uid, metric, "mean", streams) for uid, streams in found.items()] for metric in metrics]
    span = Span(None, None, 2, tau=2.0)
    asked = counted(monkeypatch)
    series(store, wanted[0][:1], span)
    one, all_ = len(asked), charts(store, wanted, span)

    assert len(asked) == 2 * one
    assert one == 3  # which steps there are, the buckets, the trend
    assert len(all_) == 24
    assert all(np.isfinite(each.columns[f"smooth.{i}"]).all() for each in all_ for i in range(5))


AXES = [Axis("time"), Axis("relative"), Axis("metric", "tokens"), Axis("metric", "loss"), Axis("metric", "lr")]


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.metric or axis.mode)
def test_every_axis_has_exact_buckets(runs: Path, journal: Make, store: MetricsStore, axis: Axis) -> None:
    write_runs(journal)
    Indexer(runs, store).poll()
    run = Api(runs).run(UID)
    metrics = ["loss", "part", "infinite"]
    ranks: tuple[int | Literal["mean"], ...] = ("mean", 1)
    for rank, pixels in itertools.product(ranks, (3, 100)):
        answer = chart(store, metrics, Span(None, None, pixels, axis=axis), rank)
        starts = np.round(answer.columns["x"] * axis.unit) if axis.whole else answer.columns["x"]
        if not answer.header["raw"]:
            assert len(starts) <= pixels
        for line, metric in enumerate(metrics):
            x, value = history_over(run, metric, axis, rank)
            at = np.searchsorted(starts, x, side="right") - 1
            assert (x - starts[at] <= answer.header["bucket"] * axis.unit).all()
            got = {name: answer.columns[f"{name}.{line}"] for name in ("first", "last", "min", "max", "count")}
            for number in range(len(starts)):
                inside = value[at == number]
                finite = inside[np.isfinite(inside)]
                ends = [inside[0], inside[-1]] if len(inside) else [math.nan] * 2
                spread = [finite.min(), finite.max()] if len(finite) else [math.nan] * 2
                expected = [*ends, *spread, len(finite)]
                np.testing.assert_allclose([float(column[number]) for column in got.values()], expected, rtol=1e-6)


def test_a_range_of_an_axis_is_half_open_in_its_units(runs: Path, journal: Make, store: MetricsStore) -> None:
    rank = journal()
    n = 3000
    rank.columns(np.arange(n), ["loss"] * n, np.arange(n), ["mean"] * n, np.arange(n) * 500_000)
    rank.columns(np.arange(n), ["tokens"] * n, np.arange(n) * 64.0, ["mean"] * n, np.arange(n))
    Indexer(runs, store).poll()
    start = Api(runs).run(UID).created.timestamp()
    zero = float(chart(store, ["loss"], Span(None, None, n, axis=Axis("relative"))).columns["x"][0])

    shown = [
        (Axis("relative"), zero + 100.0, zero + 200.0, slice(200, 400)),
        (Axis("time"), start + zero + 100.0, start + zero + 200.0, slice(200, 400)),
        (Axis("metric", "tokens"), 6400.0, 12800.0, slice(100, 200)),
    ]
    for axis, first, stop, steps in shown:
        answer = chart(store, ["loss"], Span(first, stop, 1000, axis=axis))
        assert answer.columns["last.0"].tolist() == list(range(n))[steps], axis
        coarse = chart(store, ["loss"], Span(first, stop, 10, axis=axis))
        assert coarse.columns["count.0"].sum() == steps.stop - steps.start
        smooth = chart(store, ["loss"], Span(first, stop, 1000, tau=1e-6, axis=axis))
        np.testing.assert_allclose(smooth.columns["smooth.0"], answer.columns["last.0"])


def test_rows_that_come_after_a_look_count_at_once(runs: Path, journal: Make, store: MetricsStore) -> None:
    rank, indexer, surveys = journal(), Indexer(runs, store), Surveys(store)
    rank.log(0, {"loss": 1.0})
    rank.log(1, {"loss": 2.0})
    indexer.poll()
    run = Api.of(stored.open_source(store)).run(UID)
    before = Item(UID, "loss", "mean", tuple(placed(run)))
    assert series(store, [before], Span(None, None, 10), surveys).columns["last.0"].tolist() == [1.0, 2.0]
    rank.log(1, {"loss": 5.0})  # said again: what was known of the rows holds no more
    rank.log(2, {"loss": 3.0})
    indexer.poll()

    now = Item(UID, "loss", "mean", tuple(placed(Api.of(stored.open_source(store)).run(UID))))
    for item in (before, now):
        columns = series(store, [item], Span(None, None, 10), surveys).columns
        assert columns["last.0"].tolist() == columns["min.0"].tolist() == [1.0, 5.0, 3.0]
        assert columns["count.0"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1e308, 1e308), (5.0, 5.0), (1.0, 1.0 + 1e-15), (0.0, 5e-324)])
def test_a_bucket_of_a_metric_is_never_too_narrow(low: float, high: float) -> None:
    for pixels in (1, 7, 8192):
        k = Axis("metric", "x").exponent(low, high, pixels)
        assert math.floor(math.ldexp(high, -k)) - math.floor(math.ldexp(low, -k)) < max(pixels, 2)


@pytest.mark.parametrize(
    ("low", "high", "pixels"), [(0, 0, 1), (-1, 0, 1), (0, 999, 1000), (0, 1000, 1000), (-7, 5, 3), (5, 10**12, 800)]
)
def test_a_bucket_is_the_smallest_power_of_two_that_fits(low: int, high: int, pixels: int) -> None:
    width = bucket_width(low, high, pixels)

    assert width & (width - 1) == 0
    pixels = max(pixels, 2 if low < 0 <= high else 1)  # 0 is an edge of buckets of any width
    assert high // width - low // width + 1 <= pixels
    assert width == 1 or high // (width // 2) - low // (width // 2) + 1 > pixels


def test_lines_of_many_runs_share_one_grid_and_one_export(runs: Path, journal: Make, store: MetricsStore) -> None:
    write_runs(journal)
    Indexer(runs, store).poll()
    source = Api.of(stored.open_source(store))
    items = [Item(run.uid, "loss", "mean", tuple(placed(run))) for run in source.runs()]
    answer = series(store, items, Span(None, None, 1000))

    assert [len(column) for column in answer.columns.values()] == [len(answer.columns["x"])] * len(answer.columns)
    assert answer.table.num_rows == sum(run.history("loss").num_rows for run in source.runs())
    assert series(store, [], Span(None, None, 10)).columns["x"].size == 0


def test_lines_that_share_streams_do_not_take_each_others_values(
    runs: Path, journal: Make, store: MetricsStore
) -> None:
    write_runs(journal)
    Indexer(runs, store).poll()
    run = Api.of(stored.open_source(store)).run(UID)
    where = placed(run)
    of: dict[int, tuple[Placed, ...]] = {rank: tuple(one for one in where if one.rank == rank) for rank in (0, 1, 7)}
    items = [Item(UID, "loss", 0, of[0]), Item(UID, "loss", "mean", tuple(where)), Item(UID, "tokens", 1, of[1])]
    items += [Item(UID, "loss", 1, of[1]), Item(UID, "loss", 7, of[7]), Item(UID, "no such", 0, of[0])]
    answer = series(store, items, Span(None, None, 1000))

    for number, (metric, rank) in enumerate([("loss", 0), ("loss", "mean"), ("tokens", 1), ("loss", 1)]):
        expected = run.history(metric, ranks=rank)[metric].to_pylist()  # type: ignore[arg-type]
        line = answer.columns[f"last.{number}"]
        np.testing.assert_allclose(line[~np.isnan(line)], expected, rtol=1e-6)
    assert not answer.columns["count.4"].any()
    assert not answer.columns["count.5"].any()
    assert series(store, items[4:5], Span(None, None, 1000)).columns["x"].size == 0
