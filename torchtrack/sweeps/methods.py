"""The next parameters of a sweep: each value of a grid, by chance, or where results so far promise most."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from torchtrack.errors import MissingDependencyError
from torchtrack.sweeps.plan import Plan
from torchtrack.sweeps.space import Parameter

Place = tuple[str, ...]
Values = Mapping[Place, Any]


def size(plan: Plan) -> int | None:
    """How many trials there are at most; None: there is no end."""
    whole = None
    if plan.method == "grid":
        whole = math.prod(len(each.grid("")) for each in plan.parameters.values())
    return min((count for count in (whole, plan.run_cap) if count is not None), default=None)


def draw(plan: Plan, number: int, seed: str, known: Sequence[tuple[Values, float]]) -> dict[Place, Any]:
    """The parameters of the trial with this number; the same arguments give the same ones.

    Args:
        plan: of the sweep.
        number: 0, 1, 2...
        seed: of the sweep. No random state of the process is read or changed.
        known: the parameters and the result of trials that have one.
    """
    if plan.method == "grid":
        return _cell(plan, number)
    rng = random.Random(f"{seed}-{number}")  # noqa: S311  # not for secrets
    if plan.method == "bayes":
        return _promising(plan, rng, known)
    return {place: parameter.draw(rng) for place, parameter in plan.parameters.items()}


def _cell(plan: Plan, number: int) -> dict[Place, Any]:
    """The last parameter changes first."""
    found: dict[Place, Any] = {}
    for place in reversed(list(plan.parameters)):
        values = plan.parameters[place].grid("")
        number, at = divmod(number, len(values))
        found[place] = values[at]
    return {place: found[place] for place in plan.parameters}


def _promising(plan: Plan, rng: random.Random, known: Sequence[tuple[Values, float]]) -> dict[Place, Any]:
    """What optuna's tree-structured Parzen estimator asks for; by chance what it has no distribution for."""
    try:
        import optuna
    except ImportError:
        raise MissingDependencyError(
            "a sweep with the method 'bayes' needs optuna: pip install 'torchtrack[sweeps]'; 'random' and 'grid' do not"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    modelled = {place: made for place, each in plan.parameters.items() if (made := _distribution(optuna, each))}
    names = {place: ".".join(place) for place in modelled}
    spaces = {names[place]: made for place, made in modelled.items()}
    sampler = optuna.samplers.TPESampler(seed=rng.getrandbits(32))
    study = optuna.create_study(direction=plan.goal, sampler=sampler)
    for values, result in known:
        told = {names[place]: _told(plan.parameters[place], values.get(place)) for place in modelled}
        if all(name in told and spaces[name]._contains(spaces[name].to_internal_repr(told[name])) for name in told):
            study.add_trial(optuna.trial.create_trial(params=told, distributions=spaces, value=result))
    asked = study.ask(spaces).params
    found = {place: parameter.draw(rng) for place, parameter in plan.parameters.items()}
    for place in modelled:
        parameter, value = plan.parameters[place], asked[names[place]]
        found[place] = parameter.values[value] if parameter.values else value
    return found


def _told(parameter: Parameter, value: Any) -> Any:
    """A value as the model has it: one of several by its place among them."""
    if not parameter.values:
        return value
    return parameter.values.index(value) if value in parameter.values else -1


def _distribution(optuna: Any, parameter: Parameter) -> Any:
    kinds, of = optuna.distributions, parameter.given
    low, high = of.get("min", 0), of.get("max", 0)
    if parameter.is_fixed:
        return None
    if parameter.values:
        return kinds.CategoricalDistribution(list(range(len(parameter.values))))
    name = parameter.distribution
    if name == "int_uniform":
        return kinds.IntDistribution(int(low), int(high))
    if name == "uniform":
        return kinds.FloatDistribution(low, high)
    if name == "q_uniform":
        return kinds.FloatDistribution(low, low + math.floor((high - low) / of["q"]) * of["q"], step=of["q"])
    if name in ("log_uniform_values", "inv_log_uniform_values"):
        return kinds.FloatDistribution(low, high, log=True)
    if name in ("log_uniform", "inv_log_uniform"):
        ends = (math.exp(low), math.exp(high)) if name == "log_uniform" else (math.exp(-high), math.exp(-low))
        return kinds.FloatDistribution(*ends, log=True)
    return None
