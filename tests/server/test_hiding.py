"""What later attempts hide is the same in a folder and in the store, whatever attempts logged and recorded."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.journals import UID, RankJournal
from tests.server.samples import Make, counted
from torchtrack import Api
from torchtrack.api.run import Run
from torchtrack.server import stored
from torchtrack.server.axes import Axis
from torchtrack.server.distributions import Window, heatmap, histogram
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import placed
from torchtrack.server.reading import Reader
from torchtrack.server.series import Item, Span, series

METRICS = ("loss", "val's \\ 値", "watch/grad_norm", "system/cpu")
KINDS = {"gradient": "w", "update": "v", "logged": "h"}
Row = tuple[int, int, int, str, int]

rows = st.lists(
    st.tuples(
        st.integers(1, 3),  # attempt
        st.integers(0, 1),  # rank
        st.integers(0, 6),  # step
        st.sampled_from([*METRICS, *KINDS]),
        st.integers(1, 8),  # value
    ),
    min_size=1,
    max_size=40,
)


told = st.dictionaries(st.integers(2, 3), st.integers(-1, 7), max_size=2)


def write(folder: Path, drawn: list[Row], told: dict[int, int]) -> None:
    writers: dict[tuple[int, int], RankJournal] = {}
    for attempt, step in told.items():  # an attempt may say where it begins and log nothing
        writers[attempt, 0] = RankJournal(folder, attempt=attempt, world_size=2, from_step=step)
    for number, (attempt, rank, step, name, value) in enumerate(sorted(drawn, key=lambda row: row[0])):
        if (attempt, rank) not in writers:
            writers[attempt, rank] = RankJournal(folder, rank=rank, attempt=attempt, world_size=2)
        if name in KINDS:
            writers[attempt, rank].tensor(number, KINDS[name], [float(value)], step=step, kind=name)
        else:
            writers[attempt, rank].log(step, {name: float(value)})
    for writer in writers.values():
        writer.abandon()


def line(store: MetricsStore, run: Run, metric: str, rank: int | str, axis: Axis) -> list[tuple[float, float]]:
    """X and value of every point of a chart."""
    item = Item(UID, metric, rank, tuple(placed(run)))  # type: ignore[arg-type]
    columns = series(store, [item], Span(None, None, 100, axis=axis)).columns
    there = columns["count.0"] > 0
    return list(zip(columns["x"][there].tolist(), columns["last.0"][there].tolist(), strict=True))


def expected(run: Run, metric: str, rank: int | str, axis: Axis) -> list[tuple[float, float]]:
    """The same of `Run.history`; of several values at one x the last."""
    if rank != "mean" and rank not in run.history(metric, ranks="all").column("rank").to_pylist():
        return []
    found: dict[float, float] = {}
    along = math.nan
    table = run.history([metric, *filter(None, [axis.metric])], ranks=rank)  # type: ignore[arg-type]
    for row in table.to_pylist():
        along = row["step"] if axis.metric is None else along if row[axis.metric] is None else row[axis.metric]
        if row[metric] is not None and not math.isnan(along):
            found[along] = row[metric]
    return sorted((x, float(np.float32(value))) for x, value in found.items())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=rows, told=told)
def test_lines_rows_of_the_table_and_maps_show_what_the_run_shows(
    store: MetricsStore, drawn: list[Row], told: dict[int, int]
) -> None:
    store.clear()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), drawn, told)
        Indexer(Path(folder), store).poll(everything=True)
        there = Api(folder).run(UID)
        here = Api.of(stored.open_source(store)).run(UID)
        metrics = [key for key in METRICS if key in there.keys()]  # noqa: SIM118  # not a mapping
        for metric in metrics:
            for rank in ("mean", 0, 1):
                for axis in (Axis(), *(Axis("metric", along) for along in metrics if along != metric)):
                    assert line(store, here, metric, rank, axis) == expected(there, metric, rank, axis)
        reader = Reader(store)
        with reader.run(UID) as run:
            row = reader.row(run)
        assert (row["summary"], row["last_step"]) == (there.summary, there.last_step)
        for kind in KINDS:
            window, rows_ = Window(kind), there.tensors(kind)
            answer = heatmap(store, here, placed(here), window, "norm", norm="abs", pool="max")
            cells = answer.columns["cells"].reshape(answer.header["shape"])
            steps = rows_["step"].to_pylist()
            assert answer.columns["x"].tolist() == sorted(set(steps))
            norms = rows_["norm"].to_pylist()
            top = [max(n for n, s in zip(norms, steps, strict=True) if s == step) for step in sorted(set(steps))]
            np.testing.assert_allclose(cells.ravel(), top, rtol=1e-6)
            added = histogram(store, here, placed(here), window)
            assert int(added.columns["counts"].sum()) == sum(rows_["count"].to_pylist())


def test_an_evaluation_that_resumes_a_run_hides_nothing_but_what_it_says_again(
    runs: Path, journal: Make, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal() as first:
        for step in range(50):
            first.log(step, {"loss": float(step), "epoch": step // 10})
            first.tensor(step, "w", [1.0])
    with journal(attempt=2) as second:
        second.log(0, {"test/acc": 0.5, "epoch": 0.0})
    Indexer(runs, store).poll()
    run = Api.of(stored.open_source(store)).run(UID)
    assert len(line(store, run, "loss", "mean", Axis())) == 50
    assert line(store, run, "test/acc", "mean", Axis()) == [(0, 0.5)]
    assert [value for _, value in line(store, run, "epoch", "mean", Axis())] == [step // 10 for step in range(50)]
    assert heatmap(store, run, placed(run), Window("gradient"), "norm", norm="abs", pool="max").header["shape"][1] == 50
    asked = counted(monkeypatch)
    line(store, run, "epoch", "mean", Axis())
    assert not any("argMax((value" in sql for sql in asked)  # the row that is replaced makes the line no slower
