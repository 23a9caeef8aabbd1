"""One model trained alike under several parallel layouts, on the same global batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

import torchtrack
from tests.ranks import wrappers

STEPS: Final = 8
BATCH: Final = 16


def train_layouts(folder: Path, names: list[str], watch: dict[str, Any]) -> dict[str, str]:
    """Train under each wrapper of `tests/ranks/wrappers.py`, on the ranks of an initialised job. The runs, by name."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    return {name: _train(folder, wrappers.WRAPPERS[name][1](), watch) for name in names}


def _batches(count: int, place: int) -> Iterator[torch.Tensor]:
    """This rank's part of the same global batches, whatever the layout."""
    generator = torch.Generator().manual_seed(7)
    while True:
        yield torch.randn(BATCH, wrappers.TOKENS, wrappers.WIDTH, generator=generator).chunk(count)[place]


def _train(folder: Path, trained: wrappers.Trained, watch: dict[str, Any]) -> str:
    run = torchtrack.init(dir=folder, system_interval=0.0, finish_timeout=30.0)
    run.watch(trained.watch, **{"log_freq": 1, **watch})
    data = _batches(*trained.data_ranks)
    for _ in range(STEPS):
        for optimizer in trained.optimizers:
            optimizer.zero_grad()
        loss = wrappers.loss_of(trained.forward(next(data)))
        loss.backward()
        for optimizer in trained.optimizers:
            optimizer.step()
        run.log({"loss": loss.detach()})
    uid = run.uid
    run.finish(quiet=True)
    return uid


def alone(folder: Path, *, lr: float = 1e-2, gap: bool = False, other: str = "", **watch: Any) -> str:
    """The same in this process: maybe with another rate, a hole in the samples, or another start of one tensor."""
    net = wrappers.model()
    if other:
        torch.manual_seed(9)
        torch.nn.init.normal_(net.get_parameter(other), std=0.3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    run = torchtrack.init(dir=folder, system_interval=0.0)
    run.watch(net, **{"log_freq": 1, **watch})
    data = _batches(1, 0)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = wrappers.loss_of(net(next(data)))
        loss.backward()
        optimizer.step()
        if not (gap and step in (0, 3)):
            run.log({"loss": loss.detach()}, step=step)
    uid = run.uid
    run.finish(quiet=True)
    return uid
