"""Updates, activations and moments on real ranks: the rows are those of the unsharded tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

import torchtrack
from tests.ranks import training, wrappers
from torchtrack import Histogram
from torchtrack.api.tensors import parse_covers
from torchtrack.testing import ranks
from torchtrack.watch import agreement, updates

KINDS = ("update", "activation", "optimizer")
MERGED = 2

View = dict[tuple[str, int, str], "np.ndarray[Any, Any]"]
"""By kind, sample and name: the whole tensor, or of an activation what one rank has of it."""


def outputs_of(model: Any, strip: str) -> Callable[[], dict[str, np.ndarray[Any, Any]]]:
    """What modules without children put out since the last call, on this rank."""
    seen: dict[str, list[torch.Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def see(_module: nn.Module, _args: Any, output: Any) -> None:
            local = output.to_local() if isinstance(output, DTensor) else output
            seen.setdefault(name, []).append(local.detach().clone().reshape(-1))

        return see

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(hook(name.replace(strip, "")))

    def taken() -> dict[str, np.ndarray[Any, Any]]:
        found = {name: torch.cat(tensors).numpy() for name, tensors in seen.items()}
        seen.clear()
        return found

    return taken


def moments_of(trained: wrappers.Trained) -> dict[str, torch.Tensor]:
    [optimizer] = trained.optimizers
    found = {}
    for name, parameter in trained.named().items():
        for key in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state.get(parameter, {}).get(key)
            if moment is not None:
                found[f"{name}.{key}"] = moment
    return found


def whole_of(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: wrappers.whole(tensor).numpy() for name, tensor in tensors.items()}


def train_with_room(folder: Path, name: str, room: int) -> tuple[str, View]:
    """The same for more steps, as if a rank could keep so many elements of updates."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (agreement, updates):
            patch.setattr(module, "KEPT_ELEMENTS", room)
        return train(folder, name, 40)


def train(folder: Path, name: str, steps: int = 5) -> tuple[str, View]:
    """Train until samples of a plan that has every kind were merged."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    trained = wrappers.WRAPPERS[name][1]()
    inner = trained.watch.module if name.startswith("ddp") else trained.watch
    outputs = outputs_of(inner, "_fsdp_wrapped_module.")
    run = torchtrack.init(project="kinds", dir=folder, system_interval=0.0)
    run.watch(trained.watch, log=("parameters", "updates", "activations", "optimizer"), log_freq=1)
    merger, data = training.merger(run), wrappers.batches(*trained.data_ranks)
    truth: View = {}
    step = merged = 0
    while True:
        for _ in range(2):
            wrappers.loss_of(trained.forward(next(data))).backward()
        truth |= {("activation", step, n): array for n, array in outputs().items()}
        truth |= {("optimizer", step, n): array for n, array in whole_of(moments_of(trained)).items()}
        before = whole_of(trained.named())
        for optimizer in trained.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        truth |= {("update", step, n): array - before[n] for n, array in whole_of(trained.named()).items()}
        run.log({"loss": float(step)})
        step += 1
        kinds = {kind for kind, _ in merger.plan.rows} if merger.plan is not None else set()
        if not kinds >= set(KINDS):
            merged = merger.merged_samples
        enough = torch.tensor(float(step >= steps and merger.merged_samples >= merged + MERGED))
        dist.all_reduce(enough, dist.ReduceOp.MIN)
        if enough.item():
            break
    uid = run.uid
    run.finish()
    return uid, truth


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp1", "tensor parallel"])
def test_rows_of_every_kind_are_those_of_the_unsharded_tensors(tmp_path: Path, name: str) -> None:
    results = ranks(2, init=True).run(train, tmp_path, name)
    uid, views = results[0][0], [view for _, view in results]
    run = torchtrack.Api(tmp_path).run(uid)
    for kind in KINDS:
        if (name, kind) == ("fsdp1", "optimizer"):
            continue  # its truth lies in pieces of flat tensors
        rows = {(row["sample"], row["name"]): row for row in run.tensors(kind).to_pylist()}
        expected = {(step, n) for view in views for k, step, n in view if k == kind}
        assert set(rows) == expected
        assert any(row["ranks"] == 2 for row in rows.values())
        for step, n in expected:
            held = [view[kind, step, n] for view in views]
            truth = Histogram.of(
                np.concatenate([array.reshape(-1) for array in held]) if kind == "activation" else held[0]
            )
            row, (buckets, counts) = rows[step, n], truth.sparse()
            assert (row["buckets"], row["counts"]) == (buckets.tolist(), counts.tolist()), (kind, step, n)
            assert row["norm"] == pytest.approx(truth.norm, rel=1e-6), (kind, step, n)
            assert (row["count"], row["numel"], row["coverage"]) == (truth.count, truth.count, 1.0), (kind, step, n)


def test_the_update_ratio_is_that_of_the_unsharded_tensors(tmp_path: Path) -> None:
    uid, view = ranks(2, init=True).run(train, tmp_path, "fsdp2")[0]
    run = torchtrack.Api(tmp_path).run(uid)
    last = max(step for _, step, _ in view)
    ratios = {row["step"]: row["watch/update_ratio"] for row in run.history(["watch/update_ratio"]).to_pylist()}
    change = np.sqrt(sum(float(np.square(view[k]).sum()) for k in view if k[:2] == ("update", last)))
    norm = {row["step"]: row["watch/param_norm"] for row in run.history(["watch/param_norm"]).to_pylist()}
    assert ratios[last] == pytest.approx(change / norm[last], rel=1e-5)


def test_updates_that_take_turns_are_merged_whole_or_say_which_part_they_are(tmp_path: Path) -> None:
    results = ranks(2, init=True).run(train_with_room, tmp_path, "ddp", 250)
    rows = torchtrack.Api(tmp_path).run(results[0][0]).tensors("update").to_pylist()
    view = results[0][1]
    names = {name for kind, _, name in view if kind == "update"}
    whole = [row for row in rows if row["coverage"] == 1.0]
    assert {row["name"] for row in rows} == names
    assert any(row["ranks"] == 2 for row in whole)
    for row in whole:
        truth = Histogram.of(view["update", row["sample"], row["name"]])
        assert row["counts"] == truth.sparse()[1].tolist()
        assert row["norm"] == pytest.approx(truth.norm, rel=1e-6)
    for row in rows:
        spans = [span for spans in parse_covers(row["covers"]).values() for span in spans]
        assert row["count"] == (sum(hi - lo for lo, hi in spans) or row["numel"])
    for sample in {row["sample"] for row in rows}:
        assert 0 < sum(row["count"] for row in rows if row["sample"] == sample) <= 2 * 250
