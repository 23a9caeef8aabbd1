"""`watch(on_nonfinite=)` on real ranks: one decision of all of them, whatever part of a gradient each holds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from tests.ranks import wrappers
from torchtrack.testing import close_pool, ranks
from torchtrack.watch import layout

LAST = 3
"""The last row of the first layer lies on the last rank where it is sharded."""


class Spoiled(nn.Module):
    """A model whose rank 1 puts a NaN into the last row of the gradient of its first layer, when told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, LAST + 1), nn.Linear(LAST + 1, 2)
        self.spoil = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if self.spoil and hidden.requires_grad and dist.get_rank() == 1:
            hidden.register_hook(lambda gradient: torch.cat([gradient[:, :-1], gradient[:, -1:] * math.nan], 1))
        return self.second(hidden).square().sum()  # type: ignore[no-any-return]


def wrapped(wrapper: str) -> tuple[Spoiled, nn.Module]:
    model = Spoiled()
    if wrapper == "ddp":
        return model, DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    for layer in (model.first, model.second):
        fully_shard(layer)
    fully_shard(model)
    return model, model


def local(model: nn.Module) -> list[torch.Tensor]:
    parts = [layout.local_part(p) if layout.is_dtensor(p) else p for p in model.parameters()]
    return [part.detach().clone() for part in parts]


def step_counts(optimizer: torch.optim.Optimizer) -> set[float]:
    return {float(kept["step"]) for kept in optimizer.state.values()}


def train(folder: Path, wrapper: str, action: str, bad: int) -> dict[str, Any]:
    """Five steps, one of them bad; what this rank saw."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    model, outer = wrapped(wrapper)
    optimizer = torch.optim.AdamW(outer.parameters(), lr=0.1, fused=action == "skip")
    run = torchtrack.init(project="nonfinite", dir=folder, system_interval=0.0, finish_timeout=30.0)
    run.watch(outer, log_freq=2, on_nonfinite=action)  # type: ignore[arg-type]
    random, seen, stopped = torch.Generator().manual_seed(dist.get_rank()), [], None
    for step in range(5):
        model.spoil = step == bad
        before = local(model)
        optimizer.zero_grad()
        outer(torch.randn(3, 4, generator=random)).backward()
        try:
            optimizer.step()
        except torchtrack.NonFiniteError as error:
            stopped = error
        seen.append(all(torch.equal(a, b) for a, b in zip(before, local(model), strict=True)))
        if stopped is not None:
            break
        run.log({"loss": 0.0})
    uid = run.uid
    run.finish()
    told = (stopped.step, stopped.parameter, stopped.ranks) if stopped else None
    return {"uid": uid, "unchanged": seen, "counts": step_counts(optimizer), "told": told}


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_a_bad_step_is_left_out_on_every_rank(tmp_path: Path, wrapper: str) -> None:
    found = ranks(2, init=True).run(train, tmp_path, wrapper, "skip", 2)
    assert [each["unchanged"] for each in found] == [[False, False, True, False, False]] * 2
    assert [each["counts"] for each in found] == [{4.0}] * 2
    run = torchtrack.Api(tmp_path).run(found[0]["uid"])
    [event] = run.events("nonfinite_step")
    assert (event.step, event.data["first"], event.data["ranks"]) == (2, "first.bias", [1])
    rows = run.tensors("gradient").to_pylist()
    assert {(row["step"], row["stage"]) for row in rows} == {(0, "step"), (2, "skipped"), (4, "step")}


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_every_rank_raises_at_the_same_step_and_names_whose_gradient_it_was(tmp_path: Path, wrapper: str) -> None:
    found = ranks(2, init=True).run(train, tmp_path, wrapper, "raise", 1)
    assert [each["told"] for each in found] == [(1, "first.bias", (1,))] * 2
    assert [each["unchanged"] for each in found] == [[False, True]] * 2


def train_unlike(folder: Path) -> list[bool]:
    """Only rank 1 asks for it: whether it left out its bad step."""
    from torchtrack.watch import decision

    decision.MEET_WITHIN_S = 1.0  # type: ignore[misc]
    model = Spoiled()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    run = torchtrack.init(project="nonfinite", dir=folder, system_interval=0.0, finish_timeout=30.0)
    run.watch(model, on_nonfinite="skip" if dist.get_rank() == 1 else "record")
    model.spoil = True
    before = local(model)
    model(torch.ones(3, 4)).backward()
    optimizer.step()
    dist.barrier()
    unchanged = [torch.equal(a, b) for a, b in zip(before, local(model), strict=True)]
    run.finish()
    return unchanged


def test_a_rank_that_decides_alone_leaves_nothing_out(tmp_path: Path) -> None:
    found = ranks(2, init=True).run(train_unlike, tmp_path)
    assert found == [[False] * 4] * 2


LAYOUTS = (
    "hsdp",
    "fsdp1",
    "fsdp1 original parameters",
    "fsdp1 hybrid",
    "tensor parallel",
    "fsdp2 and tensor parallel",
    "pipeline 1f1b beside another",
)
BAD = 2


def train_layouts(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Each layout with each action: four steps, at one of which one rank has a NaN in what it holds of a gradient."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    run = torchtrack.init(project="nonfinite", dir=folder, system_interval=0.0, finish_timeout=30.0)
    found = {f"{name}, {action}": train_layout(run, name, action) for name in names for action in ("skip", "raise")}
    run.finish(quiet=True)
    return found


def train_layout(run: torchtrack.Run, name: str, action: str) -> dict[str, Any]:
    trained = wrappers.WRAPPERS[name][1]()
    parameters = [p for optimizer in trained.optimizers for group in optimizer.param_groups for p in group["params"]]
    groups = [[p for p in parameters if layout.is_dtensor(p) is sharded] for sharded in (False, True)]
    optimizer = torch.optim.AdamW(  # torch's fused step takes either kind, not both at once
        [{"params": group} for group in groups if group], lr=0.1, fused=True
    )
    start = run.step
    run.watch(trained.watch, log_freq=2, on_nonfinite=action)  # type: ignore[arg-type]
    seen, stopped = [], None
    data = wrappers.batches(*trained.data_ranks)
    for step in range(4):
        before = held(parameters)
        optimizer.zero_grad()
        batch = next(data)
        if trained.backward is not None:
            trained.backward(batch)
        else:
            wrappers.loss_of(trained.forward(batch)).backward()
        if step == BAD and dist.get_rank() == 1:
            spoil(parameters)
        try:
            optimizer.step()
        except torchtrack.NonFiniteError as error:
            stopped = error.step - start
            optimizer.zero_grad()
        seen.append(all(torch.equal(a, b) for a, b in zip(before, held(parameters), strict=True)))
        run.log({"loss": 0.0})
    run.unwatch(trained.watch)
    return {"unchanged": seen, "counts": step_counts(optimizer), "stopped": stopped}


def held(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    return [(layout.local_part(p) if layout.is_dtensor(p) else p).detach().clone() for p in parameters]


def spoil(parameters: list[torch.Tensor]) -> None:
    """Put a NaN into the first gradient of which something lies here."""
    for parameter in parameters:
        if parameter.grad is not None:
            local = layout.local_part(parameter.grad) if layout.is_dtensor(parameter.grad) else parameter.grad
            if local.numel():
                local.view(-1)[0] = math.nan
                return


@pytest.fixture
def own_processes() -> Iterator[None]:
    """DTensor remembers meshes, and takes one of an ended job for an equal one of the next job in the process."""
    yield
    close_pool()


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.usefixtures("own_processes")
def test_all_ranks_decide_alike_under_every_layout(tmp_path: Path, size: int) -> None:
    names = [name for name in LAYOUTS if wrappers.WRAPPERS[name][0] == size]
    found = ranks(size, init=True).run(train_layouts, tmp_path, names)
    for case in found[0]:
        decided = [each[case] for each in found]
        assert [each["unchanged"] for each in decided] == [[False, False, True, False]] * size, case
        assert [each["counts"] for each in decided] == [{3.0}] * size, case
        assert [each["stopped"] for each in decided] == [BAD if "raise" in case else None] * size, case
    [run] = torchtrack.Api(tmp_path).runs()
    told = {name for event in run.events("nonfinite_step") for name in event.data["names"]}
    assert all("/." not in name and "_fsdp" not in name for name in told), told  # further models have a prefix
