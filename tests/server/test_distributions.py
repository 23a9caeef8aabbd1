"""Maps of tensors from the store: every element counted once, whatever the ranks wrote."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import numpy as np
import pytest

from tests.api.journals import UID
from tests.server.samples import Make, write_runs
from torchtrack import Api
from torchtrack.server import distributions, stored
from torchtrack.server.distributions import MISSING, NONFINITE, POOLED, Window, heatmap, histogram
from torchtrack.server.globs import glob_pattern
from torchtrack.server.indexer import Indexer
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import placed


@pytest.fixture
def two_ranks(runs: Path, journal: Make, store: MetricsStore) -> MetricsStore:
    write_runs(journal)
    Indexer(runs, store).poll()
    return store


@pytest.mark.parametrize(("kind", "name"), [("gradient", "w"), ("gradient", "*"), ("parameter", "shard")])
@pytest.mark.parametrize("pixels", [2, 100])
def test_histograms_over_steps_add_up_to_those_of_the_run(
    runs: Path, two_ranks: MetricsStore, kind: str, name: str, pixels: int
) -> None:
    run = Api.of(stored.open_source(two_ranks)).run(UID)
    answer = histogram(two_ranks, run, placed(run), Window(kind, name, pixels=pixels))
    cells = answer.columns["counts"].reshape(answer.header["shape"])
    there = Api(runs).run(UID)

    steps = np.array(sorted(set(there.tensors(kind, name)["step"].to_pylist())))
    for x, column in zip(answer.columns["x"].astype(int).tolist(), cells, strict=True):
        inside = steps[(steps >= x) & (steps < x + answer.header["bucket"])]
        expected = sum(there.histogram(kind, name, int(step)).counts for step in inside)
        assert column.tolist() == np.asarray(expected).tolist()
    assert answer.table["count"].to_pylist() == cells[cells > 0].tolist()


@pytest.mark.parametrize("kind", ["gradient", "parameter"])
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_cell_is_pooled_from_the_samples_it_covers(runs: Path, two_ranks: MetricsStore, kind: str, pool: str) -> None:
    run = Api.of(stored.open_source(two_ranks)).run(UID)
    answer = heatmap(
        two_ranks,
        run,
        placed(run),
        Window(kind, pixels=3),
        "norm",
        norm="abs",
        pool=pool,  # type: ignore[arg-type]
    )
    rows = Api(runs).run(UID).tensors(kind)
    cells = answer.columns["cells"].reshape(answer.header["shape"])
    flags = answer.columns["flags"].reshape(answer.header["shape"])

    assert answer.header["rows"] == sorted(set(rows["name"].to_pylist()))
    for at, name in enumerate(answer.header["rows"]):
        for column, x in enumerate(answer.columns["x"].astype(int)):
            inside = rows.filter(
                (np.array(rows["name"].to_pylist()) == name)
                & (rows["step"].to_numpy() // answer.header["bucket"] * answer.header["bucket"] == x)
            )
            norms = inside["norm"].to_numpy()
            expected = np.nan if not len(norms) else norms.max() if pool == "max" else norms.mean()
            np.testing.assert_allclose(cells[at, column], expected, rtol=1e-6)
            bad = bool(inside["nans"].to_numpy().sum() or inside["pos_infs"].to_numpy().sum())
            wanted = MISSING if not len(norms) else bad * NONFINITE + (len(norms) > 1) * POOLED
            assert flags[at, column] == wanted


@pytest.mark.parametrize("pixels", [3, 2000])
def test_a_map_that_is_fetched_in_pieces_is_the_same(
    runs: Path, journal: Make, store: MetricsStore, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    rank, generator = journal(), np.random.default_rng(0)
    for step in (*range(-9, 40), 1000):  # a gap, in which no column is
        for name in ("a", "b"):
            values = generator.normal(size=8) * (np.inf if step == 7 else 1)
            rank.tensor(step, name, values)
    Indexer(runs, store).poll()
    run = Api.of(stored.open_source(store)).run(UID)
    where, window = placed(run), Window("gradient", pixels=pixels)
    whole = heatmap(store, run, where, window, "norm", norm="abs", pool="max")
    added = histogram(store, run, where, window)
    monkeypatch.setattr(distributions, "MOST_ROWS", 7)

    for answer, other in (
        (whole, heatmap(store, run, where, window, "norm", norm="abs", pool="max")),
        (added, histogram(store, run, where, window)),
    ):
        assert answer.header == other.header
        for name, column in answer.columns.items():
            np.testing.assert_array_equal(column, other.columns[name])
        assert answer.table.equals(other.table)
    assert int(added.columns["counts"].sum()) == 50 * 2 * 8
    assert whole.table.num_rows == 2 * len(whole.columns["x"])
    assert pixels < 2000 or len(whole.columns["x"]) == 50


def test_what_was_never_recorded_is_an_empty_map(two_ranks: MetricsStore) -> None:
    run = Api.of(stored.open_source(two_ranks)).run(UID)
    where = placed(run)

    assert heatmap(two_ranks, run, where, Window("update"), "norm", norm="median", pool="max").header["shape"] == [0, 0]
    assert histogram(two_ranks, run, where, Window("gradient", "nothing")).header["shape"][0] == 0


@pytest.mark.parametrize(
    "glob",
    [
        "*",
        "layers.*.weight",
        "a?c",
        "[ab].w",
        "[!a].w",
        "a[",
        "a.b",
        "w(1)|x",
        "日*",
        "a\nb",
        "]",
        "[]a]x",
        "[z-a]",
        "[^a].w",
        "[!z-a].w",
        "[a-c]bc",
        "[a-]",
        "[!]a]x",
    ],
)
def test_a_pattern_finds_in_the_store_what_it_finds_in_a_folder(glob: str) -> None:
    names = [
        "layers.0.weight",
        "layers.10.weight",
        "abc",
        "a.c",
        "b.w",
        "a.w",
        "a[",
        "a.b",
        "axb",
        "w(1)|x",
        "日本",
        "a\nb",
        "]",
        "ax",
        "]x",
    ]
    pattern = re.compile(re.sub(r"\\x\{([0-9a-fA-F]+)\}", _character, glob_pattern(glob)))

    assert [n for n in names if pattern.match(n)] == [n for n in names if fnmatch.fnmatchcase(n, glob)]


def _character(escape: re.Match[str]) -> str:
    return "\\U" + escape[1].rjust(8, "0")
