"""What it costs to hold replicas against each other: nanoseconds an element, and the share of a sample.

    python benchmarks/replica_checksum.py [--threads 1] [--layers 12]

A check reads all that a rank holds, unlike a sample, which reads a part. It comes at every `checksum_every`-th sample;
the last line spreads it over them. The floor is one sum() over the same tensors.
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from torchtrack.run import Run
from torchtrack.watch import kernels
from torchtrack.watch.checksum import checksums


def milliseconds(*calls: Callable[[], object], rounds: int = 9) -> list[float]:
    """Median of each call; they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, kept in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if number:
                kept.append((time.perf_counter() - begin) * 1e3)
    return [statistics.median(kept) for kept in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(256, 4, 1024)
    model = nn.TransformerEncoder(layer, options.layers, enable_nested_tensor=False)
    every = inspect.signature(Run.watch).parameters["checksum_every"].default
    kernels.prepare(torch.device("cpu"))
    kernels.wait()
    count_rows = kernels.choose(torch.device("cpu"))
    print(f"{datetime.date.today()}  {platform.platform()}  torch {torch.__version__}, {options.threads} thread(s)")
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [p.detach().to(dtype) for p in model.parameters()]
        elements = sum(t.numel() for t in tensors)
        floor, check, sample = milliseconds(
            lambda tensors=tensors: [t.sum() for t in tensors],
            lambda tensors=tensors: checksums(tensors),
            lambda tensors=tensors: count_rows([*tensors, *tensors]),
        )
        print(
            f"{dtype}: {elements / 1e6:.1f}M elements in {len(tensors)} tensors: a check {check:.2f} ms, "
            f"{check * 1e6 / elements:.2f} ns an element, {check / floor:.1f} times one sum(); "
            f"spread over {every} samples {check / every:.2f} ms a sample, "
            f"{check / every / sample:.1%} of counting parameters and gradients whole ({sample:.2f} ms)"
        )


if __name__ == "__main__":
    main()
