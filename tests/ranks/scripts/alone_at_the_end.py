"""Rank of a job in which rank 0 samples once more than rank 1 and ends: python alone_at_the_end.py FOLDER RENDEZVOUS.

Rank 1 stays alive, its connections open, until rank 0 is gone: so rank 0 ends while a merge of its own is unfinished.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import torchtrack

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.Linear(16, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
run = torchtrack.init(dir=Path(sys.argv[1]), system_interval=0.0, sidecar=False)
run.watch(model, log="gradients", log_freq=1)
[watcher] = run._watchers


def step() -> None:
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    run.log({"loss": 1.0})


agreed = torch.zeros(1)
while not agreed.item():
    step()
    agreed.fill_(float(watcher.merger.merged_samples > 3))
    dist.all_reduce(agreed, dist.ReduceOp.MIN)
if rank == 0:
    step()
    run.finish()
    sys.stdout.write(run.uid)
else:
    sys.stdin.read()  # until the test has seen rank 0 end
    os._exit(0)
