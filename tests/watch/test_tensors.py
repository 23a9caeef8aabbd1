"""Which parameters are counted, and every kind of tensor they may be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.watch.conftest import (
    Watched,
    assert_same,
    gradients,
    histogram,
    share_out,
    train,
)
from torchtrack.histogram import Histogram

# -- which parameters -------------------------------------------------------------------------------------------------


def test_frozen_parameters_have_parameter_rows_only_also_if_no_optimizer_holds_them(
    watched: Watched, model: nn.Sequential
) -> None:
    model[0].requires_grad_(False)
    watched.watch(model)
    used, before = train(model, torch.optim.SGD(model[2].parameters(), lr=0.1), 2)
    rows = watched.rows()
    assert {row["name"] for row in rows if row["kind"] == "gradient"} == set(used[0])
    frozen = [row for row in rows if row["name"] == "0.weight"]
    assert [row["sample"] for row in frozen] == [0, 1]
    assert_same(frozen[0], before[0]["0.weight"])


def test_a_parameter_unfrozen_later_gets_gradient_rows_from_then_on(watched: Watched, model: nn.Sequential) -> None:
    model[0].requires_grad_(False)
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, _ = train(model, optimizer, 1)
    model[0].requires_grad_(True)
    second, _ = train(model, optimizer, 1)
    watched.check("gradient", first + second, "step")


def test_an_unused_parameter_has_no_gradient_row(watched: Watched, model: nn.Sequential) -> None:
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2](model[1](model[0](torch.ones(1, 4)))).sum().backward()
    optimizer.step()
    assert {row["kind"] for row in watched.rows(name="unused")} == {"parameter"}


def test_a_tied_weight_is_counted_once_under_its_first_name(watched: Watched) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    watched.watch(model)
    used, _ = train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert [row["name"] for row in watched.check("gradient", used, "step")] == ["0.weight"]


@pytest.mark.parametrize("how", ["data", "setattr", "to"])
def test_parameters_replaced_after_watch_are_followed(watched: Watched, model: nn.Sequential, how: str) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, _ = train(model, optimizer, 1)
    if how == "data":
        model[0].weight.data = torch.full((8, 4), 0.25)
    elif how == "setattr":
        model[0].weight = nn.Parameter(torch.full((8, 4), 0.25))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    else:
        model.zero_grad()
        model.to(torch.float64)
    second, before = train(model, optimizer, 1)
    rows = watched.check("gradient", first + second, "step")
    parameter = next(row for row in watched.rows("parameter", "0.weight") if row["sample"] == rows[-1]["sample"])
    assert_same(parameter, before[0]["0.weight"])


def test_a_lazy_module_is_counted_once_it_has_a_shape(watched: Watched) -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    watched.watch(model)
    model(torch.ones(2, 4))
    used, _ = train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    watched.check("gradient", used, "step")


def test_complex_and_integer_parameters_are_left_out_with_one_warning_each(
    watched: Watched, model: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    model.register_parameter("phase", nn.Parameter(torch.ones(3, dtype=torch.complex64)))
    model.register_parameter("phase2", nn.Parameter(torch.ones(3, dtype=torch.complex64)))
    model.register_parameter("index", nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False))
    watched.watch(model)
    with caplog.at_level(logging.WARNING, "torchtrack"):
        for _ in range(2):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for name in ("phase", "phase2"):
                model.get_parameter(name).grad = torch.ones(3, dtype=torch.complex64)
            model[2](model[1](model[0](torch.ones(1, 4)))).sum().backward()
            optimizer.step()
    assert sorted(message.split("dtype ")[1].split(";")[0] for message in caplog.messages) == [
        "torch.complex64", "torch.int64"
    ]  # fmt: skip
    assert {row["name"] for row in watched.rows()} == {"0.bias", "0.weight", "2.bias", "2.weight"}


# -- kinds of tensors -------------------------------------------------------------------------------------------------


def give(watched: Watched, parameter: torch.Tensor, gradient: torch.Tensor) -> dict[str, Any]:
    """Watch one parameter with this gradient for one step; its rows by kind."""
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(parameter))
    module.w.grad = gradient
    watched.watch(module)
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    return {row["kind"]: row for row in watched.rows()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_is_counted_by_its_own_values(watched: Watched, dtype: torch.dtype) -> None:
    w, g = torch.randn(3, 7, dtype=torch.float64).to(dtype), torch.randn(3, 7, dtype=torch.float64).to(dtype)
    truth = {"parameter": Histogram.of(w), "gradient": Histogram.of(g)}
    for kind, row in give(watched, w, g).items():
        assert_same(row, truth[kind])


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.reshape(6, 20).t(),
    "channels last": lambda x: x.reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "strided": lambda x: x.reshape(10, 12)[::2, 1::3],
    "permuted": lambda x: x.reshape(4, 5, 6).permute(2, 0, 1),
    "scalar": lambda x: x[0],
}


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_counted_whole(watched: Watched, lay: Callable[[torch.Tensor], torch.Tensor]) -> None:
    w, g = lay(torch.randn(120)), lay(torch.randn(120))
    truth = {"parameter": Histogram.of(w), "gradient": Histogram.of(g)}
    rows = give(watched, w, g)
    assert rows.keys() == truth.keys()
    for kind, row in rows.items():
        assert_same(row, truth[kind])


def test_the_zeros_a_sparse_gradient_does_not_store_are_counted(watched: Watched) -> None:
    embedding = nn.Embedding(10, 3, sparse=True)
    watched.watch(embedding, log="gradients")
    optimizer: Any = torch.optim.SparseAdam(embedding.parameters())
    embedding(torch.tensor([1, 1, 7])).square().sum().backward()
    assert embedding.weight.grad is not None
    truth = gradients(embedding)
    is_coalesced = embedding.weight.grad.is_coalesced()
    optimizer.step()
    assert embedding.weight.grad.is_coalesced() == is_coalesced
    rows = watched.check("gradient", [truth], "step")
    assert rows[0]["zeros"] >= 24


@pytest.mark.parametrize(("share", "counted"), [((0, 2), 6), ((2, 5), 0), ((5, 6), 0), ((0, 0), 0), ((6, 6), 0)])
def test_a_sparse_gradient_is_counted_whole_by_the_rank_whose_share_begins_it(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, share: tuple[int, int], counted: int
) -> None:
    share_out(monkeypatch, share, 6)
    grad = torch.sparse_coo_tensor(torch.tensor([[1, 3]]), torch.tensor([2.0, 5.0]), (6,), check_invariants=True)
    row = give(watched, torch.zeros(6), grad).get("gradient", {"count": 0})
    assert row["count"] == counted


@pytest.mark.parametrize("share", [(0, 7), (7, 20), (19, 20)])
def test_a_rank_counts_its_share_of_the_elements_in_their_order(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, share: tuple[int, int]
) -> None:
    share_out(monkeypatch, share, 20)
    w, g = torch.randn(5, 4).t().contiguous().t(), torch.randn(20).reshape(5, 4)
    truth = {kind: Histogram.of(t.reshape(-1)[slice(*share)]) for kind, t in (("parameter", w), ("gradient", g))}
    rows = give(watched, w, g)
    for kind, row in rows.items():
        assert histogram(row).counts.tolist() == truth[kind].counts.tolist()
        assert (row["covers"], row["numel"]) == (f":{share[0]}-{share[1]}", 20)


def test_the_least_of_a_sparse_gradient_without_negative_values_is_zero(watched: Watched) -> None:
    grad = torch.sparse_coo_tensor(torch.tensor([[1, 3]]), torch.tensor([2.0, 5.0]), (6,), check_invariants=True)
    row = give(watched, torch.zeros(6), grad)["gradient"]
    assert_same(row, Histogram.of(grad.to_dense()))


def test_an_empty_parameter_has_no_row_and_harms_no_other(watched: Watched, model: nn.Sequential) -> None:
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 4)))
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2](model[1](model[0](torch.ones(1, 4)))).sum().backward()
    model.get_parameter("empty").grad = torch.zeros(0, 4)
    optimizer.step()
    assert {row["name"] for row in watched.rows()} == {"0.bias", "0.weight", "2.bias", "2.weight"}


def test_values_that_are_not_finite_are_counted_apart(watched: Watched) -> None:
    inf, nan = float("inf"), float("nan")
    g = torch.tensor([1.0, inf, -inf, -inf, nan, nan, nan, -2.0])
    row = give(watched, torch.ones(8), g)["gradient"]
    assert (row["pos_infs"], row["neg_infs"], row["nans"], row["count"]) == (1, 2, 3, 8)
    assert (row["min"], row["max"]) == (-2.0, 1.0)


def test_activation_checkpointing_changes_nothing(watched: Watched, model: nn.Sequential) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for reentrant in (True, False):
        optimizer.zero_grad()
        hidden = checkpoint(model[0], torch.ones(2, 4, requires_grad=True), use_reentrant=reentrant)
        model[2](model[1](hidden)).sum().backward()
        truth = gradients(model)
        optimizer.step()
    last = watched.rows("gradient")[-4:]
    for row in last:
        assert_same(row, truth[row["name"]])
