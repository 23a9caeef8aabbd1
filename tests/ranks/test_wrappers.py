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


def norms(folder: Path) -> tuple[str, list[float], list[float]]:
    """Under `fully_shard`: the norm that torch tells before each step, and what its clipping multiplied by."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    trained = wrappers.fsdp2()
    run = torchtrack.init(dir=folder, system_interval=0.0)
    run.watch(trained.watch, log_freq=1)
    data, totals, coefficients = wrappers.batches(*trained.data_ranks), [], []
    merged = torch.zeros(1)
    while merged.item() < MERGED:
        wrappers.loss_of(trained.forward(next(data))).backward()
        gradients = [p.grad for p in trained.watch.parameters()]
        total: Any = torch.nn.utils.get_total_norm(gradients)
        totals.append(float(total.full_tensor()))
        before = float(wrappers.whole(gradients[0]).abs().max())
        torch.nn.utils.clip_grad_norm_(trained.watch.parameters(), 0.02)
        coefficients.append(float(wrappers.whole(gradients[0]).abs().max()) / before)
        trained.optimizers[0].step()
        trained.optimizers[0].zero_grad()
        run.log({"loss": 0.0})
        merged.fill_(training.merger(run).merged_samples)
        dist.all_reduce(merged, dist.ReduceOp.MIN)
    uid = run.uid
    run.finish()
    return uid, totals, coefficients


def test_the_global_norm_and_the_clip_coefficient_are_those_that_torch_tells(tmp_path: Path) -> None:
    uid, totals, coefficients = ranks(2, init=True).run(norms, tmp_path)[0]
    history = torchtrack.Api(tmp_path).run(uid).history(["watch/grad_norm", "watch/clip_coef"]).to_pylist()
    told = {row["step"]: row for row in history if row["watch/grad_norm"] is not None}
    assert len(told) >= MERGED
    for step, row in told.items():
        assert row["watch/grad_norm"] == pytest.approx(totals[step], rel=1e-6)
        assert row["watch/clip_coef"] == pytest.approx(coefficients[step], rel=1e-5)
    assert min(coefficients) < 1.0


def half_frozen(folder: Path) -> tuple[str, View]:
    """100 layers; halfway half of them are frozen, and one is replaced by new parameters."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(100)))
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    run = torchtrack.init(dir=folder, system_interval=0.0)
    run.watch(ddp, log_freq=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    truth: View = {}
    merged, step, halfway = torch.zeros(1), 0, 0
    while not halfway or merged.item() < halfway + MERGED:
        if not halfway and merged.item() >= MERGED:
            halfway = int(merged.item())
            for layer in list(model)[:50]:
                layer.requires_grad_(False)
            model[99] = torch.nn.Linear(4, 4)
            ddp = torch.nn.parallel.DistributedDataParallel(model)
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        torch.manual_seed(100 * step + dist.get_rank())
        ddp(torch.randn(8, 4)).square().mean().backward()
        for name, p in model.named_parameters():
            truth["parameter", step, name] = p.detach().clone().numpy()
            if p.grad is not None:
                truth["gradient", step, name] = p.grad.clone().numpy()
        optimizer.step()
        model.zero_grad()
        run.log({"loss": 0.0})
        step += 1
        merged.fill_(training.merger(run).merged_samples)
        dist.all_reduce(merged, dist.ReduceOp.MIN)
    uid = run.uid
    run.finish()
    return uid, truth


def test_rows_stay_right_when_half_of_100_layers_is_frozen_and_one_replaced_halfway(tmp_path: Path) -> None:
    uid, truth = ranks(2, init=True).run(half_frozen, tmp_path)[0]
    run = torchtrack.Api(tmp_path).run(uid)
    for kind in ("gradient", "parameter"):
        rows = {(row["step"], row["name"]): row for row in run.tensors(kind).to_pylist()}
        expected = {(step, name): array for (k, step, name), array in truth.items() if k == kind}
        assert set(rows) == set(expected)
        for key, array in expected.items():
            buckets, counts = Histogram.of(array).sparse()
            assert (rows[key]["buckets"], rows[key]["counts"]) == (buckets.tolist(), counts.tolist()), key
            assert rows[key]["coverage"] == 1.0
