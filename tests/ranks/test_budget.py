"""A budget is one decision of the whole job: the rank that needs the longest interval decides for all."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from tests.ranks import training
from torchtrack.testing import ranks


def one_slow_rank(folder: Path) -> tuple[str, list[int], int]:
    """Rank 1 needs every eighth step, rank 0 could do with every one."""
    model = DistributedDataParallel(training.model())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    run = torchtrack.init(dir=folder, system_interval=0.0)
    watcher = run.watch(model, budget=0.01)
    assert watcher is not None
    wanted = 8 if dist.get_rank() else 1
    watcher.schedule.wanted = lambda: wanted  # type: ignore[method-assign]
    data, sampled, agreed = training.batches(dist.get_rank(), dist.get_world_size()), [], -1
    for step in range(100_000):
        before = watcher.schedule.interval
        model(next(data)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 0.0})
        if step % watcher.schedule.interval == 0 and before == watcher.schedule.interval:
            sampled.append(step)
        both = torch.tensor(float(watcher.schedule.interval))
        dist.all_reduce(both, dist.ReduceOp.MIN)
        agreed = step if both.item() == 8 and agreed < 0 else agreed
        if agreed >= 0 and step > agreed + 64:
            break
    uid = run.uid
    run.finish()
    return uid, [step for step in sampled if step > agreed], agreed


def test_all_ranks_take_the_longest_interval_that_one_of_them_needs(tmp_path: Path) -> None:
    (uid, zero, agreed), (_, one, _) = ranks(2, init=True).run(one_slow_rank, tmp_path)
    assert zero == one
    assert all(step % 8 == 0 for step in zero)
    rows = torchtrack.Api(tmp_path).run(uid).tensors("gradient").to_pylist()
    after = {row["sample"]: row["ranks"] for row in rows if row["sample"] > agreed}
    assert set(after) == set(zero)
    assert set(after.values()) == {2}
