"""Small trainings that go well, or wrong in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchtrack
from torchtrack.api import Finding
from torchtrack.api.run import Run as RecordedRun

AT = 30
"""The step at which faults begin."""
Fault = Callable[[int, nn.Module, torch.optim.Optimizer], None]


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


class Digits:
    """Blurred pictures of ten patterns, so that there is something to learn and something left to err on."""

    def __init__(self, seed: int, device_type: torch.dtype = torch.float32) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._patterns = torch.randn(10, 64, generator=torch.Generator().manual_seed(42))
        self._dtype = device_type

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and their numbers."""
        labels = torch.randint(10, (size,), generator=self._generator)
        noise = 2.5 * torch.randn(size, 64, generator=self._generator)
        return (self._patterns[labels] + noise).to(self._dtype), labels


def nothing(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """No fault."""


def train(
    folder: Path,
    steps: int,
    *,
    seed: int = 0,
    lr: float = 1e-3,
    warmup: int = 0,
    optimizer: str = "adamw",
    before_step: Fault = nothing,
    log_freq: int = 1,
    log: Any = ("gradients", "parameters", "updates"),
    scale: float = 1.0,
    net: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
) -> RecordedRun:
    """Train in this process, watched; `before_step` is called between backward and step."""
    net = (net or model(seed)).to(dtype)
    classes: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    made = classes[optimizer](net.parameters(), lr=lr, **({"momentum": 0.9} if optimizer == "sgd" else {}))
    run = torchtrack.init(dir=folder, system_interval=0.0, mode="offline")
    run.watch(net, log=log, log_freq=log_freq)
    data = Digits(seed, dtype)
    for step in range(steps):
        for group in made.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / max(warmup, 1))
        x, y = data.batch(64)
        loss = nn.functional.cross_entropy(net(x).float(), y)
        made.zero_grad()
        (loss * scale).backward()
        before_step(step, net, made)
        made.step()
        run.log({"loss": loss, "lr": made.param_groups[0]["lr"]})
    uid = run.uid
    run.finish(quiet=True)
    return torchtrack.Api(folder).run(uid)


def by_rule(found: list[Finding]) -> dict[str, Finding]:
    """The first finding of each rule."""
    return {finding.rule: finding for finding in reversed(found)}
