"""A small model that real ranks train with DistributedDataParallel, watched, and the truth beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from torchtrack import Histogram
from torchtrack.watch import reduce
from torchtrack.watch.reduce import Merger

Truth = dict[tuple[int, str], Histogram]
BATCH = 24


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3, bias=False), nn.Linear(3, 5))


def batches(rank: int, world_size: int) -> Iterator[torch.Tensor]:
    """This rank's part of the same global batches, whatever the number of ranks."""
    generator = torch.Generator().manual_seed(7)
    while True:
        yield torch.randn(BATCH, 16, generator=generator).chunk(world_size)[rank]


def merger(run: Any) -> Merger:
    """The merge thread of the run's first watch."""
    [watcher] = run._watchers
    found: Merger = watcher.merger
    return found


# A row waits two seconds for the log() whose step it carries; on a busy machine a thread may be away for longer.
@mock.patch.object(reduce, "_STEP_WITHIN_S", 60.0)
def train(
    folder: Path,
    steps: int,
    *,
    until_merged: int = 0,
    clip: float = 0.05,
    accumulate: int = 1,
    each: Callable[[int, Any], None] = lambda *_: None,
    finish: bool = True,
    **watch: Any,
) -> tuple[str, Truth, Truth]:
    """Train on this rank of an initialised job; every step is sampled.

    Args:
        folder: where runs go.
        steps: how many optimizer steps at least.
        until_merged: go on until so many samples have been merged on every rank.
        clip: the norm gradients are clipped to.
        accumulate: micro-batches a step, all but the last under no_sync.
        each: called after each step with its number and the run.
        finish: end the run.
        watch: arguments of Run.watch.

    Returns:
        The run's uid, and by (step, name) the histograms of the averaged gradient before clipping and of the parameter
        before the step.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    inner = model()
    ddp = DistributedDataParallel(inner)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    run = torchtrack.init(project="ranks", dir=folder, system_interval=0.0, finish_timeout=30.0)
    run.watch(ddp, **{"log_freq": 1, **watch})
    gradients: Truth = {}
    parameters: Truth = {}
    data = batches(rank, world_size)
    for step in itertools.count():  # the time limit of the ranks ends it where they never agree
        for micro in range(accumulate):
            ddp.require_backward_grad_sync = micro == accumulate - 1
            (ddp(next(data)).square().mean() / accumulate).backward()
        for name, parameter in inner.named_parameters():
            gradients[step, name] = Histogram.of(parameter.grad)
            parameters[step, name] = Histogram.of(parameter)
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": float(step)})
        each(step, run)
        enough = torch.tensor(float(step + 1 >= steps and merger(run).merged_samples >= until_merged))
        dist.all_reduce(enough, dist.ReduceOp.MIN)
        if enough.item():
            break
    uid = run.uid
    if finish:
        run.finish()
    return uid, gradients, parameters


def assert_rows_are(rows: list[dict[str, Any]], truth: Truth) -> None:
    """Every row once, with exactly the counts of the truth and its norm to 1e-6."""
    seen = {(row["sample"], row["name"]): row for row in rows}
    assert len(seen) == len(rows)
    assert set(seen) == set(truth)
    for key, histogram in truth.items():
        row = seen[key]
        buckets, counts = histogram.sparse()
        assert (row["buckets"], row["counts"]) == (buckets.tolist(), counts.tolist()), key
        assert abs(row["norm"] - histogram.norm) <= 1e-6 * histogram.norm, key
        assert (row["count"], row["numel"], row["coverage"]) == (histogram.count, histogram.count, 1.0)
        assert row["step"] == row["sample"]
