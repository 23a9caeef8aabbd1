"""The moments of an optimizer, as they are before the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.watch.conftest import Truth, Watched, backward
from torchtrack.histogram import Histogram


def moments(model: nn.Module, optimizer: torch.optim.Optimizer, keys: list[str]) -> Truth:
    return {
        f"{name}.{key}": Histogram.of(optimizer.state[p][key].clone())
        for name, p in model.named_parameters()
        if p in optimizer.state
        for key in keys
    }


MAKERS: dict[str, tuple[Any, list[str]]] = {
    "SGD momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), ["momentum_buffer"]),
    "AdamW": (lambda p: torch.optim.AdamW(p, lr=0.01), ["exp_avg", "exp_avg_sq"]),
    "AdamW fused": (lambda p: torch.optim.AdamW(p, lr=0.01, fused=True), ["exp_avg", "exp_avg_sq"]),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.01), ["sum"]),
}


@pytest.mark.parametrize(("make", "keys"), MAKERS.values(), ids=MAKERS)
def test_moments_are_those_before_the_update(watched: Watched, model: nn.Module, make: Any, keys: list[str]) -> None:
    watched.watch(model, log=("optimizer",))
    optimizer = make(model.parameters())
    truths = []
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        truths.append(moments(model, optimizer, keys))
        optimizer.step()
    watched.check("optimizer", truths, "step")


def test_the_count_of_steps_of_a_parameter_without_dimensions_is_no_moment(watched: Watched) -> None:
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(torch.tensor(1.0)))
    watched.watch(module, log=("optimizer",))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(2):
        module.w.grad = torch.tensor(0.5)
        optimizer.step()
    assert {row["name"] for row in watched.rows()} == {"w.exp_avg", "w.exp_avg_sq"}


def test_looking_at_moments_leaves_no_empty_state_behind(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=("optimizer",))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    assert not optimizer.state
