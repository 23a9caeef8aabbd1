"""A rank that trains on the batches of another."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stability import steps
from tests.stability.steps import RNG
from torchtrack.stability import Facts, Step

IDS = RNG.integers(1 << 50, size=(4000, 4)).astype(float)


def batches(of: Any, steps: int = 40, ranks: int = 3, middles: Any = None, facts: Facts | None = None) -> list[Step]:
    """Steps whose ranks trained on the batches `of(step, rank)`, a place in IDS."""
    made = []
    for at in range(steps):
        own = {"_tt/batch": {rank: IDS[of(at, rank)] for rank in range(ranks)}}
        if middles is not None:
            own["_tt/batch_middle"] = {rank: float(middles(*of(at, rank))) for rank in range(ranks)}
        made.append(Step(at, {}, own, facts=facts or Facts()))
    return made


@pytest.mark.parametrize("back", [1, 3, 200])
def test_a_rank_that_replays_what_another_had_is_named_with_the_step_it_began(back: int) -> None:
    late = batches(lambda at, rank: (at - back, 0) if rank == 1 and at >= 210 else (at, rank), 213)
    (one,) = steps.run(late)
    assert (one.rule, one.severity, one.first_step, one.ranks) == ("replayed_batches", "warning", 210, (1,))
    assert one.evidence == {"of": 0, "back": back, "in_a_row": 3}
    assert steps.run(late[:-1]) == []


def test_of_two_ranks_with_one_batch_the_one_that_left_its_course_is_named() -> None:
    def of(at: int, rank: int) -> tuple[int, int]:
        return (at, 2 if rank == 0 and at >= 20 else rank)

    (both,) = steps.run(batches(of))
    assert (both.first_step, both.ranks) == (20, (0, 2))
    for course in (
        lambda at, rank: at * 96 + rank * 32,  # blocks of one sequence
        lambda at, rank: rank * 1000 + at,  # a range a rank
        lambda at, rank: rank * 1000 + IDS[at, rank] % 300,  # in any order
    ):
        (one,) = steps.run(batches(of, middles=course))
        assert (one.first_step, one.ranks) == (20, (0,))


@pytest.mark.parametrize(("known", "severity"), [(False, "info"), (True, "warning")])
def test_ranks_with_one_batch_from_the_start_may_share_a_model(known: bool, severity: str) -> None:
    found = steps.run(batches(lambda at, rank: (at, rank // 2), ranks=4, facts=Facts(data_parallel=known)))
    assert [(one.severity, one.first_step, one.ranks) for one in found] == [(severity, 0, (0, 1, 2, 3))]


def test_a_new_epoch_that_deals_the_batches_anew_is_no_replay() -> None:
    assert steps.run(batches(lambda at, rank: (at % 20, (rank + at // 20) % 3), 100)) == []


def test_batches_that_are_equal_by_chance_are_nothing() -> None:
    drawn = RNG.integers(50, size=(600, 4))
    assert steps.run(batches(lambda at, rank: (drawn[at, rank], 0), 600, ranks=4)) == []
