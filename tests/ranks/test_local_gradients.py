"""Each rank's own gradients before the average, under every wrapper that averages: their norm, and who had the NaN."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from tests.ranks import wrappers
from torchtrack.testing import ranks

STEPS = 4
AVERAGING = [
    "ddp",
    "ddp bucket view",
    "ddp static graph",
    "ddp unused",
    "ddp comm hook",
    "ddp compiled",
    "zero redundancy",
    "fsdp2",
    "fsdp2 reshard off",
    "fsdp2 mixed precision",
    "fsdp2 checkpointed",
    "fsdp2 uneven",
    "hsdp",
]
LATE = {"ddp static graph": 1}
"""In its first pass torch averages before anything can look."""


def own_gradient(trained: wrappers.Trained, batch: torch.Tensor, hidden: int, dtype: torch.dtype) -> float:
    """The norm of what this rank's batch alone says, by a model that nothing wraps."""
    plain = wrappers.model(hidden)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(wrappers.whole(trained.named()[name]))
    plain.to(dtype)
    wrappers.loss_of(plain(batch.to(dtype))).backward()
    return math.sqrt(sum(p.grad.double().square().sum().item() for p in plain.parameters() if p.grad is not None))


def norms_of(folder: Path, name: str) -> tuple[str, list[float]]:
    """Train under a wrapper, every step sampled; the run, and what this rank's own norms were."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    trained = wrappers.WRAPPERS[name][1]()
    run = torchtrack.init(project="local", dir=folder, system_interval=0.0, finish_timeout=30.0)
    run.watch(trained.watch, log_freq=1)
    hidden, dtype = 7 if "uneven" in name else 24, torch.bfloat16 if "mixed" in name else torch.float32
    truth, data = [], wrappers.batches(*trained.data_ranks)
    for _ in range(STEPS):
        batch = next(data)
        truth.append(own_gradient(trained, batch, hidden, dtype))
        for optimizer in trained.optimizers:
            optimizer.zero_grad()
        wrappers.loss_of(trained.forward(batch)).backward()
        for optimizer in trained.optimizers:
            optimizer.step()
        run.log({"loss": 0.0})
    uid = run.uid
    run.finish()
    return uid, truth


def recorded(folder: Path, uid: str, rank: int) -> dict[int, float]:
    """What a rank said its own norms were, by step."""
    run = torchtrack.Api(folder).run(uid)
    if "watch/local_grad_norm" not in run.keys():  # noqa: SIM118  # a method, of no mapping
        return {}
    rows = run.history(["watch/local_grad_norm"], ranks="all").to_pylist()
    return {row["step"]: row["watch/local_grad_norm"] for row in rows if row["rank"] == rank}


@pytest.mark.parametrize("name", AVERAGING)
def test_every_rank_records_the_norm_of_its_own_gradient(tmp_path: Path, name: str) -> None:
    found = ranks(wrappers.WRAPPERS[name][0], init=True).run(norms_of, tmp_path, name)
    tolerance = 0.02 if "mixed" in name else 1e-5
    for rank, (uid, truth) in enumerate(found):
        there = recorded(tmp_path, uid, rank)
        first = LATE.get(name, 0)
        assert there == {step: pytest.approx(truth[step], rel=tolerance) for step in range(first, STEPS)}, (rank, truth)


def ddp(**options: Any) -> tuple[nn.Sequential, Any]:
    inner = wrappers.model()
    return inner, DistributedDataParallel(inner, **options)


def accumulate(folder: Path, sync_each: bool, view: bool) -> tuple[str, list[float]]:
    inner, wrapped = ddp(gradient_as_bucket_view=view)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.0)
    run = torchtrack.init(project="local", dir=folder, system_interval=0.0)
    run.watch(wrapped, log_freq=2)
    data, truth = wrappers.batches(dist.get_world_size(), dist.get_rank()), []
    plain = copy.deepcopy(inner)
    for _ in range(STEPS):
        plain.zero_grad()
        for micro in range(3):
            batch = next(data)
            (wrappers.loss_of(plain(batch)) / 3).backward()
            wrapped.require_backward_grad_sync = sync_each or micro == 2
            (wrappers.loss_of(wrapped(batch)) / 3).backward()
        truth.append(math.sqrt(sum(p.grad.square().sum().item() for p in plain.parameters() if p.grad is not None)))
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 0.0})
    uid = run.uid
    run.finish()
    return uid, truth


@pytest.mark.parametrize("view", [False, True])
def test_with_accumulation_it_is_the_norm_over_all_micro_batches(tmp_path: Path, view: bool) -> None:
    for rank, (uid, truth) in enumerate(ranks(2, init=True).run(accumulate, tmp_path, False, view)):
        there = recorded(tmp_path, uid, rank)
        assert there == {step: pytest.approx(truth[step], rel=1e-5) for step in (0, 2)}


def test_averaged_micro_batches_added_up_are_no_ranks_own_gradient(tmp_path: Path) -> None:
    for rank, (uid, _) in enumerate(ranks(2, init=True).run(accumulate, tmp_path, True, False)):
        assert recorded(tmp_path, uid, rank) == {}


def poisoned(folder: Path, kind: str, guilty: int, at: int) -> str:
    """One rank's gradient of one layer has a NaN at one step."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    trained = wrappers.WRAPPERS[kind][1]()
    layer: nn.Linear = trained.watch.module[2].up if "ddp" in kind else trained.watch[2].up
    state = {"bad": False}
    forward = layer.forward

    def poisoning(x: torch.Tensor) -> torch.Tensor:
        layer.weight.register_hook(lambda gradient: gradient * float("nan") if state["bad"] else gradient)
        return forward(x)

    layer.forward = poisoning  # type: ignore[assignment,method-assign]
    [optimizer] = trained.optimizers
    run = torchtrack.init(project="local", dir=folder, system_interval=0.0, finish_timeout=30.0)
    run.watch(trained.watch, log_freq=1)
    data = wrappers.batches(*trained.data_ranks)
    for step in range(at + 3):
        state["bad"] = step == at and dist.get_rank() == guilty
        optimizer.zero_grad()
        wrappers.loss_of(trained.forward(next(data))).backward()
        optimizer.step()
        run.log({"loss": 0.0})
    uid = run.uid
    run.finish()
    return uid


@pytest.mark.parametrize(("kind", "guilty"), [("ddp", 1), ("ddp bucket view", 0), ("fsdp2", 1), ("hsdp", 2)])
def test_the_rank_and_the_parameter_whose_gradient_was_not_finite_are_named(
    tmp_path: Path, kind: str, guilty: int
) -> None:
    size = wrappers.WRAPPERS[kind][0]
    [uid] = set(ranks(size, init=True).run(poisoned, tmp_path, kind, guilty, 2))
    events = torchtrack.Api(tmp_path).run(uid).events("nonfinite")
    [first] = [event for event in events if event.step == 2]
    assert first.rank == guilty
    assert first.data == {"kind": "gradient", "first": "2.up.weight", "names": ["2.up.weight"], "count": 1, "sample": 2}
    later = [event for event in events if event.step == 3]
    assert sorted(event.rank for event in later) == [rank for rank in range(size) if rank != guilty]  # each tells once


def hooks_left(folder: Path, name: str) -> tuple[int, bool]:
    warnings.filterwarnings("ignore", module=r"torch\.")
    trained = wrappers.WRAPPERS[name][1]()
    run = torchtrack.init(project="local", dir=folder, system_interval=0.0)
    run.watch(trained.watch, log_freq=100)
    data = wrappers.batches(*trained.data_ranks)

    def there() -> int:
        hooks = [hook for p in trained.watch.parameters() for hook in (p._post_accumulate_grad_hooks or {}).values()]
        states = [m._get_fsdp_state() for m in trained.watch.modules() if hasattr(m, "_get_fsdp_state")]
        groups = [group for state in states for group in state._fsdp_param_groups]
        every = [*hooks, *(group._reduce_scatter_comm for group in groups)]
        return sum(type(one).__module__ == "torchtrack.watch.local" for one in every)

    armed = there() > 0
    for _ in range(2):
        wrappers.loss_of(trained.forward(next(data))).backward()
        trained.optimizers[0].step()
        trained.optimizers[0].zero_grad()
    left = there()
    run.unwatch()
    run.finish()
    return left, armed


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_steps_that_are_not_sampled_have_no_hooks_that_look_at_gradients(tmp_path: Path, name: str) -> None:
    assert ranks(2, init=True).run(hooks_left, tmp_path, name) == [(0, True)] * 2


def scaled(folder: Path, unscales: bool) -> tuple[str, list[float]]:
    inner, wrapped = ddp()
    plain = copy.deepcopy(inner)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run = torchtrack.init(project="local", dir=folder, system_interval=0.0)
    run.watch(wrapped, log_freq=1)
    data, truth = wrappers.batches(dist.get_world_size(), dist.get_rank()), []
    for _ in range(2):
        batch = next(data)
        plain.zero_grad()
        wrappers.loss_of(plain(batch)).backward()
        truth.append(math.sqrt(sum(p.grad.square().sum().item() for p in plain.parameters() if p.grad is not None)))
        optimizer.zero_grad()
        scaler.scale(wrappers.loss_of(wrapped(batch))).backward()
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        run.log({"loss": 0.0})
    uid = run.uid
    run.finish()
    return uid, truth


@pytest.mark.parametrize("unscales", [False, True])
def test_a_loss_scale_is_taken_out(tmp_path: Path, unscales: bool) -> None:
    for rank, (uid, truth) in enumerate(ranks(2, init=True).run(scaled, tmp_path, unscales)):
        assert recorded(tmp_path, uid, rank) == {step: pytest.approx(truth[step], rel=1e-5) for step in range(2)}
