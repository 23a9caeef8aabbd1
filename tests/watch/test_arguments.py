"""What `watch` takes, what it refuses, and what it tells of the model's structure."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

import torchtrack
from tests.watch.conftest import Watched
from torchtrack.watch import hooks

LINEAR = nn.Linear(2, 2)
WRONG: dict[str, tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = {
    "no module": (TypeError, "takes a torch.nn.Module or a list of them, got dict", ({"weight": 1},), {}),
    "parameters": (TypeError, "got generator", (LINEAR.parameters(),), {}),
    "an empty list": (TypeError, "a list of nothing", ([],), {}),
    "not only modules": (TypeError, r"a list of \['Linear', 'str'\]", ([LINEAR, "x"],), {}),
    "log_freq as a float": (
        TypeError,
        "whole number of optimizer steps, got float '1.5'",
        (LINEAR,),
        {"log_freq": 1.5},
    ),
    "log_freq as a bool": (TypeError, "whole number", (LINEAR,), {"log_freq": True}),
    "log_freq None": (TypeError, "whole number", (LINEAR,), {"log_freq": None}),
    "log_freq zero": (ValueError, "takes 1 .every optimizer step. or more, got 0", (LINEAR,), {"log_freq": 0}),
    "reduce unknown": (ValueError, '"host" or "device", got .nccl.', (LINEAR,), {"reduce": "nccl"}),
    "reduce without a job": (ValueError, "needs torch.distributed.init_process_group", (LINEAR,), {"reduce": "device"}),
    "checksum_every negative": (ValueError, "takes 0 .never. or more, got -1", (LINEAR,), {"checksum_every": -1}),
    "checksum_every as a bool": (TypeError, "whole number of samples, got bool", (LINEAR,), {"checksum_every": True}),
    "blackbox as text": (TypeError, "takes True, False or None, got str 'yes'", (LINEAR,), {"blackbox": "yes"}),
    "budget above one": (ValueError, "between 0 and 1, such as 0.01 for 1 %, got 2", (LINEAR,), {"budget": 2}),
    "budget zero": (ValueError, "between 0 and 1", (LINEAR,), {"budget": 0.0}),
    "budget as text": (TypeError, "such as 0.01, got str", (LINEAR,), {"budget": "1%"}),
    "budget as a bool": (TypeError, "such as 0.01, got bool", (LINEAR,), {"budget": True}),
    "log_freq negative": (ValueError, "got -5", (LINEAR,), {"log_freq": -5}),
    "log unknown": (ValueError, 'takes "all", "gradients", "parameters", None or', (LINEAR,), {"log": "weights"}),
    "log a kind of a tuple only": (ValueError, "None or a tuple of any of", (LINEAR,), {"log": "updates"}),
    "log a tuple with an unknown one": (ValueError, "got .'all', 'updates'.", (LINEAR,), {"log": ("all", "updates")}),
    "log an empty tuple": (ValueError, "got \\(\\)", (LINEAR,), {"log": ()}),
    "log a list not of strings": (TypeError, "got a list of", (LINEAR,), {"log": ["gradients", 3]}),
    "log as a bool": (TypeError, "got bool", (LINEAR,), {"log": True}),
    "name empty": (ValueError, "non-empty", (LINEAR,), {"name": "/"}),
    "name no string": (TypeError, "takes a string, got int", (LINEAR,), {"name": 3}),
    "include no patterns": (TypeError, r"watch\(include=\) takes patterns", (LINEAR,), {"include": 3}),
    "exclude not of strings": (TypeError, r"watch\(exclude=\).*a list of \['int'\]", (LINEAR,), {"exclude": [1]}),
}


@pytest.mark.parametrize(("error", "text", "args", "kwargs"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_raises_before_anything_is_touched(
    watched: Watched, error: type[Exception], text: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(error, match=text):
        watched.run.watch(*args, **kwargs)
    assert hooks.active() == 0
    assert "torchtrack-watch" not in {thread.name for thread in threading.enumerate()}
    assert watched.read().events("model") == []


@pytest.mark.parametrize("argument", ["log_freq", "name", "include", "exclude", "log"])
def test_a_refused_watch_does_not_use_up_a_name(watched: Watched, argument: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        watched.run.watch(LINEAR, **{argument: 0.5})  # type: ignore[arg-type]
    watched.run.watch(LINEAR)
    (event,) = watched.read().events("model")
    assert event.data["modules"][0]["name"] == ""


def test_arguments_of_other_trackers_are_accepted(watched: Watched) -> None:
    watched.run.watch(LINEAR, nn.MSELoss(), "gradients", 10, 3, True)
    assert hooks.active() > 0


def test_the_module_level_call_watches_the_active_run(watched: Watched) -> None:
    torchtrack.watch(LINEAR, log_freq=1)
    LINEAR(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(LINEAR.parameters(), lr=0.0).step()
    LINEAR.zero_grad()
    torchtrack.unwatch()
    assert hooks.active() == 0
    assert {row["name"] for row in watched.rows()} == {"weight", "bias"}


def test_a_disabled_or_finished_run_watches_nothing(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.run.finish(quiet=True)
    watched.run.watch(LINEAR)
    assert "after finish()" in caplog.text
    with torchtrack.init(mode="disabled") as disabled:
        disabled.watch(LINEAR)
        assert hooks.active() == 0


def modules(watched: Watched) -> list[list[dict[str, Any]]]:
    return [event.data["modules"] for event in watched.read().events("model")]


def test_the_structure_is_recorded_with_each_parameter_once(watched: Watched) -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU())
    model.register_parameter("scale", nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False))
    watched.watch(model)
    weight = {"name": "weight", "shape": [2, 4], "dtype": "torch.float32", "trainable": True}
    scale = {"name": "scale", "shape": [3], "dtype": "torch.float64", "trainable": False}
    assert modules(watched) == [
        [
            {"name": "", "class": "Sequential", "parameters": [scale]},
            {"name": "0", "class": "Linear", "parameters": [weight]},
            {"name": "1", "class": "ReLU", "parameters": []},
        ]
    ]


def test_a_further_model_has_its_prefix_in_module_names_only(watched: Watched) -> None:
    watched.watch([nn.Linear(1, 1), nn.Linear(1, 1)], log=None)
    watched.watch(nn.Sequential(nn.Linear(1, 1)), log=None, name="critic")
    two, critic = modules(watched)
    assert [(m["name"], [p["name"] for p in m["parameters"]]) for m in two + critic] == [
        ("", ["weight", "bias"]), ("model1", ["weight", "bias"]), ("critic", []), ("critic/0", ["weight", "bias"])
    ]  # fmt: skip


def test_the_structure_of_a_lazy_model_is_recorded(watched: Watched) -> None:
    watched.watch(nn.Sequential(nn.LazyLinear(2)))
    assert [m["class"] for m in modules(watched)[0]] == ["Sequential", "LazyLinear"]


def test_a_model_that_is_watched_again_keeps_its_names(watched: Watched) -> None:
    run, model = watched.run, nn.Linear(2, 2)
    other = nn.Linear(2, 2)
    run.watch([model, other], log_freq=1)
    run.unwatch()
    run.watch(other, log_freq=1)
    [watcher] = run._watchers
    assert [prefix for prefix, _ in watcher.models] == ["model1/"]


def test_two_models_of_one_run_cannot_have_one_name(watched: Watched) -> None:
    model = nn.Linear(2, 2)
    watched.run.watch(model, name="critic")
    with pytest.raises(ValueError, match="'critic'\\) names another model of this run already"):
        watched.run.watch(nn.Linear(2, 2), name="critic")
