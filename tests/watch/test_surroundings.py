"""Modes, threads and failures around a watched step, and the end of watching."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.watch.conftest import (
    Truth,
    Watched,
    assert_same,
    backward,
    gradients,
    train,
)
from torchtrack import guard
from torchtrack.watch import hooks, kernels

# -- surroundings -----------------------------------------------------------------------------------------------------


def test_the_counts_do_not_depend_on_default_dtype_and_device(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    large = nn.Linear(200, 200)
    watched.watch(large, log="gradients")
    of_large = torch.optim.SGD(large.parameters(), lr=0.1)
    truths = []
    for step, device in enumerate(("meta", "cpu")):
        model.zero_grad()
        large.zero_grad()
        backward(model, step)
        large(torch.ones(1, 200)).sum().backward()
        truths.append(gradients(model) | {f"model1/{name}": h for name, h in gradients(large).items()})
        torch.set_default_dtype(torch.float64)
        torch.set_default_device(device)
        try:
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
            optimizer.step()
            of_large.step()
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
    rows = watched.rows("gradient")
    assert len(rows) == 12
    for row in rows:
        assert_same(row, truths[row["sample"]][row["name"]])


def test_the_counts_do_not_depend_on_autocast_and_deterministic_algorithms(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            backward(model)
            used = gradients(model)
            optimizer.step()
    finally:
        torch.use_deterministic_algorithms(False)
    watched.check("gradient", [used], "step")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_watch_may_be_called_and_steps_taken_in_any_gradient_mode(
    watched: Watched, model: nn.Module, context: Callable[[], Any]
) -> None:
    with context():
        watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    used = gradients(model)
    with context():
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    watched.check("gradient", [used], "pre_clip")


def test_training_in_another_thread_is_watched(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    done: list[list[Truth]] = []
    thread = threading.Thread(target=lambda: done.append(train(model, torch.optim.SGD(model.parameters(), 0.1), 2)[0]))
    thread.start()
    thread.join()
    watched.check("gradient", done[0], "step")


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_failure_inside_a_hook_is_counted_and_later_samples_are_there(
    watched: Watched, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    broken = [True, True, False]
    choose = kernels.choose

    def fail(device: torch.device) -> Any:
        if broken.pop(0):
            raise MemoryError("no room")
        return choose(device)

    monkeypatch.setattr(kernels, "choose", fail)
    start = model[0].weight.detach().clone()  # type: ignore[index]
    used, _ = train(model, optimizer, 3)
    assert not torch.equal(start, model[0].weight)  # type: ignore[index]
    assert guard.failures == {"watch: MemoryError": 2}
    rows = watched.check("gradient", used[2:], "step")
    assert {row["sample"] for row in rows} == {2}


# -- the end ----------------------------------------------------------------------------------------------------------


def test_unwatch_leaves_nothing_behind(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    watched.run.unwatch(model)
    assert hooks.active() == 0
    assert "torchtrack-watch" not in {thread.name for thread in threading.enumerate()}
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert {row["sample"] for row in watched.rows()} == {0}


def test_an_unwatched_model_is_not_kept_alive(watched: Watched) -> None:
    model = nn.Linear(2, 2)
    watched.watch(model)
    model(torch.ones(1, 2)).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    watched.run.unwatch(model)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_unwatch_of_one_model_leaves_the_other_watched(watched: Watched, model: nn.Module) -> None:
    other = nn.Linear(4, 1)
    watched.watch(model)
    watched.watch(other)
    watched.run.unwatch(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), 1)
    assert {row["name"] for row in watched.rows()} == {"model1/bias", "model1/weight"}
