"""Seconds in each phase of a step, on a clock that the test moves; read back through the journal."""

from __future__ import annotations

import os
import re
import runpy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.runs import begin, column, finished, own, until
from torchtrack.run import Run
from torchtrack.testing import ranks

pytestmark = pytest.mark.usefixtures("no_git")

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "phases.md"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("torchtrack.phases.perf_counter", clock)
    return clock


@pytest.fixture
def run() -> Iterator[Run]:
    run = begin()
    yield run
    run.finish(quiet=True)


def spend(run: Run, clock: Clock, **phases: float) -> None:
    for name, seconds in phases.items():
        run.phase(name)
        clock.now += seconds


def at_steps(run: Run, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in finished(run).history(list(names)).drop(["time"]).to_pylist()]


def test_each_row_that_closes_a_step_has_the_seconds_of_each_phase_since_the_last_one(run: Run, clock: Clock) -> None:
    spend(run, clock, data=1.0, forward=2.0)
    run.log({"loss": 1.0})
    spend(run, clock, data=0.5, forward=0.25, backward=4.0)
    spend(run, clock, data=0.5)  # a second time in this step: they add up
    run.log({"loss": 2.0})

    assert at_steps(run, "loss", "phase/data_s", "phase/forward_s", "phase/backward_s") == [
        (0, 1.0, 1.0, 2.0, None),
        (1, 2.0, 1.0, 0.25, 4.0),
    ]


def test_a_phase_that_is_under_way_is_cut_at_the_row(run: Run, clock: Clock) -> None:
    run.phase("forward")
    clock.now += 1.0
    run.log({"loss": 1.0})
    clock.now += 3.0
    run.log({"loss": 1.0})

    assert at_steps(run, "phase/forward_s") == [(0, 1.0), (1, 3.0)]


def test_a_row_that_leaves_its_step_open_takes_nothing(run: Run, clock: Clock) -> None:
    spend(run, clock, forward=1.0)
    run.log({"loss": 1.0}, commit=False)
    spend(run, clock, forward=1.0)
    run.log({"note": "not only numbers", "lr": 0.1})

    assert at_steps(run, "phase/forward_s") == [(0, 2.0)]


def test_they_carry_the_step_that_the_row_was_given(run: Run, clock: Clock) -> None:
    spend(run, clock, forward=1.0)
    run.log({"loss": 1.0}, step=7)
    spend(run, clock, forward=2.0)
    run.log({"loss": "a text"}, step=9)

    assert at_steps(run, "phase/forward_s") == [(7, 1.0), (9, 2.0)]
    assert run.step == 10


def test_a_second_row_for_a_step_takes_nothing(run: Run, clock: Clock) -> None:
    for step in (3, 4):
        spend(run, clock, forward=1.0)
        run.log({"loss": 1.0}, step=step)
        spend(run, clock, optimizer=2.0)
        run.log({"lr": 0.1}, step=step)

    assert at_steps(run, "phase/forward_s", "phase/optimizer_s") == [(3, 1.0, None), (4, 1.0, 2.0)]


def test_a_row_of_another_thread_takes_nothing(run: Run, clock: Clock) -> None:
    spend(run, clock, forward=1.0)
    thread = threading.Thread(target=run.log, args=({"eval": 1.0},))
    thread.start()
    thread.join()
    run.log({"loss": 1.0})

    assert at_steps(run, "phase/forward_s") == [(1, 1.0)]


def test_nothing_is_recorded_if_it_is_never_used(run: Run) -> None:
    run.log({"loss": 1.0})

    assert own(finished(run)) == ["loss"]


@pytest.mark.parametrize("name", ["", "a/b", " data", "data ", "two\nlines", "\ud800", "x" * 129])
def test_a_name_that_can_be_no_part_of_a_metric_raises(run: Run, clock: Clock, name: str) -> None:
    with pytest.raises(ValueError, match=r'phase\(\) takes a name such as "data"'):
        run.phase(name)
    spend(run, clock, **{"any other": 1.0})  # the refused one has left nothing behind
    run.log({"loss": 1.0})

    assert own(finished(run)) == ["loss", "phase/any other_s"]


@pytest.mark.parametrize("name", [None, 3, ["data"]])
def test_a_name_that_is_no_string_raises(run: Run, name: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"got {name!r}")):
        run.phase(name)


def wait(run: Run, clock: Clock, own: float, sync: float) -> None:
    """A step as `watch` sees it."""
    clock.now += own
    run._phases.sync()
    clock.now += sync
    run._phases.resume()
    run._phases.step()


def measured(run: Run) -> None:
    run._recorder.log_beside(run._phases.take)
    run._phases.step()  # the first step of all starts the clock


def test_without_phases_what_a_rank_waits_is_told_and_what_it_does_not(run: Run, clock: Clock) -> None:
    measured(run)
    wait(run, clock, 2.0, 1.0)
    run.log({"loss": 1.0})
    clock.now += 0.5
    wait(run, clock, 3.0, 4.0)
    run.log({"loss": 1.0})

    assert at_steps(run, "phase/own_s", "phase/sync_s") == [(0, 2.0, 1.0), (1, 3.5, 4.0)]


def test_what_is_measured_covers_whole_steps(run: Run, clock: Clock) -> None:
    measured(run)
    wait(run, clock, 2.0, 1.0)
    run.log({"loss": 1.0})
    clock.now += 0.5
    run.log({"lr": 1.0})
    wait(run, clock, 2.0, 1.0)
    run.log({"loss": 1.0})

    assert at_steps(run, "phase/own_s", "phase/sync_s") == [(0, 2.0, 1.0), (2, 2.5, 1.0)]


def test_ranks_that_have_not_met_since_the_last_row_tell_nothing(run: Run, clock: Clock) -> None:
    measured(run)
    clock.now += 2.0
    run._phases.step()
    run.log({"loss": 1.0})

    assert own(finished(run)) == ["loss"]


def test_where_the_script_says_its_phases_nothing_is_told_of_what_was_measured(run: Run, clock: Clock) -> None:
    measured(run)
    wait(run, clock, 2.0, 1.0)
    spend(run, clock, data=0.5)
    wait(run, clock, 2.0, 1.0)
    run.log({"loss": 1.0})

    assert own(finished(run)) == ["loss", "phase/data_s"]
    assert at_steps(run, "phase/data_s") == [(0, 3.5)]


def test_a_disabled_or_finished_run_accepts_it() -> None:
    disabled = begin(mode="disabled")
    disabled.phase("data")
    disabled.log({"loss": 1.0})
    disabled.finish()
    run = begin()
    run.finish(quiet=True)
    run.phase("data")


def test_a_forked_child_has_phases_of_its_own(run: Run, clock: Clock) -> None:
    spend(run, clock, forward=1.0)
    child = os.fork()
    if child == 0:
        spend(run, clock, rollout=8.0)
        run.log({"reward": 1.0})
        run.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    run.log({"loss": 1.0})
    read = finished(run)

    assert until(lambda: column(read, "phase/rollout_s")) == [8.0]
    assert column(read, "phase/forward_s") == [1.0]


@ranks(2)
def test_readers_see_every_rank_and_the_mean(tmp_path: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    run = torchtrack.init(dir=tmp_path, system_interval=0)
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchtrack.phases.perf_counter", clock)
        spend(run, clock, data=1.0 + 2.0 * run.rank)
        run.log({"loss": 0.0})
    uid = run.uid
    run.finish(quiet=True)
    dist.barrier()
    read = torchtrack.Api(tmp_path).run(uid)
    dist.barrier()
    dist.destroy_process_group()

    assert read.history("phase/data_s").column("phase/data_s").to_pylist() == [2.0]
    assert read.history("phase/data_s", ranks="all").column("phase/data_s").to_pylist() == [1.0, 3.0]


def test_the_guides_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "guide.py"
    program.write_text(re.findall(r"^```python\n(.+?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)[0])
    made = runpy.run_path(str(program))
    phases = {f"phase/{name}_s" for name in ("data", "forward", "backward", "optimizer")}

    assert {*phases, "loss"} == set(own(torchtrack.Api(tmp_path / "runs").run(made["run"].uid)))
