"""What the black box adds to a step: python benchmarks/blackbox.py [--rounds 12] [--threads 1] [--tokens 256].

The transformer of watch_overhead.py (5.8 million parameters in 76 tensors) on the CPU. The variants take turns within
each round, each with a watch that samples nothing, so that what differs is the box alone:

    off       blackbox=False
    default   blackbox=None: as often as 0.3 % of the training time allow
    every     blackbox=True

    added     mean of a variant's steps less that of "off" in the same round, by the clock and of processor time of the
              training thread, which is what is left of it on a machine that others use; medians with quartiles
    alone     what a step that is looked at adds to a clip and an optimizer step whose gradients stay as they are,
              in turns with a watch without a box: 150 ms of training hide a millisecond
    floor     one sum() over all gradients: a single read of the data, warm, and after 64 MiB of other data
    launches  operators that a step that is looked at launches on an accelerator, counted on a device that runs nothing

More --tokens a step make the same read a smaller share: the work of a step grows with them, the gradients do not.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from watch_overhead import NEVER, Cost, Transformer, quartiles, timed

import torchtrack
from torchtrack.testing import SyncGuard
from torchtrack.watch import kernels
from torchtrack.watch.blackbox import SHARE, BlackBox
from torchtrack.watch.kernels import reference

VARIANTS = {"off": False, "default": None, "every": True}
SETTLE = 40
"""Steps after which the default has found how often it may look, before anything is measured."""


def box(run: torchtrack.Run) -> BlackBox:
    found = run._watchers[-1].blackbox
    assert found is not None
    return found


def alone(run: torchtrack.Run, model: nn.Module) -> tuple[float, float]:
    """Milliseconds by the clock and of processor time: medians of interleaved blocks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()

    def block(*, blackbox: bool) -> tuple[float, float]:
        run.watch(model, log_freq=NEVER, blackbox=blackbox)
        costs = [timed(step) for _ in range(24)][4:]
        run.unwatch()
        return statistics.median(c[0] for c in costs), statistics.median(c[1] for c in costs)

    pairs = [(block(blackbox=True), block(blackbox=False)) for _ in range(15)]
    clock, cpu = (statistics.median(one[i] - other[i] for one, other in pairs) for i in (0, 1))
    return clock, cpu


def floor(model: nn.Module) -> tuple[float, float, float]:
    """Milliseconds of one sum() over all gradients, of the same once they have left the caches, of the kernel alone."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norms = kernels.choose_norms(torch.device("cpu"))
    other = torch.ones(1 << 24)

    def evicted(call: Callable[[], object]) -> float:
        other.add_(1)
        return timed(call)[1]

    def total() -> None:
        for gradient in gradients:
            gradient.sum()

    return (
        statistics.median(timed(total)[1] for _ in range(30)),
        statistics.median(evicted(total) for _ in range(15)),
        statistics.median(evicted(lambda: norms(gradients)) for _ in range(15)),
    )


def launches(model: nn.Module) -> int:
    """Operators for all gradients at once on an accelerator."""
    with FakeTensorMode(), torch.no_grad():
        tensors = [torch.empty(p.shape, device="lazy:0") for p in model.parameters()]
        with SyncGuard() as guard:
            reference.norms(tensors).to("cpu", non_blocking=True)
    return guard.launches.total()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = torch.randint(0, 4096, (64, max(1, options.tokens // 64), 65))
    at = iter(range(1 << 30))

    def train() -> None:
        tokens = batches[next(at) % len(batches)]
        logits = model(tokens[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    count = sum(p.numel() for p in model.parameters())
    size = f"{count / 1e6:.1f}M parameters, {len(list(model.parameters()))} tensors, {options.tokens} tokens a step"
    print(f"{size}; {options.threads} thread(s)")
    print(f"{datetime.date.today()}  {platform.platform()}  {os.cpu_count()} cores  torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        run = torchtrack.init(project="bench", dir=Path(folder), system_interval=0.0, sidecar=True)
        run.watch(model, log_freq=NEVER, blackbox=None)
        kernels.wait()
        for _ in range(SETTLE):
            train()
        interval = box(run).schedule.interval
        run.unwatch()
        rounds: dict[str, list[Cost]] = {name: [] for name in VARIANTS}
        for number in range(options.rounds + 1):
            for name, blackbox in VARIANTS.items():
                run.watch(model, log_freq=NEVER, blackbox=blackbox)
                if blackbox is None:
                    box(run).schedule._interval = interval  # what it settled on: a round is too short to find it anew
                costs = [timed(train) for _ in range(options.steps + 2)][2:]
                run.unwatch()
                if number:  # the first round warms everything up
                    rounds[name].append((statistics.fmean(c[0] for c in costs), statistics.fmean(c[1] for c in costs)))
        step, cpu_step = (statistics.median(c[i] for c in rounds["off"]) for i in (0, 1))
        print(f"a step: {step:.1f} ms, {cpu_step:.1f} of cpu; the budget of {SHARE:.1%}: {SHARE * cpu_step:.2f} ms")
        for name in ("default", "every"):
            cells = []
            for i in (0, 1):
                differences = [a[i] - b[i] for a, b in zip(rounds[name], rounds["off"], strict=True)]
                low, middle, high = quartiles(differences)
                cells.append(f"{middle:6.2f} ms ({low:.2f} .. {high:.2f})")
            print(f"{name:8} adds {cells[0]}, of cpu {cells[1]}")
        train_without_clearing(model, batches)
        clock, cpu = alone(run, model)
        warm, cold, kernel = floor(model)
        print(f"alone: {clock:.2f} ms, {cpu:.2f} of cpu a step that is looked at: {cpu / cpu_step:.2%} of it")
        print(
            f"floor, one sum() over the gradients: {warm:.2f} ms warm, {cold:.2f} not: {warm / cpu_step:.2%}, "
            f"{cold / cpu_step:.2%} of the step; the kernel's one read of them: {kernel:.2f} not warm"
        )
        print(f"default looks at every {interval}. step: {cpu / interval / cpu_step:.2%} of the training time")
        print(f"launches on an accelerator at a step that is looked at: {launches(model)} operators for all gradients")
        run.finish(quiet=True)


def train_without_clearing(model: nn.Module, batches: torch.Tensor) -> None:
    model(batches[0][:, :-1]).sum().backward()


if __name__ == "__main__":
    main()
