"""`wandb.catboost`: what CatBoost measures as it trains, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchtrack.active import current
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.frameworks.trees import importance


class WandbCallback:
    """A callback for `fit`: the metrics of each iteration that CatBoost evaluates.

    Args:
        metric_period: that of the model, which is in the name of the iteration's number.
    """

    def __init__(self, metric_period: int = 1) -> None:
        current("catboost.WandbCallback()")
        self.metric_period = metric_period
        self._seen = 0

    def after_iteration(self, info: Any) -> bool:
        """Log what is new; True: training goes on."""
        seen = sum(len(values) for metrics in info.metrics.values() for values in metrics.values())
        if seen > self._seen:
            self._seen = seen
            found = {
                f"{data}-{name}": log[-1] for data, metrics in info.metrics.items() for name, log in metrics.items()
            }
            number = {f"iteration@metric-period-{self.metric_period}": info.iteration}
            current("catboost.WandbCallback()").log({**found, **number})
        return True


def log_summary(
    model: Any, log_all_params: bool = True, save_model_checkpoint: bool = False, log_feature_importance: bool = True
) -> None:
    """What a fitted model is.

    Args:
        model: a CatBoostClassifier or CatBoostRegressor.
        log_all_params: put its parameters into the config.
        save_model_checkpoint: keep it as an artifact.
        log_feature_importance: log a table of the importances.
    """
    run: Any = current("catboost.log_summary()")
    params = model.get_all_params()
    if log_all_params:
        run.config.update(params)
    run.summary.update({"best_iteration": model.get_best_iteration(), "best_score": model.get_best_score()})
    if log_feature_importance:
        values = (float(value) for value in model.get_feature_importance())
        found = dict(zip(map(str, model.feature_names_), values, strict=True))
        run.log({"feature_importance": importance(found)}, commit=False)
    if save_model_checkpoint:
        path = Path(run.dir) / "files" / "model.cbm"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        model.save_model(str(path))
        artifact = Artifact(f"model_{run.id}", "model")
        artifact.add_file(path)
        run.log_artifact(artifact, aliases=["best" if params.get("use_best_model") else "last"])
