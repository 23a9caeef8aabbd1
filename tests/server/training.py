"""What two ranks train in `test_training`."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import torchtrack


def train(steps: int, finish_s: float = 10.0, until: Path | None = None) -> float:
    """Log some rows, and on rank 0 a picture; how long `finish` took, in seconds.

    Args:
        steps: how many rows at least.
        finish_s: how long `finish` may take.
        until: go on until there is such a file.
    """
    run = torchtrack.init(project="p", system_interval=0, finish_timeout=finish_s)
    step = 0
    while step < steps or (until is not None and not until.exists()):
        run.log({"loss": step + run.rank / 2, "text": f"step {step}"}, step=step)
        if step == 3 and run.rank == 0:
            run.log({"picture": torchtrack.Image(np.zeros((8, 8, 3), np.uint8))}, step=step)
        time.sleep(0.01)
        step += 1
    began = time.monotonic()
    run.finish()
    return time.monotonic() - began
