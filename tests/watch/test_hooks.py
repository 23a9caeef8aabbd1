"""When: closures and other ways to step; and that training is never changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.utils as U
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.nn.utils import clip_grad_norm_

from tests.watch.conftest import (
    Counter,
    Truth,
    Watched,
    backward,
    gradients,
    parameters,
    scaled_step,
)

# -- closures and other optimizers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", [False, True], ids=["positional", "keyword"])
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("log_freq", [1, 2, 3])
def test_a_closure_is_counted_when_its_gradients_are_there(
    watched: Watched, model: nn.Module, keyword: bool, clip: bool, log_freq: int
) -> None:
    watched.watch(model, log_freq=log_freq)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    used: list[Truth] = []
    for step in range(6):

        def closure(step: int = step) -> float:
            optimizer.zero_grad()
            loss = backward(model, step)
            used.append(gradients(model))
            if clip:
                clip_grad_norm_(model.parameters(), 0.5)
            return float(loss)

        result = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert isinstance(result, float)
    watched.check("gradient", used[::log_freq], "pre_clip" if clip else "step")


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["", "tensor"])
def test_the_step_by_which_torch_makes_the_state_of_an_optimizer_for_a_checkpoint_is_none(
    watched: Watched, model: nn.Module, lr: Any
) -> None:
    watched.watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    get_optimizer_state_dict(model, optimizer)
    used = []
    for step in range(2):
        optimizer.zero_grad()
        backward(model, step)
        used.append(gradients(model))
        optimizer.step()
    watched.check("gradient", used, "step")


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
def test_of_a_closure_called_often_only_the_first_gradients_count(
    watched: Watched, model: nn.Module, clip: bool
) -> None:
    watched.watch(model)
    optimizer: Any = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    used: list[Truth] = []
    begun: list[int] = []
    starts: list[Truth] = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = backward(model)
        used.append(gradients(model))
        if clip:
            clip_grad_norm_(model.parameters(), 0.5)
        return float(loss)

    for _ in range(2):
        begun.append(len(used))
        starts.append(parameters(model))
        optimizer.step(closure)
    assert len(used) > 4
    watched.check("gradient", [used[i] for i in begun], "pre_clip" if clip else "step")
    watched.check("parameter", starts, "step")


class Wrapping(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_subclass_that_calls_super_is_counted_once(watched: Watched, model: nn.Module) -> None:
    torch.optim.SGD(model.parameters(), lr=0.1)  # has its class's step hooked too
    watched.watch(model, log="gradients")
    optimizer = Wrapping(model.parameters(), lr=0.1)
    used = []
    for step in range(2):
        optimizer.zero_grad()
        backward(model, step)
        used.append(gradients(model))
        optimizer.step()
    watched.check("gradient", used, "step")


class Failing(torch.optim.SGD):
    fails = True

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise ArithmeticError("the user's own")
        return super().step(closure)


def test_after_an_exception_inside_a_step_later_steps_are_counted(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log="gradients")
    optimizer = Failing(model.parameters(), lr=0.1)
    backward(model)
    used = gradients(model)
    with pytest.raises(ArithmeticError, match="the user's own"):
        optimizer.step()
    optimizer.fails = False
    optimizer.step()
    watched.check("gradient", [used, used], "step")


def test_after_an_exception_inside_a_closure_later_steps_are_counted(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    error = ArithmeticError("the user's own")

    def closure() -> float:
        raise error

    with pytest.raises(ArithmeticError) as caught:
        optimizer.step(closure)
    assert caught.value is error
    backward(model)
    used = gradients(model)
    optimizer.step()
    rows = watched.check("gradient", [used], "step")
    assert {row["sample"] for row in rows} == {1}


def test_a_users_function_that_looks_like_torchs_step_wrapper_hides_no_step(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    used = gradients(model)
    scope: dict[str, Any] = {}
    source = "def wrapper(self):\n    return self.step()\n"
    exec(compile(source, "/home/user/my_optimizer.py", "exec"), scope)  # noqa: S102
    scope["wrapper"](optimizer)
    watched.check("gradient", [used], "step")


def test_a_compiled_step_is_sampled(watched: Watched, model: nn.Module) -> None:
    torch._dynamo.reset()
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = torch.compile(optimizer.step, backend="eager")
    used = []
    for number in range(2):
        model.zero_grad()
        backward(model, number)
        used.append(gradients(model))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at import
            step()
    watched.check("gradient", used, "step")
    torch._dynamo.reset()


def test_nothing_is_done_while_a_cuda_graph_is_recorded(
    watched: Watched, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()
    assert watched.rows() == []


# -- training is never changed ----------------------------------------------------------------------------------------


Flow = Callable[[nn.Module, int], Iterator[None]]


def plain(make: Callable[[Any], torch.optim.Optimizer], *, clip: bool = False) -> Flow:
    def flow(model: nn.Module, steps: int) -> Iterator[None]:
        optimizer = make(model.parameters())
        for step in range(steps):
            optimizer.zero_grad()
            backward(model, step)
            if clip:
                clip_grad_norm_(model.parameters(), 0.5)
                U.clip_grad_value_(model.parameters(), 0.1)
            yield
            optimizer.step()

    return flow


def with_scaler(*, fused: bool) -> Flow:
    def flow(model: nn.Module, steps: int) -> Iterator[None]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1000.0, growth_interval=4)
        scaler.scale(torch.ones(()))
        for step in range(steps):
            yield
            scaled_step(model, optimizer, scaler, clip=step % 2 == 0, bad=step % 5 == 4)

    return flow


def with_closure(make: Callable[[Any], torch.optim.Optimizer]) -> Flow:
    def flow(model: nn.Module, steps: int) -> Iterator[None]:
        optimizer = make(model.parameters())
        for step in range(steps):

            def closure(step: int = step) -> float:
                optimizer.zero_grad()
                loss = backward(model, step)
                clip_grad_norm_(model.parameters(), 0.5)
                return float(loss)

            yield
            optimizer.step(closure)

    return flow


FLOWS: dict[str, Flow] = {
    "SGD": plain(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "AdamW foreach": plain(lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True), clip=True),
    "AdamW fused": plain(lambda p: torch.optim.AdamW(p, lr=0.01, fused=True), clip=True),
    "scaler": with_scaler(fused=False),
    "scaler fused": with_scaler(fused=True),
    "closure": with_closure(lambda p: torch.optim.SGD(p, lr=0.1)),
    "LBFGS": with_closure(lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3)),
}


def trained(model: nn.Module, flow: Flow) -> list[torch.Tensor]:
    """The weights after 20 steps, and the random state."""
    torch.manual_seed(7)
    for _ in flow(model, 20):
        pass
    return [*(p.detach().clone() for p in model.parameters()), torch.get_rng_state()]


EVERYTHING = ("gradients", "parameters", "updates", "activations", "optimizer")


@pytest.mark.parametrize("log", ["all", EVERYTHING], ids=["all", "everything"])
@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_weights_and_random_states_are_bit_equal_with_and_without_watch(
    watched: Watched, model: nn.Module, flow: Flow, log: Any
) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    without = trained(model, flow)
    model.load_state_dict(state)
    watched.watch(model, log=log, log_freq=2)
    model.zero_grad()
    together = trained(model, flow)
    assert all(torch.equal(a, b) for a, b in zip(without, together, strict=True))
    assert len({row["sample"] for row in watched.rows()}) == 10


@pytest.mark.parametrize("log", ["all", EVERYTHING], ids=["all", "everything"])
@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_steps_that_are_not_sampled_run_no_operator_of_ours(
    watched: Watched, model: nn.Module, flow: Flow, log: Any
) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def operators() -> list[list[str]]:
        model.load_state_dict(state)
        model.zero_grad()
        each, counter = [], Counter()
        steps = flow(model, 6)
        for _ in steps:
            with counter:
                next(steps)
            each.append(counter.last)
        return each

    without = operators()
    watched.watch(model, log=log, log_freq=1000)
    together = operators()
    assert together[0] != without[0]
    assert [sorted(ops) for ops in together[1:]] == [sorted(ops) for ops in without[1:]]


def test_a_watched_step_keeps_the_users_hooks_and_result(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    assert optimizer.step(lambda: 42.0) == 42.0
    assert seen == ["pre", "post"]
