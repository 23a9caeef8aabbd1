"""`wandb.tensorflow.WandbHook`: with a stand-in of TensorFlow, and with TensorFlow where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import torchtrack
from tests.runs import begin, column, finished, only_run, script
from torchtrack.compat.frameworks import tensorflow as hooks

wandb: Any = torchtrack


@pytest.fixture(autouse=True)
def fresh_class() -> None:
    hooks._hook.cache_clear()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What of `tensorflow.compat.v1` a hook uses; the summaries are those of TensorBoard."""
    summaries = pytest.importorskip("tensorboard.compat.proto.summary_pb2")
    train = SimpleNamespace(
        SessionRunHook=type("SessionRunHook", (), {}), SessionRunArgs=dict, get_global_step=lambda: "the step"
    )
    made = SimpleNamespace(
        train=train, summary=SimpleNamespace(merge_all=lambda: "all summaries"), Summary=summaries.Summary
    )
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorflow.compat", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorflow.compat.v1", made)
    return made


def ran(hook: Any, made: Any, step: int, loss: float) -> None:
    summary = made.Summary(value=[made.Summary.Value(tag="loss", simple_value=loss)])
    values = {"global_step": step, "summary": summary.SerializeToString()}
    hook.after_run(None, SimpleNamespace(results=values))


def test_a_hook_logs_the_summaries_of_every_few_steps_at_their_step(stand_in: Any) -> None:
    run = begin()
    hook = wandb.tensorflow.WandbHook(steps_per_log=2)
    hook.begin()
    asked = hook.before_run(None)
    for step, loss in enumerate((5.0, 4.0, 3.0)):
        ran(hook, stand_in, step, loss)
    recorded = finished(run)

    assert isinstance(hook, stand_in.train.SessionRunHook)
    assert asked == {"global_step": "the step", "summary": "all summaries"}
    assert column(recorded, "loss") == [5.0, 3.0]
    assert recorded.history("loss").column("step").to_pylist() == [0, 2]


def test_a_hook_needs_a_run_and_tensorflow(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(torchtrack.TorchtrackError, match="WandbHook"):
        wandb.tensorflow.WandbHook()
    hooks._hook.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorflow.compat.v1", None)
    with pytest.raises(torchtrack.TorchtrackError, match="pip install tensorflow"):
        wandb.tensorflow.WandbHook  # noqa: B018


SESSION = """
    import tensorflow.compat.v1 as v1
    import torchtrack as wandb

    run = wandb.init(dir=DIR, sidecar=False, system_interval=0)
    with v1.Graph().as_default():
        step = v1.train.get_or_create_global_step()
        v1.summary.scalar("loss", 2.0 * v1.cast(step, v1.float32))
        up = v1.assign_add(step, 1)
        with v1.train.MonitoredSession(hooks=[wandb.tensorflow.WandbHook(steps_per_log=1)]) as session:
            for _ in range(3):
                session.run(up)
"""


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_a_session_of_tensorflow_is_followed(tmp_path: Path) -> None:
    done = script(SESSION, tmp_path, environ={"PYTHONPATH": ":".join(sys.path)})

    assert done.returncode == 0, done.stderr
    assert len(column(only_run(tmp_path), "loss")) == 3
