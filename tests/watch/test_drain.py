"""From the device to the host, and a whole watched step on a device, without waiting for it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._device import _device_constructors

from tests.watch.conftest import Watched
from torchtrack.testing.syncguard import SyncGuard
from torchtrack.watch.drain import HostCopy, snapshot
from torchtrack.watch.reduce import Merger
from torchtrack.watch.sample import Sample
from torchtrack.watch.watcher import Watcher


def test_on_the_cpu_the_numbers_are_there_at_once() -> None:
    copy = HostCopy(torch.tensor([1.5, 2.5], dtype=torch.bfloat16))
    assert copy.ready()
    assert copy.numpy().dtype == np.float64
    assert copy.numpy().tolist() == [1.5, 2.5]
    assert HostCopy(torch.tensor([7])).numpy().dtype == np.int64
    assert HostCopy(torch.tensor(3.25)).value() == 3.25


def test_a_snapshot_keeps_the_value_of_its_moment() -> None:
    value = torch.tensor(1.0, requires_grad=True)
    copy = snapshot(value)
    with torch.no_grad():
        value.fill_(2.0)
    assert copy.value() == 1.0


class PretendPinnedMemory:
    """Fakes what a machine without an accelerator lacks.

    Pinned memory is plain memory that the guard is told to take for it; events have happened when the test says so.
    """

    def __init__(self, guard: SyncGuard, patch: pytest.MonkeyPatch) -> None:
        _device_constructors()  # keeps which functions make tensors: the true ones
        self.happened = False
        self.recorded: list[torch.device] = []
        self.hosts: list[torch.Tensor] = []
        empty = torch.empty

        def pretend(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            host = empty(*args, **kwargs)
            if pin_memory:
                assert host.device.type == "cpu"
                self.hosts.append(host)
                guard._pinned |= {id(host)}
            return host

        def record(event: object, stream: torch.device) -> None:
            self.recorded.append(stream)

        event = type("Event", (), {"record": record, "query": lambda _: self.happened})
        patch.setattr(torch, "empty", pretend)
        patch.setattr(
            torch,
            "get_device_module",
            lambda _: types.SimpleNamespace(Event=event, current_stream=lambda device: device),
        )


@pytest.fixture
def guard() -> SyncGuard:
    return SyncGuard()


@pytest.fixture
def pinned(guard: SyncGuard, monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendPinnedMemory]:
    with monkeypatch.context() as patch:
        yield PretendPinnedMemory(guard, patch)


def test_from_a_device_the_copy_is_ready_when_its_event_has_happened(
    guard: SyncGuard, pinned: PretendPinnedMemory
) -> None:
    with FakeTensorMode(), guard:
        copy = HostCopy(torch.empty(4, device="lazy:0"))
    assert (guard.violations, guard.copies_to_host, pinned.recorded) == ([], 1, [torch.device("lazy:0")])
    assert not copy.ready()
    pinned.happened = True
    assert copy.ready()


def test_the_host_side_is_on_the_host_whatever_the_default_device(
    guard: SyncGuard, pinned: PretendPinnedMemory
) -> None:
    with FakeTensorMode(), torch.device("lazy:0"), guard:
        HostCopy(torch.empty(4, device="lazy:0"))
    assert (guard.violations, [host.device.type for host in pinned.hosts]) == ([], ["cpu"])


class Idle(torch.optim.SGD):
    """Its step does nothing."""

    def step(self, closure: Any = None) -> Any:
        assert closure is None


def guarded(guard: SyncGuard, patch: pytest.MonkeyPatch) -> None:
    """Judge all that a watcher does inside the hooks, and nothing else."""
    for name in ("begin", "gradients_final", "skipped", "stepped", "clipping", "_remember_clipped"):

        def judged(original: Callable[..., Any]) -> Callable[..., Any]:
            def method(*args: Any, **kwargs: Any) -> Any:
                with guard:
                    return original(*args, **kwargs)

            return method

        patch.setattr(Watcher, name, judged(getattr(Watcher, name)))


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("scale", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_watched_step_on_a_device_never_waits(
    watched: Watched,
    guard: SyncGuard,
    pinned: PretendPinnedMemory,
    monkeypatch: pytest.MonkeyPatch,
    clip: bool,
    scale: bool,
    dtype: torch.dtype,
) -> None:
    submitted: list[Sample] = []
    monkeypatch.setattr(Merger, "submit", lambda _, sample: submitted.append(sample))
    guarded(guard, monkeypatch)
    on: Any = {"device": "lazy:0", "dtype": dtype}
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(4, 8, **on), nn.LayerNorm(8, **on), nn.Linear(8, 300, **on))
        last = model.get_parameter("2.weight")
        last.data = last.data.t().contiguous().t()
        optimizer: Any = (Idle if scale else torch.optim.AdamW)(model.parameters(), lr=0.1)
        watched.watch(model, log=("gradients", "parameters", "updates", "optimizer"), log_freq=2)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.empty(2, 4, device="lazy:0", dtype=dtype)).sum().backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if scale:  # as a scaler tells a fused optimizer; the fused one itself does not run on this device
                optimizer.grad_scale = torch.empty((), device="lazy:0")
                optimizer.found_inf = torch.empty((), device="lazy:0")
            optimizer.step()
        watched.run.unwatch()
    assert guard.violations == []
    assert [len([key for part, rows in s.picks for key in rows]) for s in submitted] == [18, 18 if scale else 30]
    assert guard.copies_to_host == len(pinned.recorded) > 0
    assert not submitted[0].ready()
