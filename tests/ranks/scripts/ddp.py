"""Rank of a DDP job: python ddp.py FOLDER HOW. HOW: bare, watched, or what goes wrong at step 20."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from torchtrack.sidecar.client import Sidecar

STEPS = 30


def main(folder: Path, how: str) -> None:
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    run = None
    if not how.startswith("bare"):
        run = torchtrack.init(project="crash", dir=folder, system_interval=0.0)
        run.watch(ddp, log_freq=1)
        # The run itself registers in the background, which takes longer than these steps where the machine is busy.
        assert Sidecar(folder, timeout_s=30.0).register(f"{run._stream:016x}", run.uid, os.getpid())
    torch.manual_seed(100 + rank)
    for step in range(STEPS):
        ddp(torch.randn(8, 16)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        if run is not None:
            run.log({"loss": float(step)})
        if step == 20 and rank == 1:
            if run is not None:
                assert run.flush(timeout_s=30.0)
            if how.endswith("killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            if how.endswith("exits") and attempt == 0:
                sys.exit(3)
    state = [*(p.detach() for p in model.parameters()), torch.get_rng_state()]
    torch.save(state, f"{folder}-{rank}-{how}.pt")
    if run is not None:
        run.finish()
    del ddp  # before its group: were the reducer the last to hold it, it would wait for gloo's thread under the GIL
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
