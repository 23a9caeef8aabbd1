"""The configuration of a sweep: what is taken, and what is said of the rest."""

from __future__ import annotations

import random
from typing import Any

import pytest

from torchtrack.sweeps import Plan
from torchtrack.sweeps.hyperband import Hyperband
from torchtrack.sweeps.methods import draw, size
from torchtrack.sweeps.space import Parameter

LR = {"values": [0.1, 0.01]}


def plan(**parameters: Any) -> Plan:
    return Plan.of({"method": "random", "parameters": parameters})


def drawn(asked: dict[str, Any], count: int = 200) -> list[Any]:
    rng = random.Random(0)
    parameter = Parameter.of("x", asked)
    return [parameter.draw(rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "is a mapping"),
        ({"method": "grid", "paramters": {}}, "did you mean 'parameters'"),
        ({"method": "gird", "parameters": {"lr": LR}}, "one of grid, random, bayes"),
        ({"method": "grid"}, "parameters takes a mapping"),
        ({"method": "grid", "parameters": {"lr": {"min": 0.0, "max": 1.0}}}, "'lr' is uniform"),
        ({"method": "bayes", "parameters": {"lr": LR}}, "needs a metric"),
        ({"method": "random", "parameters": {"lr": {"vals": [1]}}}, "has the key 'vals'"),
        ({"method": "random", "parameters": {"lr": {"min": 1}}}, "distribution takes one of"),
        ({"method": "random", "parameters": {"lr": {"distribution": "uniform", "min": 1}}}, "needs max"),
        ({"method": "random", "parameters": {"lr": {"min": 2, "max": 1}}}, "min <= max"),
        ({"method": "random", "parameters": {"lr": {"distribution": "log_uniform_values", "min": 0, "max": 1}}}, "0 <"),
        ({"method": "random", "parameters": {"lr": {"values": [1, 2], "probabilities": [0.5, 0.1]}}}, "together 1"),
        ({"method": "random", "parameters": {"lr": LR}, "run_cap": 0}, "1 or more"),
        ({"method": "random", "parameters": {"lr": LR}, "metric": {"name": "x", "goal": "min"}}, "'minimize' or"),
        ({"method": "random", "parameters": {"lr": LR}, "early_terminate": {"type": "envelope"}}, "type: hyperband"),
    ],
)
def test_what_is_no_sweep_is_told_what_is_allowed(config: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Plan.of(config)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ({"min": 1, "max": 4}, 1, 4),
        ({"min": 0.5, "max": 4}, 0.5, 4),
        ({"distribution": "log_uniform_values", "min": "1e-5", "max": 0.1}, 1e-5, 0.1),
        ({"distribution": "log_uniform", "min": -3, "max": 0}, 0.049, 1),
        ({"distribution": "inv_log_uniform", "min": 0, "max": 3}, 0.049, 1),
        ({"distribution": "inv_log_uniform_values", "min": 1e-5, "max": 0.1}, 1e-5, 0.1),
        ({"distribution": "normal", "mu": 10, "sigma": 0.1}, 9, 11),
        ({"distribution": "log_normal", "sigma": 0.01}, 0.9, 1.1),
        ({"distribution": "beta", "a": 2, "b": 2}, 0, 1),
    ],
)
def test_a_distribution_stays_within_its_bounds(asked: dict[str, Any], least: float, most: float) -> None:
    values = drawn(asked)

    assert all(least - 1e-12 <= value <= most + 1e-12 for value in values)
    assert len(set(values)) > 3


def test_rounded_distributions_give_multiples() -> None:
    assert set(drawn({"distribution": "q_uniform", "min": 0, "max": 8, "q": 4})) == {0, 4, 8}
    assert all(round(value / 0.5) * 0.5 == value for value in drawn({"distribution": "q_normal", "q": 0.5}))


def test_probabilities_weigh_values() -> None:
    values = drawn({"values": ["a", "b", "c"], "probabilities": [0.8, 0.2, 0.0]})

    assert values.count("a") > values.count("b") > values.count("c") == 0


def test_a_grid_is_every_combination_once() -> None:
    asked = {
        "lr": LR,
        "n": {"min": 1, "max": 3},
        "seed": {"value": 7},
        "q": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5},
    }
    grid = Plan.of({"method": "grid", "parameters": asked})
    cells = [tuple(draw(grid, number, "s", ()).values()) for number in range(size(grid) or 0)]

    assert len(cells) == len(set(cells)) == 2 * 3 * 3
    assert cells[:2] == [(0.1, 1, 7, 0.0), (0.1, 1, 7, 0.5)]


def test_a_cap_is_the_end_of_any_method() -> None:
    config = {"parameters": {"lr": LR}, "run_cap": 1}

    assert [size(Plan.of({**config, "method": method})) for method in ("grid", "random")] == [1, 1]
    assert size(plan(lr=LR)) is None


def test_chance_follows_from_the_sweep_and_leaves_the_process_alone() -> None:
    random.seed(1)
    before = random.getstate()
    free = plan(lr={"min": 0.0, "max": 1.0})
    first, second = draw(free, 0, "a", ()), draw(free, 1, "a", ())

    assert first == draw(free, 0, "a", ()) != second != draw(free, 1, "b", ())
    assert random.getstate() == before


def test_parameters_may_be_nested() -> None:
    nested = plan(optimizer={"parameters": {"lr": LR, "deep": {"parameters": {"x": 1}}}}, seed=3)

    assert list(nested.parameters) == [("optimizer", "lr"), ("optimizer", "deep", "x"), ("seed",)]


@pytest.mark.parametrize(
    ("asked", "brackets"),
    [({"min_iter": 3}, (3, 9, 27, 81)), ({"min_iter": 2, "eta": 2}, (2, 4, 8, 16)), ({"max_iter": 27, "s": 2}, (3, 9))],
)
def test_hyperband_compares_at_powers(asked: dict[str, Any], brackets: tuple[int, ...]) -> None:
    assert Hyperband.of({"type": "hyperband", **asked}).brackets[: len(brackets)] == brackets


def test_hyperband_stops_what_is_not_among_the_best_third() -> None:
    rule = Hyperband.of({"type": "hyperband", "min_iter": 2})
    others = [[1.0, 0.5], [1.0, 0.4], [1.0], [float("nan"), 0.7]]

    assert rule.stops([0.9, 0.8, 0.8], others, smaller_is_better=True)
    assert not rule.stops([1.1, 0.8, 0.8], others, smaller_is_better=False)
    assert not rule.stops([0.9, 0.3], others, smaller_is_better=True)
    assert not rule.stops([0.9], others, smaller_is_better=True)  # it has not come to a bracket
    assert not rule.stops([0.9, 0.8], [], smaller_is_better=True)  # nobody to compare with


def test_only_the_newest_bracket_counts_unless_it_is_strict() -> None:
    asked = {"type": "hyperband", "min_iter": 1}
    mine, others = [0.9, 0.8, 0.1], [[0.5, 0.5, 0.5], [0.4, 0.4, 0.4]]

    assert not Hyperband.of(asked).stops(mine, others, smaller_is_better=True)
    assert Hyperband.of({**asked, "strict": True}).stops(mine, others, smaller_is_better=True)
