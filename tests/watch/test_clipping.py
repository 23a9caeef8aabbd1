"""Gradients are counted before they are clipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils as U
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tests.watch.conftest import (
    Counter,
    Watched,
    assert_same,
    backward,
    gradients,
)


def clip_as_torchtitan(model: nn.Module) -> None:
    total = U.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    U.clip_grads_with_norm_(model.parameters(), 0.5, total)


CLIPS: dict[str, Callable[[nn.Module], object]] = {
    "imported early": lambda m: clip_grad_norm_(list(m.parameters()), 0.5),
    "as an attribute": lambda m: U.clip_grad_norm_(list(m.parameters()), 0.5),
    "generator": lambda m: clip_grad_norm_(m.parameters(), max_norm=0.5),
    "generator by keyword": lambda m: clip_grad_norm_(parameters=m.parameters(), max_norm=0.5),
    "norm first, then clip": clip_as_torchtitan,
    "infinity norm": lambda m: clip_grad_norm_(m.parameters(), 0.01, norm_type=float("inf")),
    "not foreach": lambda m: clip_grad_norm_(m.parameters(), 0.5, foreach=False),
    "values": lambda m: U.clip_grad_value_(m.parameters(), 0.01),
    "values by keyword": lambda m: U.clip_grad_value_(parameters=m.parameters(), clip_value=0.01),
    "twice": lambda m: (U.clip_grad_value_(m.parameters(), 0.01), clip_grad_norm_(m.parameters(), 0.001)),
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("log_freq", [1, 2])
def test_a_clipped_gradient_is_counted_once_as_it_was_before(
    watched: Watched, model: nn.Module, clip: Callable[[nn.Module], object], log_freq: int
) -> None:
    watched.watch(model, log_freq=log_freq)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    used = []
    for step in range(5):
        optimizer.zero_grad()
        backward(model, step)
        used.append(gradients(model))
        clip(model)
        assert gradients(model) != used[-1]
        optimizer.step()
    watched.check("gradient", used[::log_freq], "pre_clip")


def test_an_optimizer_that_is_made_anew_is_seen_before_its_clipping(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log_freq=5)
    used = []
    for epoch in range(3):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in range(7):
            optimizer.zero_grad()
            backward(model, 7 * epoch + step)
            if step % 5 == 0:
                used.append(gradients(model))
            clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        del optimizer
    watched.check("gradient", used, "pre_clip")


def test_clipping_values_imported_before_watch_is_seen_at_the_step(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    clip_grad_value_(model.parameters(), 0.01)
    used = gradients(model)
    optimizer.step()
    watched.check("gradient", [used], "step")


def test_a_single_tensor_may_be_clipped(watched: Watched, model: nn.Sequential) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    used = gradients(model)
    clip_grad_norm_(model.get_parameter("0.weight"), 0.1)
    optimizer.step()
    rows = watched.rows("gradient")
    assert {row["name"]: row["stage"] for row in rows} == {
        "0.bias": "step", "0.weight": "pre_clip", "2.bias": "step", "2.weight": "step"
    }  # fmt: skip
    for row in rows:
        assert_same(row, used[row["name"]])


def test_gradients_that_grow_after_the_clipping_are_counted_at_the_step(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model, 0)
    clip_grad_norm_(model.parameters(), 0.5)
    backward(model, 1)
    used = gradients(model)
    optimizer.step()
    watched.check("gradient", [used], "step")


def test_a_clipping_whose_step_was_left_out_does_not_count_for_the_next(watched: Watched, model: nn.Module) -> None:
    """The next gradients lie at the same addresses, with as many changes behind them."""
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = [np.ones(tuple(p.shape), np.float32) for p in model.parameters()]
    for p, array in zip(model.parameters(), memory, strict=True):
        p.grad = torch.from_numpy(array)
    clip_grad_norm_(model.parameters(), 0.5)
    optimizer.zero_grad(set_to_none=True)
    for p, array in zip(model.parameters(), memory, strict=True):
        p.grad = torch.from_numpy(array).fill_(3.0)
    used = gradients(model)
    optimizer.step()
    watched.check("gradient", [used], "step")


def test_a_model_may_be_converted_by_swapping_between_clipping_and_step(
    watched: Watched, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swapping refuses a tensor that somebody holds a weak reference to."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    watched.watch(model, log="gradients")
    backward(model)
    clip_grad_norm_(model.parameters(), 0.5)
    model.to(torch.float64)
    used = gradients(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    watched.check("gradient", [used], "step")


def test_the_coefficient_of_a_clipping_is_a_metric(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for max_norm in (0.5, 1e9):
        optimizer.zero_grad()
        backward(model)
        total = float(clip_grad_norm_(model.parameters(), max_norm))
        expected.append(min(1.0, max_norm / (total + 1e-6)))
        optimizer.step()
        watched.run.log({"loss": 1.0})
    coefficients = watched.read().history(["watch/clip_coef"]).column("watch/clip_coef").to_pylist()
    assert coefficients == pytest.approx(expected, rel=1e-6)
    assert coefficients[1] == 1.0


def test_clipping_that_refuses_what_is_not_finite_raises_as_ever(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    first = next(model.parameters())
    assert first.grad is not None
    first.grad[0, 0] = float("inf")
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(model.parameters(), 0.5, error_if_nonfinite=True)
    used = gradients(model)
    optimizer.step()
    watched.check("gradient", [used], "step")


@pytest.mark.parametrize("arguments", [(3, 1.0), ([torch.ones(1)], "much"), ()])
def test_wrong_arguments_of_a_clipping_raise_the_same(watched: Watched, model: nn.Module, arguments: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as before:
        U.clip_grad_value_(*arguments)
    watched.watch(model)
    with pytest.raises((TypeError, ValueError)) as after:
        U.clip_grad_value_(*arguments)
    assert after.type is before.type


def test_a_clipping_returns_what_it_returned(watched: Watched, model: nn.Module) -> None:
    backward(model)
    before = U.clip_grad_norm_(model.parameters(), 1e9)
    watched.watch(model)
    assert torch.equal(U.clip_grad_norm_(model.parameters(), 1e9), before)
    assert U.clip_grad_value_(iter(model.parameters()), 1e9) is None


def test_clippings_for_an_update_by_hand_are_soon_left_alone(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    counter = Counter()
    for step in range(20):
        model.zero_grad()
        backward(model, step)
        total = U.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        with counter:
            U.clip_grads_with_norm_(model.parameters(), 0.5, total)
    watched.run.unwatch()
    backward(model)
    with Counter() as bare:
        U.clip_grads_with_norm_(model.parameters(), 0.5, total)
    assert counter.last == bare.last
