"""`wandb.xgboost`: a callback for XGBoost. The class is made when it is asked for, since it derives from one there."""

from __future__ import annotations

import functools
import json
from typing import Any

from torchtrack.active import current
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.frameworks.trees import importance
from torchtrack.errors import MissingDependencyError


def __getattr__(name: str) -> Any:
    if name != "WandbCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _callback()


@functools.cache
def _callback() -> Any:
    try:
        from xgboost.callback import TrainingCallback
    except ImportError:
        raise MissingDependencyError("wandb.xgboost.WandbCallback needs xgboost: pip install xgboost") from None
    return type("WandbCallback", (Rounds, TrainingCallback), {"__doc__": Rounds.__doc__})


class Rounds:
    """Logs what XGBoost measures in each round, and at the end what came of it.

    Args:
        log_model: keep the model as an artifact.
        log_feature_importance: log a table of the importances.
        importance_type: gain, weight, cover, total_gain or total_cover.
        define_metric: have the summary keep the best value of a metric instead of the last.
    """

    def __init__(
        self,
        log_model: bool = False,
        log_feature_importance: bool = True,
        importance_type: str = "gain",
        define_metric: bool = True,
    ) -> None:
        super().__init__()
        self.log_model, self.log_feature_importance = log_model, log_feature_importance
        self.importance_type, self.define_metric = importance_type, define_metric
        self._defined: set[str] = set()
        current("xgboost.WandbCallback()")

    def before_training(self, model: Any) -> Any:
        """Put the configuration of the booster into the config."""
        current("xgboost").config.update(json.loads(model.save_config()))
        return model

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Log the round; training goes on."""
        del model
        run, row = current("xgboost"), {"epoch": epoch}
        for data, metrics in evals_log.items():
            for name, values in metrics.items():
                metric = f"{data}-{name}"
                row[metric] = values[-1][0] if isinstance(values[-1], tuple) else values[-1]
                if self.define_metric and metric not in self._defined:
                    self._defined.add(metric)
                    larger = any(part in name for part in ("auc", "map", "ndcg", "pre"))
                    run.define_metric(metric, summary="best", goal="maximize" if larger else "minimize")
        run.log(row)
        return False

    def after_training(self, model: Any) -> Any:
        """Say what came of it."""
        run: Any = current("xgboost")
        if self.log_feature_importance:
            found = model.get_score(importance_type=self.importance_type)
            run.log({"feature_importance": importance(found)}, commit=False)
        best = {name: model.attr(name) for name in ("best_score", "best_iteration")}
        run.summary.update({name: float(value) for name, value in best.items() if value is not None})
        if self.log_model:
            artifact = Artifact(f"{run.id}_model", "model")
            with artifact.new_file("model.json", "wb") as file:
                file.write(bytes(model.save_raw("json")))
            run.log_artifact(artifact)
        return model
