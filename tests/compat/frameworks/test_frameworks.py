"""What wandb has for other frameworks, beside those frameworks."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import torchtrack
from tests.runs import begin, column, finished, only_run, script

wandb: Any = torchtrack


def charts(run: Any) -> dict[str, Any]:
    """The tables a run logged, by name."""
    recorded = finished(run)
    folder = Path(run.dir) / "media"
    return {row["name"]: json.loads((folder / row["sha256"]).read_text()) for row in recorded.media().to_pylist()}


def test_the_modules_are_there_without_the_frameworks() -> None:
    code = "import torchtrack as wandb, sys; wandb.keras, wandb.sklearn, wandb.xgboost, wandb.lightgbm\n"
    code += "print({'keras', 'sklearn', 'xgboost', 'lightgbm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_a_framework_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for framework, name in (("keras", "WandbMetricsLogger"), ("xgboost", "WandbCallback")):
        monkeypatch.setitem(sys.modules, framework, None)
        monkeypatch.setitem(sys.modules, f"{framework}.callback", None)
        with pytest.raises(torchtrack.TorchtrackError, match=f"pip install {framework}"):
            getattr(getattr(wandb, framework), name)


PLOTS: dict[str, tuple[Any, ...]] = {
    "plot_calibration_curve": (None, [[0.0]], [0]),
    "plot_learning_curve": (None, [[0.0]], [0]),
    "plot_summary_metrics": (None, [[0.0]], [0], [[0.0]], [0]),
    "plot_residuals": (None, [[0.0]], [0]),
    "plot_elbow_curve": (None, [[0.0]]),
    "plot_silhouette": (None, [[0.0]], [0]),
}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_that_needs_sklearn_names_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in ("sklearn", *(f"sklearn.{part}" for part in ("base", "calibration", "metrics", "model_selection"))):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(torchtrack.TorchtrackError, match="pip install scikit-learn"):
        getattr(wandb.sklearn, name)(*PLOTS[name])


def test_a_confusion_matrix_and_proportions_count_without_sklearn() -> None:
    run = begin()
    wandb.sklearn.plot_confusion_matrix([0, 0, 2], [0, 2, 2], labels=["cat", "dog"])
    wandb.sklearn.plot_class_proportions([0, 0, 2], [2], labels=["cat", "dog"])
    run.log({})
    found = charts(run)

    assert [row[2] for row in found["confusion_matrix"]["data"]] == [1, 1, 0, 1]
    assert found["confusion_matrix"]["data"][1] == ["cat", "dog", 1]
    assert found["confusion_matrix"]["chart"]["kind"] == "confusion matrix"
    assert [row[2] for row in found["class_proportions"]["data"]] == [2, 1, 0, 1]


def test_an_outlier_is_the_candidate() -> None:
    x = np.arange(20.0)
    y = 2 * x + 0.1 * (-1) ** np.arange(20)
    y[7] = 100.0
    run = begin()
    wandb.sklearn.plot_outlier_candidates(None, x[:, None], y)
    run.log({})
    data = charts(run)["outlier_candidates"]["data"]

    assert max(data, key=lambda row: row[1])[0] == 7


def test_a_classifier_a_regressor_and_a_clusterer_are_looked_at_from_all_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"):  # its import sets them
        monkeypatch.setenv(name, "FALSE")
    pytest.importorskip("sklearn")
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LinearRegression, LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = np.arange(60) % 2
    x[:, 0] += 4 * y
    run = begin()
    model = LogisticRegression().fit(x, y)
    wandb.sklearn.plot_classifier(
        model, x, x, y, y, model.predict(x), model.predict_proba(x), ["no", "yes"], True, "logistic", ["a", "b"], True
    )
    run.log({})
    classifier = charts(run)
    run = begin()
    wandb.sklearn.plot_regressor(LinearRegression(), x, x, x @ [1.0, 2.0], x @ [1.0, 2.0])
    wandb.sklearn.plot_clusterer(KMeans(2, n_init=1, random_state=0), x, y, ["left", "right"])
    run.log({})
    rest = charts(run)

    assert set(classifier) == {
        *("feature_importances", "learning_curve", "confusion_matrix", "summary_metrics", "class_proportions"),
        *("calibration_curve", "roc", "precision_recall"),
    }
    assert classifier["feature_importances"]["data"][0][0] == "a"
    assert set(rest) == {
        *("summary_metrics", "learning_curve", "outlier_candidates", "residuals", "elbow_curve", "silhouette"),
    }
    assert dict(rest["summary_metrics"]["data"])["r2_score"] == pytest.approx(1.0)


KERAS = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import numpy as np
import torchtrack as wandb
import keras
run = wandb.init(dir=DIR, config={}, system_interval=0, sidecar=False)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")


class Guesses(wandb.keras.WandbEvalCallback):
    def add_ground_truth(self, logs=None):
        self.data_table.add_data(0, 1.0)

    def add_model_predictions(self, epoch, logs=None):
        self.pred_table.add_data(epoch, 0.0)


x = np.ones((4, 2), np.float32)
callbacks = [
    wandb.keras.WandbMetricsLogger("batch"), wandb.keras.WandbModelCheckpoint("checkpoints/m-{epoch}.keras"),
    Guesses(["id", "truth"], ["epoch", "guess"]), wandb.keras.WandbCallback(monitor="loss"),
]
model.fit(x, x[:, :1], epochs=2, batch_size=2, verbose=0, callbacks=callbacks)
wandb.finish()
"""


def test_keras_logs_epochs_batches_and_models(tmp_path: Path) -> None:
    if importlib.util.find_spec("keras") is None:  # an import would choose its backend
        pytest.skip("keras is not installed")
    done = script(KERAS, tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    artifacts = [event.data["name"] for event in run.events("artifact")]

    assert column(run, "epoch/epoch") == [0.0, 1.0]
    assert len(column(run, "epoch/loss")) == 2
    assert len(column(run, "batch/loss")) == 4
    assert column(run, "epoch/learning_rate") == pytest.approx([0.01, 0.01])
    assert [name.rpartition(":")[2] for name in artifacts] == ["v0", "v1"]
    assert {row["name"] for row in run.media().to_pylist()} == {"val_data", "run_eval"}
    assert (tmp_path / "runs" / run.uid / "model-best.keras").exists()


def test_lightgbm_logs_iterations_and_a_summary() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    data = lightgbm.Dataset(x, (x[:, 0] > 0).astype(int), feature_name=["a", "b"])
    run = begin()
    given = {"objective": "binary", "metric": "auc", "verbosity": -1, "num_threads": 1}
    with_run = [wandb.lightgbm.wandb_callback()]
    booster = lightgbm.train(given, data, 3, valid_sets=[data], valid_names=["own"], callbacks=with_run)
    wandb.lightgbm.log_summary(booster, save_model_checkpoint=True)
    run.log({})
    config, found = dict(run.config), charts(run)
    recorded = torchtrack.Api().runs()[0]

    assert len(column(recorded, "own_auc")) == 3
    assert config["objective"] == "binary"
    assert found["feature_importance"]["data"][0][0] == "a"
    assert recorded.definitions["own_auc"]["goal"] == "maximize"
    assert [event.data["type"] for event in recorded.events("artifact")] == ["model"]


def test_xgboost_logs_rounds_and_what_came_of_it() -> None:
    xgboost = pytest.importorskip("xgboost")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    data = xgboost.DMatrix(x, (x[:, 0] > 0).astype(int), feature_names=["a", "b"])
    run = begin()
    given = {"objective": "binary:logistic", "eval_metric": "logloss", "nthread": 1}
    callback = wandb.xgboost.WandbCallback(log_model=True)
    xgboost.train(given, data, 3, evals=[(data, "own")], callbacks=[callback], verbose_eval=False)
    run.log({})
    found = charts(run)
    recorded = torchtrack.Api().runs()[0]

    assert len(column(recorded, "own-logloss")) == 3
    assert found["feature_importance"]["data"][0][0] == "a"
    assert recorded.definitions["own-logloss"]["goal"] == "minimize"
    assert [event.data["type"] for event in recorded.events("artifact")] == ["model"]


def test_traces_of_torchs_profiler_are_files_of_the_run() -> None:
    torch = pytest.importorskip("torch")
    run = begin()
    with torch.profiler.profile(on_trace_ready=wandb.profiler.torch_trace_handler(), acc_events=True):
        torch.ones(2) + 1
    run.finish(quiet=True)

    assert list((Path(run.dir) / "files" / "pytorch_traces").glob("*.pt.trace.json"))


def test_catboost_logs_iterations_and_what_came_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catboost = pytest.importorskip("catboost")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    run = begin()
    model = catboost.CatBoostClassifier(iterations=3, verbose=False, thread_count=1, allow_writing_files=False)
    model.fit(x, (x[:, 0] > 0).astype(int), callbacks=[wandb.catboost.WandbCallback()])
    wandb.catboost.log_summary(model, save_model_checkpoint=True)
    run.log({})
    config, summary, found = dict(run.config), dict(run.summary), charts(run)
    recorded = torchtrack.Api().runs()[0]

    assert len(column(recorded, "learn-Logloss")) == 3
    assert column(recorded, "iteration@metric-period-1") == [1, 2, 3]
    assert config["iterations"] == 3
    assert "learn" in summary["best_score"]
    assert found["feature_importance"]["data"][0][0] == "0"
    assert [event.data["aliases"] for event in recorded.events("artifact")] == [["latest", "last"]]


def test_an_experiment_of_sacred_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sacred = pytest.importorskip("sacred")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.txt").write_text("w")
    experiment = sacred.Experiment("e", save_git_info=False)
    experiment.observers.append(wandb.sacred.WandbObserver(project="p", system_interval=0))
    experiment.add_config({"lr": 0.1})

    def main(_run: Any) -> float:
        for step in (0, 1, 2):
            _run.log_scalar("loss", 1.0 / (step + 1), step)
        _run.add_artifact(str(tmp_path / "w.txt"))
        return 0.5

    experiment.main(main)
    experiment.run()
    recorded = torchtrack.Api().runs()[0]

    assert recorded.state == "finished"
    assert recorded.config["lr"] == 0.1
    assert recorded.history(["loss"]).to_pydict()["step"] == [0, 1, 2]
    assert column(recorded, "result_0") == [0.5]
    assert [event.data["name"] for event in recorded.events("artifact")] == ["p/w.txt:v0"]


def test_an_experiment_of_sacred_that_fails_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sacred = pytest.importorskip("sacred")
    monkeypatch.chdir(tmp_path)
    experiment = sacred.Experiment("e", save_git_info=False)
    experiment.observers.append(wandb.sacred.WandbObserver(project="p", system_interval=0))
    experiment.main(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        experiment.run()

    assert torchtrack.Api().runs()[0].state in ("failed", "crashed")


def test_films_of_gymnasium_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGAME_HIDE_SUPPORT_PROMPT", "hide")  # it would set that itself
    gymnasium: Any = pytest.importorskip("gymnasium")
    pytest.importorskip("moviepy")

    class Still(gymnasium.Env):  # type: ignore[misc]
        metadata: ClassVar[Any] = {"render_modes": ["rgb_array"], "render_fps": 10}
        render_mode = "rgb_array"
        observation_space = action_space = gymnasium.spaces.Discrete(2)

        def reset(self, **_: Any) -> Any:
            return 0, {}

        def step(self, _: Any) -> Any:
            return 0, 0.0, True, False, {}

        def render(self) -> Any:
            return np.zeros((16, 16, 3), np.uint8)

    recorder = gymnasium.wrappers.RecordVideo
    monkeypatch.setattr(recorder, "stop_recording", recorder.stop_recording)
    run = begin(monitor_gym=True)
    wandb.gym.monitor()
    env = recorder(Still(), str(tmp_path / "films"), disable_logger=True)
    env.reset()
    env.step(0)
    env.close()
    run.log({})
    rows = finished(run).media().to_pylist()

    assert [(row["name"], row["mime"], row["caption"]) for row in rows] == [
        ("videos", "video/mp4", "rl-video-episode-0")
    ]


def test_a_run_that_is_to_film_without_gymnasium_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium.wrappers", None)
    run = begin(monitor_gym=True)
    run.log({"reward": 1.0})

    assert finished(run).summary["reward"] == 1.0
    assert "init(monitor_gym=True) records no films: " in capsys.readouterr().err


@pytest.mark.parametrize(("module", "name"), [("sacred", "WandbObserver"), ("gym", "monitor")])
def test_a_framework_that_is_not_installed_says_what_to_install(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gone in ("sacred.observers", "gymnasium.wrappers"):
        monkeypatch.setitem(sys.modules, gone, None)
    found = getattr(torchtrack, module)
    if module == "sacred":
        importlib.import_module("torchtrack.compat.frameworks.sacred")._made.cache_clear()
    with pytest.raises(torchtrack.TorchtrackError, match="pip install"):
        getattr(found, name)()
