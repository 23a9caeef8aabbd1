"""The tables behind wandb.plot's charts."""

from __future__ import annotations

import json

import numpy as np
import pytest

import torchtrack as wandb
from tests.runs import begin, finished
from torchtrack.media import as_media


def test_a_confusion_matrix_counts_who_was_taken_for_whom() -> None:
    chart = wandb.plot.confusion_matrix(y_true=[0, 0, 1], preds=[0, 1, 1], class_names=["cat", "dog"])

    assert chart.data == [["cat", "cat", 1], ["cat", "dog", 1], ["dog", "cat", 0], ["dog", "dog", 1]]
    assert wandb.plot.confusion_matrix(probs=np.eye(2), y_true=[0, 1]).get_column("nPredictions") == [1, 0, 0, 1]


def test_a_roc_curve_goes_from_nobody_to_everybody() -> None:
    chart = wandb.plot.roc_curve([0, 1, 1], np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]]), classes_to_plot=[1])

    assert chart.data == [["1", 0.0, 0.0], ["1", 0.0, 1.0], ["1", 1.0, 1.0]]


def test_a_precision_curve_has_a_row_a_recall() -> None:
    chart = wandb.plot.pr_curve([0, 1], np.array([[0.9, 0.1], [0.2, 0.8]]), labels=["no", "yes"], interp_size=3)

    assert [row for row in chart.data if row[0] == "yes"] == [["yes", 1.0, 0.0], ["yes", 1.0, 0.5], ["yes", 1.0, 1.0]]


def test_several_lines_are_one_long_table() -> None:
    chart = wandb.plot.line_series(xs=[0, 1], ys=[[1, 2], [3, 4]], keys=["a", "b"])

    assert chart.data == [[0, "a", 1], [1, "a", 2], [0, "b", 3], [1, "b", 4]]


@pytest.mark.parametrize("kind", ["line", "scatter", "bar", "histogram"])
def test_a_chart_of_a_table_says_what_is_to_be_drawn(kind: str) -> None:
    table = wandb.Table(columns=["x", "y"], data=[[1, 2]])
    chart = getattr(wandb.plot, kind)(table, *("x", "y")[: 1 if kind == "histogram" else 2], title="Loss")

    (medium,) = as_media(chart) or ()
    blob = medium.snapshot().encode()
    assert blob.caption == "Loss"
    assert json.loads(blob.data)["chart"].items() >= {"kind": kind, "title": "Loss"}.items()


@pytest.mark.parametrize("split", [False, True])
def test_the_rows_of_a_chart_are_a_table_of_their_own_where_that_was_asked_for(split: bool) -> None:
    table = wandb.Table(columns=["x", "y"], data=[[1, 2]])
    run = begin()
    run.log(
        {
            "preset": wandb.plot_table("wandb/line/v0", table, {"x": "x", "y": "y"}, split_table=split),
            "deep": {"bar": wandb.plot.bar(table, "x", "y", split_table=split)},
        }
    )
    recorded = finished(run)
    media = {row["name"]: recorded.media_file(row["sha256"]).read_text() for row in recorded.media().to_pylist()}

    apart = {"Custom Chart Tables/preset_table", "Custom Chart Tables/deep/bar_table"}
    assert set(media) == {"preset", "deep/bar"} | (apart if split else set())
    for name in apart if split else ():
        assert json.loads(media[name]) == {"columns": ["x", "y"], "data": [[1, 2]]}
