"""Rank of a DDP job: python blackbox.py FOLDER HOW: what rank 1 does after its last step, or "finish"."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from torchtrack.sidecar.client import Sidecar

dist.init_process_group("gloo")
folder, how = Path(sys.argv[1]), sys.argv[2]
rank = dist.get_rank()
torch.manual_seed(0)
ddp = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(16, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3)))
optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-2)
run = torchtrack.init(dir=folder, system_interval=0.0)
run.watch(ddp, log_freq=100, blackbox=True)
assert Sidecar(folder, timeout_s=30.0).register(f"{run._stream:016x}", run.uid, os.getpid())
truth = []
for step in range(12):
    ddp(torch.randn(8, 16)).square().mean().backward()
    if step == 11:
        ddp.module[0].bias.grad[:3] = float("nan")
    truth += [
        [step, n, float(p.grad.norm()), int((~p.grad.isfinite()).sum())] for n, p in ddp.module.named_parameters()
    ]
    optimizer.step()
    optimizer.zero_grad()
    run.log({"loss": 0.0})
Path(f"{folder}-{rank}.json").write_text(json.dumps(truth))
run.flush(30.0)
dist.barrier()
if how == "term":
    os.kill(os.getpid(), signal.SIGTERM)
elif how == "abort":
    os.abort()
elif how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
run.finish()
