"""What a sample costs against the number of elements, the number of tensors, and the number of ranks.

    python benchmarks/watch_scaling.py [--threads 1]

The floor is one read of the data, measured here as one sum() over the same tensors on as many threads. A straight line
through the costs says what an element costs and what a call does.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from torchtrack.watch import kernels
from torchtrack.watch.kernels import reference
from torchtrack.watch.layout import Region
from torchtrack.watch.plan import Offer, agree

CPU = torch.device("cpu")


def paired(*calls: Callable[[], object], rounds: int = 9) -> list[float]:
    """Median milliseconds of each call; they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, kept in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if number:
                kept.append((time.perf_counter() - begin) * 1e3)
    return [statistics.median(kept) for kept in times]


def sums(tensors: Sequence[torch.Tensor]) -> None:
    for tensor in tensors:
        tensor.sum()


def report(title: str, name: str, sizes: dict[int, list[torch.Tensor]]) -> None:
    fast = kernels.choose(CPU)
    label = fast.__module__.rpartition(".")[2]
    print(f"\n{title}\n{name:>12} {'sum ms':>9} {label + ' ms':>10} {'ratio':>6} {'reference ms':>13} {'ratio':>6}")
    points = []
    for size, tensors in sizes.items():
        calls = (lambda t=tensors: sums(t), lambda t=tensors: fast(t), lambda t=tensors: reference.statistics(t))
        floor, ours, plain = paired(*calls)
        points.append((size, floor, ours))
        print(f"{size:12,} {floor:9.3f} {ours:10.3f} {ours / floor:6.1f} {plain:13.3f} {plain / floor:6.1f}")
    x, floor, ours = (np.array(column) for column in zip(*points, strict=True))
    slope, constant = np.polyfit(x, ours, 1, w=1 / ours)
    floor_slope, _ = np.polyfit(x, floor, 1, w=1 / floor)
    print(
        f"line: {slope * 1e6:.2f} ns each and {constant * 1e3:.0f} us a call; sum() {floor_slope * 1e6:.2f} ns each: "
        f"{slope / floor_slope:.1f} times the floor"
    )


def ranks() -> None:
    """What a rank reads: its share of a replicated model, and its shard of a sharded one."""
    numels = {f"layers.{i}.weight": 1 << 20 for i in range(64)}
    print(f"\nagainst ranks: elements that the busiest rank reads, of {sum(numels.values()):,} (by the plan)")
    print(f"{'ranks':>12} {'replicated':>14} {'sharded':>14}")
    for count in (1, 2, 8, 64, 256):
        read = []
        for shards in (1, count):
            offers = []
            for rank in range(count):
                key = "" if shards == 1 else f"{rank}/{shards}d0"
                held = {name: Region(numel, key, 0, numel // shards) for name, numel in numels.items()}
                offers.append(Offer(1, (), held, {0: dict.fromkeys(numels, "same")}))
            plan = agree(offers)
            assert plan is not None
            read.append(max(sum(s.hi - s.lo for s in shares.values()) for shares in plan.shares_by_rank()))
        print(f"{count:12,} {read[0]:14,} {read[1]:14,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    kernels.prepare(CPU)
    kernels.wait()
    print(f"{datetime.date.today()}  {platform.platform()}  {os.cpu_count()} cores  torch {torch.__version__}")
    print(f"{torch.get_num_threads()} thread(s), float32")
    elements = [1 << n for n in (12, 14, 16, 18, 20, 22, 24, 26)]
    report("against elements, in one tensor", "elements", {n: [torch.randn(n) * 0.02] for n in elements})
    several = {n: [torch.randn(256) * 0.02 for _ in range(n)] for n in (10, 100, 1000, 10_000)}
    report("against tensors, of 256 elements each", "tensors", several)
    ranks()


if __name__ == "__main__":
    main()
