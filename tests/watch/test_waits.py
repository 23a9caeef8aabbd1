"""Where ranks wait for each other, seen on real ranks by plain `watch`."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from tests.ranks import wrappers
from torchtrack.phases import Phases
from torchtrack.run import Run
from torchtrack.testing import ranks
from torchtrack.watch.waits import Waits

COLLECTIVES = ("_all_gather_comm", "_reduce_scatter_comm")


class Seen(Phases):
    """Keeps what was there each time the rank began to wait, and when it went on."""

    def __init__(self, look: Any = None) -> None:
        super().__init__()
        self.look, self.seen = look or (lambda: None), []  # type: ignore[var-annotated]

    def sync(self) -> None:
        self.seen.append(("sync", self.look()))

    def resume(self) -> None:
        self.seen.append(("resume", self.look()))


def ddp(**options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(nn.Linear(3, 2, bias=False), **options)


def sharded() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    for layer in (net[0], net[2]):
        fully_shard(layer)
    fully_shard(net)
    return net


def groups(net: nn.Module) -> list[Any]:
    modules: list[Any] = [module for module in net.modules() if hasattr(module, "unshard")]
    return [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]


def seen_of_ddp(options: dict[str, Any], passes: int) -> list[tuple[str, float]]:
    net = ddp(**options)
    [weight] = net.parameters()
    phases = Seen(lambda: None if weight.grad is None else float(weight.grad[0, 0]))
    waits = Waits([net], phases)
    for _ in range(passes):
        net.zero_grad()
        net(torch.full((1, 3), float(dist.get_rank()))).sum().backward()
    waits.stop()
    net(torch.ones(1, 3)).sum().backward()
    return phases.seen


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}])
def test_under_ddp_a_rank_waits_from_its_own_gradient_to_the_averaged_one(options: dict[str, Any]) -> None:
    found = ranks(2, init=True).run(seen_of_ddp, options, 2)

    assert found == [[("sync", own), ("resume", 0.5)] * 2 for own in (0.0, 1.0)]


def calls_of_fsdp2() -> tuple[list[str], int, int]:
    net = sharded()
    phases = Seen()
    calls: list[int] = []
    for group in groups(net):
        for name in COLLECTIVES:
            setattr(group, name, _Counted(getattr(group, name), calls))
    waits = Waits([net], phases)
    net(torch.ones(2, 8)).sum().backward()
    told = [what for what, _ in phases.seen]
    waits.stop()
    net(torch.ones(2, 8)).sum().backward()
    return told, len(calls), len(phases.seen)


class _Counted:
    def __init__(self, inner: Any, calls: list[int]) -> None:
        self.inner, self.calls = inner, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(1)
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_under_fully_shard_a_rank_waits_in_every_collective() -> None:
    for told, calls, after in ranks(2, init=True).run(calls_of_fsdp2):
        assert told == ["sync", "resume"] * (calls // 2)
        assert (after, len(told) > 4) == (len(told), True)


def left_behind(folder: Path) -> None:
    net, replica = sharded(), ddp()
    before = [(type(getattr(group, name))) for group in groups(net) for name in COLLECTIVES]
    run = torchtrack.init(dir=folder, system_interval=0.0)
    run.watch(net, log_freq=1000)
    run.watch(replica, log_freq=1000)
    run.unwatch()
    assert [(type(getattr(group, name))) for group in groups(net) for name in COLLECTIVES] == before
    assert not replica.module.weight._post_accumulate_grad_hooks
    run.finish(quiet=True)


def test_unwatch_leaves_nothing_behind(tmp_path: Path) -> None:
    ranks(2, init=True).run(left_behind, tmp_path)


def kept_alive() -> list[bool]:
    found = []
    for make in (sharded, ddp):
        net = make()
        waits = Waits([net], Phases())
        assert waits
        model = weakref.ref(net)
        del net
        gc.collect()
        found.append(model() is not None)
    return found


def test_no_model_is_kept_alive() -> None:
    assert ranks(2, init=True).run(kept_alive) == [[False, False]] * 2


def begun(folder: Path) -> Run:
    return torchtrack.init(dir=folder, system_interval=0.0, finish_timeout=30.0)


def trained(folder: Path, name: str, *, watched: bool, said: bool = False) -> tuple[str, list[torch.Tensor]]:
    """Five steps under a wrapper."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    made = wrappers.WRAPPERS[name][1]()
    run = begun(folder)
    if watched:
        run.watch(made.watch, log_freq=100)
    data = wrappers.batches(*made.data_ranks)
    for _ in range(5):
        if said:
            run.phase("forward")
        loss = wrappers.loss_of(made.forward(next(data)))
        for optimizer in made.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in made.optimizers:
            optimizer.step()
        run.log({"loss": 0.0})
    uid = run.uid
    weights = [own(p.detach()).clone() for p in made.named().values()]
    run.finish(quiet=True)
    return uid, weights


def own(tensor: torch.Tensor) -> torch.Tensor:
    """What lies on this rank of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows(folder: Path, uid: str, *names: str) -> list[dict[str, Any]]:
    run = torchtrack.Api(folder).run(uid)
    there = [name for name in names if name in run.keys()]  # noqa: SIM118  # a method, of no mapping
    return run.history(there, ranks="all").to_pylist() if there else []


def compared(folder: Path, name: str) -> tuple[str, bool]:
    _, bare = trained(folder, name, watched=False)
    uid, weights = trained(folder, name, watched=True)
    return uid, all(torch.equal(a, b) for a, b in zip(bare, weights, strict=True))


@pytest.mark.parametrize(
    "name",
    ["ddp", "ddp bucket view", "ddp static graph", "ddp unused", "ddp comm hook", "ddp compiled", "fsdp2", "hsdp"],
)
def test_every_rank_tells_it_of_every_step_but_the_first_and_trains_as_without(tmp_path: Path, name: str) -> None:
    size = wrappers.WRAPPERS[name][0]
    found = ranks(size, init=True).run(compared, tmp_path, name)
    assert all(same for _, same in found)
    told = rows(tmp_path, found[0][0], "phase/own_s", "phase/sync_s")
    assert {(row["step"], row["rank"]) for row in told} == {(s, r) for s in range(1, 5) for r in range(size)}
    assert all(row["phase/own_s"] > 0 and row["phase/sync_s"] > 0 for row in told)


def said_and_watched(folder: Path) -> str:
    return trained(folder, "ddp", watched=True, said=True)[0]


def test_a_script_that_says_its_phases_has_these_alone(tmp_path: Path) -> None:
    uid = ranks(2, init=True).run(said_and_watched, tmp_path)[0]
    names = torchtrack.Api(tmp_path).run(uid).keys()
    assert [name for name in names if name.startswith("phase/")] == ["phase/forward_s"]


# -- torch.compile ----------------------------------------------------------------------------------------------------


def compiled(folder: Path, kind: str, *, watched: bool) -> tuple[int, int, dict[str, int]]:
    """Graphs, frames and graph breaks of four steps."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = begun(folder)
    torch.manual_seed(0)
    net: Any = nn.Sequential(wrappers.Block(8), wrappers.Block(8))
    if kind == "fullgraph inside ddp":
        net = DistributedDataParallel(torch.compile(net, backend="aot_eager", fullgraph=True))
    elif kind == "ddp inside":
        net = DistributedDataParallel(net)
    else:
        for layer in net:
            if kind.startswith("fullgraph"):
                layer.compile(backend="aot_eager", fullgraph=True)
            fully_shard(layer)
        fully_shard(net)
    if watched:
        run.watch(net, log_freq=100)
    forward = torch.compile(net, backend="aot_eager") if kind in ("ddp inside", "fully_shard inside") else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        forward(torch.ones(2, wrappers.WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 0.0})
    run.finish(quiet=True)
    counted = torch._dynamo.utils.counters
    found = counted["stats"]["unique_graphs"], counted["frames"]["total"], dict(counted["graph_break"])
    torch._dynamo.reset()
    return found


def compiled_twice(folder: Path, kind: str) -> tuple[Any, Any]:
    return compiled(folder, kind, watched=False), compiled(folder, kind, watched=True)


@pytest.mark.parametrize(
    "kind", ["fullgraph inside ddp", "ddp inside", "fullgraph inside fully_shard", "fully_shard inside"]
)
def test_compiled_models_have_no_graph_break_and_no_recompilation_by_it(tmp_path: Path, kind: str) -> None:
    for bare, watched in ranks(2, init=True).run(compiled_twice, tmp_path, kind):
        assert watched == bare
        if kind.startswith("fullgraph"):
            assert not watched[2]
