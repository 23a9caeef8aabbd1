"""A job in which rank 0 samples once more than rank 1 and ends: python alone_at_the_end.py FOLDER.

Rank 1 stays alive, its connections open, until rank 0 is gone: so rank 0 ends while a merge of its own is unfinished.
Both are forked off this process, which has torch imported and trains nothing. It prints how they ended; rank 0 writes
the run's uid into FOLDER.uid.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer imports it: here, and not in each rank anew
import torch.distributed as dist

import torchtrack
from torchtrack.watch import kernels


def train(folder: Path, rank: int, stay: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    run = torchtrack.init(dir=folder, system_interval=0.0, sidecar=False)
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
        Path(f"{folder}.uid").write_text(run.uid)
    else:
        os.read(stay, 1)  # until rank 0 was seen to end
        os._exit(0)


def main(folder: Path) -> None:
    kernels.prepare(torch.device("cpu"))  # here, and not in each rank anew
    kernels.wait()
    stay, go = os.pipe()
    pids = []
    for rank in range(2):
        pids.append(os.fork())
        if pids[rank] == 0:
            os.close(go)
            train(folder, rank, stay)
            return
    zero = os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])
    alive = os.waitpid(pids[1], os.WNOHANG) == (0, 0)
    os.close(go)
    one = os.waitstatus_to_exitcode(os.waitpid(pids[1], 0)[1]) if alive else "before it"
    sys.stdout.write(f"ended {zero} {one}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
