"""LBFGS: the optimizer calls the closure, with a backward pass in it, as often as it likes."""

from __future__ import annotations

import torch
from digest import digest

torch.manual_seed(0)
x, y = torch.randn(16, 4), torch.randn(16, 1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)
values: list[float] = []


def closure() -> torch.Tensor:
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    values.append(loss.item())
    return loss


for _ in range(3):
    values.clear()
    optimizer.step(closure)
    print("calls", *values)
print(digest(model.parameters()))
