"""A rank that the others wait for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stability import steps
from tests.stability.steps import RNG, rules_of
from torchtrack.stability import Facts, Step


def phases(slow: int | None, ranks: int, phase: str, count: int = 40) -> list[Step]:
    """Steps in which one rank is slow in a phase and the others wait for it in the backward pass."""
    made = []
    for at in range(count):
        seconds = {
            name: 0.01 * np.exp(RNG.normal(0, 0.2, ranks)) for name in ("data", "forward", "backward", "optimizer")
        }
        if slow is not None:
            seconds[phase][slow] += 0.03
            seconds["backward"][[rank for rank in range(ranks) if rank != slow]] += 0.03
        made.append(Step(at, {}, {f"phase/{name}_s": dict(enumerate(own.tolist())) for name, own in seconds.items()}))
    return made


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("phase", ["data", "forward", "optimizer"])
def test_the_slow_rank_is_told_from_those_that_wait(ranks: int, phase: str) -> None:
    (one,) = steps.run(phases(1, ranks, phase))
    assert (one.rule, one.ranks, one.names) == ("straggler", (1,), (f"phase/{phase}_s",))
    assert one.evidence["wait"] == "backward"


def test_ranks_of_equal_speed_have_no_straggler() -> None:
    assert steps.run(phases(None, 4, "data", 300)) == []


@pytest.mark.parametrize(("surplus_s", "found"), [(0.006, False), (0.015, True)])
def test_a_fifth_of_the_step_has_to_be_waited_for(surplus_s: float, found: bool) -> None:
    made = []
    for at in range(40):
        data = {rank: 0.02 + surplus_s * (rank == 1) for rank in range(3)}
        backward = {rank: 0.02 + surplus_s * (rank != 1) for rank in range(3)}
        made.append(Step(at, {}, {"phase/data_s": data, "phase/backward_s": backward}))
    assert rules_of(steps.run(made)) == ["straggler"] * found


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_machine_that_others_use_too_has_no_straggler(ranks: int) -> None:
    random = np.random.default_rng(ranks)
    made = []
    for at in range(400):
        seconds = {name: 0.01 * np.exp(random.normal(0, 0.2, ranks)) for name in ("data", "forward", "backward")}
        for own in (seconds["data"], seconds["forward"]):  # a rank loses its processor for a while; rank 1 more often
            own += 0.04 * (random.random(ranks) < np.where(np.arange(ranks) == 1, 0.7, 0.4))
        made.append(Step(at, {}, {f"phase/{name}_s": dict(enumerate(own.tolist())) for name, own in seconds.items()}))
    assert steps.run(made) == []


def test_a_rank_that_is_slow_on_such_a_machine_is_found_within_twenty_steps() -> None:
    random = np.random.default_rng(0)
    made = []
    for at in range(50):
        seconds = {name: 0.01 * np.exp(random.normal(0, 0.4, 4)) for name in ("data", "forward", "backward")}
        seconds["data"] += 0.02 * (random.random(4) < 0.1)
        seconds["data"][2] += 0.03 * (at >= 30)
        made.append(Step(at, {}, {f"phase/{name}_s": dict(enumerate(own.tolist())) for name, own in seconds.items()}))
    (one,) = steps.run(made)
    assert (one.rule, one.ranks, abs(one.first_step - 30) <= 3) == ("straggler", (2,), True)


def measured(slow: int | None, ranks: int, count: int = 40, peers: dict[int, str] | None = None) -> list[Step]:
    """Steps as `watch` measures them, of which one rank begins to be slow at the tenth."""
    made = []
    for at in range(count):
        own = 0.02 * np.exp(RNG.normal(0, 0.2, ranks))
        if slow is not None and at >= 10:
            own[slow] += 0.03
        sync = own.max() + 0.005 - own
        metrics = {"phase/own_s": dict(enumerate(own.tolist())), "phase/sync_s": dict(enumerate(sync.tolist()))}
        made.append(Step(at, {}, metrics, facts=Facts(peers=peers or {})))
    return made


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_of_ranks_that_say_no_phases_the_one_that_does_not_wait_is_named_within_twenty_steps(ranks: int) -> None:
    (one,) = steps.run(measured(1, ranks, count=30))
    assert (one.rule, one.ranks, one.names, abs(one.first_step - 10) <= 2) == (
        "straggler",
        (1,),
        ("phase/own_s",),
        True,
    )
    assert one.evidence["wait"] == "sync"
    assert "what it does by itself" in one.why


def test_ranks_that_wait_by_turns_have_no_straggler() -> None:
    assert steps.run(measured(None, 4, 300)) == []


def test_stages_of_a_pipeline_are_not_compared_with_each_other() -> None:
    found = steps.run(measured(1, 2, peers={0: "stage 0", 1: "stage 1"}))
    assert found == []
    found = steps.run(measured(1, 4, peers={0: "stage 0", 1: "stage 0", 2: "stage 1", 3: "stage 1"}))
    assert [one.ranks for one in found] == [(1,)]
