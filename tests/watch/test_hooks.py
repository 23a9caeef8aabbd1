"""When: clipping, gradient scaling, closures and other ways to step; and that training is never changed."""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.utils as U
from torch import nn
from torch.nn.utils import clip_grad, clip_grad_norm_, clip_grad_value_
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from tests.watch.conftest import Truth, Watched, assert_same, backward, gradients, parameters
from torchtrack import guard
from torchtrack.histogram import Histogram
from torchtrack.watch import hooks

# -- clipping ---------------------------------------------------------------------------------------------------------


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
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model, 0)
    clip_grad_norm_(model.parameters(), 0.5)
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    backward(model, 1)
    backward(model, 2)
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


# -- gradient scaling -------------------------------------------------------------------------------------------------


def scaled_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, clip: bool, bad: bool
) -> Truth:
    """One step under a scaler; the unscaled gradients before any clipping."""
    optimizer.zero_grad()
    backward(model, scale=float(scaler.get_scale()))
    first = next(model.parameters())
    assert first.grad is not None
    if bad:
        first.grad[0, 0] = float("inf")
    used = gradients(model, 1.0 / scaler.get_scale())
    if clip:
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 0.5)
    scaler.step(optimizer)
    scaler.update()
    return used


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("bad", [False, True], ids=["", "inf"])
def test_under_a_scaler_the_unscaled_gradients_are_counted_once(
    watched: Watched, model: nn.Module, fused: bool, clip: bool, bad: bool
) -> None:
    watched.watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    before = parameters(model)
    used = scaled_step(model, optimizer, scaler, clip=clip, bad=bad)
    assert (parameters(model) == before) == bad
    rows = watched.check("gradient", [used], "skipped" if bad else "pre_clip" if clip else "step")
    assert sum(row["pos_infs"] for row in rows) == int(bad)
    held = watched.rows("parameter")
    assert {row["name"] for row in held} == set(before)
    for row in held:
        assert_same(row, before[row["name"]])


def test_a_skipped_step_counts_as_one(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log="gradients", log_freq=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    used = [scaled_step(model, optimizer, scaler, clip=False, bad=step in (1, 2)) for step in range(5)]
    rows = watched.check("gradient", used[::2], ["step", "skipped", "step"])
    assert sorted({row["sample"] for row in rows}) == [0, 2, 4]


def test_a_scale_that_is_no_power_of_two_is_divided_out_exactly(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    scaler.scale(torch.ones(()))
    backward(model, scale=1000.0)
    inverse = torch.tensor(1000.0).double().reciprocal().float()
    used = {name: Histogram.of(p.grad * inverse) for name, p in model.named_parameters() if p.grad is not None}
    scaler.step(optimizer)
    watched.check("gradient", [used], "step")


def test_clipping_still_scaled_gradients_of_a_fused_optimizer_is_counted_unscaled_at_the_step(
    watched: Watched, model: nn.Module
) -> None:
    watched.watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    backward(model, scale=1024.0)
    clip_grad_norm_(model.parameters(), 0.5)
    used = gradients(model, 1 / 1024)
    scaler.step(optimizer)
    watched.check("gradient", [used], "step")


def test_a_disabled_scaler_changes_nothing(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    backward(model)
    used = gradients(model)
    scaler.step(optimizer)
    watched.check("gradient", [used], "step")


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


class Counter(TorchDispatchMode):
    """Which operators run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.last: list[str] = []

    def __enter__(self) -> Counter:
        self.last = []
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.last.append(str(func))
        return func(*args, **(kwargs or {}))


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


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_weights_and_random_states_are_bit_equal_with_and_without_watch(
    watched: Watched, model: nn.Module, flow: Flow
) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    without = trained(model, flow)
    model.load_state_dict(state)
    watched.watch(model, log_freq=2)
    model.zero_grad()
    together = trained(model, flow)
    assert all(torch.equal(a, b) for a, b in zip(without, together, strict=True))
    assert len({row["sample"] for row in watched.rows()}) == 10


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_steps_that_are_not_sampled_run_no_operator_of_ours(watched: Watched, model: nn.Module, flow: Flow) -> None:
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
    watched.watch(model, log_freq=1000)
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


# -- what is installed ------------------------------------------------------------------------------------------------

SHIMMED: tuple[tuple[Any, str], ...] = (
    (clip_grad, "_clip_grads_with_norm_"),
    (clip_grad, "clip_grad_value_"),
    (U, "clip_grads_with_norm_"),
    (U, "clip_grad_value_"),
    (torch.amp.GradScaler, "step"),
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    for step in range(2):
        scaled_step(model, optimizer, scaler, clip=True, bad=step == 1)
        watched.run.log({"loss": 0.0})
    assert {"_clip_grads_with_norm_", "step"} <= set(calls)
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
