"""Jobs of two ranks that end in every way: python blackbox.py FOLDER WAY...

All run at once and are forked off this process, which has torch imported and trains nothing: a job costs its steps. It
stays until its stdin is closed, so that ranks are collected after they were seen.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it: here, and not in each rank anew
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from torchtrack.journal import ring
from torchtrack.run import Run
from torchtrack.sidecar.client import Sidecar
from torchtrack.sidecar.process import address
from torchtrack.watch import kernels

STEPS = 12


def trained(way: str) -> tuple[nn.Module, nn.Module]:
    """The model, and the one whose parameters carry its names."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3))
    if way == "kill":
        fully_shard(model)
        return model, model
    return DistributedDataParallel(model), model


def local(tensor: Any) -> torch.Tensor:
    here: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return here


def train(way: str, base: Path, run: Run) -> None:
    """Twelve steps; in the last one a gradient is not finite. What each used is written down."""
    model, inner = trained(way)
    extra = nn.Linear(4, 4)  # a second watch, whose end leaves the first one's files and handlers alone
    run.watch(model, log_freq=100, blackbox=True)
    run.watch(extra, log_freq=100, blackbox=True)
    optimizer, other = torch.optim.SGD(model.parameters(), lr=1e-2), torch.optim.SGD(extra.parameters(), lr=1e-2)
    truth = []
    for step in range(STEPS):
        model(torch.randn(8, 16)).square().mean().backward()
        if step == 0:
            extra(torch.ones(4)).sum().backward()
            other.step()
            run.unwatch(extra)
        if step == STEPS - 1:
            bias = dict(inner.named_parameters())["0.bias"]
            local(bias.grad)[:3] = float("nan")
        for name, parameter in inner.named_parameters():
            here = local(parameter.grad)
            bad = int((~here.isfinite()).sum())
            truth.append([step, name, float(here.double().norm().float()), float(here.abs().max()), bad])
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": 0.0})
    Path(f"{base / way}-{dist.get_rank()}.json").write_text(json.dumps(truth))


def terminated_worker(run: Run) -> int:
    """What a forked child that is terminated, as a data loader's worker is, writes into the stacks of its parent."""
    [stacks] = [path for path in ring.left_by(f"{run._stream:016x}") if path.suffix == ".stacks"]
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert status == signal.SIGTERM
    return stacks.stat().st_size


def kill_sidecar(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address(folder))
        pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    os.kill(pid, signal.SIGKILL)


def end(way: str, base: Path, run: Run) -> None:
    """What the rank does after its last step."""
    if way == "orphan":
        if dist.get_rank() == 0:
            kill_sidecar(base / way)
        dist.barrier()
    if way == "term":
        (base / f"ready-{dist.get_rank()}").touch()
        sum(itertools.repeat(0))  # in C, where no handler written in Python would ever run
    elif way == "abort":
        os.abort()
    elif way in ("kill", "orphan"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "exit":
        Path(f"{base / way}-{dist.get_rank()}.worker").write_text(str(terminated_worker(run)))
        sys.exit(3)
    elif way == "raise":
        raise ArithmeticError("the loss is gone")
    elif way == "finish":
        run.finish()


def rank(way: str, base: Path, number: int) -> None:
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{base / way}-store", rank=number, world_size=2)
    folder = base / ("orphan" if way == "orphan" else "runs")  # one loses its sidecar
    run = torchtrack.init(dir=folder, id=way, system_interval=0.0)
    assert Sidecar(folder, timeout_s=30.0).register(f"{run._stream:016x}", run.uid, os.getpid(), rank=number)
    train(way, base, run)
    assert run.flush(30.0)
    dist.barrier()
    end(way, base, run)
    dist.destroy_process_group()


def main(base: Path, ways: list[str]) -> None:
    kernels.prepare(torch.device("cpu"))  # here, and not in each rank anew
    kernels.wait()
    pids: dict[int, str] = {}
    for way, number in itertools.product(ways, range(2)):
        pid = os.fork()
        if pid == 0:
            rank(way, base, number)
            return
        pids[pid] = way
    while "term" in ways and not all((base / f"ready-{number}").exists() for number in range(2)):
        os.sched_yield()
    for pid, way in pids.items():
        if way == "term":
            os.kill(pid, signal.SIGTERM)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        sys.stdout.write(f"{way} {ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status}\n")
    sys.stdout.write("done\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
