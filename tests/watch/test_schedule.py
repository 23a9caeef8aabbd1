"""Which steps are sampled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtrack.watch.schedule import LONGEST, Schedule


def run(schedule: Schedule, first: int, last: int, step_s: float, sample_s: float, clock: list[float]) -> list[int]:
    """Train with a clock of our own; the sampled steps."""
    sampled = []
    for step in range(first, last):
        schedule.began(clock[0])
        if schedule.is_due(step):
            sampled.append(step)
            clock[0] += sample_s
            schedule.took(sample_s)
            schedule.sampled(sample_s)
            schedule.agree(schedule.wanted(), schedule.now)
        clock[0] += step_s
    return sampled


def test_without_a_budget_every_log_freq_th_step_is_sampled() -> None:
    schedule = Schedule(3)
    schedule.agree(64, 0)
    assert [step for step in range(10) if schedule.is_due(step)] == [0, 3, 6, 9]


@given(st.floats(1e-4, 10.0), st.floats(1e-4, 10.0), st.sampled_from([0.001, 0.01, 0.1]))
def test_in_the_long_run_samples_take_at_most_the_budget(step_s: float, sample_s: float, budget: float) -> None:
    schedule, clock = Schedule(1, budget), [0.0]
    run(schedule, 0, 64, step_s, sample_s, clock)
    assert schedule.wanted() <= LONGEST
    begin, samples = 1 << 22, 0
    if schedule.wanted() < LONGEST:
        samples = len(run(schedule, begin, begin + 1, step_s, sample_s, clock))
        assert samples == 1
        assert schedule.share <= budget * 1.0001


def test_a_sample_that_costs_nothing_much_is_taken_at_every_step() -> None:
    assert run(Schedule(1, 0.1), 0, 20, step_s=1.0, sample_s=0.01, clock=[0.0]) == list(range(20))


def test_what_happens_between_steps_of_the_training_is_no_part_of_a_step() -> None:
    schedule, clock = Schedule(1, 0.01), [0.0]
    run(schedule, 0, 64, step_s=1.0, sample_s=0.1, clock=clock)
    share = schedule.share
    schedule.interrupted()
    clock[0] += 1e6
    run(schedule, 65, 66, step_s=1.0, sample_s=0.1, clock=clock)
    assert schedule.share == share


def test_the_interval_is_a_power_of_two() -> None:
    schedule, clock = Schedule(100, 0.01), [0.0]
    sampled = run(schedule, 0, 400, step_s=1.0, sample_s=0.1, clock=clock)
    assert schedule.interval == 16
    assert [step for step in sampled if step > 8] == list(range(16, 400, 16))


def test_when_steps_get_cheaper_samples_get_rarer_and_back() -> None:
    schedule, clock = Schedule(1, 0.01), [0.0]
    run(schedule, 0, 512, step_s=1.0, sample_s=0.1, clock=clock)
    run(schedule, 512, 4096, step_s=0.1, sample_s=0.1, clock=clock)
    assert schedule.interval == 128
    run(schedule, 4096, 8192, step_s=10.0, sample_s=0.1, clock=clock)
    assert schedule.interval < 16


def test_a_shorter_interval_is_wanted_only_if_it_leaves_room() -> None:
    schedule, clock = Schedule(1, 0.01), [0.0]
    run(schedule, 0, 128, step_s=1.0, sample_s=0.15, clock=clock)
    assert schedule.interval == 16
    run(schedule, 128, 1024, step_s=1.0, sample_s=0.075, clock=clock)
    assert schedule.interval == 16


@pytest.mark.parametrize("now", [0, 1, 17, 1000])
@pytest.mark.parametrize("interval", [1, 2, 64])
def test_a_change_comes_at_a_step_that_no_rank_has_reached(now: int, interval: int) -> None:
    one, other = Schedule(1, 0.01), Schedule(1, 0.01)
    for schedule in (one, other):
        schedule.agree(8, 0)
        assert schedule.is_due(8)
    one.is_due(now)  # the other one is behind
    for schedule in (one, other):
        schedule.agree(interval, now)
    both = [[step for step in range(now + 1, now + 300) if schedule.is_due(step)] for schedule in (one, other)]
    assert both[0] == both[1]
    assert all(step % min(8, interval) == 0 for step in both[0])


def test_samples_of_ranks_that_do_not_agree_yet_lie_inside_each_other() -> None:
    often, seldom = Schedule(1, 0.01), Schedule(1, 0.01)
    often.agree(4, 0)
    seldom.agree(32, 0)
    steps = [{step for step in range(40, 400) if schedule.is_due(step)} for schedule in (often, seldom)]
    assert steps[1] < steps[0]
