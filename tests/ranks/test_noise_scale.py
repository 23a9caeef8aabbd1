"""The gradient noise scale of real runs whose truth is known: it does not depend on ranks or accumulation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from torchtrack.testing import ranks

DIMENSIONS, SIGNAL, STEPS, BATCH = 40, 2.0, 300, 16
"""Samples of a step on all ranks, and how many dimensions their gradients have, of variance 1 each."""


class Mean(nn.Module):
    """Its gradient is the weight minus the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(DIMENSIONS))
        self.weight.data[0] = SIGNAL

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight - x).square().sum(1).mean() / 2


def train(folder: Path, accumulate: int) -> str:
    rank, size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(Mean())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = torchtrack.init(project="noise", dir=folder, system_interval=0.0, finish_timeout=30.0)
    run.watch(model, log="gradients", log_freq=1)
    random = torch.Generator().manual_seed(rank)
    for _ in range(STEPS):
        for micro in range(accumulate):
            model.require_backward_grad_sync = micro == accumulate - 1
            x = torch.randn(BATCH // size // accumulate, DIMENSIONS, generator=random)
            (model(x) / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log({"batch_size": BATCH}, reduce="max")
    uid = run.uid
    run.finish()
    return uid


@pytest.mark.parametrize(("size", "accumulate"), [(2, 1), (2, 4), (4, 1)])
def test_the_critical_batch_size_is_that_of_the_data(tmp_path: Path, size: int, accumulate: int) -> None:
    [uid] = set(ranks(size, init=True).run(train, tmp_path, accumulate))
    found = torchtrack.Api(tmp_path).run(uid).noise_scale()

    truth = DIMENSIONS / SIGNAL**2
    assert found is not None
    assert found.steps > STEPS / 2
    assert found.critical_batch_size == pytest.approx(truth, rel=0.3)
    assert found.low <= truth / (BATCH / size) <= found.high
