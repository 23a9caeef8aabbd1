"""Two small runs with everything that the page shows; prints their uids: a healthy one, and one that gets a NaN."""

from __future__ import annotations

import sys

import torch
from torch import nn

import torchtrack

STEPS = 60
SICK_AT = 45


def train(folder: str, name: str, lr: float, *, sick: bool) -> str:
    """One run: a spike in a long metric, gradients of two layers, and a NaN in one of them if it is to be sick."""
    torch.manual_seed(0)
    last = nn.Linear(16, 1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    run = torchtrack.init(
        project="page", name=name, dir=folder, config={"lr": lr}, system_interval=0.0, sidecar=False, console=True
    )
    run.watch(model, log_freq=1)
    sys.stderr.write(f"{name} begins\n")
    for step in range(STEPS):
        inputs = torch.randn(32, 8)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        if sick and step >= SICK_AT:
            assert last.weight.grad is not None
            last.weight.grad.fill_(float("nan"))
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": loss})
    for step in range(STEPS, 20_000):
        run.log({"long/metric": 100.0 if step == 12_345 else 1.0 + step % 7}, step=step)
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


if __name__ == "__main__":
    uids = train(sys.argv[1], "healthy-one", 0.01, sick=False), train(sys.argv[1], "sick-one", 0.1, sick=True)
    sys.stdout.write(" ".join(uids))
