"""Jobs of two ranks that compute the same thing without talking: python replicas.py FOLDER WHEN...

WHEN, and which, rank dies by SIGKILL at the tenth merge: "posted-0" (its part is sent, the sum not yet received),
"completed-1" (the sum has arrived, nothing is written yet). The survivor goes on to the end and leaves the truth in
FOLDER/WHEN.json. The jobs run one after another and are forked off this process, which has torch imported and trains
nothing: a job costs its steps. It prints how both ranks ended, a line each job.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it: here, and not in each rank anew
import torch.distributed as dist

import torchtrack
from torchtrack import Histogram
from torchtrack.watch import kernels
from torchtrack.watch.group import Group

ALONE = 20
FATAL_MERGE = 10


def arm(when: str) -> None:
    finish = Group._finish
    calls = 0

    def deadly(self: Group, link: Any, deadline: float) -> None:
        nonlocal calls
        calls += 1
        fatal = calls == 1 + 2 * FATAL_MERGE  # the start is agreed once; a merge is MAX, then SUM
        if fatal and when == "posted":
            os.kill(os.getpid(), signal.SIGKILL)
        finish(self, link, deadline)
        if fatal and when == "completed":
            os.kill(os.getpid(), signal.SIGKILL)

    Group._finish = deadly  # type: ignore[method-assign]


def train(folder: Path, rank: int, when: str, victim: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    if rank == victim:
        arm(when)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    run = torchtrack.init(dir=folder, system_interval=0.0, sidecar=False)
    run.watch(model, log="gradients", log_freq=1)
    [watcher] = run._watchers
    truth = {}
    shared, last, step = False, 0, 0
    while step < last or not last:  # some steps more than until the peer is lost
        model(torch.randn(8, 16)).square().mean().backward()
        truth.update({f"{step} {name}": Histogram.of(p.grad).counts.tolist() for name, p in model.named_parameters()})
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 1.0})
        run.flush()
        step += 1
        while watcher.merger.plan is not None and watcher.merger._queue:
            time.sleep(0.001)  # no sample waits behind the one that is merged, as in training that is in step
        if not shared:  # in step until the ranks share the work, from then on each for itself
            agreed = torch.tensor(float(watcher.merger.plan is not None))
            dist.all_reduce(agreed, dist.ReduceOp.MIN)
            shared = bool(agreed.item())
        elif not last and watcher.merger.plan is None:
            last = step + ALONE
    Path(f"{folder}.json").write_text(json.dumps({"uid": run.uid, "truth": truth}))
    run.finish()
    os._exit(0)  # the process group cannot be destroyed without the peer


def main(base: Path, jobs: list[str]) -> None:
    kernels.prepare(torch.device("cpu"))  # here, and not in each rank anew
    kernels.wait()
    for job in jobs:
        when, victim = job.split("-")
        ranks = []
        for rank in range(2):
            ranks.append(os.fork())
            if ranks[rank] == 0:
                train(base / job, rank, when, int(victim))
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
        sys.stdout.write(f"ended {codes}\n")
        sys.stdout.flush()  # what is not written yet would be written by the next job's ranks too


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
