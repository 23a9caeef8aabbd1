"""What is counted of a tensor is looked up again only while it is like the last one of its name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchtrack.histogram import Histogram
from torchtrack.watch import counting
from torchtrack.watch.counting import Counter, Item
from torchtrack.watch.layout import Held
from torchtrack.watch.plan import Plan, Share

VALUES = torch.arange(1.0, 25.0).view(4, 6)


def plan(lo: int, hi: int) -> Plan:
    """One in which this rank counts a range."""
    return Plan((), {"w": 24}, 0, 2, 0, (0, 0), (), {"w": Share("", 24, lo, lo, hi)})


def sparse() -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[1, 3]]), torch.ones(2, 6), (4, 6), check_invariants=True)


def assert_counted(held: Held, tensor: torch.Tensor, under: Plan | None, expected: torch.Tensor) -> None:
    parts = Counter().count([Item("gradient", "w", held, tensor)], "step", under)
    if not expected.numel():
        assert parts == []
        return
    (counted,) = [part.counted([0]) for part in parts]
    truth = Histogram.of(expected.double().flatten().numpy())
    assert counted.sums[0, :328].tolist() == truth.counts.tolist()
    assert counted.sums[0, 328] == truth.sum
    assert counted.numels == [24 if under is not None else expected.numel()]
    assert counted.planned == [under is not None]


CHANGES: dict[str, tuple[torch.Tensor, Plan | None, torch.Tensor]] = {
    "the same again": (VALUES, None, VALUES),
    "other values": (-VALUES, None, -VALUES),
    "another format": (VALUES.bfloat16(), None, VALUES),
    "another number of elements": (VALUES[:2].clone(), None, VALUES[:2]),
    "not contiguous": (VALUES.repeat(1, 2)[:, :6], None, VALUES),
    "transposed": (VALUES.t().contiguous().t(), None, VALUES),
    "sparse": (sparse(), None, sparse().to_dense()),
    "a part under a plan": (VALUES, plan(5, 9), VALUES.flatten()[5:9]),
    "a part that is not contiguous": (VALUES.t().contiguous().t(), plan(5, 9), VALUES.flatten()[5:9]),
    "nothing under a plan": (VALUES, plan(7, 7), VALUES[:0]),
}


@pytest.mark.parametrize("first", [(VALUES, None), (VALUES, plan(0, 3)), (VALUES, plan(2, 2)), (sparse(), None)])
@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_after_another_is_counted_as_if_it_were_the_first(
    first: tuple[torch.Tensor, Plan | None], change: str
) -> None:
    held = Held("w", nn.Parameter(VALUES.clone()))
    Counter().count([Item("gradient", "w", held, first[0])], "step", first[1])
    for _ in range(2):
        assert_counted(held, *CHANGES[change])


def test_what_is_like_the_last_one_is_not_placed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held("w", nn.Parameter(VALUES.clone()))
    assert_counted(held, VALUES, None, VALUES)
    monkeypatch.setattr(counting, "place_of", None)
    assert_counted(held, -VALUES, None, -VALUES)
