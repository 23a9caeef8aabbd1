"""What `watch(on_nonfinite=)` adds to every step, timed alone: milliseconds, and the share of a bare step.

    python benchmarks/on_nonfinite.py [--threads 1] [--layers 6]

One process: the all-reduce of several ranks comes on top, and on an accelerator the wait for the device, which a CPU
has not. The floor is one sum() over the same gradients.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn

import torchtrack
from torchtrack.watch import kernels

ROUNDS = 30


def milliseconds(call: Callable[[], object]) -> float:
    """The median of some calls."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, options.layers, enable_nested_tensor=False)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, fused=True)
    x = torch.randn(4, 64, 256)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    bare = milliseconds(step)
    with tempfile.TemporaryDirectory() as folder:
        run = torchtrack.init(dir=folder, system_interval=0, console=False, sidecar=False)
        watcher = run.watch(model, log_freq=10**6, on_nonfinite="skip")
        judge = watcher.on_nonfinite if watcher is not None else None
        if judge is None:
            raise SystemExit("nothing is judged: is TORCHTRACK_MODE=disabled set?")
        kernels.wait()
        step()
        judged = milliseconds(lambda: (judge.begin(optimizer), judge.judge(optimizer)))
        clipped = milliseconds(lambda: (judge.clipping(parameters), judge.skipped(optimizer)))
        run.finish(quiet=True)
    floor = milliseconds(lambda: [p.grad.sum() for p in parameters if p.grad is not None])
    elements = sum(p.numel() for p in parameters)
    print(f"{datetime.date.today()}  {platform.platform()}  torch {torch.__version__}, {options.threads} thread(s)")
    print(f"{elements / 1e6:.1f} M elements in {len(parameters)} gradients; a bare step takes {bare:.1f} ms")
    for what, took in (("a step", judged), ("a clipping", clipped), ("sum(), the floor", floor)):
        print(f"{what:18} {took:7.2f} ms  {took * 1e6 / elements:6.2f} ns an element  {took / bare:7.2%} of a step")


if __name__ == "__main__":
    main()
