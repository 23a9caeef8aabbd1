"""Trainings on real ranks with one fault each, many in one job."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import torchtrack
from tests.stability.training import Digits, model

LEARNING_RATES: Final = {"adamw": 1e-3, "sgd": 0.03}
BATCH: Final = 32
_SLEEP_S: Final = 0.04


@dataclass(frozen=True)
class Case:
    """A training and its fault."""

    fault: str = ""
    """"nan", "late nan", "flip", "doubles", "doubles unseen", "sleeps", "replays", "lags", "rate", "zeroed" or
    "underflow"; nothing goes wrong without."""
    rank: int = 1
    at: int = 16
    """The step at which it begins."""
    layer: str = "2.weight"
    wrapper: str = "ddp"
    """Or "fsdp2"."""
    dtype: str = "float32"
    """Of the weights; "mixed" is float32 weights that compute in bfloat16."""
    optimizer: str = "adamw"
    seed: int = 0
    steps: int = 34
    log: Any = "all"
    log_freq: int = 1
    clip: bool = False
    phase: str = "data"
    """In which the sleeping rank sleeps."""
    says: bool = True
    """Whether the script says its phases."""
    size: float = 2.0**-16
    """What "underflow" multiplies the loss by."""

    @property
    def weights(self) -> torch.dtype:
        return torch.float32 if self.dtype == "mixed" else getattr(torch, self.dtype)

    @property
    def index(self) -> int:
        """The layer's place in the model."""
        return int(self.layer.split(".")[0])


def train_all(folder: Path, cases: list[Case]) -> list[str]:
    """Each training after the other. The runs' uids."""
    return [_train(folder, case) for case in cases]


def _wrapped(net: nn.Sequential, case: Case) -> nn.Module:
    if case.wrapper == "ddp":
        return DistributedDataParallel(net)
    policy = MixedPrecisionPolicy(torch.bfloat16) if case.dtype == "mixed" else MixedPrecisionPolicy()
    for layer in (net[0], net[2], net[4]):
        fully_shard(layer, mp_policy=policy)
    fully_shard(net, mp_policy=policy)
    return net


def _train(folder: Path, case: Case) -> str:
    rank = dist.get_rank()
    net = model(case.seed).to(case.weights)
    trained = _wrapped(net, case)
    own, other = (Digits(1000 * case.seed + source, case.weights) for source in (rank, other_rank(rank)))
    made: Any = torch.optim.AdamW if case.optimizer == "adamw" else torch.optim.SGD
    optimizer = made(trained.parameters(), lr=LEARNING_RATES[case.optimizer])
    run = torchtrack.init(dir=folder, system_interval=0.0, finish_timeout=30.0)
    run.watch(trained, log=case.log, log_freq=case.log_freq)
    sleeper = _Sleeper(case)
    say = run.phase if case.says else lambda _: None
    for step in range(case.steps):
        broken = rank == case.rank and step >= case.at
        say("data")
        replays = case.fault in ("replays", "lags") and broken
        run.mark(batch=_ids(other_rank(rank), step - 3 * (case.fault == "lags")) if replays else _ids(rank, step))
        x, y = (other if replays else own).batch(BATCH)
        sleeper.sleep("data", broken=broken)
        say("forward")
        sleeper.sleep("forward", broken=broken)
        hooks = _poison(net, case) if case.fault == "nan" and rank == case.rank and step == case.at else []
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "mixed" and case.wrapper == "ddp"):
            out = trained(x)
        loss = nn.functional.cross_entropy(out.float(), y)
        if case.fault == "underflow" and step >= case.at:
            loss = loss * case.size
        told = loss = loss * 2 if case.fault.startswith("doubles") and broken else loss
        if case.fault == "doubles unseen" and broken:
            told = loss / 2
        say("backward")
        loss.backward()
        for hook in hooks:
            hook.remove()
        _after_backward(net, case, rank, step)
        say("optimizer")
        sleeper.sleep("optimizer", broken=broken)
        if case.clip:
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        if case.fault == "rate" and step == case.at:
            for group in optimizer.param_groups:
                group["lr"] *= 100
        optimizer.step()
        optimizer.zero_grad()
        if case.fault == "flip" and rank == case.rank and step == case.at:
            _flip(net.get_parameter(case.layer))
        run.log({"loss": told, "lr": optimizer.param_groups[0]["lr"]})
    uid = run.uid
    run.finish(quiet=True)
    return uid


def other_rank(rank: int) -> int:
    """The rank whose batches this one replays."""
    return 1 - rank if rank < 2 else 0


def _ids(source: int, step: int) -> list[int]:
    """Ids of the samples that a rank reads at a step."""
    generator = torch.Generator().manual_seed(100_000 * (source + 1) + step)
    return torch.randint(1 << 20, (BATCH,), generator=generator).tolist()


class _Sleeper:
    """Sleeps as long as a step takes, whatever else the machine does."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._began = time.perf_counter()
        self._slept_s = 0.0

    def sleep(self, phase: str, *, broken: bool) -> None:
        if self._case.fault == "sleeps" and self._case.phase == phase and broken:
            now = time.perf_counter()
            last_s = min(now - self._began - self._slept_s, 10 * _SLEEP_S)
            self._began, self._slept_s = now, max(_SLEEP_S, last_s)
            time.sleep(self._slept_s)


def _poison(net: nn.Sequential, case: Case) -> list[Any]:
    """Put a NaN into one gradient of this rank, before it is averaged."""

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        return gradient.masked_fill(gradient == gradient.max(), math.nan)

    if case.wrapper == "ddp":
        return [net.get_parameter(case.layer).register_hook(poison)]  # type: ignore[no-untyped-call]
    name = case.layer.split(".")[1]

    def unsharded(module: nn.Module, _: Any) -> None:
        module.get_parameter(name).register_hook(poison)  # type: ignore[no-untyped-call]

    return [net[case.index].register_forward_pre_hook(unsharded)]


def _after_backward(net: nn.Sequential, case: Case, rank: int, step: int) -> None:
    gradient = net.get_parameter(case.layer).grad
    assert gradient is not None
    if case.fault == "zeroed" and step >= case.at:
        gradient.zero_()
    if case.fault == "late nan" and rank == case.rank and step == case.at:
        own = gradient.to_local() if case.wrapper == "fsdp2" else gradient  # type: ignore[attr-defined]
        own.view(-1)[0] = math.nan


@torch.no_grad()
def _flip(parameter: torch.Tensor) -> None:
    """Flip one low bit of the mantissa of one weight."""
    held = parameter.detach()
    narrow = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
    held.view(narrow[held.dtype]).view(-1)[held.numel() // 3] ^= 2
