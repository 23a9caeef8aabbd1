"""What `watch(on_nonfinite=)` does on one process; more ranks are in tests/ranks/test_on_nonfinite.py."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

import torchtrack
from tests.watch.conftest import Watched, backward, scaled_step

Make = Callable[[Any], torch.optim.Optimizer]
FUSED: dict[str, Make] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1, fused=True),
}
WEIGHTS = ["0.weight", "0.bias", "2.weight", "2.bias"]


def spoil(model: nn.Module, name: str = "0.weight", value: float = math.nan) -> None:
    gradient = model.get_parameter(name).grad
    assert gradient is not None
    gradient.view(-1)[1] = value


def state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]]:
    return copy.deepcopy({i: dict(kept) for i, kept in optimizer.state_dict()["state"].items()})


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def events(run: Any) -> list[dict[str, Any]]:
    return [{**event.data, "step": event.step} for event in run.events("nonfinite_step")]


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED.keys())
@pytest.mark.parametrize("bad", [0, 2])
def test_a_skipped_step_leaves_weights_and_state_as_if_it_had_not_been(
    watched: Watched, model: nn.Module, make: Make, bad: int
) -> None:
    twin = copy.deepcopy(model)
    optimizer, other = make(model.parameters()), make(twin.parameters())
    watched.watch(model, on_nonfinite="skip")
    for step in range(4):
        for each, steps in ((model, optimizer), (twin, other)):
            if each is twin and step == bad:
                continue
            steps.zero_grad()
            backward(each, step)
            if step == bad:
                spoil(each)
            steps.step()
        torch.testing.assert_close(weights(model), weights(twin), rtol=0.0, atol=0.0)
    assert not hasattr(optimizer, "found_inf")
    torch.testing.assert_close(state(optimizer), state(other), rtol=0.0, atol=0.0)


def test_a_skipped_step_is_told(watched: Watched, model: nn.Module) -> None:
    optimizer = FUSED["AdamW"](model.parameters())
    watched.watch(model, on_nonfinite="skip")
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        if step == 1:
            spoil(model, "0.bias", math.inf)
            spoil(model, "2.weight")
        optimizer.step()
        watched.run.log({"loss": 1.0})
    stages = {(row["step"], row["stage"]) for row in watched.rows("gradient")}
    assert stages == {(0, "step"), (1, "skipped"), (2, "step")}
    run = watched.read()
    [event] = events(run)
    assert event | {"names": 0} == {
        "step": 1, "action": "skip", "kind": "gradient", "stage": "step", "first": "2.weight", "ranks": [],
        "held_by": [0], "count": 2, "names": 0,
    }  # fmt: skip
    assert event["names"] == ["2.weight", "0.bias"]
    [finding] = run.findings()
    assert (finding.rule, finding.severity, finding.first_step) == ("non_finite", "warning", 1)
    assert run.history(["_tt/watch0/skipped_steps"]).to_pylist()[-1]["_tt/watch0/skipped_steps"] == 1


@pytest.mark.parametrize("fused", [False, True])
def test_raise_comes_before_a_weight_has_changed_and_names_the_first_of_the_backward_pass(
    watched: Watched, model: nn.Module, fused: bool
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    watched.watch(model, on_nonfinite="raise", log_freq=100)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        watched.run.log({"loss": 1.0})
    before, held = weights(model), state(optimizer)
    spoil(model, "0.weight")
    spoil(model, "2.weight")
    with pytest.raises(torchtrack.NonFiniteError, match=r"2\.weight.*step 3") as caught:
        optimizer.step()
    assert (caught.value.step, caught.value.parameter, caught.value.ranks) == (3, "2.weight", ())
    torch.testing.assert_close((weights(model), state(optimizer)), (before, held), rtol=0.0, atol=0.0)
    assert [event["action"] for event in events(watched.read())] == ["raise"]


def test_what_a_clipping_made_of_a_nan_does_not_hide_where_it_was(watched: Watched, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched.watch(model, on_nonfinite="raise")
    backward(model)
    spoil(model, "0.bias")
    clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(torchtrack.NonFiniteError, match=r"0\.bias"):
        optimizer.step()
    assert [event["stage"] for event in events(watched.read())] == ["pre_clip"]


def test_a_clipping_to_nan_raises_too(watched: Watched, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched.watch(model, on_nonfinite="raise")
    backward(model)
    clip_grad_norm_(model.parameters(), math.nan)
    with pytest.raises(torchtrack.NonFiniteError, match=r"2\.bias"):
        optimizer.step()
    assert [event["stage"] for event in events(watched.read())] == ["step"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("action", ["skip", "raise"])
def test_a_scaler_that_looks_for_its_scale_is_left_alone(
    watched: Watched, model: nn.Module, fused: bool, action: str
) -> None:
    if action == "skip" and not fused:
        return
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    watched.watch(model, on_nonfinite=action)
    scaled_step(model, optimizer, scaler, clip=False, bad=True)
    assert events(watched.read()) == []


def test_a_gradient_that_breaks_after_the_scaler_looked_is_caught(watched: Watched, model: nn.Module) -> None:
    optimizer = FUSED["AdamW"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    watched.watch(model, on_nonfinite="skip")
    scaler.scale(torch.ones(()))
    backward(model, scale=1024.0)
    scaler.unscale_(optimizer)
    spoil(model)
    before = weights(model)
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(weights(model), before, rtol=0.0, atol=0.0)
    assert len(events(watched.read())) == 1


def test_gradients_of_a_closure_are_judged(watched: Watched, model: nn.Module) -> None:
    optimizer = FUSED["AdamW"](model.parameters())
    watched.watch(model, on_nonfinite="skip")

    def closure() -> torch.Tensor:
        loss = backward(model)
        spoil(model)
        return loss

    before = weights(model)
    optimizer.step(closure)  # type: ignore[arg-type]
    torch.testing.assert_close(weights(model), before, rtol=0.0, atol=0.0)


def test_skip_is_refused_at_the_call_where_the_optimizer_cannot(watched: Watched, model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"AdamW as it was made cannot.*fused=True"):
        watched.watch(model, on_nonfinite="skip")
    assert optimizer.param_groups


def test_skip_is_refused_at_the_first_step_of_a_later_optimizer(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, on_nonfinite="skip")
    optimizer = torch.optim.AdamW(model.parameters())
    backward(model)
    before = weights(model)
    with pytest.raises(ValueError, match="fused=True"):
        optimizer.step()
    torch.testing.assert_close(weights(model), before, rtol=0.0, atol=0.0)


def test_an_optimizer_of_something_else_is_left_alone(watched: Watched, model: nn.Module) -> None:
    other = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    watched.watch(model, on_nonfinite="skip")
    backward(other)
    spoil(other, "weight")
    optimizer.step()
    assert events(watched.read()) == []


def test_optimizers_inside_the_backward_pass_are_refused(watched: Watched, model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at import
        from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    watched.watch(model, on_nonfinite="raise")
    with pytest.raises(ValueError, match="inside the backward pass"):
        backward(model)


def test_by_default_nothing_is_looked_at(watched: Watched, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched.watch(model)
    backward(model)
    spoil(model)
    optimizer.step()
    assert model.get_parameter("0.weight").isnan().any()
    assert events(watched.read()) == []


def test_steps_that_are_no_part_of_the_training_are_let_be(watched: Watched, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watcher = watched.run.watch(model, on_nonfinite="raise")
    assert watcher is not None
    trains = False
    watcher.only_while(lambda: trains)
    backward(model)
    spoil(model)
    optimizer.step()
    trains = True
    with pytest.raises(torchtrack.NonFiniteError):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_any_element_of_any_type_is_seen_and_large_ones_are_fine(
    watched: Watched, dtype: torch.dtype, value: float
) -> None:
    model = nn.Linear(3, 5, dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched.watch(model, on_nonfinite="raise")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.finfo(dtype).max / 2)
    optimizer.step()
    spoil(model, "bias", value)
    with pytest.raises(torchtrack.NonFiniteError, match="bias"):
        optimizer.step()
