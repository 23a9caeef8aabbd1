"""A script that uses torchtrack itself, but watches one of its two models."""

from __future__ import annotations

import torch

import torchtrack

torch.manual_seed(0)
first, second = torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
run = torchtrack.init(project="theirs", system_interval=0)
run.watch(first, log_freq=1)
for _ in range(3):
    loss = second(first(torch.randn(8, 4))).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.log({"mine": loss})
    print("mine", loss.item())
print(run.step)
run.finish()
