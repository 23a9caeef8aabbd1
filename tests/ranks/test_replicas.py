"""Replicas that part, on real ranks: the tensor and the odd rank are named, and healthy jobs hear nothing."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

import torchtrack
from tests.ranks import training, wrappers
from tests.ranks.wrappers import Trained
from torchtrack.testing import ranks
from torchtrack.watch import reduce

EVERY = 3
Fault = Callable[[Trained], object]


def train(folder: Path, build: Callable[[], Trained], *faults: Fault) -> tuple[str, list[int]]:
    """As `train_now`, with time for each row."""
    # It waits two seconds for the log() whose step it carries; on a busy machine a thread may be away for longer.
    with mock.patch.object(reduce, "_STEP_WITHIN_S", 60.0):
        return train_now(folder, build, *faults)


def train_now(folder: Path, build: Callable[[], Trained], *faults: Fault) -> tuple[str, list[int]]:
    """Train until two checks were made, after each fault too.

    Returns:
        The run's uid and the step before which each fault came.
    """
    warnings.filterwarnings("ignore", module=r"torch\.")  # deprecated wrappers, and how they are used
    warnings.filterwarnings("ignore", "The `NO_SHARD` sharding strategy is deprecated")
    trained = build()
    run = torchtrack.init(dir=folder, system_interval=0.0)
    run.watch(trained.watch, log_freq=1, checksum_every=EVERY)
    data, left = wrappers.batches(*trained.data_ranks), list(faults)
    at: list[int] = []
    until = 2.0 * EVERY
    for step in itertools.count():  # the time limit of the ranks ends it where they never merge
        if trained.backward is not None:
            trained.backward(next(data))
        else:
            wrappers.loss_of(trained.forward(next(data))).backward()
        for optimizer in trained.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        run.log({"loss": float(step)})
        merged = torch.tensor(float(training.merger(run).merged_samples))
        dist.all_reduce(merged, dist.ReduceOp.MIN)
        if merged.item() < until:
            continue
        if not left:
            break
        left.pop(0)(trained)
        at.append(step + 1)
        until = merged.item() + 8 * EVERY  # another plan may be asked for again only after some samples
    uid = run.uid
    run.finish()
    return uid, at


def events(folder: Path, uid: str) -> list[dict[str, Any]]:
    found = [e for e in torchtrack.Api(folder).run(uid).events() if e.type == "replica_divergence"]
    return [{**e.data, "step": e.step, "by": e.rank} for e in sorted(found, key=lambda e: e.step or 0)]


def differ(folder: Path, uid: str) -> dict[int, float]:
    rows = torchtrack.Api(folder).run(uid).history(["watch/replicas_differ"]).to_pylist()
    return {r["step"]: r["watch/replicas_differ"] for r in rows if r["watch/replicas_differ"] is not None}


def flip_on(rank: int, name: str, trained: Trained) -> None:
    """Flip a bit of the mantissa of one number, on one rank, in a way that autograd does not see."""
    if dist.get_rank() != rank:
        return
    tensor = {**trained.named(), **dict(trained.watch.named_buffers())}[name]
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    local.detach().numpy().reshape(-1).view("int32")[1] ^= 1 << 10


@pytest.mark.parametrize(("world_size", "odd"), [(2, []), (4, [2])])
def test_one_flipped_bit_is_found_within_a_period_and_its_rank_named(
    tmp_path: Path, world_size: int, odd: list[int]
) -> None:
    fault = partial(flip_on, world_size - 2 or 1, "1.up.weight")
    uid, [at] = ranks(world_size, init=True).run(train, tmp_path, wrappers.ddp, fault)[0]
    [event] = events(tmp_path, uid)
    assert (event["tensor"], event["kind"]) == ("1.up.weight", "parameter")
    assert (event["ranks"], event["odd_ranks"]) == (list(range(world_size)), odd)
    assert at <= event["step"] < at + EVERY
    assert at - EVERY <= event["equal_last_step"] < at
    assert (event["more"], len(event["tensors"]), event["by"]) == (0, 1, 0)
    told = differ(tmp_path, uid)
    assert told == {step: float(step >= at) for step in told}
    assert len([step for step in told if step >= at]) >= 2


HEALTHY = (
    "ddp",
    "ddp bucket view",
    "zero redundancy",
    "in backward",
    "fsdp2",
    "hsdp",
    "fsdp1",
    "fsdp1 no shard",
    "fsdp1 hybrid",
    "tensor parallel",
    "sequence parallel",
    "fsdp2 and tensor parallel",
    "pipeline 1f1b beside another",
    "experts",
)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_ranks_hear_nothing(tmp_path: Path, name: str) -> None:
    size, build = wrappers.WRAPPERS[name]
    uid, _ = ranks(size, init=True).run(train, tmp_path, build)[0]
    assert events(tmp_path, uid) == []
    if name in ("fsdp2", "fsdp1", "in backward"):  # no rank holds what another does
        with pytest.raises(ValueError, match="no metric 'watch/replicas_differ'"):
            differ(tmp_path, uid)
    else:
        assert set(differ(tmp_path, uid).values()) == {0.0}


def test_a_replica_of_a_shard_that_parts_is_named(tmp_path: Path) -> None:
    size, build = wrappers.WRAPPERS["hsdp"]
    uid, _ = ranks(size, init=True).run(train, tmp_path, build, partial(flip_on, 3, "2.down.weight"))[0]
    [event] = events(tmp_path, uid)
    assert (event["tensor"], event["ranks"], event["odd_ranks"], event["by"]) == ("2.down.weight", [1, 3], [], 1)


def test_a_tensor_beside_tensor_parallelism_that_parts_is_named(tmp_path: Path) -> None:
    size, build = wrappers.WRAPPERS["tensor parallel"]
    uid, [at] = ranks(size, init=True).run(train, tmp_path, build, partial(flip_on, 1, "0.norm.weight"))[0]
    first, *_ = events(tmp_path, uid)[0]["tensors"]
    assert at - EVERY <= first.pop("equal_last_step") < at
    assert first == {
        "tensor": "0.norm.weight",
        "kind": "parameter",
        "ranks": [0, 1],
        "odd_ranks": [],
        "reason": "was equal",
    }


# -- never equal ------------------------------------------------------------------------------------------------------


def averaged_by_hand(*, seeded: bool = False, averages: bool = True) -> Trained:
    """Without DistributedDataParallel; `seeded` begins with other weights on each rank."""
    inner = wrappers.model()
    if seeded:
        for parameter in inner.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(dist.get_rank()))

    def backward(batch: torch.Tensor) -> None:
        wrappers.loss_of(inner(batch)).backward()
        for parameter in inner.parameters():
            if averages and parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    named = wrappers.of_module(inner)
    optimizers = [wrappers.adamw(inner.parameters())]
    return Trained(inner, optimizers, inner, named, None, wrappers.everywhere(), backward=backward)


@pytest.mark.parametrize(("averages", "reason"), [(True, "gradients are equal"), (False, "nothing is equal")])
def test_ranks_that_begin_with_other_seeds_are_told_so(tmp_path: Path, *, averages: bool, reason: str) -> None:
    build = partial(averaged_by_hand, seeded=True, averages=averages)
    uid, _ = ranks(2, init=True).run(train, tmp_path, build)[0]
    [event] = events(tmp_path, uid)
    assert (event["tensor"], event["reason"], event["equal_last_step"]) == ("0.norm.weight", reason, None)
    assert event["more"] + len(event["tensors"]) == len(list(wrappers.model().parameters()))
    assert set(differ(tmp_path, uid).values()) == {float(len(list(wrappers.model().parameters())))}


class Late(nn.Module):
    """Scales what a model puts out, from some step on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = wrappers.model()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * getattr(self, "scale", 1.0)  # type: ignore[no-any-return]


def late() -> Trained:
    inner = Late()
    wrapped = nn.parallel.DistributedDataParallel(inner)
    optimizers = [wrappers.adamw(wrapped.parameters())]
    return Trained(wrapped, optimizers, wrapped, wrappers.of_module(inner), None, wrappers.everywhere())


def add_scale(trained: Trained) -> None:
    """DistributedDataParallel has broadcast its parameters by now, and does not know of this one."""
    scale = nn.Parameter(torch.full((3,), 1.0 + 0.1 * dist.get_rank()))
    trained.watch.module.scale = scale
    trained.optimizers[0].add_param_group({"params": [scale]})


def test_a_parameter_that_came_after_the_broadcast_is_named(tmp_path: Path) -> None:
    uid, [at] = ranks(2, init=True).run(train, tmp_path, late, add_scale)[0]
    event, *_ = events(tmp_path, uid)
    assert (event["tensor"], event["reason"]) == ("scale", "DistributedDataParallel")
    assert (event["equal_last_step"], event["more"], len(event["tensors"])) == (None, 0, 1)
    assert at <= event["step"]


def add_a_layer(trained: Trained) -> None:
    """Equal on all ranks, and in no plan: the ranks have to agree anew."""
    layer = nn.Linear(3, 3)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 0.1)
    trained.watch.append(layer)
    trained.optimizers[0].add_param_group({"params": list(layer.parameters())})


def test_what_has_parted_is_not_taken_for_an_expert_under_the_next_plan(tmp_path: Path) -> None:
    faults = partial(flip_on, 1, "1.up.weight"), add_a_layer
    uid, [_, added] = ranks(2, init=True).run(train, tmp_path, averaged_by_hand, *faults)[0]
    [event] = events(tmp_path, uid)
    assert event["tensor"] == "1.up.weight"
    rows = torchtrack.Api(tmp_path).run(uid).tensors("parameter").to_pylist()
    assert any((row["name"], row["ranks"]) == ("5.weight", 2) for row in rows)  # there is another plan
    told = differ(tmp_path, uid)
    assert {told[step] for step in told if step >= added} == {1.0}


# -- buffers ----------------------------------------------------------------------------------------------------------


class Buffered(nn.Module):
    """A mask that nothing writes to, statistics that each rank has its own of, and a number of each rank."""

    place: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = wrappers.model(), nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.linspace(0.5, 1.5, 3))
        self.register_buffer("place", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(x).flatten(0, 1)) * self.mask  # type: ignore[no-any-return]


def buffered(*, broadcasts: bool) -> Trained:
    inner = Buffered()
    options: dict[str, Any] = {} if broadcasts else {"forward_sync_buffers": False}
    wrapped = nn.parallel.DistributedDataParallel(inner, **options)
    inner.place.fill_(float(dist.get_rank()))  # once they have been broadcast
    optimizers = [wrappers.adamw(wrapped.parameters())]
    named = lambda: {**dict(inner.named_parameters()), **dict(inner.named_buffers())}  # noqa: E731
    return Trained(wrapped, optimizers, wrapped, named, None, wrappers.everywhere())


def test_a_buffer_that_nothing_writes_to_is_held_against_the_others(tmp_path: Path) -> None:
    build = partial(buffered, broadcasts=False)
    uid, [at] = ranks(2, init=True).run(train, tmp_path, build, partial(flip_on, 1, "mask"))[0]
    [event] = events(tmp_path, uid)
    assert (event["tensor"], event["kind"], event["reason"]) == ("mask", "buffer", "was equal")
    assert at <= event["step"] < at + EVERY


def write_its_own(trained: Trained) -> None:
    trained.watch.module.mask.mul_(1.0 + dist.get_rank())


def test_what_each_rank_writes_by_itself_is_left_alone(tmp_path: Path) -> None:
    build = partial(buffered, broadcasts=False)
    uid, _ = ranks(2, init=True).run(train, tmp_path, build, write_its_own)[0]
    assert events(tmp_path, uid) == []


def test_statistics_that_are_broadcast_before_the_forward_pass_are_left_alone(tmp_path: Path) -> None:
    uid, _ = ranks(2, init=True).run(train, tmp_path, partial(buffered, broadcasts=True))[0]
    assert events(tmp_path, uid) == []
    assert set(differ(tmp_path, uid).values()) == {0.0}
