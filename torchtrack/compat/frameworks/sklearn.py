"""`wandb.sklearn`: what a fitted model does, as tables with what is to be drawn of them, logged at the current step."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from torchtrack.active import current
from torchtrack.compat import plot
from torchtrack.compat.tables import Table
from torchtrack.errors import MissingDependencyError

MAX_POINTS: Final = 1000
"""Rows of a table that has one for each sample, evenly chosen."""


def _sklearn(part: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError:
        raise MissingDependencyError(
            "this plot of wandb.sklearn needs scikit-learn: pip install scikit-learn"
        ) from None


def _log(name: str, chart: Any) -> None:
    current(f"sklearn.plot_{name}()").log({name: chart}, commit=False)


def _few(count: int) -> Any:
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(int)) if count else np.zeros(0, int)


def _chart(kind: str, columns: list[str], rows: list[list[Any]], title: str, **fields: str) -> plot.Chart:
    return plot.Chart(Table(columns=columns, data=rows), kind, title, fields)


def plot_classifier(
    model: Any, X_train: Any, X_test: Any, y_train: Any, y_test: Any, y_pred: Any, y_probas: Any, labels: Any,
    is_binary: bool = False, model_name: str = "Classifier", feature_names: Any = None,
    log_learning_curve: bool = False,
) -> None:  # fmt: skip
    """Everything below that is about a classifier."""
    plot_feature_importances(model, feature_names)
    if log_learning_curve:
        plot_learning_curve(model, X_train, y_train)
    plot_confusion_matrix(y_test, y_pred, labels)
    plot_summary_metrics(model, X_train, y_train, X_test, y_test)
    plot_class_proportions(y_train, y_test, labels)
    if is_binary:
        plot_calibration_curve(model, X_train, y_train, model_name)
    plot_roc(y_test, y_probas, labels)
    plot_precision_recall(y_test, y_probas, labels)


def plot_regressor(
    model: Any, X_train: Any, X_test: Any, y_train: Any, y_test: Any, model_name: str = "Regressor"
) -> None:  # fmt: skip
    """Everything below that is about a regressor."""
    del model_name
    plot_summary_metrics(model, X_train, y_train, X_test, y_test)
    plot_learning_curve(model, X_train, y_train)
    plot_outlier_candidates(model, X_train, y_train)
    plot_residuals(model, X_train, y_train)


def plot_clusterer(
    model: Any, X_train: Any, cluster_labels: Any, labels: Any = None, model_name: str = "Clusterer"
) -> None:
    """Everything below that is about a clusterer; the elbow of those that have a number of clusters."""
    del model_name
    if hasattr(model, "n_clusters"):
        plot_elbow_curve(model, X_train)
    plot_silhouette(model, X_train, cluster_labels, labels)


def plot_roc(
    y_true: Any = None, y_probas: Any = None, labels: Any = None, plot_micro: bool = True, plot_macro: bool = True,
    classes_to_plot: Any = None,
) -> None:  # fmt: skip
    """True against false positives, a curve a class; averages over classes are not drawn by wandb either."""
    del plot_micro, plot_macro
    _log("roc", plot.roc_curve(y_true, y_probas, labels, classes_to_plot))


def plot_precision_recall(
    y_true: Any = None, y_probas: Any = None, labels: Any = None, plot_micro: bool = True, classes_to_plot: Any = None
) -> None:
    """Precision over recall, a curve a class; an average over classes is not drawn by wandb either."""
    del plot_micro
    _log("precision_recall", plot.pr_curve(y_true, y_probas, labels, classes_to_plot))


def plot_confusion_matrix(
    y_true: Any = None, y_pred: Any = None, labels: Any = None, true_labels: Any = None, pred_labels: Any = None,
    normalize: bool = False,
) -> None:  # fmt: skip
    """How often each class was taken for each.

    Args:
        y_true: the classes.
        y_pred: what they were taken for.
        labels: names of the classes, in their order.
        true_labels: the classes that are shown as true ones.
        pred_labels: the classes that are shown as guessed ones.
        normalize: shares of each true class instead of counts.
    """
    truth, guessed = np.asarray(y_true).reshape(-1), np.asarray(y_pred).reshape(-1)
    classes = np.unique(np.concatenate([truth, guessed]))
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (np.searchsorted(classes, truth), np.searchsorted(classes, guessed)), 1)
    if normalize:
        counts = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named = [str(each) for each in (labels if labels is not None and len(labels) == len(classes) else classes)]
    rows = [
        [named[i], named[j], float(counts[i, j]) if normalize else int(counts[i, j])]
        for i, true in enumerate(classes)
        for j, guess in enumerate(classes)
        if (true_labels is None or true in true_labels) and (pred_labels is None or guess in pred_labels)
    ]
    fields = {"actual": "Actual", "predicted": "Predicted", "value": "Count"}
    title = "Confusion Matrix"
    _log("confusion_matrix", _chart("confusion matrix", ["Actual", "Predicted", "Count"], rows, title, **fields))


def plot_feature_importances(
    model: Any = None, feature_names: Any = None, title: str = "Feature Importance", max_num_features: int = 50
) -> None:
    """The importances or coefficients of a fitted model, the largest first; nothing for one that has neither."""
    found = getattr(model, "feature_importances_", None)
    found = getattr(model, "coef_", None) if found is None else found
    if found is None:
        return
    values = np.asarray(found, np.float64)
    values = np.abs(values).mean(0) if values.ndim > 1 else values
    named = feature_names if feature_names is not None else getattr(model, "feature_names_in_", range(len(values)))
    order = np.argsort(-np.abs(values), kind="stable")[:max_num_features]
    rows = [[str(named[i]), float(values[i])] for i in order]
    chart = _chart("bar", ["feature", "importance"], rows, title, label="feature", value="importance")
    _log("feature_importances", chart)


def plot_class_proportions(y_train: Any = None, y_test: Any = None, labels: Any = None) -> None:
    """How many samples of each class the training data and the test data have."""
    train, test = np.asarray(y_train).reshape(-1), np.asarray(y_test).reshape(-1)
    classes = np.unique(np.concatenate([train, test]))
    named = labels if labels is not None and len(labels) == len(classes) else classes
    rows = [
        [str(name), part, int((values == number).sum())]
        for part, values in (("train", train), ("test", test))
        for name, number in zip(named, classes, strict=True)
    ]
    chart = _chart("bar", ["class", "dataset", "count"], rows, "Class Proportions", label="class", value="count")
    _log("class_proportions", chart)


def plot_calibration_curve(clf: Any = None, X: Any = None, y: Any = None, clf_name: str = "Classifier") -> None:
    """How often what a binary classifier finds so likely is so."""
    fraction, mean = _sklearn("calibration").calibration_curve(y, clf.predict_proba(X)[:, 1], n_bins=10)
    rows = [[clf_name, float(x), float(share)] for x, share in zip(mean, fraction, strict=True)]
    fields = {"x": "mean_predicted_value", "y": "fraction_of_positives", "stroke": "model"}
    columns = ["model", "mean_predicted_value", "fraction_of_positives"]
    _log("calibration_curve", _chart("line", columns, rows, "Calibration Curve", **fields))


def plot_learning_curve(
    model: Any = None, X: Any = None, y: Any = None, cv: Any = None, shuffle: bool = False, random_state: Any = None,
    train_sizes: Any = None, n_jobs: int = 1, scoring: Any = None,
) -> None:  # fmt: skip
    """Scores over the number of training samples; the model is fitted anew for each, which takes its time."""
    wanted = np.linspace(0.1, 1.0, 5) if train_sizes is None else train_sizes
    given = {"cv": cv, "shuffle": shuffle, "random_state": random_state, "n_jobs": n_jobs, "scoring": scoring}
    sizes, train, test = _sklearn("model_selection").learning_curve(model, X, y, train_sizes=wanted, **given)
    rows = [
        [part, int(size), float(score)]
        for part, scores in (("train", train), ("test", test))
        for size, score in zip(sizes, scores.mean(1), strict=True)
    ]
    fields = {"x": "train_size", "y": "score", "stroke": "dataset"}
    _log("learning_curve", _chart("line", ["dataset", "train_size", "score"], rows, "Learning Curve", **fields))


def plot_summary_metrics(
    model: Any = None, X: Any = None, y: Any = None, X_test: Any = None, y_test: Any = None
) -> None:
    """Accuracy, precision, recall and F1 of a classifier, or errors and R2 of a regressor, on the test data.

    The model is fitted to the training data first, as wandb does.
    """
    base, metrics = _sklearn("base"), _sklearn("metrics")
    guessed = model.fit(X, y).predict(X_test)
    if base.is_classifier(model):
        weigh = {"average": "weighted", "zero_division": 0}
        found = {
            "accuracy_score": metrics.accuracy_score(y_test, guessed),
            "f1_score": metrics.f1_score(y_test, guessed, **weigh),
            "precision": metrics.precision_score(y_test, guessed, **weigh),
            "recall": metrics.recall_score(y_test, guessed, **weigh),
        }
    else:
        found = {
            "mae": metrics.mean_absolute_error(y_test, guessed),
            "mse": metrics.mean_squared_error(y_test, guessed),
            "r2_score": metrics.r2_score(y_test, guessed),
        }
    rows = [[name, float(value)] for name, value in found.items()]
    chart = _chart("bar", ["metric", "value"], rows, "Summary Metrics", label="metric", value="value")
    _log("summary_metrics", chart)


def plot_residuals(regressor: Any = None, X: Any = None, y: Any = None) -> None:
    """What a regressor is wrong by over what it says, for a held-out fifth and for the rest, which it is fitted to."""
    parts = _sklearn("model_selection").train_test_split(np.asarray(X), np.asarray(y), test_size=0.2, random_state=0)
    fitted = regressor.fit(parts[0], parts[2])
    rows = []
    for name, inputs, truth in (("train", parts[0], parts[2]), ("test", parts[1], parts[3])):
        guessed = np.asarray(fitted.predict(inputs)).reshape(-1)
        wrong = guessed - np.asarray(truth).reshape(-1)
        rows += [[name, float(guessed[i]), float(wrong[i])] for i in _few(len(wrong))]
    fields = {"x": "predicted", "y": "residual", "stroke": "dataset"}
    _log("residuals", _chart("scatter", ["dataset", "predicted", "residual"], rows, "Residuals", **fields))


def plot_outlier_candidates(regressor: Any = None, X: Any = None, y: Any = None) -> None:
    """Cook's distance of each sample: how much a linear fit would change without it."""
    del regressor
    inputs, truth = np.asarray(X, np.float64), np.asarray(y, np.float64).reshape(-1)
    design = np.column_stack([np.ones(len(truth)), inputs.reshape(len(truth), -1)])
    hat = np.einsum("ij,ji->i", design, np.linalg.pinv(design))
    wrong = truth - design @ (np.linalg.pinv(design) @ truth)
    free = max(1, len(truth) - design.shape[1])
    noise = max(float(wrong @ wrong) / free, np.finfo(np.float64).tiny)
    distance = wrong**2 * hat / (design.shape[1] * noise * np.maximum(1 - hat, 1e-12) ** 2)
    worst = np.sort(np.argsort(-distance, kind="stable")[:MAX_POINTS])
    rows = [[int(i), float(distance[i])] for i in worst]
    fields = {"label": "sample", "value": "cooks_distance"}
    _log("outlier_candidates", _chart("bar", ["sample", "cooks_distance"], rows, "Outlier Candidates", **fields))


def plot_elbow_curve(
    clusterer: Any = None, X: Any = None, cluster_ranges: Sequence[int] | None = None, n_jobs: int = 1,
    show_cluster_time: bool = True,
) -> None:  # fmt: skip
    """How far samples lie from their clusters, and seconds of fitting, over the number of clusters."""
    del n_jobs
    clone = _sklearn("base").clone
    rows = []
    for count in range(1, 11, 2) if cluster_ranges is None else cluster_ranges:
        began = time.perf_counter()
        fitted = clone(clusterer).set_params(n_clusters=int(count)).fit(X)
        took = time.perf_counter() - began
        rows.append([int(count), float(abs(fitted.score(X))), *([took] if show_cluster_time else [])])
    columns = ["clusters", "errors", *(["seconds"] if show_cluster_time else [])]
    _log("elbow_curve", _chart("line", columns, rows, "Elbow Curve", x="clusters", y="errors"))


def plot_silhouette(
    clusterer: Any = None, X: Any = None, cluster_labels: Any = None, labels: Any = None,
    metric: str = "euclidean", kmeans: bool = True,
) -> None:  # fmt: skip
    """How much nearer each sample lies to its own cluster than to the next one, from -1 to 1."""
    del kmeans
    clusters = np.asarray(clusterer.fit_predict(X) if cluster_labels is None else cluster_labels).reshape(-1)
    values = _sklearn("metrics").silhouette_samples(X, clusters, metric=metric)
    order = np.lexsort((-values, clusters))
    rows = []
    for place, at in enumerate(order[_few(len(order))]):
        named = str(labels[clusters[at]]) if labels is not None else str(clusters[at])
        rows.append([place, named, float(values[at])])
    fields = {"x": "sample", "y": "silhouette", "stroke": "cluster"}
    _log("silhouette", _chart("bar", ["sample", "cluster", "silhouette"], rows, "Silhouette", **fields))
