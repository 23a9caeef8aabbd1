"""Rank of a job whose ranks compute the same thing without talking: python replicas.py FOLDER RENDEZVOUS WHEN VICTIM.

WHEN the victim dies by SIGKILL, at the tenth merge: "posted" (its part is sent, the sum not yet received), "completed"
(the sum has arrived, nothing is written yet), or "never". The survivor goes on to the end and leaves the truth.
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
import torch.distributed as dist

import torchtrack
from torchtrack import Histogram
from torchtrack.watch.group import Group

STEPS = 40
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


def main(folder: Path, rendezvous: str, when: str, victim: int) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    if rank == victim:
        arm(when)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    run = torchtrack.init(dir=folder, system_interval=0.0, sidecar=False)
    run.watch(model, log="gradients", log_freq=1)
    [watcher] = run._watchers
    truth = {}
    last, step = 0, 0
    while step < last or not last:
        model(torch.randn(8, 16)).square().mean().backward()
        truth.update({f"{step} {name}": Histogram.of(p.grad).counts.tolist() for name, p in model.named_parameters()})
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 1.0})
        run.flush()
        step += 1
        while watcher.merger.plan is not None and watcher.merger._queue:
            time.sleep(0.001)  # no sample waits behind the one that is merged, as in training that is in step
        if not last:  # in step until the ranks share the work, from then on each for itself
            agreed = torch.tensor(float(watcher.merger.plan is not None))
            dist.all_reduce(agreed, dist.ReduceOp.MIN)
            last = step + STEPS if agreed.item() else 0
    Path(f"{folder}-{rank}.json").write_text(json.dumps({"uid": run.uid, "truth": truth}))
    run.finish()
    os._exit(0)  # the process group cannot be destroyed without the peer


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
