"""What a sweep is asked to do: its configuration, checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from torchtrack.sweeps.hyperband import Hyperband
from torchtrack.sweeps.space import Parameter

METHODS: Final = ("grid", "random", "bayes")
KEYS: Final = (
    *("method", "metric", "parameters", "name", "description", "project", "program", "command", "run_cap"),
    "early_terminate",
)
_OF_OTHERS: Final = ("entity", "controller")
"""Keys of wandb's configurations that ask for nothing here."""
DEFAULT_COMMAND: Final = ("${env}", "${interpreter}", "${program}", "${args}")


@dataclass(frozen=True)
class Plan:
    """A sweep's configuration.

    Attributes:
        method: how parameters are drawn.
        parameters: by their place in the configuration of a run: ("optimizer", "lr").
        metric: what it is about; None if nothing is compared.
        goal: what is better.
        run_cap: trials at most.
        program: the script of a trial, for agents that are not given a function.
        command: how it is started.
        early_terminate: which trials are stopped before their end.
        name: for people.
        description: for people.
    """

    method: str
    parameters: Mapping[tuple[str, ...], Parameter]
    metric: str | None = None
    goal: Literal["minimize", "maximize"] = "minimize"
    run_cap: int | None = None
    program: str | None = None
    command: tuple[str, ...] = DEFAULT_COMMAND
    early_terminate: Hyperband | None = None
    name: str | None = None
    description: str | None = None

    @classmethod
    def of(cls, config: Any) -> Plan:
        """The plan that a configuration describes.

        Raises:
            ValueError: it is none; the message says what is allowed.
        """
        if not isinstance(config, Mapping):
            raise ValueError(f"the configuration of a sweep is a mapping, got {type(config).__name__} {config!r:.60}")
        for key in config:
            if key not in (*KEYS, *_OF_OTHERS):
                near = difflib.get_close_matches(str(key), KEYS, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"a sweep has no {key!r}: it takes {', '.join(KEYS)}{hint}")
        method = config.get("method")
        if method not in METHODS:
            raise ValueError(f"a sweep's method takes one of {', '.join(METHODS)}; got {method!r}")
        parameters = dict(_flat(config.get("parameters")))
        if method == "grid":
            for place, parameter in parameters.items():
                parameter.grid(".".join(place))
        metric, goal = _metric(config.get("metric"))
        stops = None if config.get("early_terminate") is None else Hyperband.of(config["early_terminate"])
        if metric is None and (method == "bayes" or stops):
            what = "method 'bayes'" if method == "bayes" else "early_terminate"
            raise ValueError(f'{what} needs a metric, like {{"name": "val/loss", "goal": "minimize"}}')
        return cls(
            method,
            parameters,
            metric,
            goal,
            _cap(config.get("run_cap")),
            config.get("program"),
            _command(config.get("command")),
            stops,
            config.get("name"),
            config.get("description"),
        )


def _flat(parameters: Any, above: tuple[str, ...] = ()) -> Sequence[tuple[tuple[str, ...], Parameter]]:
    if not isinstance(parameters, Mapping) or not parameters:
        where = f"{'.'.join(above)}: " if above else ""
        raise ValueError(f'{where}parameters takes a mapping like {{"lr": {{"values": [0.1, 0.01]}}}}')
    found: list[tuple[tuple[str, ...], Parameter]] = []
    for name, asked in parameters.items():
        place = (*above, str(name))
        if isinstance(asked, Mapping) and "parameters" in asked:
            found += _flat(asked["parameters"], place)
        else:
            found.append((place, Parameter.of(".".join(place), asked)))
    return found


def _metric(asked: Any) -> tuple[str | None, Literal["minimize", "maximize"]]:
    if asked is None:
        return None, "minimize"
    named = {"name": asked} if isinstance(asked, str) else asked
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str) or not named["name"]:
        raise ValueError(f'metric takes {{"name": "val/loss", "goal": "minimize"}}, got {asked!r:.80}')
    goal = named.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise ValueError(f"the goal of a metric takes 'minimize' or 'maximize'; got {goal!r}")
    return named["name"], "minimize" if goal == "minimize" else "maximize"


def _cap(asked: Any) -> int | None:
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise ValueError(f"run_cap takes a number of runs, 1 or more; got {asked!r}")
    return asked


def _command(asked: Any) -> tuple[str, ...]:
    if asked is None:
        return DEFAULT_COMMAND
    if not isinstance(asked, (list, tuple)) or not asked:
        raise ValueError(f"command takes a list of words like {list(DEFAULT_COMMAND)}, got {asked!r:.80}")
    return tuple(map(str, asked))
