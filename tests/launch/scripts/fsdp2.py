"""`fully_shard`, layer by layer; rank 0 prints."""

from __future__ import annotations

import torch
import torch.distributed as dist
from digest import digest
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    get_optimizer_state_dict(model, optimizer)  # as a script does that goes on from a checkpoint, if there is one
    for step in range(4):
        torch.manual_seed(100 * step + dist.get_rank())
        loss = model(torch.randn(4, 8)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print("loss", loss.item())
    whole = [p.full_tensor() for p in model.parameters() if isinstance(p, DTensor)]
    if dist.get_rank() == 0:
        print(len(whole), digest(whole))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
