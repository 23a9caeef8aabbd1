"""`wandb.plot`: the table behind each chart, which says what the page is to draw of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from torchtrack.compat.tables import Table
from torchtrack.media import Medium

TABLES: Final = "Custom Chart Tables"
"""The section of what `split_table` asks for, as there."""
_PRESET = re.compile(r"wandb/(line|scatter|bar|histogram|confusion_matrix)/v\d+")


class Chart(Table):
    """A table that says beside its rows, as `chart`, what is to be drawn of it."""

    def __init__(
        self, table: Table, kind: str, title: str | None, fields: Mapping[str, str], *, split: bool = False
    ) -> None:
        super().__init__(columns=list(table.columns or ()), data=table.data)
        self.chart = {"kind": kind, "title": title or "", **fields}
        self.caption = title or None
        self._split = split

    def beside(self, name: str) -> Mapping[str, Medium]:
        """Its rows as a table of their own, where that was asked for."""
        return {f"{TABLES}/{name}_table": Table(columns=self._names(), data=self.data)} if self._split else {}


def _chart(table: Table, kind: str, title: str | None, split: bool, **fields: str) -> Chart:
    return Chart(table, kind, title, fields, split=split)


def line(table: Table, x: str, y: str, stroke: str | None = None, title: str = "", split_table: bool = False) -> Chart:
    """A line of two columns of a table."""
    return _chart(table, "line", title, split_table, x=x, y=y, **({"stroke": stroke} if stroke else {}))


def scatter(table: Table, x: str, y: str, title: str = "", split_table: bool = False) -> Chart:
    """Points of two columns of a table."""
    return _chart(table, "scatter", title, split_table, x=x, y=y)


def bar(table: Table, label: str, value: str, title: str = "", split_table: bool = False) -> Chart:
    """A bar a row."""
    return _chart(table, "bar", title, split_table, label=label, value=value)


def histogram(table: Table, value: str, title: str = "", split_table: bool = False) -> Chart:
    """How often the values of a column occur."""
    return _chart(table, "histogram", title, split_table, value=value)


def line_series(
    xs: Sequence[Any], ys: Sequence[Sequence[Any]], keys: Sequence[str] | None = None, title: str = "",
    xname: str = "x", split_table: bool = False,
) -> Chart:  # fmt: skip
    """Several lines.

    Args:
        xs: common to all, or one sequence a line.
        ys: a sequence a line.
        keys: a name a line.
        title: of the chart.
        xname: of the x axis.
        split_table: also record the rows as a table of their own, in the section "Custom Chart Tables".
    """
    each = xs if len(xs) and isinstance(xs[0], Iterable) else [xs] * len(ys)
    named = keys or [f"line_{i}" for i in range(len(ys))]
    rows = [[x, name, y] for at, name, of in zip(each, named, ys, strict=True) for x, y in zip(at, of, strict=False)]
    table = Table(columns=[xname, "lineKey", "lineVal"], data=rows)
    return _chart(table, "line", title, split_table, x=xname, y="lineVal", stroke="lineKey")


def confusion_matrix(
    probs: Any = None, y_true: Any = None, preds: Any = None, class_names: Sequence[str] | None = None,
    title: str = "", split_table: bool = False,
) -> Chart:  # fmt: skip
    """How often each class was taken for each.

    Raises:
        ValueError: neither or both of probs and preds are given.
    """
    if (probs is None) == (preds is None) or y_true is None:
        raise ValueError("confusion_matrix() takes y_true, and either probs or preds")
    guessed = np.asarray(preds if probs is None else np.argmax(np.asarray(probs), axis=1)).reshape(-1).astype(int)
    truth = np.asarray(y_true).reshape(-1).astype(int)
    size = len(class_names) if class_names else int(max(guessed.max(initial=-1), truth.max(initial=-1))) + 1
    named = list(class_names or (f"Class_{i + 1}" for i in range(size)))
    counts = np.zeros((size, size), int)
    np.add.at(counts, (truth, guessed), 1)
    rows = [[named[i], named[j], int(counts[i, j])] for i in range(size) for j in range(size)]
    table = Table(columns=["Actual", "Predicted", "nPredictions"], data=rows)
    return _chart(
        table, "confusion matrix", title, split_table, actual="Actual", predicted="Predicted", value="nPredictions"
    )


def _each_class(y_true: Any, y_probas: Any, labels: Any, classes_to_plot: Any) -> Iterable[tuple[Any, Any, Any]]:
    truth, scores = np.asarray(y_true).reshape(-1), np.asarray(y_probas)
    classes = np.unique(truth)
    for i, number in enumerate(classes):
        if (classes_to_plot is None or number in classes_to_plot) and i < scores.shape[1]:
            order = np.argsort(-scores[:, i], kind="stable")
            yield (labels[i] if labels is not None else number), (truth == number)[order], scores[order, i]


def _ends(scores: Any) -> Any:
    """Where a threshold can lie: after the last of equal scores."""
    return np.append(np.flatnonzero(np.diff(scores)), scores.size - 1)


def roc_curve(
    y_true: Any = None, y_probas: Any = None, labels: Any = None, classes_to_plot: Any = None, title: str = "ROC",
    split_table: bool = False,
) -> Chart:  # fmt: skip
    """True against false positives as the threshold falls, a curve a class."""
    rows = []
    for name, hit, scores in _each_class(y_true, y_probas, labels, classes_to_plot):
        ends, right, wrong = _ends(scores), np.cumsum(hit), np.cumsum(~hit)
        rows.append([str(name), 0.0, 0.0])
        for at in ends:
            rows.append([str(name), float(wrong[at] / max(1, wrong[-1])), float(right[at] / max(1, right[-1]))])
    return _chart(
        Table(columns=["class", "fpr", "tpr"], data=rows), "line", title, split_table, x="fpr", y="tpr", stroke="class"
    )


def pr_curve(
    y_true: Any = None, y_probas: Any = None, labels: Any = None, classes_to_plot: Any = None, interp_size: int = 21,
    title: str = "Precision-Recall Curve", split_table: bool = False,
) -> Chart:  # fmt: skip
    """Precision at `interp_size` evenly spaced recalls, a curve a class."""
    rows = []
    for name, hit, scores in _each_class(y_true, y_probas, labels, classes_to_plot):
        ends, right = _ends(scores), np.cumsum(hit)
        precision, recall = right[ends] / (ends + 1), right[ends] / max(1, right[-1])
        for wanted in np.linspace(0, 1, interp_size):
            reached = precision[recall >= wanted]
            rows.append([str(name), float(reached.max(initial=0.0)), float(wanted)])
    table = Table(columns=["class", "precision", "recall"], data=rows)
    return _chart(table, "line", title, split_table, x="recall", y="precision", stroke="class")


def plot_table(
    vega_spec_name: str, data_table: Table, fields: dict[str, Any], string_fields: dict[str, Any] | None = None,
    split_table: bool = False,
) -> Chart:  # fmt: skip
    """A table with the name of a preset, which is drawn, or of a chart of your own, of which the rows are shown."""
    title = (string_fields or {}).get("title")
    preset = _PRESET.fullmatch(vega_spec_name)
    kind = preset[1].replace("_", " ") if preset else vega_spec_name
    return Chart(data_table, kind, title, {key: str(value) for key, value in fields.items()}, split=split_table)


def visualize(id: str, value: Table) -> Chart:  # noqa: A002
    """A table with the name of a chart of your own."""
    return Chart(value, id, None, {})


plot = sys.modules[__name__]
