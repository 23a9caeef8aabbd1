"""What is counted at which step: plain training."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import compiled_autograd

from tests.watch.conftest import (
    Truth,
    Watched,
    assert_same,
    backward,
    gradients,
    parameters,
    train,
    until,
)
from torchtrack.histogram import Histogram
from torchtrack.watch import hooks
from torchtrack.watch.sample import Sample

MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def step_in_backward(model: nn.Module) -> None:
    """Each parameter gets an optimizer of its own that steps as soon as its gradient is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at import
        from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_gradients_are_those_the_step_uses(watched: Watched, model: nn.Module, make: Any) -> None:
    watched.watch(model)
    used, _ = train(model, make(model.parameters()), 3)
    watched.check("gradient", used, "step")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_parameters_are_those_before_the_update(watched: Watched, model: nn.Module, make: Any) -> None:
    watched.watch(model)
    _, before = train(model, make(model.parameters()), 3)
    watched.check("parameter", before, "step")


def test_accumulated_gradients_are_counted_once_as_their_sum(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for micro in range(4):
        backward(model, micro, 0.25)
    used = gradients(model)
    optimizer.step()
    watched.check("gradient", [used], "step")


def test_the_first_step_and_every_log_freq_th_after_it_are_sampled(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log_freq=3)
    used, _ = train(model, torch.optim.SGD(model.parameters(), lr=0.1), 8)
    rows = watched.check("gradient", [used[0], used[3], used[6]], "step")
    assert sorted({row["sample"] for row in rows}) == [0, 3, 6]


def test_steps_that_are_no_part_of_the_training_are_no_samples(watched: Watched, model: nn.Module) -> None:
    trains = True
    watcher = watched.run.watch(model, log=("gradients", "activations"), log_freq=2)
    assert watcher is not None
    watcher.only_while(lambda: trains)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    used, _ = train(model, optimizer, 1)
    trains = False
    for step in range(3):
        backward(model, step)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    optimizer.zero_grad()
    trains = True
    used += train(model, optimizer, 2)[0]
    rows = watched.check("gradient", [used[0], used[2]], "step")
    assert sorted({row["sample"] for row in rows}) == [0, 2]
    outputs = watched.rows("activation", "2")
    assert [(row["sample"], row["count"]) for row in outputs] == [(0, 15), (2, 15)]


def test_a_row_carries_the_step_of_the_first_log_after_its_capture(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (10, 20, 35):
        backward(model, step)
        optimizer.step()
        watched.run.log({"loss": 1.0}, step=step)
    rows = watched.rows(name="0.weight")
    assert [(row["sample"], row["step"]) for row in rows] == [(0, 10), (1, 20), (2, 35)]


def test_an_uncommitted_log_does_not_close_the_step_of_a_row(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    optimizer.step()
    watched.run.log({"a": 1.0}, step=3, commit=False)
    watched.run.log({"b": 1.0}, step=7)
    assert {row["step"] for row in watched.rows()} == {7}


def test_without_any_log_a_row_carries_the_current_step(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log="gradients")
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert {row["step"] for row in watched.rows()} == {0}


def test_the_global_norms_are_metrics_of_the_run(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    total = float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    held = float(nn.utils.get_total_norm([p.detach() for p in model.parameters()]))
    optimizer.step()
    watched.run.log({"loss": 1.0})
    history = watched.read().history(["watch/grad_norm", "watch/param_norm"]).to_pylist()
    assert history[0]["watch/grad_norm"] == pytest.approx(total, rel=1e-6)
    assert history[0]["watch/param_norm"] == pytest.approx(held, rel=1e-6)


@pytest.mark.parametrize(("log", "kinds"), [("all", {"gradient", "parameter"}), ("gradients", {"gradient"}),
                                            ("parameters", {"parameter"}), (None, set())])  # fmt: skip
def test_log_chooses_the_kinds(watched: Watched, model: nn.Module, log: Any, kinds: set[str]) -> None:
    watched.watch(model, log=log)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert {row["kind"] for row in watched.rows()} == kinds


def test_log_none_installs_nothing(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=None)
    assert hooks.active() == 0


# -- several optimizers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_freq", [1, 2, 3])
def test_each_of_two_alternating_optimizers_is_sampled_at_its_own_steps(
    watched: Watched, model: nn.Sequential, log_freq: int
) -> None:
    watched.watch(model, log="gradients", log_freq=log_freq)
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.01) for i in (0, 2))
    expected: list[Truth] = []
    for step in range(7):
        model.zero_grad()
        backward(model, step)
        truth = gradients(model)
        for part, optimizer in (("0", first), ("2", second)):
            if step % log_freq == 0:
                expected.append({name: h for name, h in truth.items() if name.startswith(part)})
            optimizer.step()
    rows = watched.check("gradient", expected, "step")
    assert len({row["sample"] for row in rows}) == len(expected)


def test_optimizers_of_different_pace_are_counted_each_by_its_own_steps(watched: Watched) -> None:
    discriminator, generator = nn.Linear(4, 4), nn.Linear(4, 4)
    watched.watch([discriminator, generator], log="gradients", log_freq=2)
    of_d, of_g = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (discriminator, generator))
    expected: list[Truth] = []
    for turn in range(4):
        for inner in range(5):
            discriminator.zero_grad()
            backward(discriminator, 10 * turn + inner)
            if (5 * turn + inner) % 2 == 0:
                expected.append(gradients(discriminator))
            of_d.step()
        generator.zero_grad()
        backward(generator, turn)
        if turn % 2 == 0:
            expected.append({f"model1/{name}": h for name, h in gradients(generator).items()})
        of_g.step()
    watched.check("gradient", expected, "step")


def test_parameters_of_an_optimizer_that_steps_later_are_not_counted_with_the_first(
    watched: Watched, model: nn.Sequential
) -> None:
    watched.watch(model, log="parameters")
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.01) for i in (0, 2))
    backward(model)
    first.step()
    second.step()
    assert [(row["sample"], row["name"]) for row in watched.rows()] == [
        (0, "0.bias"), (0, "0.weight"), (1, "2.bias"), (1, "2.weight")
    ]  # fmt: skip


def test_an_optimizer_of_other_parameters_is_ignored(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    other = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(3):
        other(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert watched.rows() == []


def test_frozen_parameters_are_counted_though_an_unrelated_optimizer_stepped_first(
    watched: Watched, model: nn.Sequential
) -> None:
    model[0].requires_grad_(False)
    watched.watch(model)
    other = nn.Linear(3, 3)
    other(torch.ones(1, 3)).sum().backward()
    unrelated = torch.optim.SGD(other.parameters(), lr=0.1)
    unrelated.step()
    train(model, torch.optim.SGD(model[2].parameters(), lr=0.1), 1)
    assert {row["name"] for row in watched.rows("parameter")} == {"0.bias", "0.weight", "2.bias", "2.weight"}


def test_an_optimizer_in_backward_gives_each_parameter_once(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    start = parameters(model)
    grads: Truth = {}
    p: Any
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: grads.update({name: Histogram.of(p.grad.clone())}))
    step_in_backward(model)
    backward(model)
    rows = watched.rows()
    assert sorted((row["kind"], row["name"]) for row in rows) == sorted(
        (kind, name) for kind in ("gradient", "parameter") for name in start
    )
    for row in rows:
        assert_same(row, (grads if row["kind"] == "gradient" else start)[row["name"]])


def test_the_optimizers_of_one_backward_pass_make_one_sample(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log_freq=2)
    step_in_backward(model)
    for step in range(4):
        backward(model, step)
        watched.run.log({"loss": 0.0})
    rows = watched.rows("gradient")
    assert [(row["sample"], row["step"], row["name"]) for row in rows] == [
        (sample, sample, name) for sample in (0, 2) for name in sorted(parameters(model))
    ]


def test_an_optimizer_in_backward_inside_anothers_closure_takes_nothing_from_it(
    watched: Watched, model: nn.Sequential
) -> None:
    watched.watch(model, log="gradients")
    step_in_backward(model[0])
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    optimizer.step(lambda: float(backward(model)))
    assert {row["name"] for row in watched.rows()} == {"0.bias", "0.weight", "2.bias", "2.weight"}


def test_a_group_added_later_is_counted_from_then_on(watched: Watched, model: nn.Sequential) -> None:
    watched.watch(model, log="gradients")
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    train(model, optimizer, 1)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    used, _ = train(model, optimizer, 1)
    rows = watched.rows()
    assert {row["name"] for row in rows if row["sample"] == 0} == {"0.bias", "0.weight"}
    assert {row["name"] for row in rows if row["sample"] == 1} == set(used[0])


def test_an_optimizer_made_before_watch_is_sampled_from_its_next_step(watched: Watched, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 2)
    watched.watch(model, log_freq=5)
    used, _ = train(model, optimizer, 1)
    watched.check("gradient", used, "step")


def test_an_optimizer_that_is_gone_is_not_kept_alive(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 1)
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None


# -- names ------------------------------------------------------------------------------------------------------------


def test_two_models_in_one_watch_and_in_two_are_named_apart(watched: Watched) -> None:
    models = [nn.Linear(4, 1) for _ in range(4)]
    watched.watch(models[:2], log="gradients")
    watched.watch(models[2], log="gradients")
    watched.watch(models[3], log="gradients", name="critic")
    for m in models:
        train(m, torch.optim.SGD(m.parameters(), lr=0.1), 1)
    names = {row["name"] for row in watched.rows()}
    assert names == {p + leaf for p in ("", "model1/", "model2/", "critic/") for leaf in ("weight", "bias")}


def test_include_and_exclude_choose_by_pattern(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, include=["*.weight", "0.*"], exclude="0.bias")
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert {row["name"] for row in watched.rows()} == {"0.weight", "2.weight"}


@pytest.mark.parametrize("before", [True, False])
def test_a_compiled_model_has_the_names_of_the_plain_one_and_is_compiled_once(
    watched: Watched, model: nn.Module, before: bool
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled: Any = torch.compile(model, backend="eager")
    watched.watch(compiled if before else model)
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    used = []
    for step in range(4):
        optimizer.zero_grad()
        backward(compiled, step)
        used.append(gradients(model))
        optimizer.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    watched.check("gradient", used, "step")
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by torch, where it traces
def test_a_fullgraph_user_of_compiled_autograd_gets_no_graph_break_and_no_recompilation(
    watched: Watched, model: nn.Module
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    watched.watch(model)
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    used = []
    for step in range(3):
        optimizer.zero_grad()
        with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
            backward(compiled, step)
        used.append(gradients(model))
        nn.utils.clip_grad_norm_(compiled.parameters(), 0.05)
        optimizer.step()
    counted = torch._dynamo.utils.counters
    assert (counted["stats"]["unique_graphs"], counted["compiled_autograd"]["captures"]) == (2, 1)
    assert not counted["graph_break"]
    watched.check("gradient", used, "pre_clip")
    torch._dynamo.reset()


def test_a_compiled_submodule_does_not_show_in_names(watched: Watched, model: nn.Sequential) -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(model[0], backend="eager")
    model[0] = compiled
    watched.watch(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert {row["name"] for row in watched.rows()} == {"0.bias", "0.weight", "2.bias", "2.weight"}
    torch._dynamo.reset()


# -- a budget ---------------------------------------------------------------------------------------------------------


def test_under_a_budget_what_it_chose_and_what_it_costs_are_metrics_of_the_run(
    watched: Watched, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.watch(model, budget=0.01)
    [watcher] = watched.run._watchers
    monkeypatch.setattr(watcher.schedule, "wanted", lambda: 4)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    until(lambda: watcher.schedule._change is not None)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    read = watched.read()
    assert {"_tt/watch0/interval", "_tt/watch0/share"} <= set(read.keys())


def test_under_a_budget_samples_that_cost_too_much_become_rare(
    watched: Watched, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.watch(model, budget=0.5)
    [watcher] = watched.run._watchers
    monkeypatch.setattr(Sample, "cost_s", lambda _: 3600.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 3)
    until(lambda: watcher.schedule._change is not None)
    train(model, optimizer, 40)
    until(lambda: not watcher.merger._queue)
    assert watcher.schedule.interval > 1000
    assert {row["sample"] for row in watched.rows()} < set(range(20))
