"""Jobs in which not every rank takes part, or not in step: training is as without us and no element counts twice."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from tests.ranks import training
from torchtrack import Histogram
from torchtrack.testing import ranks

STEPS = 8


def alone_on_rank_zero(folder: Path, who: str) -> tuple[list[list[float]], training.Truth, str]:
    """Train; `who` says which ranks call init and watch: "zero" only rank 0, "none" nobody."""
    model = training.model()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    run = None
    if who == "zero" and dist.get_rank() == 0:
        run = torchtrack.init(dir=folder, system_interval=0.0)
        run.watch(ddp, log_freq=1)
    truth: training.Truth = {}
    data = training.batches(dist.get_rank(), dist.get_world_size())
    for step in range(STEPS):
        ddp(next(data)).square().mean().backward()
        truth |= {(step, name): Histogram.of(p.grad) for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        if run is not None:
            run.log({"loss": 1.0})
    uid = ""
    if run is not None:
        uid = run.uid
        run.finish()
    state = [*(p.detach() for p in model.parameters()), torch.get_rng_state()]
    return [tensor.flatten().tolist() for tensor in state], truth, uid


def test_init_and_watch_on_rank_zero_only_gives_the_same_rows_and_the_same_training(tmp_path: Path) -> None:
    pool = ranks(2, init=True)
    (weights, truth, uid), _ = pool.run(alone_on_rank_zero, tmp_path, "zero")
    bare, _, _ = pool.run(alone_on_rank_zero, tmp_path, "none")[0]
    training.assert_rows_are(torchtrack.Api(tmp_path).run(uid).tensors("gradient").to_pylist(), truth)
    assert weights == bare


def silent_partner(folder: Path) -> tuple[str, training.Truth]:
    """Rank 1 calls init but never watch."""
    model = training.model()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-2)
    run = torchtrack.init(dir=folder, system_interval=0.0)
    if dist.get_rank() == 0:
        run.watch(ddp, log_freq=1)
    truth: training.Truth = {}
    data = training.batches(dist.get_rank(), dist.get_world_size())
    for step in range(STEPS):
        ddp(next(data)).square().mean().backward()
        truth |= {(step, name): Histogram.of(p.grad) for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 1.0})
    uid = run.uid
    run.finish()
    return uid, truth


def test_a_rank_that_never_watches_costs_no_row(tmp_path: Path) -> None:
    uid, truth = ranks(2, init=True).run(silent_partner, tmp_path)[0]
    training.assert_rows_are(torchtrack.Api(tmp_path).run(uid).tensors("gradient").to_pylist(), truth)


def one_ahead(folder: Path) -> tuple[str, training.Truth]:
    """Rank 1 makes one more step of its own before the common ones: its samples are numbered one higher."""
    model = training.model()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.0)
    run = torchtrack.init(dir=folder, system_interval=0.0)
    run.watch(ddp, log="gradients", log_freq=1)
    if dist.get_rank() == 1:
        with ddp.no_sync():
            model(torch.ones(2, 16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 0.0})
    truth: training.Truth = {}
    data = training.batches(dist.get_rank(), dist.get_world_size())
    first = dist.get_rank()
    for step in range(1000):
        ddp(next(data)).square().mean().backward()
        truth |= {(first + step, name): Histogram.of(p.grad) for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 1.0})
        enough = torch.tensor(float(training.merger(run).plan is not None or step > 40))
        dist.all_reduce(enough, dist.ReduceOp.MIN)
        if enough.item():
            break
    uid = run.uid
    run.finish()
    return uid, truth


def test_a_rank_one_step_ahead_never_makes_an_element_count_twice(tmp_path: Path) -> None:
    (uid, zero), (_, one) = ranks(2, init=True).run(one_ahead, tmp_path)
    numels = {name: histogram.count for (_, name), histogram in zero.items()}
    rows = torchtrack.Api(tmp_path).run(uid).tensors("gradient").to_pylist()
    assert {row["sample"] for row in rows} >= set(range(len(zero) // len(numels)))
    for row in rows:
        assert row["count"] <= row["numel"] in (numels[row["name"]], 2 * numels[row["name"]])
        assert sum(row["counts"]) == row["count"]
    assert len({step for step, _ in one}) == len({step for step, _ in zero})


def unequal_tensors(folder: Path, equal_at_first: bool) -> str:
    """No DDP: each rank trains a model of its own under the same names."""
    rank = dist.get_rank()
    model = training.model(seed=0 if equal_at_first else rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    run = torchtrack.init(dir=folder, system_interval=0.0)
    run.watch(model, log="parameters", log_freq=1)
    data = training.batches(rank, dist.get_world_size())
    while True:  # the time limit of the ranks ends it where they never agree
        model(next(data)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 1.0})
        merged = torch.tensor(float(training.merger(run).merged_samples > 1))
        dist.all_reduce(merged, dist.ReduceOp.MIN)
        if merged.item():
            break
    uid = run.uid
    run.finish()
    return uid


@pytest.mark.parametrize("equal_at_first", [False, True])
def test_tensors_of_one_name_that_differ_between_ranks_are_parts_of_a_larger_whole(
    tmp_path: Path, equal_at_first: bool
) -> None:
    uid = ranks(2, init=True).run(unequal_tensors, tmp_path, equal_at_first)[0]
    last: dict[str, Any] = torchtrack.Api(tmp_path).run(uid).tensors("parameter", "0.weight").to_pylist()[-1]
    assert (last["count"], last["numel"], last["coverage"]) == (2 * 640, 2 * 640, 1.0)


def ends_before_rank_zero_begins(folder: Path) -> str:
    """Rank 1 is ending already when rank 0 begins to look for the run that both go on with."""
    rank = dist.get_rank()
    if rank == 0:
        dist.barrier()
    run = torchtrack.init(dir=folder, id="again", resume="must", system_interval=0.0, sidecar=False)
    run.log({"loss": float(rank)}, step=10)
    ending = threading.Thread(target=run.finish)
    ending.start()
    if rank == 1:
        ending.join(0.7)  # as far as it comes without rank 0
        dist.barrier()
    ending.join()
    return run.uid


def test_a_rank_that_ends_before_rank_zero_has_begun_is_of_the_same_run(tmp_path: Path) -> None:
    before = torchtrack.init(dir=tmp_path, id="again", system_interval=0.0, sidecar=False)
    before.log({"loss": 5.0}, step=0)
    before.finish()
    [uid] = set(ranks(2, init=True).run(ends_before_rank_zero_begins, tmp_path))
    [run] = torchtrack.Api(tmp_path).runs()

    assert run.uid == uid == before.uid
    assert [attempt.ranks for attempt in run.attempts] == [(0,), (0, 1)]
    losses = run.history(["loss"], ranks="all", start=10)["loss"].to_pylist()
    assert sorted(losses) == [0.0, 1.0]
