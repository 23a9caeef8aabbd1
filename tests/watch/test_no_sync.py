"""A whole training step on an accelerator, watched: nothing in it waits for the device.

The device is torch's "lazy:0" under fake tensors. It runs no kernel, so its events happen only when a test says so, and
what waits is told by the operators of the step: forward, backward, clipping, the optimizer and the hooks between them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torchtrack
from tests.watch.conftest import Events, Watched
from torchtrack.testing import SyncGuard
from torchtrack.watch import reduce
from torchtrack.watch.reduce import Merger
from torchtrack.watch.sample import Sample

Step = Callable[[nn.Module, torch.optim.Optimizer], object]


class Unscaling(torch.optim.AdamW):
    """A fused optimizer, as far as a scaler can tell; the fused kernel itself does not run on this device."""

    _step_supports_amp_scaling = True

    def step(self, closure: Any = None) -> Any:
        assert closure is None


def backward(model: nn.Module, scaler: torch.amp.GradScaler | None = None) -> None:
    first = next(model.parameters())
    loss = model(torch.empty(2, 4, device=first.device, dtype=first.dtype)).float().sum()
    (scaler.scale(loss) if scaler else loss).backward()


def plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    optimizer.step()


def clipped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def clipped_by_value(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    nn.utils.clip_grad_value_(model.parameters(), 1.0)
    optimizer.step()


def in_a_closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> float:
        backward(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return 0.0

    optimizer.step(closure)


def scaled(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    scaler = torch.amp.GradScaler("lazy")
    backward(model, scaler)
    scaler.step(optimizer)


def unscaled_and_clipped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    scaler = torch.amp.GradScaler("lazy")
    backward(model, scaler)
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)


def left_out(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    scaler = torch.amp.GradScaler("lazy")
    backward(model, scaler)
    with pytest.MonkeyPatch.context() as patch:  # to know that a gradient is not finite, the scaler itself waits
        patch.setattr(scaler, "_maybe_opt_step", lambda *_: None)
        scaler.step(optimizer)


STEPS: tuple[Step, ...] = (plain, clipped, clipped_by_value, in_a_closure, scaled, unscaled_and_clipped, left_out)
each_way = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)


def train(step: Step, watch: Callable[[nn.Module], object], dtype: torch.dtype = torch.float32) -> list[SyncGuard]:
    """Four steps of a small model on the device; what was seen in each."""
    on: Any = {"device": "lazy:0", "dtype": dtype}
    guards = []
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(4, 8, **on), nn.LayerNorm(8, **on), nn.Linear(8, 300, **on))
        last = model.get_parameter("2.weight")
        last.data = last.data.t().contiguous().t()
        kind = Unscaling if step in (scaled, unscaled_and_clipped) else torch.optim.AdamW
        optimizer = kind(model.parameters(), lr=0.1, foreach=True)
        watch(model)
        for _ in range(4):
            with SyncGuard() as guard:
                step(model, optimizer)
                optimizer.zero_grad()
            guards.append(guard)
    return guards


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Samples as they are handed over; nobody takes them further, since fake tensors hold no numbers."""
    submitted: list[Sample] = []
    monkeypatch.setattr(Merger, "submit", lambda _, sample: submitted.append(sample))
    return submitted


@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_in_a_watched_step_waits(
    watched: Watched, events: Events, submitted: list[Sample], step: Step, dtype: torch.dtype
) -> None:
    guards = train(step, lambda model: watched.watch(model, log="all", log_freq=2), dtype)
    watched.run.unwatch()

    assert [guard.violations for guard in guards] == [[], [], [], []]
    assert [sum(len(rows) for _, rows in sample.picks) for sample in submitted] == [12, 12]
    assert not any(sample.ready() for sample in submitted)
    copies = [guard.copies_to_host for guard in guards]
    assert copies[0] == copies[2] > copies[1] == copies[3] == 0
    assert len(events.recorded) == sum(copies)


@each_way
@pytest.mark.usefixtures("events", "submitted")
def test_a_step_that_is_not_sampled_launches_what_an_unwatched_one_does(watched: Watched, step: Step) -> None:
    bare = train(step, lambda _: None)
    guards = train(step, lambda model: watched.watch(model, log="all", log_freq=2))
    watched.run.unwatch()

    assert [guard.launches for guard in guards[1::2]] == [guard.launches for guard in bare[1::2]]
    added = [(mine.launches - own.launches).total() for mine, own in zip(guards[::2], bare[::2], strict=True)]
    assert min(added) > 0


def test_samples_that_never_arrive_hold_nothing_up_and_are_dropped_and_counted(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduce, "QUEUE_BYTES", 3 * 12 * 330 * 8)
    run = torchtrack.init(dir=tmp_path, finish_timeout=0.5, system_interval=0, sidecar=False, console=False)
    train(plain, lambda model: run.watch(model, log="all", log_freq=1))

    merger = run._watchers[0].merger
    assert (len(events.recorded), merger.dropped_samples) == (4 * 2 * 1, 1)
    assert len(events.held) == 3 * 2  # what was dropped no longer keeps host memory
    run.finish(quiet=True)
    assert merger.dropped_samples == 4
    assert len(events.held) == 0
    read = torchtrack.Api(tmp_path).run(run.uid)
    assert read.tensors().num_rows == 0
    dropped = read.history(["_tt/watch0/dropped_samples"])
    assert dropped["_tt/watch0/dropped_samples"].to_pylist()[-1] == 4
