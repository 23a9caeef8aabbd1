"""watch under every wrapper: the rows are those of the unsharded tensors, each element counted once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import torchtrack
from tests.ranks import training, wrappers
from torchtrack import Histogram
from torchtrack.testing import ranks

STEPS, MERGED = 6, 3


View = dict[tuple[str, int, str], "np.ndarray[Any, Any]"]
"""By kind, step and name: the whole tensor as one rank sees it."""


def train(folder: Path, name: str) -> tuple[str, View, str]:
    """Train until samples were merged; by (kind, step, name) this rank's view of the whole tensor."""
    warnings.filterwarnings("ignore", module=r"torch\.")  # deprecated wrappers, and how they are used
    warnings.filterwarnings("ignore", "The `NO_SHARD` sharding strategy is deprecated")
    trained = wrappers.WRAPPERS[name][1]()
    run = torchtrack.init(project="wrappers", dir=folder, system_interval=0.0)
    run.watch(trained.watch, log_freq=1)
    data = wrappers.batches(*trained.data_ranks)
    truth: View = {}
    step = 0
    while True:
        batch = next(data)

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            for optimizer in trained.optimizers:
                optimizer.zero_grad()
            loss = wrappers.loss_of(trained.forward(batch))
            loss.backward()
            return loss

        if trained.backward is not None:
            trained.backward(batch)
        else:
            closure()
        if trained.gradients is not None:
            found = trained.gradients()
        else:
            found = {n: wrappers.whole(p.grad) for n, p in trained.named().items() if p.grad is not None}
        for kind, tensors in (("gradient", found), ("parameter", trained.named())):
            truth |= {(kind, step, n): wrappers.whole(t).float().numpy() for n, t in tensors.items()}
        if trained.clip is not None:
            trained.clip()
        for optimizer in trained.optimizers:
            again: list[Any] = [closure] if isinstance(optimizer, torch.optim.LBFGS) else []
            optimizer.step(*again)
            optimizer.zero_grad()
        run.log({"loss": float(step)})
        step += 1
        enough = torch.tensor(float(step >= STEPS and training.merger(run).merged_samples >= MERGED))
        dist.all_reduce(enough, dist.ReduceOp.MIN)
        if enough.item():
            break
    uid = run.uid
    run.finish()
    return uid, truth, trained.parts


def joined(views: list[View], parts: str) -> dict[Any, Histogram]:
    """One truth from the ranks' views."""
    everything: dict[Any, Histogram] = {}
    for key in set[Any]().union(*views):
        held = [view[key] for view in views if key in view]
        if parts == "stack" and not all(np.array_equal(held[0], other) for other in held):
            everything[key] = Histogram.of(np.stack(held))
        else:
            assert all(np.array_equal(held[0], other) for other in held), key
            everything[key] = Histogram.of(held[0])
    return everything


@pytest.mark.parametrize("name", wrappers.WRAPPERS)
def test_rows_are_those_of_the_unsharded_tensors(tmp_path: Path, name: str) -> None:
    results = ranks(wrappers.WRAPPERS[name][0], init=True).run(train, tmp_path, name)
    uid, _, parts = results[0]
    truth = joined([view for _, view, _ in results], parts)
    run = torchtrack.Api(tmp_path).run(uid)
    for kind in ("gradient", "parameter"):
        rows = {(row["sample"], row["name"]): row for row in run.tensors(kind).to_pylist()}
        expected = {(step, n): histogram for (k, step, n), histogram in truth.items() if k == kind}
        assert set(rows) <= set(expected)
        merged = [key for key, row in rows.items() if row["ranks"] == len(results)]
        late = set(expected) - set(rows)
        if (name, kind) == ("sequence parallel", "gradient"):  # summands are added up once ranks have met
            assert len([key for key in rows if key[1] == "0.norm.weight"]) >= 2
            late = {key for key in late if ".norm." not in key[1]}
        assert late == set()
        assert len({step for step, _ in merged}) >= MERGED
        for key in merged if parts == "stack" else rows:
            row, histogram = rows[key], expected[key]
            buckets, counts = histogram.sparse()
            assert (row["buckets"], row["counts"]) == (buckets.tolist(), counts.tolist()), key
            assert row["norm"] == pytest.approx(histogram.norm, rel=1e-6), key
            assert (row["count"], row["numel"], row["coverage"]) == (histogram.count, histogram.count, 1.0), key
