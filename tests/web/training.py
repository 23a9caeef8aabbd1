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
        run.log({"long/metric": 100.0 if step == 12_345 else 1.0 + step % 7, "tokens": 512.0 * step}, step=step)
    if sick:
        run.alert("<b>reward fell</b>", "below 0.1", level="warning")
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)</script>',
    "';alert(3)//",
    "javascript:alert(4)",
    "<svg/onload=alert(5)>",
    "{{constructor.constructor('alert(6)')()}}",
    "&lt;b&gt;\u202e\u0000x".replace("\u0000", "\x01"),
)
"""Texts that run in a page which takes them for markup."""


def hostile(folder: str) -> str:
    """A run of which every text that a user can set is hostile, and long."""
    text = " ".join(HOSTILE)
    run = torchtrack.init(
        project="hostile <img src=x onerror=alert(0)>",
        name=text[:250],
        group=HOSTILE[0],
        job_type=HOSTILE[1],
        tags=list(HOSTILE[:5]),
        notes=text,
        config={HOSTILE[0]: HOSTILE[1], "nested": {HOSTILE[4]: text}},
        dir=folder,
        system_interval=0.0,
        sidecar=False,
        console=True,
    )
    sys.stderr.write(f"{text}\n")
    for step in range(3):
        run.log({HOSTILE[0]: step, f"loss/{HOSTILE[4]}": step, "word": text})
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


def wide(folder: str) -> str:
    """A run of 10,000 metrics."""
    run = torchtrack.init(project="wide", name="many-metrics", dir=folder, system_interval=0.0, sidecar=False)
    for step in range(2):
        run.log({f"part{i % 20}/metric{i}": float(i + step) for i in range(10_000)})
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


if __name__ == "__main__":
    folder = sys.argv[1]
    uids = (
        train(folder, "healthy-one", 0.01, sick=False),
        train(folder, "sick-one", 0.1, sick=True),
        hostile(folder),
        wide(folder),
    )
    sys.stdout.write(" ".join(uids))
