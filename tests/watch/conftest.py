"""A run whose watched tensors are read back, and the truth to hold them against."""

from __future__ import annotations

import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

import torchtrack
from torchtrack.histogram import Histogram
from torchtrack.watch import Watcher
from torchtrack.watch.plan import Plan, Share

Row = dict[str, Any]
Truth = dict[str, Histogram]


def histogram(row: Row) -> Histogram:
    """The histogram that a row of the tensors table tells."""
    return Histogram.from_sparse(row["buckets"], row["counts"], row["sum"], row["sum_sq"], row["min"], row["max"])


def gradients(model: nn.Module, factor: float = 1.0) -> Truth:
    """The histograms of a model's gradients as they are now, each times a factor."""
    return {
        name: Histogram.of(p.grad.to_dense().clone() * factor)
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def parameters(model: nn.Module) -> Truth:
    """The histograms of a model's parameters as they are now."""
    return {name: Histogram.of(p.detach().clone()) for name, p in model.named_parameters()}


def assert_same(row: Row, truth: Histogram) -> None:
    """Counts, min and max are exact, the moments good to 1e-6."""
    got = histogram(row)
    assert got.sparse()[0].tolist() == truth.sparse()[0].tolist(), row["name"]
    assert got.sparse()[1].tolist() == truth.sparse()[1].tolist(), row["name"]
    assert (row["min"], row["max"]) == (truth.min, truth.max)
    assert row["norm"] == pytest.approx(truth.norm, rel=1e-6)
    assert got.sum == pytest.approx(truth.sum, rel=1e-5, abs=1e-6 * truth.norm)
    assert row["count"] == row["numel"] == truth.count


class Watched:
    """A run in a folder of its own, and what its reader sees once it has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = torchtrack.init(dir=folder, system_interval=0, sidecar=False, console=False)
        self._uid = self.run.uid

    def watch(self, *args: Any, **kwargs: Any) -> None:
        """`Run.watch`, at every step unless said otherwise."""
        self.run.watch(*args, **{"log_freq": 1, **kwargs})

    def read(self) -> Any:
        """End the run and read it."""
        self.run.finish(quiet=True)
        return torchtrack.Api(self.folder).run(self._uid)

    def rows(self, kind: str | None = None, name: str | None = None) -> list[Row]:
        """End the run; its rows of the tensors table, by sample."""
        rows: list[Row] = self.read().tensors(kind, name).to_pylist()
        return sorted(rows, key=lambda row: (row["sample"], row["kind"], row["name"]))

    def check(self, kind: str, truths: list[Truth], stages: str | list[str]) -> list[Row]:
        """The rows of a kind are exactly these, one a tensor and sample, at these stages."""
        rows = self.rows(kind)
        assert [row["name"] for row in rows] == [name for truth in truths for name in sorted(truth)]
        every = [stages] * len(truths) if isinstance(stages, str) else stages
        expected = [stage for stage, truth in zip(every, truths, strict=True) for _ in truth]
        assert [row["stage"] for row in rows] == expected
        for row, histogram_ in zip(rows, [truth[name] for truth in truths for name in sorted(truth)], strict=True):
            assert_same(row, histogram_)
        return rows


@pytest.fixture(autouse=True)
def _inductor_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a compilation has torch set it for good


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "watched")
    yield watched
    watched.run.finish(quiet=True)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def backward(model: nn.Module, step: int = 0, scale: float = 1.0) -> torch.Tensor:
    """One backward pass over data that depends on the step alone."""
    generator = torch.Generator().manual_seed(100 + step)
    first = next(model.parameters())
    x = torch.randn(5, 4, generator=generator).to(first.dtype)
    loss: torch.Tensor = model(x).square().sum() * scale
    loss.backward()
    return loss.detach()


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for another thread; fails after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.002)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> tuple[list[Truth], list[Truth]]:
    """Plain steps; the gradients each uses and the parameters it starts from."""
    used, before = [], []
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        used.append(gradients(model))
        before.append(parameters(model))
        optimizer.step()
    return used, before


class Counter(TorchDispatchMode):
    """Which operators run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.last: list[str] = []

    def __enter__(self) -> Counter:
        self.last = []
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.last.append(str(func))
        return func(*args, **(kwargs or {}))


def scaled_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, clip: bool, bad: bool
) -> Truth:
    """One step under a scaler; the unscaled gradients before any clipping."""
    optimizer.zero_grad()
    backward(model, scale=float(scaler.get_scale()))
    first = next(model.parameters())
    assert first.grad is not None
    if bad:
        first.grad[0, 0] = float("inf")
    used = gradients(model, 1.0 / scaler.get_scale())
    if clip:
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 0.5)
    scaler.step(optimizer)
    scaler.update()
    return used


class Events:
    """The events of a device that runs nothing: all of them have happened once the test says so.

    They have neither `wait` nor `synchronize`: torchtrack fails inside if it calls these, and the test with it.
    """

    def __init__(self) -> None:
        self.happened = False
        self.recorded: list[torch.device] = []
        self.held: weakref.WeakSet[Any] = weakref.WeakSet()
        """Those that somebody still asks; each belongs to a copy in host memory."""

    def module(self) -> Any:
        """What `torch.get_device_module` tells of the device."""
        every = self

        class Event:
            def record(self, stream: torch.device) -> None:
                every.recorded.append(stream)
                every.held.add(self)

            def query(self) -> bool:
                return every.happened

        return types.SimpleNamespace(Event=Event, current_stream=lambda device: device)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """Events of the device "lazy:0", on which fake tensors lie; torch has none for it."""
    events = Events()
    monkeypatch.setattr(torch, "get_device_module", lambda _: events.module())
    return events


def share_out(monkeypatch: pytest.MonkeyPatch, share: tuple[int, int], numel: int) -> None:
    """As if the ranks had agreed that this one counts these elements of the tensor `w`."""
    plan = Plan((), {"w": numel}, 0, 2, 1, (0, 0), (), {"w": Share("", numel, share[0], *share)})
    monkeypatch.setattr(Watcher, "_plan", lambda *_: plan)
