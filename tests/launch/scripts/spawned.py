"""Ranks that torch.multiprocessing spawns: each imports this file anew."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from digest import digest
from torch.nn.parallel import DistributedDataParallel


def rank(number: int, name: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{Path.cwd()}/{name}", rank=number, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        torch.manual_seed(10 * step + number)
        loss = model(torch.randn(4, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number == 0:
            print("loss", loss.item(), flush=True)
    if number == 0:
        print(digest(model.parameters()), flush=True)
    del model  # before its group: were the reducer the last to hold it, it would wait for gloo's thread under the GIL
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(rank, (sys.argv[1],), nprocs=2)
    print(os.environ.get("LOCAL_RANK"))
