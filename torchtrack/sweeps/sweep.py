"""A sweep in the folder of runs: what was asked, what was drawn, and what came of it.

<dir>/sweeps/<id>/sweep.json     the configuration, the project, when it was made
<dir>/sweeps/<id>/trials.jsonl   a line a trial: its number and its parameters
<dir>/sweeps/<id>/lock           held while one is drawn
<dir>/sweeps/<id>/stopped        there once no more are to be drawn
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from torchtrack.api import Api, Run
from torchtrack.errors import TorchtrackError
from torchtrack.settings import TRIAL, Settings
from torchtrack.sweeps import methods
from torchtrack.sweeps.methods import Place
from torchtrack.sweeps.plan import Plan


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, before it is one."""

    sweep: str
    number: int
    project: str
    directory: Path
    values: Mapping[Place, Any]

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return f"{self.sweep}-{self.number}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What its config holds, nested."""
        found: dict[str, Any] = {}
        for place, value in self.values.items():
            at = found
            for name in place[:-1]:
                at = at.setdefault(name, {})
            at[place[-1]] = value
        return found

    @property
    def environ(self) -> dict[str, str]:
        """What tells `init` in this process, or in those that it starts, that its run is this trial."""
        told = {
            "sweep": self.sweep,
            "number": self.number,
            "project": self.project,
            "id": self.run_id,
            "dir": str(self.directory),
            "parameters": self.parameters,
        }
        return {TRIAL: json.dumps(told)}


@dataclass(frozen=True)
class Outcome:
    """What became of a trial; no state: it has not become a run."""

    trial: Trial
    state: str | None
    value: float | None
    """Of the sweep's metric, in the summary of the run."""


class Sweep:
    """A sweep that is there.

    Args:
        directory: the folder of runs; by default where this process writes its own.
        id: of the sweep; `project/id` and `entity/project/id` do too.

    Raises:
        TorchtrackError: there is no such sweep.
    """

    def __init__(self, id: str, directory: Path | None = None) -> None:  # noqa: A002  # the word users know
        self.directory = (directory or Settings.resolve(mode="offline").dir).absolute()
        self.id = str(id).strip("/").rpartition("/")[2]
        self._folder = self.directory / "sweeps" / self.id
        known = sorted(path.parent.name for path in self.directory.glob("sweeps/*/sweep.json"))
        if self.id not in known:
            there = f"there are {', '.join(known[:8])}" if known else "there are none; make one: torchtrack sweep FILE"
            raise TorchtrackError(f"no sweep {self.id!r} in {self.directory}: {there}")
        facts = json.loads((self._folder / "sweep.json").read_text())
        self.config: dict[str, Any] = facts["config"]
        self.project: str = facts["project"]
        self.plan = Plan.of(self.config)
        self._prior: list[str] = facts.get("prior_runs", [])
        self._api = Api(self.directory)

    @classmethod
    def make(
        cls,
        config: Any,
        *,
        project: str | None = None,
        directory: Path | None = None,
        prior_runs: Sequence[str] = (),
    ) -> Sweep:
        """A new sweep.

        Args:
            config: see the documentation.
            project: of its runs; by default that of the configuration, else that of this process.
            directory: the folder of runs.
            prior_runs: ids of runs whose results the method "bayes" may use from the start.

        Raises:
            ValueError: the configuration is none; the message says what is allowed.
        """
        Plan.of(config)
        settings = Settings.resolve(mode="offline", project=project or config.get("project"))
        top = (directory or settings.dir).absolute()
        number = secrets.token_hex(4)
        folder = top / "sweeps" / number
        folder.mkdir(parents=True, mode=0o700)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = {"format": 1, "config": config, "project": settings.project, "created_at": created}
        text = json.dumps({**facts, "prior_runs": list(prior_runs)}, indent=1, default=str)
        fresh = folder / "sweep.json.new"
        fresh.write_text(text)
        fresh.replace(folder / "sweep.json")
        return cls(number, top)

    @property
    def name(self) -> str:
        """For people."""
        return self.plan.name or self.id

    @property
    def size(self) -> int | None:
        """How many trials there are at most; None: there is no end."""
        return methods.size(self.plan)

    @property
    def is_stopped(self) -> bool:
        """Whether no more trials are to be drawn."""
        return (self._folder / "stopped").exists()

    @property
    def is_over(self) -> bool:
        """Whether no more trials will be drawn."""
        return self.is_stopped or (self.size is not None and len(self.trials()) >= self.size)

    def stop(self) -> None:
        """Draw no more; trials that run go on."""
        (self._folder / "stopped").touch()

    def trials(self) -> list[Trial]:
        """Those that were drawn, in order."""
        try:
            lines = (self._folder / "trials.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the last one may be half, after a crash
                told = json.loads(line)
                values = {tuple(place): value for place, value in told["values"]}
                found.append(Trial(self.id, told["number"], self.project, self.directory, values))
        return found

    def draw(self) -> Trial | None:
        """The next trial, which nobody else gets; None if there are no more. Waits for others that draw.

        Raises:
            MissingDependencyError: the method needs a package that is not installed.
        """
        with self._locked():
            drawn = self.trials()
            if self.is_stopped or (self.size is not None and len(drawn) >= self.size):
                return None
            number = drawn[-1].number + 1 if drawn else 0
            values = methods.draw(self.plan, number, self.id, self._known() if self.plan.method == "bayes" else ())
            line = json.dumps({"number": number, "values": [[list(at), value] for at, value in values.items()]})
            with (self._folder / "trials.jsonl").open("a") as file:
                file.write(f"\n{line}\n" if drawn else f"{line}\n")
                file.flush()
                os.fsync(file.fileno())
            return Trial(self.id, number, self.project, self.directory, values)

    def runs(self) -> dict[int, Run]:
        """The runs of the trials that have begun, by their numbers."""
        there = {run.id: run for run in self._api.runs(self.project)}
        return {trial.number: there[trial.run_id] for trial in self.trials() if trial.run_id in there}

    def outcomes(self) -> list[Outcome]:
        """What has become of each trial by now."""
        runs = self.runs()
        found = []
        for trial in self.trials():
            run = runs.get(trial.number)
            found.append(Outcome(trial, None if run is None else run.state, None if run is None else self._value(run)))
        return found

    def best(self) -> Outcome | None:
        """The trial with the best result; None as long as none has one."""
        some = [outcome for outcome in self.outcomes() if outcome.value is not None]
        sign = 1.0 if self.plan.goal == "minimize" else -1.0
        return min(some, key=lambda outcome: sign * cast("float", outcome.value), default=None)

    def histories(self) -> dict[int, list[float]]:
        """The values of the metric that each trial has logged so far, by its number."""
        found: dict[int, list[float]] = {}
        metric = self.plan.metric or ""
        for number, run in self.runs().items():
            if metric in run.keys():  # noqa: SIM118  # it is no mapping
                found[number] = run.history([metric])[metric].drop_null().to_pylist()
        return found

    def _value(self, run: Run) -> float | None:
        value = run.summary.get(self.plan.metric or "")
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    def _known(self) -> list[tuple[Mapping[Place, Any], float]]:
        found = [(each.trial.values, each.value) for each in self.outcomes() if each.value is not None]
        for name in self._prior:
            run = self._api.run(name)
            value = self._value(run)
            if value is not None:
                found.append(({place: _inside(run.config, place) for place in self.plan.parameters}, value))
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _inside(config: Any, place: Place) -> Any:
    for name in place:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config
