"""A training as a plain loop, without a framework and in one process, and runs compared with it.

The ranks take turns here: their gradients are halved (or divided by how many there are) and added, as
DistributedDataParallel and FSDP do. With powers of two that is exact, so every element has to be in its bucket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import torchtrack
from torchtrack import Histogram

BATCH, CLIP = 4, 0.01
KINDS = ("gradient", "parameter")

Truth = dict[tuple[str, int, str], Histogram]
"""(kind, step, name) -> what is to be recorded."""


def samples(count: int = 64) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


@dataclass(frozen=True)
class Way:
    """How to train.

    Attributes:
        name: of the way.
        ranks: how many there are; each has every so-manieth sample.
        accumulate: batches a step; what is left at the end of an epoch is a step too, of a smaller gradient.
        clip: by "norm" or "value".
        dtype: of autocast.
        scaled: the loss, by a GradScaler.
        every_batch: is averaged over ranks, before it is added; otherwise each rank adds up first.
        epochs: over the data.
        parts: of the module: its name and learning rate.
        clipped: which of them is; None for all.
    """

    name: str
    ranks: int = 2
    accumulate: int = 1
    clip: Literal["norm", "value"] | None = None
    dtype: torch.dtype | None = None
    scaled: bool = False
    every_batch: bool = False
    epochs: int = 1
    parts: tuple[tuple[str, float], ...] = (("net", 0.1),)
    clipped: str | None = None

    @property
    def steps(self) -> int:
        """Of an optimizer in all epochs."""
        return self.epochs * -(-len(samples()) // (self.ranks * BATCH * self.accumulate))


class _Part:
    """One network, and what trains it."""

    def __init__(self, way: Way, name: str, lr: float) -> None:
        self.way, self.name, self.net = way, name, network()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=lr)
        self.scaler = torch.amp.GradScaler("cpu", enabled=way.scaled)

    def train(self, step: int, batches: list[list[Tensor]]) -> Truth:
        """One step with these batches of each rank."""
        self.optimizer.zero_grad()
        parameters = list(self.net.parameters())
        turns = (
            [[[batch] for batch in turn] for turn in zip(*batches, strict=True)] if self.way.every_batch else [batches]
        )
        averaged = [_sums([self._gradients(own) for own in turn]) for turn in turns]
        for parameter, gradient in zip(parameters, _sums(averaged), strict=True):
            parameter.grad = gradient
        self.scaler.unscale_(self.optimizer)
        truth = {
            (kind, step, f"{self.name}.{name}"): Histogram.of(p.grad if kind == "gradient" else p)
            for name, p in self.net.named_parameters()
            for kind in KINDS
        }
        if self.way.clip == "norm" and self.way.clipped in (None, self.name):
            nn.utils.clip_grad_norm_(parameters, CLIP)
        elif self.way.clip == "value":
            nn.utils.clip_grad_value_(parameters, CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return truth

    def _gradients(self, batches: list[Tensor]) -> list[Tensor]:
        """One rank's share of the mean over ranks."""
        way = self.way
        self.net.zero_grad()
        for batch in batches:
            with torch.autocast("cpu", way.dtype, cache_enabled=False) if way.dtype else contextlib.nullcontext():
                loss = self.net(batch).square().mean()
            self.scaler.scale(loss / way.accumulate).backward()
        return [p.grad.clone() / way.ranks for p in self.net.parameters() if p.grad is not None]


def _sums(gradients: list[list[Tensor]]) -> list[Tensor]:
    return [sum(several[1:], several[0]) for several in zip(*gradients, strict=True)]


def plain(way: Way) -> Truth:
    """Train in that way: gradients averaged over ranks, unscaled, before clipping, and parameters before each step."""
    parts = [_Part(way, name, lr) for name, lr in way.parts]
    truth: Truth = {}
    for step, batches in enumerate(_steps(way)):
        for part in parts:
            truth |= part.train(step, batches)
    return truth


def _steps(way: Way) -> Iterator[list[list[Tensor]]]:
    own = [samples()[rank :: way.ranks].split(BATCH) for rank in range(way.ranks)]
    for _ in range(way.epochs):
        for first in range(0, len(own[0]), way.accumulate):
            yield [list(batches[first : first + way.accumulate]) for batches in own]


def compare(run: Any, way: Way) -> None:
    """A run has the rows of the plain loop, each with its histogram, and no others."""
    truth = plain(way)
    rows = [row for kind in KINDS for row in run.tensors(kind=kind).to_pylist()]
    skipped = {step for (_, step, _), expected in truth.items() if expected.finite < expected.count}
    assert sorted((row["kind"], row["step"], row["name"]) for row in rows) == sorted(truth)
    for row in rows:
        key = row["kind"], row["step"], row["name"]
        expected = truth[key]
        buckets, counts = expected.sparse()
        assert (row["buckets"], row["counts"]) == (buckets.tolist(), counts.tolist()), key
        assert (row["count"], row["coverage"]) == (expected.count, 1.0), key
        assert [row[name] for name in ("zeros", "nans", "pos_infs", "neg_infs")] == [
            expected.zeros, expected.nans, expected.pos_infs, expected.neg_infs
        ], key  # fmt: skip
        assert (row["min"], row["max"]) == (expected.min, expected.max), key
        assert row["sum"] == pytest.approx(expected.sum, rel=1e-6, abs=1e-9), key
        assert row["sum_sq"] == pytest.approx(expected.sum_sq, rel=1e-6), key
        clipped = row["kind"] == "gradient" and way.clip and way.clipped in (None, row["name"].partition(".")[0])
        assert row["stage"] == ("skipped" if row["step"] in skipped else "pre_clip" if clipped else "step"), key


def only_run(folder: Any) -> Any:
    (run,) = torchtrack.Api(folder).runs()
    return run
