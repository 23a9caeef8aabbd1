"""A training script for two ranks: `training.py STEPS`; DIR and the server come from the environment."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import torch.distributed as dist

import torchtrack


def main(steps: int) -> None:
    """Log some rows, and on rank 0 a picture."""
    dist.init_process_group("gloo")
    run = torchtrack.init(project="p", system_interval=0, finish_timeout=float(os.environ.get("FINISH_S", "10")))
    for step in range(steps):
        run.log({"loss": step + run.rank / 2, "text": f"step {step}"}, step=step)
        time.sleep(0.01)
        if step == 3 and run.rank == 0:
            run.log({"picture": torchtrack.Image(np.zeros((8, 8, 3), np.uint8))}, step=step)
    began = time.monotonic()
    run.finish()
    took = time.monotonic() - began
    dist.destroy_process_group()
    print(f"RANK {run.rank} finish {took:.3f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
