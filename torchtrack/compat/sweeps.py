"""`wandb.sweep`, `agent` and `controller`: sweeps of this folder of runs (torchtrack/sweeps), in wandb's words."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchtrack import api
from torchtrack.compat.said import ignored
from torchtrack.run import say
from torchtrack.sweeps import Sweep, work


def sweep(
    sweep: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    entity: str | None = None,
    project: str | None = None,
    prior_runs: Sequence[str] | None = None,
) -> str:
    """Make a sweep.

    Args:
        sweep: its configuration, or a function that returns it.
        entity: ignored.
        project: of its runs.
        prior_runs: ids of runs whose results the method "bayes" knows from the start.

    Returns:
        The id, for `agent`.

    Raises:
        ValueError: the configuration is none; the message says what is allowed.
    """
    if entity:
        ignored("sweep()", "entity")
    config = sweep() if callable(sweep) else sweep
    made = Sweep.make(config, project=project, prior_runs=prior_runs or ())
    say(f"sweep {made.id} of {made.project} is in {made.directory}; more agents: torchtrack agent {made.id}")
    return made.id


def agent(
    sweep_id: str,
    function: Callable[[], Any] | None = None,
    entity: str | None = None,
    project: str | None = None,
    count: int | None = None,
    forward_signals: bool = False,
    term_timeout: int | None = None,
    max_consecutive_failed_runs: int | None = None,
) -> None:
    """Run trials of a sweep, in this thread, until it is over.

    Args:
        sweep_id: which; `project/id` and `entity/project/id` do too.
        function: called once a trial; None runs the program of the configuration.
        entity: ignored.
        project: of the sweep, which its id tells.
        count: trials at most.
        forward_signals: as with True, a program gets the SIGTERM and the Ctrl-C of its agent.
        term_timeout: seconds that a program may take to end then (30 by default).
        max_consecutive_failed_runs: trials that fail in a row after which the agent stops (3 by default).

    Raises:
        TorchtrackError: there is no such sweep.
        ValueError: no function is given, and the sweep names no program.
    """
    if entity:
        ignored("agent()", "entity")
    del project, forward_signals
    given = {"patience_s": term_timeout, "max_failures": max_consecutive_failed_runs}
    work(Sweep(sweep_id), function, count, **{name: value for name, value in given.items() if value is not None})


class Controller:
    """A sweep that is put together call by call. Who draws parameters are the agents; this only looks on.

    Args:
        sweep_id_or_config: a sweep that is there, or the configuration of one to be made by `create`.
        entity: ignored.
        project: of its runs.
    """

    def __init__(
        self,
        sweep_id_or_config: str | Mapping[str, Any] | None = None,
        entity: str | None = None,
        project: str | None = None,
    ) -> None:
        if entity:
            ignored("controller()", "entity")
        self._project = project
        self._sweep = Sweep(sweep_id_or_config) if isinstance(sweep_id_or_config, str) else None
        given = sweep_id_or_config if isinstance(sweep_id_or_config, Mapping) else {}
        self._config: dict[str, Any] = dict(self._sweep.config if self._sweep else given)

    @property
    def sweep_id(self) -> str | None:
        """None until it is created."""
        return self._sweep.id if self._sweep else None

    @property
    def sweep_config(self) -> dict[str, Any]:
        """The configuration as it is now."""
        return dict(self._config)

    def configure(self, sweep_dict_or_config: Mapping[str, Any]) -> None:
        """Set the whole configuration."""
        self._config = dict(sweep_dict_or_config)

    def configure_search(self, search: str) -> None:
        """Set the method."""
        self._config["method"] = search

    def configure_metric(self, metric: str, goal: str = "minimize") -> None:
        """Set the metric and what is better."""
        self._config["metric"] = {"name": metric, "goal": goal}

    def configure_parameter(self, name: str, *values: Any, **asked: Any) -> None:
        """Set a parameter: values=, value=, or a distribution with its numbers."""
        given = {"values": values[0]} if values else {}
        found = {**given, **{key: value for key, value in asked.items() if value is not None}}
        self._config.setdefault("parameters", {})[name] = found

    def configure_program(self, program: str) -> None:
        """Set the script of a trial."""
        self._config["program"] = program

    def configure_stopping(self, stopping: str, **asked: Any) -> None:
        """Set which trials are stopped early."""
        self._config["early_terminate"] = {"type": stopping, **asked}

    def create(self) -> str:
        """Make the sweep.

        Raises:
            ValueError: the configuration is none; the message says what is allowed.
        """
        self._sweep = Sweep.make(self._config, project=self._project)
        return self._sweep.id

    def done(self) -> bool:
        """Whether all trials were drawn and have ended."""
        if self._sweep is None or not self._sweep.is_over:
            return False
        return all(outcome.state not in (None, "running") for outcome in self._sweep.outcomes())

    def print_status(self) -> None:
        """One line: how many trials are in which state."""
        states = [outcome.state or "drawn" for outcome in self._sweep.outcomes()] if self._sweep else []
        told = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        say(f"sweep {self.sweep_id or 'to be created'}: {told or 'no trials yet'}")


controller = Controller


class SeenSweep:
    """A sweep as wandb's `Api` shows one.

    Args:
        source: the Api that was asked; it makes the runs.
        sweep: which.
    """

    def __init__(self, source: Any, sweep: Sweep) -> None:
        self._source, self._sweep = source, sweep
        self.id, self.name, self.config, self.project = sweep.id, sweep.name, sweep.config, sweep.project

    def __repr__(self) -> str:
        return f"<Sweep {self.project}/{self.id} ({self.state})>"

    @property
    def entity(self) -> str:
        """There are none here."""
        return os.environ.get("WANDB_ENTITY", "")

    @property
    def path(self) -> list[str]:
        """Entity, project and id."""
        return [self.entity, self.project, self.id]

    @property
    def state(self) -> str:
        """PENDING, RUNNING, STOPPED or FINISHED."""
        states = [outcome.state for outcome in self._sweep.outcomes()]
        if "running" in states or not self._sweep.is_over:
            return "RUNNING" if states else "PENDING"
        return "STOPPED" if self._sweep.is_stopped else "FINISHED"

    @property
    def expected_run_count(self) -> int | None:
        """How many runs it will have; None: there is no end."""
        return self._sweep.size

    @property
    def order(self) -> str | None:
        """The metric as an order of runs, the best first."""
        metric = self._sweep.plan.metric
        return metric and f"{'-' if self._sweep.plan.goal == 'maximize' else '+'}summary_metrics.{metric}"

    @property
    def runs(self) -> list[api.Run]:
        """Its runs, with wandb's methods."""
        return [self._source.seen(run) for run in self._sweep.runs().values()]

    def best_run(self, order: str | None = None) -> Any:
        """The run with the best value of the metric, or of another `order`; None if there is none."""
        wanted = order or self.order
        if wanted is None:
            return None
        ordered = self._source.ordered(self.runs, wanted)
        return ordered[0] if ordered else None
