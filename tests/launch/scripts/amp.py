"""A gradient scaler that finds an overflow in the first and in the fourth step."""

from __future__ import annotations

import torch
from digest import digest

torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for step in range(6):
    loss = model(torch.randn(4, 8)).square().mean() * (float("inf") if step in (0, 3) else 1.0)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    print("loss", loss.item())
    print("scale", scaler.get_scale())
print(digest(model.parameters()))
