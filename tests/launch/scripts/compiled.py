"""torch.compile of model and optimizer step, in one graph; prints what the compiler counted."""

from __future__ import annotations

import torch
from digest import digest
from torch._dynamo.utils import counters

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
fast = torch.compile(model, backend="aot_eager", fullgraph=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


@torch.compile(backend="aot_eager")
def train(x: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = fast(x).square().mean()
    loss.backward()
    return loss


for _ in range(4):
    optimizer.zero_grad()
    loss = train(torch.randn(8, 4))
    optimizer.step()
    print("loss", loss.item())
print(digest(model.parameters()), dict(counters["stats"]), sorted(counters["graph_break"].values()))
