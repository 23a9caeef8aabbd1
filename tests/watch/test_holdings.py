"""What is held is read anew exactly when it has changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torchtrack.watch.holdings import Holdings


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)


def names(holdings: Holdings) -> list[str]:
    return sorted(held.name for several in holdings.now().values() for held in several)


def test_nothing_is_read_again_while_nothing_changes() -> None:
    model = Net()
    holdings = Holdings([("", model)])
    before = holdings.now()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.data = parameter.data * 2
        parameter.requires_grad = False
    assert holdings.now() is before
    assert holdings.last is before


def replace_a_parameter(model: Net) -> None:
    model.head.weight = nn.Parameter(torch.ones(2, 3))


def replace_a_module(model: Net) -> None:
    model.body[1] = nn.Linear(3, 3)


def take_a_bias_away(model: Net) -> None:
    model.head.register_parameter("bias", None)


def add_a_module_at_the_end(model: Net) -> None:
    model.body.append(nn.Linear(3, 3))


def add_a_parameter_deep_inside(model: Net) -> None:
    model.body[0].register_parameter("scale", nn.Parameter(torch.ones(1)))


def tie_two_weights(model: Net) -> None:
    model.body[1].weight = model.body[0].weight


def parametrize_a_weight(model: Net) -> None:
    parametrizations.weight_norm(model.head)


@pytest.mark.parametrize(
    "change",
    [
        replace_a_parameter,
        replace_a_module,
        take_a_bias_away,
        add_a_module_at_the_end,
        add_a_parameter_deep_inside,
        tie_two_weights,
        parametrize_a_weight,
    ],
)
def test_every_change_of_what_is_registered_shows(change: Callable[[Net], None]) -> None:
    model = Net()
    holdings = Holdings([("", model)])
    holdings.now()
    change(model)
    assert names(holdings) == sorted(name for name, _ in model.named_parameters())
    assert {id(p) for p in model.parameters()} == set(holdings.now())


def test_a_module_that_comes_into_a_wrapper_shows() -> None:
    model = nn.DataParallel(Net())
    holdings = Holdings([("", model)])
    holdings.now()
    setattr(model, "module", nn.Linear(2, 2))  # noqa: B010  # of another type than declared
    assert names(holdings) == ["bias", "weight"]


def test_lazy_parameters_show_once_they_have_a_shape() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2))
    holdings = Holdings([("", model)])
    assert names(holdings) == ["0.bias", "0.weight"]
    model(torch.ones(1, 3))
    assert names(holdings) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_only_names_that_are_wanted_are_held() -> None:
    holdings = Holdings([("net/", Net())], include=["*.weight"], exclude=["net/body.0.*"])
    assert names(holdings) == ["net/body.1.weight", "net/head.weight"]


def test_a_parameter_of_two_models_is_held_once() -> None:
    shared = nn.Linear(2, 2)
    assert names(Holdings([("a/", shared), ("b/", nn.Sequential(shared, nn.Linear(2, 1)))])) == [
        "a/bias",
        "a/weight",
        "b/1.bias",
        "b/1.weight",
    ]
