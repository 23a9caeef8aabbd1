"""What a step changed: exact, bounded in memory, and in turns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.watch.conftest import Row, Truth, Watched, assert_same, backward, scaled_step, share_out
from tests.watch.test_watcher import step_in_backward
from torchtrack.histogram import Histogram
from torchtrack.watch import hooks, updates, watcher
from torchtrack.watch.plan import KEPT_ELEMENTS, take_turns

UPDATES = ("updates",)


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> Truth:
    """By how much each parameter differs from before."""
    return {name: Histogram.of(p.detach().float() - before[name].float()) for name, p in model.named_parameters()}


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[Truth]:
    """Plain steps; what each changed."""
    truths = []
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        before = values(model)
        optimizer.step()
        truths.append(changed(model, before))
    return truths


@pytest.mark.parametrize("name", ["SGD", "AdamW", "fused", "bfloat16"])
def test_an_update_is_the_parameter_after_the_step_minus_before_it(
    watched: Watched, model: nn.Module, name: str
) -> None:
    if name == "bfloat16":
        model.to(torch.bfloat16)
    watched.watch(model, log=UPDATES)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if name != "SGD":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=name == "fused")
    watched.check("update", stepped(model, optimizer, 3), "step")


def test_the_update_ratio_is_a_metric_of_the_run(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=("parameters", "updates"))
    before = values(model)
    stepped(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    watched.run.log({"loss": 0.0})
    change = [p.detach() - before[name] for name, p in model.named_parameters()]
    ratio = float(nn.utils.get_total_norm(change)) / float(nn.utils.get_total_norm(list(before.values())))
    assert watched.read().history(["watch/update_ratio"]).to_pylist()[0]["watch/update_ratio"] == pytest.approx(ratio)


def test_without_parameter_rows_there_is_no_update_ratio(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=("gradients", "updates"))
    stepped(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert "watch/update_ratio" not in watched.read().keys()  # noqa: SIM118  # a method


def test_frozen_and_unused_parameters_have_no_update_row(watched: Watched, model: nn.Module) -> None:
    model[0].requires_grad_(False)  # type: ignore[index]
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    watched.watch(model, log=UPDATES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2](model[1](model[0](torch.ones(1, 4)))).sum().backward()  # type: ignore[index]
    optimizer.step()
    assert {row["name"] for row in watched.rows()} == {"2.bias", "2.weight"}


def test_of_two_optimizers_each_has_its_own_updates(watched: Watched, model: nn.Sequential) -> None:
    watched.watch(model, log=UPDATES, log_freq=2)
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.01) for i in (0, 2))
    expected: list[Truth] = []
    for step in range(4):
        model.zero_grad()
        backward(model, step)
        for part, optimizer in (("0", first), ("2", second)):
            before = values(model)
            optimizer.step()
            if step % 2 == 0:
                expected.append({n: h for n, h in changed(model, before).items() if n.startswith(part)})
    watched.check("update", expected, "step")


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_with_a_closure_it_is_the_change_of_the_whole_step(watched: Watched, model: nn.Module, kind: Any) -> None:
    watched.watch(model, log=UPDATES)
    optimizer = kind(model.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        return backward(model)

    before = values(model)
    optimizer.step(closure)
    watched.check("update", [changed(model, before)], "step")


class Twice(torch.optim.SGD):
    """Changes parameters after the step it inherits, which is a step of its own to torch."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.5)
        return result


def test_a_step_that_calls_the_one_it_inherits_is_one_step(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=UPDATES)
    Twice(model.parameters(), lr=0.1)  # torch hooks a class at its first instance
    watched.check("update", stepped(model, Twice(model.parameters(), lr=0.1), 2), "step")


class Turning(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.data = p.data.t().contiguous().t()  # elements no longer lie where they lay
        return result


def test_a_parameter_that_the_step_lays_out_otherwise_has_no_update_row(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=UPDATES)
    stepped(model, Turning([p for p in model.parameters() if p.dim() == 2], lr=0.1), 1)
    assert watched.rows() == []


def test_optimizers_inside_the_backward_pass_give_each_update_once(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=UPDATES)
    step_in_backward(model)
    truths = []
    for step in range(2):
        before = values(model)
        backward(model, step)
        truths.append(changed(model, before))
    watched.check("update", truths, "step")


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_a_step_that_the_scaler_leaves_out_changes_nothing(watched: Watched, model: nn.Module, fused: bool) -> None:
    watched.watch(model, log=("gradients", "updates"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    for bad in (True, False):
        scaled_step(model, optimizer, scaler, clip=False, bad=bad)
    rows = watched.rows()
    skipped = [row for row in rows if row["sample"] == 0 and row["kind"] == "update"]
    assert all(row["count"] == row["zeros"] for row in skipped)
    assert len(skipped) == (4 if fused else 0)
    assert {row["name"] for row in rows if row["sample"] == 1 and row["kind"] == "update"} == set(values(model))


class Raising(torch.optim.SGD):
    """Raises at its first step."""

    raised = False

    def step(self, closure: Any = None) -> Any:
        if not self.raised:
            self.raised = True
            raise ArithmeticError
        return super().step(closure)


@pytest.mark.parametrize("again", [False, True], ids=["at the next step", "at the end"])
def test_what_was_counted_before_a_step_that_raises_is_written(watched: Watched, model: nn.Module, again: bool) -> None:
    watched.watch(model, log=("gradients", "updates"))
    Raising(model.parameters(), lr=0.1)
    optimizer = Raising(model.parameters(), lr=0.1)
    backward(model)
    with pytest.raises(ArithmeticError):
        optimizer.step()
    if again:
        optimizer.step()
    counted = {(row["sample"], row["kind"]) for row in watched.rows()}
    assert counted == {(0, "gradient")} | ({(1, "gradient"), (1, "update")} if again else set())


def test_a_rank_counts_its_share_of_an_update(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    share_out(monkeypatch, (3, 9), 12)
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(torch.randn(3, 4)))
    module.w.grad = torch.randn(3, 4)
    watched.watch(module, log=UPDATES)
    before = values(module)["w"]
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    [row] = watched.rows()
    truth = Histogram.of((values(module)["w"] - before).reshape(-1)[3:9])
    assert (row["covers"], row["numel"], row["count"]) == (":3-9", 12, 6)
    assert row["norm"] == pytest.approx(truth.norm)


def test_the_second_hook_is_there_only_while_updates_are_watched(watched: Watched, model: nn.Module) -> None:
    watched.watch(model)
    installed = hooks.active()
    other = nn.Linear(2, 2)
    watched.watch(other, log=UPDATES)
    assert hooks.active() == installed + 2
    watched.run.unwatch(other)
    assert hooks.active() == installed


# -- turns ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if 30 elements could be kept; how many were, a sample."""
    monkeypatch.setattr(updates, "KEPT_ELEMENTS", 30)
    kept: list[int] = []
    count = updates.changes

    def counted(found: Any) -> Any:
        kept.append(sum(before.numel() for _, _, before in found))
        return count(found)

    monkeypatch.setattr(watcher, "changes", counted)
    return kept


def test_parameters_take_turns_where_not_all_can_be_kept(watched: Watched, room: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))  # 20 + 5, 15 + 3
    watched.watch(model, log=UPDATES)
    truths = stepped(model, torch.optim.SGD(model.parameters(), lr=0.01), 4)
    rows = watched.rows("update")
    chosen: dict[int, set[str]] = {}
    for row in rows:
        assert_same(row, truths[row["sample"]][row["name"]])
        chosen.setdefault(row["sample"], set()).add(row["name"])
    assert chosen == {0: {"0.bias", "0.weight", "1.bias"}, 1: {"1.weight"}} | {
        2: {"0.bias", "0.weight", "1.bias"}, 3: {"1.weight"}
    }  # fmt: skip
    assert max(room) <= 30


def test_a_parameter_too_large_to_be_kept_is_counted_piece_by_piece(watched: Watched, room: list[int]) -> None:
    model = nn.Linear(4, 20)  # 80 + 20
    watched.watch(model, log=("parameters", "updates"))
    truths: list[torch.Tensor] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        before = model.weight.detach().clone()
        optimizer.step()
        truths.append((model.weight.detach() - before).reshape(-1))
    rows: list[Row] = watched.rows("update", "weight")
    assert [(row["sample"], row["covers"]) for row in rows] == [(1, ":0-26"), (2, ":26-53"), (3, ":53-80")]
    for row, (lo, hi) in zip(rows, [(0, 26), (26, 53), (53, 80)], strict=True):
        assert row["norm"] == pytest.approx(Histogram.of(truths[row["sample"]][lo:hi]).norm)
        assert row["coverage"] == (hi - lo) / 80
    assert max(room) <= 30


def test_no_rank_keeps_more_than_it_may_and_every_element_has_a_turn() -> None:
    sizes = [(f"{name}", rank, (7 * name + 5 * rank) % 40) for name in range(30) for rank in range(3)]
    table = np.array([size for *_, size in sizes]).reshape(30, 3)
    turns = take_turns([name for name, *_ in sizes[::3]], table, 16)
    loads: dict[tuple[int, int], int] = {}
    for name, rank, size in sizes:
        first, pieces = turns[name]
        assert math.ceil(size / pieces) <= 16
        for piece in range(pieces):
            part = size * (piece + 1) // pieces - size * piece // pieces
            loads[first + piece, rank] = loads.get((first + piece, rank), 0) + part
    assert max(loads.values()) <= 16


def test_what_is_kept_is_64_mib_of_float32() -> None:
    assert KEPT_ELEMENTS * 4 == 64 << 20


def test_what_no_plan_knows_of_is_kept_beside_what_is_planned_while_there_is_room() -> None:
    assert take_turns(["a", "b"], np.array([[5], [6]]), 16, 3, load=5) == {"a": (3, 1), "b": (3, 1)}
    assert take_turns(["a", "b"], np.array([[5], [7]]), 16, 3, load=5) == {"a": (3, 1), "b": (4, 1)}
