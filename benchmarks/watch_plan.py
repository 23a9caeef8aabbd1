"""What it takes rank 0 to make a plan of what all ranks hold: processor seconds to read, agree and write.

python benchmarks/watch_plan.py [--sizes 2 256 1024] [--tensors 1000]

replicated    every rank holds all of every tensor (DistributedDataParallel)
sharded       each holds a part of its own (fully_shard)
hybrid        8 parts, each held by many ranks (HSDP)
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import time
from collections.abc import Callable

import numpy as np

from torchtrack.watch.agreement import agree
from torchtrack.watch.layout import Region
from torchtrack.watch.offer import Offer, read_offers

NUMEL, SAMPLES, PARTS, PER_NODE = 1 << 16, 3, 8, 8
LAYOUTS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "replicated": lambda _rank, _size: (0, 1),
    "sharded": lambda rank, size: (rank, size),
    "hybrid": lambda rank, size: (rank % PARTS, min(PARTS, size)),
}
"""Name -> which part of each tensor a rank holds, of how many."""


def offers_of(layout: str, size: int, tensors: int) -> list[bytes]:
    names = [f"model.layers.{i // 10}.block{i % 10}.weight" for i in range(tensors)]
    rows = tuple((kind, name) for name in names for kind in ("gradient", "parameter"))
    messages = []
    for rank in range(size):
        part, parts = LAYOUTS[layout](rank, size)
        key = f"{part}/{parts}d0" if parts > 1 else ""
        counted = random.Random(part)
        samples = {n: {name: counted.getrandbits(48) | 1 for name in names} for n in range(SAMPLES)}
        held = dict.fromkeys(names, Region(NUMEL, key, 0, NUMEL // parts))
        messages.append(Offer(SAMPLES, rows, held, samples, rank // PER_NODE).encode())
    return messages


def measure(layout: str, size: int, tensors: int) -> None:
    messages = offers_of(layout, size, tensors)
    marks = [time.process_time()]
    offers = read_offers(messages)
    marks.append(time.process_time())
    plan = agree(offers)
    marks.append(time.process_time())
    assert plan is not None
    plans = [plan.encode(rank) for rank in range(size)]
    marks.append(time.process_time())
    read, made, written = np.diff(marks)
    sizes = (sum(map(len, each)) / size / 1e3 for each in (messages, plans))
    cells = " ".join(f"{seconds:8.2f}" for seconds in (read, made, written, marks[-1] - marks[0]))
    print(f"{layout:12} {size:6} {cells}   {' '.join(f'{kilobytes:8.1f}' for kilobytes in sizes)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 256, 1024])
    parser.add_argument("--tensors", type=int, default=1000)
    options = parser.parse_args()
    versions = f"python {platform.python_version()}, numpy {np.__version__}"
    print(f"{datetime.date.today()}  {platform.platform()}  {versions}; {options.tensors} tensors, {SAMPLES} samples")
    heads = " ".join(f"{head:>8}" for head in ("read", "agree", "write", "all s"))
    print(f"{'layout':12} {'ranks':>6} {heads}   {'kB offer':>8} {'kB plan':>8}")
    for size in options.sizes:
        for layout in LAYOUTS:
            measure(layout, size, options.tensors)


if __name__ == "__main__":
    main()
