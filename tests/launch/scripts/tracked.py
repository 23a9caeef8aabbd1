"""A script that uses wandb itself, offline."""

from __future__ import annotations

import os

import torch
import wandb
from digest import digest

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
run = wandb.init(project="theirs", mode="offline", dir=os.environ["WANDB_DIR"], config={"lr": 0.1})
run.watch(model, log="all", log_freq=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    loss = model(torch.randn(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.log({"loss": loss.item()})
    print("loss", loss.item())
print(digest(model.parameters()), {key: run.summary[key] for key in ("loss", "_step")})
run.finish()
