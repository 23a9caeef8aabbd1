"""A rank's own gradients: what is looked at, and what has been looked at already."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from torchtrack.watch import local
from torchtrack.watch.counting import Counter, Item
from torchtrack.watch.layout import Held
from torchtrack.watch.local import LocalGradients
from torchtrack.watch.plan import Plan, Share
from torchtrack.watch.sample import Part

SIZES = {"a": 4, "b": 6, "c": 5}
PLAN = Plan(
    (), SIZES, 0, 2, 0, (0, 0), (), {"a": Share("", 4, 0, 0, 4), "b": Share("", 6, 0, 0, 3), "c": Share("", 5, 0, 0, 0)}
)
"""Under which this rank counts all of a, half of b and nothing of c."""


def several(bad: str = "", value: float = 0.0) -> list[Held]:
    held = [Held(name, nn.Parameter(torch.zeros(size))) for name, size in SIZES.items()]
    for each in held:
        each.parameter.grad = torch.arange(1.0, 1.0 + each.parameter.numel())
        if each.name == bad:
            each.parameter.grad[-1] = value
    return held


def counted(held: Sequence[Held]) -> list[Part]:
    items = [Item("gradient", h.name, h, h.parameter.grad) for h in held if h.parameter.grad is not None]
    return Counter().count(items, "pre_clip", PLAN)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Elements of the gradients that are read for their norms."""
    sizes: list[int] = []
    norms = local._norms

    def told(gradients: Sequence[torch.Tensor]) -> list[local.Norm]:
        sizes.extend(gradient.numel() for gradient in gradients)
        return norms(gradients)

    monkeypatch.setattr(local, "_norms", told)
    return sizes


def test_what_was_counted_from_end_to_end_is_not_read_again(read: list[int]) -> None:
    held = several()
    LocalGradients([]).final(held, counted(held))
    assert read == [6, 5]


def test_without_counts_everything_is_read_and_only_once(read: list[int]) -> None:
    held, gradients = several(), LocalGradients([])
    gradients.final(held)
    gradients.final(held, counted(held))
    assert read == [4, 6, 5]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("bad", SIZES)
def test_what_is_not_finite_is_found_whether_it_was_counted_or_read(bad: str, value: float) -> None:
    held, gradients = several(bad, value), LocalGradients([])
    gradients.final(held, counted(held))
    taken = gradients.take(SIZES, None)
    assert taken is not None
    assert taken.held_nonfinite() == {"kind": "gradient", "first": bad, "names": [bad], "count": 1}


def test_the_first_in_backward_order_is_told_whatever_was_counted() -> None:
    held, gradients = several(), LocalGradients([])
    for each in held:
        assert each.parameter.grad is not None
        each.parameter.grad[0] = float("nan")
    gradients.final(held, counted(held))
    taken = gradients.take(SIZES, None)
    assert taken is not None
    assert taken.held_nonfinite() == {"kind": "gradient", "first": "c", "names": ["c", "b", "a"], "count": 3}
