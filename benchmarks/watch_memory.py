"""What watching costs in memory: the peak of a run with and without it, beside wandb.watch.

    python benchmarks/watch_memory.py [--width 2048 4096] [--steps 4] [--rounds 2]

Each number is the peak resident memory (VmHWM) of a process of its own, which trains the same model of float32 linear
layers with plain SGD on the CPU: its peak is little more than parameters and gradients, so that a copy of either would
show. Every step is sampled, log="all". A tracker is measured twice, with its run alone and watching too: the difference
is what watching costs. Two sizes of the model tell what grows with it from what does not. The C library is told to
give every large tensor's memory back as soon as it is freed; else the peak is one of fragments, and another each time.
Processes that a tracker starts beside the training process are not counted.

The promise: watching holds no copy of any parameter or gradient.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LAYERS = 6
VARIANTS = ("bare", "torchtrack", "torchtrack watch", "wandb", "wandb watch")
MIB = 1 << 20


def train(variant: str, width: int, steps: int, folder: Path) -> float:
    """Train as this variant does; this process's peak in MiB."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))
    tracker, _, watch = variant.partition(" ")
    run = start(tracker, folder)
    if watch:
        (run if tracker == "torchtrack" else sys.modules["wandb"]).watch(model, log="all", log_freq=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False)
    x = torch.randn(4, width)
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if run is not None:
            run.log({"loss": 1.0})
    if run is not None:
        run.finish()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def start(tracker: str, folder: Path) -> Any:
    """A run of this tracker without its system metrics; None of no tracker."""
    if tracker == "torchtrack":
        import torchtrack

        return torchtrack.init(project="bench", dir=folder, system_interval=0.0, sidecar=False, console=False)
    if tracker == "wandb":
        import wandb

        os.environ["WANDB_SILENT"] = "true"
        settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
        return wandb.init(project="bench", mode="offline", dir=str(folder), settings=settings)
    return None


def measure(variant: str, width: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = ["--child", variant, "--width", str(width), "--steps", str(steps)]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB)}
        done = subprocess.run(
            [sys.executable, __file__, *words], cwd=folder, env=environment, check=False, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"{variant} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def report(peaks: dict[str, list[float]], width: int) -> dict[str, float]:
    """Print one size of the model; MiB of its parameters and of what watching adds."""
    held = LAYERS * width * (width + 1) * 4 / MIB
    sizes = {"parameters": held}
    print(f"\nparameters {held:.0f} MiB, gradients as much; the largest of either {width**2 * 4 / MIB:.0f} MiB")
    print(f"{'':18} {'peak MiB (least .. most)':>30} {'watching adds MiB':>18} {'of the parameters':>18}")
    for variant, values in peaks.items():
        line = f"{variant:18} {statistics.median(values):10.1f} ({min(values):7.1f} .. {max(values):7.1f})"
        tracker, _, watch = variant.partition(" ")
        if watch:
            added = statistics.median(values) - statistics.median(peaks[tracker])
            line += f" {added:18.1f} {added / held:18.1%}"
            sizes[variant] = added
        print(line)
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[2048, 4096], help=f"of the model's {LAYERS} layers")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(train(options.child, options.width[0], options.steps, Path.cwd()))
        return
    versions = {}
    for name in ("torch", "torchtrack", "numba", "wandb"):  # with numba its compiled kernel is loaded
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed")
    print(f"{datetime.date.today()}  {platform.platform()}  {os.cpu_count()} cores  {versions}")
    sizes = []
    variants = [name for name in VARIANTS if name.split()[0] in {"bare", *versions}]
    for width in options.width:
        peaks: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(options.rounds):
            for variant, values in peaks.items():
                values.append(measure(variant, width, options.steps))
        sizes.append(report(peaks, width))
    if len(sizes) > 1:
        more = {name: sizes[-1][name] - sizes[0][name] for name in sizes[0]}
        print(f"\nwith {more.pop('parameters'):.0f} MiB more of parameters watching adds more:")
        for variant, grown in more.items():
            print(f"{variant:18} {grown:8.1f} MiB")


if __name__ == "__main__":
    main()
