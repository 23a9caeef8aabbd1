"""A rank that trains on something else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.stability import steps
from tests.stability.steps import RNG, by_rank, rules_of
from torchtrack.stability import Facts, Step
from torchtrack.stability.rules.rank_skew import RankSkew


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_rank_with_twice_the_loss_is_named_with_the_step_it_began(ranks: int) -> None:
    losses = np.exp(np.random.default_rng(ranks).normal(0, 0.2, (60, ranks)))
    losses[30:, 1] *= 2
    (one,) = steps.run(by_rank("loss", losses[:50]))
    assert (one.rule, one.ranks) == ("rank_skew", (1,))
    assert abs(one.first_step - 30) <= 3


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.5])
def test_ranks_that_differ_by_chance_are_alike(spread: float) -> None:
    assert steps.run(by_rank("loss", np.exp(RNG.normal(0, spread, (400, 4))))) == []


@pytest.mark.parametrize(("factor", "found"), [(1.3, False), (1.5, True)])
def test_a_loss_differs_by_forty_percent(factor: float, found: bool) -> None:
    losses = np.ones((60, 4))
    losses[20:, 2] *= factor
    assert rules_of(steps.run(by_rank("loss", losses))) == ["rank_skew"] * found


def test_a_rank_whose_own_gradients_are_larger_is_named_from_their_norm_before_the_average() -> None:
    norms = np.exp(RNG.normal(0, 0.2, (60, 4)))
    norms[20:, 2] *= 3
    (one,) = steps.run(by_rank("watch/local_grad_norm", norms))
    assert (one.rule, one.severity, one.ranks) == ("rank_skew", "warning", (2,))


@pytest.mark.parametrize("name", ["tokens", "train/num_tokens", "tokens_per_second", "samples"])
def test_a_rank_that_has_more_of_the_data_is_noted(name: str) -> None:
    tokens = np.full((40, 4), 4096.0)
    tokens[10:, 3] = 6000.0
    (one,) = steps.run(by_rank(name, tokens))
    assert (one.rule, one.severity, one.ranks) == ("rank_skew", "info", (3,))


def memory(values: Any) -> list[Step]:
    """[rounds, ranks] of memory: each rank tells its own at a step of its own."""
    places = [(at, rank) for at in range(len(values)) for rank in range(len(values[0]))]
    name = "system/process/memory_rss_bytes"
    return [Step(step, {}, {name: {rank: values[at][rank]}}) for step, (at, rank) in enumerate(places)]


def test_a_rank_that_takes_twice_the_memory_of_the_others_is_noted_although_each_tells_at_another_step() -> None:
    used = np.full((40, 3), 2e9)
    assert steps.run(memory(used)) == []
    used[5:, 1] = 5e9
    (one,) = steps.run(memory(used))
    assert (one.rule, one.severity, one.ranks, one.names) == (
        "rank_skew", "info", (1,), ("system/process/memory_rss_bytes",)
    )  # fmt: skip


def test_a_rank_with_less_memory_than_the_others_is_none() -> None:
    used = np.full((40, 3), 2e9)
    used[5:, 1] = 5e8
    assert steps.run(memory(used)) == []


def test_ranks_that_hold_other_parameters_are_not_compared() -> None:
    norms = np.exp(RNG.normal(0, 0.2, (60, 4)))
    norms[:, 2:] *= 8  # a later stage of a pipeline
    stages = Facts(peers={0: "first", 1: "first", 2: "second", 3: "second"})
    assert steps.run(replace(step, facts=stages) for step in by_rank("watch/local_grad_norm", norms)) == []
    norms[:, 3] *= 4
    (one,) = steps.run(replace(step, facts=stages) for step in by_rank("watch/local_grad_norm", norms))
    assert one.ranks == (3,)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 16, 64])
def test_the_odd_rank_alone_is_named_among_any_number_of_ranks(ranks: int) -> None:
    for seed in range(8):
        random = np.random.default_rng([ranks, seed])
        odd, at, factor = (
            int(random.integers(ranks)),
            int(random.integers(12, 24)),
            float(random.choice([0.4, 2.0, 3.0])),
        )
        metrics = {name: np.exp(random.normal(0, 0.15, (48, ranks))) for name in ("loss", "watch/local_grad_norm")}
        for values in metrics.values():
            values[at:, odd] *= factor
        rows = [
            Step(step, {}, {name: dict(enumerate(own[step].tolist())) for name, own in metrics.items()})
            for step in range(48)
        ]
        (one,) = steps.run(rows, [RankSkew()])
        assert one.ranks == (odd if ranks > 2 or factor > 1 else 1 - odd,), (seed, odd, at, factor)
        assert abs(one.first_step - at) <= 3, (seed, odd, at, factor)


def test_two_ranks_of_five_that_are_odd_are_both_named_and_no_sound_one() -> None:
    losses = np.exp(RNG.normal(0, 0.1, (40, 5)))
    losses[10:, 1] *= 2
    losses[10:, 4] *= 8
    (one,) = steps.run(by_rank("loss", losses))
    assert one.ranks == (1, 4)


def test_a_rank_that_logs_seldom_is_compared_at_the_steps_it_logged() -> None:
    losses = np.exp(RNG.normal(0, 0.1, (80, 3)))
    losses[:, 2] *= 2
    rows = by_rank("loss", losses)
    for at, step in enumerate(rows):
        if at % 2:
            del step.ranks["loss"][2]  # type: ignore[attr-defined]
    (one,) = steps.run(rows)
    assert one.ranks == (2,)
