"""`wandb.lightgbm`: what LightGBM measures as it trains, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchtrack.active import current
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.frameworks.trees import importance


def wandb_callback(log_params: bool = True, define_metric: bool = True) -> Callable[[Any], None]:
    """A callback for `lightgbm.train`: the metrics of each iteration.

    Args:
        log_params: put the parameters into the config.
        define_metric: have the summary keep the best value of a metric instead of the last.
    """
    defined: set[str] = set()

    def callback(env: Any) -> None:
        run = current("lightgbm.wandb_callback()")
        if log_params and env.iteration == env.begin_iteration:
            run.config.update(dict(env.params))
        row: dict[str, Any] = {"iteration": env.iteration}
        for data, name, value, larger_is_better, *_ in env.evaluation_result_list or ():
            metric = f"{data}_{name}"
            row[metric] = value
            if define_metric and metric not in defined:
                defined.add(metric)
                run.define_metric(metric, summary="best", goal="maximize" if larger_is_better else "minimize")
        run.log(row)

    return callback


def log_summary(model: Any, feature_importance: bool = True, save_model_checkpoint: bool = False) -> None:
    """What a trained booster is.

    Args:
        model: the booster, or an estimator that has one.
        feature_importance: log a table of the importances.
        save_model_checkpoint: keep the model as an artifact.
    """
    run: Any = current("lightgbm.log_summary()")
    booster = getattr(model, "booster_", model)
    run.summary["best_iteration"] = booster.best_iteration
    for data, scores in booster.best_score.items():
        run.summary.update({f"{data}_{name}_best": value for name, value in scores.items()})
    if feature_importance:
        found = dict(zip(booster.feature_name(), booster.feature_importance("gain").tolist(), strict=True))
        run.log({"feature_importance": importance(found)}, commit=False)
    if save_model_checkpoint:
        artifact = Artifact(f"model_{run.id}", "model")
        with artifact.new_file("model.txt") as file:
            file.write(booster.model_to_string())
        run.log_artifact(artifact)
