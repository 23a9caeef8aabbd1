"""What the black box of one process holds: which steps, of which gradients, and when it asks for them to be kept."""

from __future__ import annotations

import copy
import math
import os
import signal
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_

from tests.watch.conftest import Events, Watched, backward, scaled_step
from torchtrack.api import Event
from torchtrack.journal import ring
from torchtrack.run import Run
from torchtrack.testing import SyncGuard
from torchtrack.watch import Order, blackbox, stacks
from torchtrack.watch.blackbox import BlackBox
from torchtrack.watch.reduce import Merger

Step = dict[str, tuple[float, float, int]]


class Boxed(Watched):
    """A run with a black box and no sidecar: what it asks for is in `kept`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self.kept: list[str] = []
        monkeypatch.setattr(Run, "_order", lambda run, *, every: self._order(run, every=every))

    def _order(self, run: Run, *, every: bool) -> Order:
        return Order(run._stream, every, {}, self.kept.append, lambda text: text.replace("hunter2", "***"))

    def boxed(self, model: nn.Module, *, every: bool = True, log_freq: int = 1000) -> BlackBox:
        """Watch a model, without samples but the first."""
        watcher = self.run.watch(model, log_freq=log_freq, blackbox=every or None)
        assert watcher is not None
        assert watcher.blackbox is not None
        return watcher.blackbox

    def files(self, suffix: str) -> list[Path]:
        """What lies on the node."""
        return [path for path in ring.left_by(f"{self.run._stream:016x}") if path.suffix == suffix]

    def told(self) -> list[Event]:
        """End the run, the sidecar having copied what it was told to, and read what the box said in it."""
        for watcher in self.run._watchers:
            assert watcher.blackbox is not None
            watcher.blackbox._kept_s = -math.inf
        events: list[Event] = self.read().events("nonfinite_boxed")
        return events

    def records(self) -> list[ring.Record]:
        """What the only ring holds."""
        [path] = self.files(".ttb")
        return ring.read(path.read_bytes())[1]

    def steps(self) -> list[Step]:
        """The same by name, of the gradients that there were."""
        [path] = self.files(".ttb")
        names, records, _ = ring.read(path.read_bytes())
        return [
            {name: row for name, row in zip(names, record.rows.tolist(), strict=True) if row[2] != ring.ABSENT}
            for record in records
        ]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxed]:
    made = Boxed(tmp_path / "boxed", monkeypatch)
    yield made
    for watcher in made.run._watchers:
        if watcher.blackbox is not None:
            watcher.blackbox._kept_s = -math.inf  # the sidecar has had the time to copy what it was told to
    made.run.finish(quiet=True)
    assert ring.left_by(f"{made.run._stream:016x}") == []


def truth(model: nn.Module) -> Step:
    """What torch says of the gradients as they are now."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        name: (float(g.double().norm().float()), float(g.abs().max()), int((~g.isfinite()).sum()))
        for name, g in grads.items()
    }


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def test_it_holds_every_step_bit_by_bit_before_it_is_clipped(box: Boxed, model: nn.Module) -> None:
    box.boxed(model)
    optimizer, expected = sgd(model), []
    for step in range(5):
        backward(model, step)
        expected.append(truth(model))
        if step % 2:
            clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    assert box.steps() == expected
    assert [record.number for record in box.records()] == [0, 1, 2, 3, 4]


def test_a_nan_that_clipping_spreads_is_told_of_its_own_tensor_alone(box: Boxed, model: nn.Module) -> None:
    box.boxed(model)
    optimizer = sgd(model)
    for step in range(2):
        backward(model, step)
        if step == 1:
            model.get_parameter("2.bias").grad[1] = math.nan  # type: ignore[index]
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert {name: bad for name, (_, _, bad) in box.steps()[1].items()} == {
        "0.weight": 0, "0.bias": 0, "2.weight": 0, "2.bias": 1,
    }  # fmt: skip


@pytest.mark.parametrize("set_to_none", [True, False])
def test_what_came_after_a_clipping_is_measured_anew(box: Boxed, model: nn.Module, *, set_to_none: bool) -> None:
    box.boxed(model)
    optimizer, expected = sgd(model), []
    for step in range(3):
        backward(model, step)
        clip_grad_norm_(model.parameters(), 0.1)  # of the first micro-batch only
        backward(model, step + 10)
        expected.append(truth(model))
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
    assert box.steps() == expected


def test_a_parameter_that_comes_later_has_a_row_from_then_on_and_earlier_steps_stay(
    box: Boxed, model: nn.Module
) -> None:
    box.boxed(model)
    extra = nn.Linear(3, 3)
    optimizer, expected = sgd(model), []
    for step in range(4):
        if step == 2:
            model.extra = extra
            optimizer.add_param_group({"params": extra.parameters()})
        backward(model, step)
        for parameter in extra.parameters() if step >= 2 else ():
            parameter.grad = torch.full_like(parameter, float(step))
        expected.append(truth(model))
        if step != 2:  # what the optimizer has got since the step before is first seen at the step
            clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    assert box.steps() == expected
    assert "extra.weight" in expected[2]


def test_optimizers_that_take_turns_share_the_record_of_a_step(box: Boxed, model: nn.Module) -> None:
    box.boxed(model)
    first, second = sgd(model[0]), sgd(model[2])  # type: ignore[index]
    expected = []
    for step in range(3):
        backward(model, step)
        expected.append(truth(model))
        clip_grad_norm_(model.parameters(), 1e-3)
        first.step()
        second.step()
        model.zero_grad()
    assert box.steps() == expected


def test_optimizers_inside_the_backward_pass_make_one_record_a_pass(
    box: Boxed, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.boxed(model)
    writes: list[int] = []
    write = ring.Ring.write

    def counted(self: ring.Ring, number: int, *rest: Any, **options: Any) -> None:
        writes.append(number)
        write(self, number, *rest, **options)

    monkeypatch.setattr(ring.Ring, "write", counted)
    each = {p: torch.optim.SGD([p], lr=0.0) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: each[p].step())  # type: ignore[no-untyped-call]
    expected = []
    for step in range(3):
        model.zero_grad()
        backward(model, step)
        expected.append(truth(model))
    assert box.steps() == expected
    assert writes == [0, 1, 2]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_left_out_is_there_unscaled_and_asks_for_nothing(
    box: Boxed, model: nn.Module, *, fused: bool
) -> None:
    box.boxed(model)
    optimizer, scaler = torch.optim.AdamW(model.parameters(), fused=fused), torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))  # it makes its scale with its first loss
    used = [scaled_step(model, optimizer, scaler, clip=not fused, bad=step == 1) for step in range(4)]
    assert [record.skipped for record in box.records()] == [False, True, False, False]
    for step, truths in zip(box.steps(), used, strict=True):
        for name, (norm, _, bad) in step.items():
            assert bad == truths[name].pos_infs
            assert bad or norm == pytest.approx(truths[name].norm, rel=1e-6)
    assert box.kept == []


def test_a_value_that_is_not_finite_has_the_last_steps_kept_once(box: Boxed, model: nn.Module) -> None:
    box.boxed(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for step in range(6):
        backward(model, step)
        if step >= 3:
            model.get_parameter("0.bias").grad.fill_(math.inf)  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
        box.run.log({"loss": 1.0})
    assert box.kept == ["nonfinite-3"]


def test_a_value_that_is_not_finite_between_two_samples_is_an_event_once_until_all_are_again(
    box: Boxed, model: nn.Module
) -> None:
    box.boxed(model)
    optimizer, sound = sgd(model), copy.deepcopy(model.state_dict())
    for step in range(8):
        backward(model, step)
        if step in (2, 3, 6):
            for name in ("0.weight", "0.bias"):
                model.get_parameter(name).grad.view(-1)[0] = math.nan  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
        model.load_state_dict(sound)
        box.run.log({"loss": 1.0})
    told = box.told()
    assert [event.step for event in told] == [2, 6]
    found = {"kind": "gradient", "first": "0.bias", "names": ["0.bias", "0.weight"], "count": 2}
    assert [event.data for event in told] == [found] * 2


def test_a_spike_has_the_last_steps_kept_and_a_slow_rise_does_not(box: Boxed, model: nn.Module) -> None:
    box.boxed(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for step in range(60):
        backward(model, 0, scale=1.05**step * (20.0 if step == 50 else 1.0))
        optimizer.step()
        optimizer.zero_grad()
        box.run.log({"loss": 1.0})
    assert box.kept == ["spike-50"]


def test_by_default_it_looks_as_often_as_its_share_pays_for_and_at_every_sample(
    box: Boxed, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(blackbox, "time", types.SimpleNamespace(perf_counter=lambda: clock.now, time_ns=time.time_ns))
    measure = BlackBox._measure

    def slow(self: BlackBox, held: Any, events: Any) -> Any:
        clock.now += 0.010 if held else 0.0
        return measure(self, held, events)

    monkeypatch.setattr(BlackBox, "_measure", slow)
    made = box.boxed(model, every=False, log_freq=25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for step in range(200):
        clock.now += 1.0
        backward(model, step)
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert made.schedule.interval == 8  # 10 ms of a second, a quarter more that it does not see, and 0.3 % of it
    late = [record.number for record in box.records() if record.number >= 20]
    assert late == [number for number in range(20, 200) if number % 8 == 0 or number % 25 == 0]
    assert made.schedule.share == pytest.approx(0.0125 / 8, rel=0.05)


def test_steps_that_are_no_part_of_the_training_are_left_out(box: Boxed, model: nn.Module) -> None:
    box.boxed(model)
    training = True
    box.run._watchers[0].only_while(lambda: training)
    optimizer, expected = sgd(model), []
    for step in range(4):
        training = step in (0, 3)
        backward(model, step)
        expected += [truth(model)] if training else []
        clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    assert box.steps() == expected


def test_false_keeps_nothing(box: Boxed, model: nn.Module) -> None:
    watcher = box.run.watch(model, log_freq=1000, blackbox=False)
    assert watcher is not None
    assert watcher.blackbox is None


def test_a_stall_leaves_stacks_once_and_asks_for_the_last_steps(box: Boxed, model: nn.Module) -> None:
    made = box.boxed(model)
    optimizer = sgd(model)

    def step() -> None:
        backward(model)
        optimizer.step()
        box.run.log({"loss": 1.0})

    step()
    made.look()
    [path] = box.files(".stacks")
    assert (path.read_text(), box.kept) == ("", [])
    made._last_s -= 1e4
    made.look()
    made.look()
    assert box.kept == ["stall-1"]
    assert path.read_text().count("no optimizer step for 10000 s") == 1
    assert "in look" in path.read_text()
    step()
    made.look()
    made._last_s -= 1e4
    made.look()
    assert box.kept == ["stall-1", "stall-2"]


def test_an_exception_leaves_ring_and_stacks_without_credentials(box: Boxed, model: nn.Module) -> None:
    made = box.boxed(model)
    backward(model)
    sgd(model).step()
    try:
        raise ValueError("no entry for hunter2")
    except ValueError:
        made.stop("exception")
    [path] = box.files(".stacks")
    assert "ValueError: no entry for ***\n" in path.read_text()
    assert "most recent call first" in path.read_text()
    assert len(box.records()) == 1
    ring.discard(f"{box.run._stream:016x}")


def test_it_changes_nothing_and_leaves_no_handler_behind(box: Boxed, model: nn.Module) -> None:
    before = signal.getsignal(signal.SIGTERM)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    made = box.boxed(model)
    optimizer = sgd(model)
    backward(model)
    used = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    versions = [p.grad._version for p in model.parameters() if p.grad is not None]
    assert made.begin(optimizer)
    made.gradients_final(optimizer)
    assert all(torch.equal(p.grad, used[name]) for name, p in model.named_parameters() if p.grad is not None)
    assert [p.grad._version for p in model.parameters() if p.grad is not None] == versions
    assert torch.equal(torch.get_rng_state(), state)
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(box.files(".ttb")) == len(box.files(".stacks")) == 1
    box.run.unwatch()
    assert stacks._open is None
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_users_handler_of_sigterm_is_called_and_stays(box: Boxed, model: nn.Module) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: called.append(number))
    try:
        box.boxed(model)
        backward(model)
        sgd(model).step()
        os.kill(os.getpid(), signal.SIGTERM)
        assert called == [signal.SIGTERM]
        [path] = box.files(".stacks")
        assert "test_a_users_handler" in path.read_text()
        mine = signal.getsignal(signal.SIGTERM)
        box.run.unwatch()
        assert signal.getsignal(signal.SIGTERM) is mine
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(called) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_on_an_accelerator_nothing_waits_and_a_step_is_written_once_it_has_arrived(
    box: Boxed, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Merger, "submit", lambda *_: None)  # fake tensors hold no numbers to wait for
    with FakeTensorMode():
        model = nn.Linear(4, 8, device="lazy:0")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
        launched = []
        for boxed in (False, True):
            if boxed:
                box.boxed(model)
            for _ in range(2):  # the first is a sample
                model(torch.empty(2, 4, device="lazy:0")).sum().backward()
                with SyncGuard() as guard:
                    clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                assert guard.violations == []
                optimizer.zero_grad()
            launched.append(guard.launches)
    added = launched[1] - launched[0]
    assert dict(added) == {"aten._foreach_norm.Scalar": 2, "aten.stack.default": 1, "aten.copy_.default": 1}
    assert (len(events.recorded) > 0, box.records()) == (True, [])  # its events have not happened yet
