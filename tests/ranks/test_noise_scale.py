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

DIMENSIONS, SIGNALS, STEPS, BATCH = 20, (2.0, 1.0), 300, 16
"""Samples of a step on all ranks, and how many dimensions their gradients have in each layer, of variance 1 each."""


class Layer(nn.Module):
    """Its gradient is the weight minus the mean of the batch."""

    def __init__(self, signal: float) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(DIMENSIONS // 2)) for _ in range(2))
        self.weight.data[0] = signal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.cat([self.weight, self.bias]) - x).square().sum(1).mean() / 2


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(map(Layer, SIGNALS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        losses = [layer(part) for layer, part in zip(self.h, x.split(DIMENSIONS, 1), strict=True)]
        return torch.stack(losses).sum()


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
            x = torch.randn(BATCH // size // accumulate, 2 * DIMENSIONS, generator=random)
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
    run = torchtrack.Api(tmp_path).run(uid)
    found = run.noise_scale()

    truth = 2 * DIMENSIONS / sum(signal**2 for signal in SIGNALS)
    assert found is not None
    assert found.steps > STEPS / 2
    assert found.critical_batch_size == pytest.approx(truth, rel=0.3)
    assert found.low <= truth / (BATCH / size) <= found.high

    layers = run.noise_scale(by="layer")
    assert list(layers) == ["h.0", "h.1"]
    for layer, signal in zip(layers.values(), SIGNALS, strict=True):
        assert layer.steps == found.steps
        assert layer.low <= DIMENSIONS / signal**2 / (BATCH / size) <= layer.high
    parts = layers.values()
    assert [sum(p.signal for p in parts), sum(p.noise for p in parts)] == pytest.approx([found.signal, found.noise])
    assert not any(key.startswith("watch/local_grad_norm/") for key in run.summary)
