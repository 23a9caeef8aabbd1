"""Rank of a new job that goes on with a run: python resume.py FOLDER ID."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

import torchtrack

dist.init_process_group("gloo")
run = torchtrack.init(project="crash", dir=Path(sys.argv[1]), id=sys.argv[2], resume="must", system_interval=0.0)
for step in range(25, 28):
    run.log({"loss": 100.0 + step}, step=step)
run.finish()
dist.destroy_process_group()
