"""What is installed in the process, and what is left when it is taken away."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils as U
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import clip_grad, clip_grad_norm_
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from tests.watch.conftest import (
    Watched,
    backward,
    gradients,
    scaled_step,
)
from torchtrack import guard
from torchtrack.watch import hooks

SHIMMED: tuple[tuple[Any, str], ...] = (
    (clip_grad, "_clip_grads_with_norm_"),
    (clip_grad, "clip_grad_value_"),
    (U, "clip_grads_with_norm_"),
    (U, "clip_grad_value_"),
    (torch.amp.GradScaler, "step"),
    (FullyShardedDataParallel, "clip_grad_norm_"),
)


def test_the_last_unwatch_puts_everything_back(watched: Watched, model: nn.Module) -> None:
    before = [getattr(owner, name) for owner, name in SHIMMED]
    watched.watch(model)
    watched.watch(nn.Linear(2, 2))
    assert hooks.active() == 2 + 1 + len(SHIMMED)
    assert all(getattr(owner, name) is not original for (owner, name), original in zip(SHIMMED, before, strict=True))
    watched.run.unwatch(model)
    assert hooks.active() == 1 + 1 + len(SHIMMED)
    watched.run.unwatch()
    assert hooks.active() == 0
    assert all(getattr(owner, name) is original for (owner, name), original in zip(SHIMMED, before, strict=True))
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks


class Clippings:
    """A listener that counts them."""

    seen = 0

    def clipping(self, *_: object) -> None:
        self.seen += 1

    def begin(self, _: object) -> bool:
        return False

    def skipped(self, _: object) -> None:
        """Not counted."""


def test_a_users_wrapper_around_ours_stays_and_what_it_wraps_sees_nothing_any_more(
    watched: Watched, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    originals = [(owner, name, getattr(owner, name)) for owner, name in SHIMMED]
    watched.watch(model)
    for owner, name in SHIMMED:

        def theirs(*args: Any, inner: Any, name: str, **kwargs: Any) -> Any:
            calls.append(name)
            return inner(*args, **kwargs)

        ours = getattr(owner, name)
        wrapper = functools.partialmethod if owner is torch.amp.GradScaler else functools.partial
        monkeypatch.setattr(owner, name, wrapper(theirs, inner=ours, name=name))
    wrappers = [vars(owner)[name] for owner, name in SHIMMED]
    watched.run.unwatch()
    assert [vars(owner)[name] for owner, name in SHIMMED] == wrappers
    assert hooks.active() == 0

    watched.watch(model, name="again")
    clippings = Clippings()
    listener: Any = clippings
    hooks.add(listener)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    for step in range(2):
        scaled_step(model, optimizer, scaler, clip=True, bad=step == 1)
        watched.run.log({"loss": 0.0})
    hooks.remove(listener)
    assert {"_clip_grads_with_norm_", "step"} <= set(calls)
    assert clippings.seen == 2
    run = watched.read()
    rows = run.tensors("gradient").to_pylist()
    assert sorted((row["sample"], row["stage"]) for row in rows) == [(0, "pre_clip")] * 4 + [(1, "skipped")] * 4
    assert run.history(["watch/clip_coef"], raw=True).num_rows == 2
    monkeypatch.undo()
    for owner, name, original in originals:
        setattr(owner, name, original)


def test_a_torch_without_the_private_clip_function_is_watched_at_the_step(
    watched: Watched, model: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep = clip_grad._clip_grads_with_norm_
    monkeypatch.delattr(clip_grad, "_clip_grads_with_norm_")
    watched.watch(model)
    assert "seen at the step" in caplog.text
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    keep(list(model.parameters()), 0.5, torch.tensor(1.0))
    used = gradients(model)
    optimizer.step()
    watched.check("gradient", [used], "step")


def test_in_a_forked_child_nothing_is_installed_any_more(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: what users do
        child = os.fork()
    if child == 0:
        os._exit(hooks.active())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert hooks.active() > 0


class Raising:
    """A listener all of whose methods raise."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fail(*args: Any) -> Any:
            raise LookupError(name)

        return fail


@pytest.mark.usefixtures("expect_internal_failures")
def test_a_listener_that_raises_harms_neither_training_nor_another_listener(watched: Watched, model: nn.Module) -> None:
    broken: Any = Raising()
    hooks.add(broken)
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    used = gradients(model)
    clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    hooks.remove(broken)
    watched.check("gradient", [used], "pre_clip")
    assert guard.failures == {"watch: LookupError": 2}
