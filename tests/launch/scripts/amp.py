"""A gradient scaler that finds an overflow in the first and in the fourth step; the last two steps accumulate."""

from __future__ import annotations

import torch
from digest import digest

torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for step in range(8):
    optimizer.zero_grad()
    calls = []
    for _ in range(1 if step < 6 else 2):
        loss = model(torch.randn(4, 8)).square().mean() * (float("inf") if step in (0, 3) else 1.0)
        scaler.scale(loss).backward()
        calls.append(loss.item())
    print("loss", *calls)
    print("norm", (model.weight.grad / scaler.get_scale()).norm().item())
    scaler.step(optimizer)
    scaler.update()
    print("scale", scaler.get_scale())
print(digest(model.parameters()))
