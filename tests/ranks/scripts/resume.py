"""Rank of a new job that goes on with a run."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

import torchtrack


def main(folder: Path, run_id: str) -> None:
    dist.init_process_group("gloo")
    run = torchtrack.init(project="crash", dir=folder, id=run_id, resume="must", system_interval=0.0)
    for step in range(25, 28):
        run.log({"loss": 100.0 + step}, step=step)
    run.finish()
    dist.destroy_process_group()
