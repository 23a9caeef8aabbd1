"""What an alert rule waits for in a run, and for how long that has held. Knows no store and no catalog."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from torchtrack.server.bodies import Body

Severity = Literal["info", "warning", "critical"]
Kind = Literal["matches", "ended", "above", "below", "not_finite", "absent", "finding"]

BADLY: Final = ("failed", "crashed", "lost")
"""States of a run that has ended as nobody wanted; who kills one knows."""
OF_A_METRIC: Final = frozenset({"above", "below", "not_finite", "absent"})
OF_VALUES: Final = frozenset({"above", "below", "not_finite"})
_NEEDS: Final[dict[str, set[str]]] = {
    "above": {"metric", "value"},
    "below": {"metric", "value"},
    "not_finite": {"metric"},
    "absent": {"metric"},
}
_LASTS: Final = frozenset({"above", "below", "absent"})
"""What may have to hold for a while."""


class When(Body):
    """What a rule waits for.

    `matches`: the run fits the rule's filter. `ended`: it failed, crashed or was lost. `above`, `below`, `not_finite`:
    values of a metric, as the page draws it. `absent`: the metric is not logged while the run goes on. `finding`: the
    stability rules found something at least so grave. With `for_steps` or `for_s` it has to hold so long; with both,
    whichever is reached first.
    """

    kind: Kind = "matches"
    metric: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")] | None = None
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    for_steps: Annotated[int, Field(ge=1, le=1 << 53)] | None = None
    for_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    least: Severity | None = None

    @model_validator(mode="after")
    def _check(self) -> When:
        needed = _NEEDS.get(self.kind, set())
        given = {name for name in ("metric", "value") if getattr(self, name) is not None}
        if given != needed:
            raise ValueError(f"{self.kind!r} takes {_listed(needed)}; got {_listed(given)}")
        if self.kind not in _LASTS and (self.for_steps or self.for_s):
            raise ValueError(f"{self.kind!r} holds at once: `for_steps` and `for_s` go with {_listed(set(_LASTS))}")
        if self.kind == "absent" and not (self.for_steps or self.for_s):
            raise ValueError("'absent' needs `for_steps` or `for_s`: after how long a metric is missed")
        if self.least is not None and self.kind != "finding":
            raise ValueError("`least` goes with 'finding'")
        return self

    def __str__(self) -> str:
        """In words."""
        what = {
            "matches": "the run fits the filter",
            "ended": "the run ends badly",
            "above": f"{self.metric} is above {self.value:g}" if self.value is not None else "",
            "below": f"{self.metric} is below {self.value:g}" if self.value is not None else "",
            "not_finite": f"{self.metric} is not finite",
            "absent": f"{self.metric} is not logged",
            "finding": f"a finding is {self.least or 'critical'}",
        }[self.kind]
        lasts = [f"{self.for_steps} steps"] if self.for_steps else []
        lasts += [f"{self.for_s:g} s"] if self.for_s else []
        return f"{what} for {' or '.join(lasts)}" if lasts else what

    def fits(self, value: float) -> bool:
        """Whether a value is what `above`, `below` and `not_finite` wait for."""
        if self.kind == "not_finite":
            return not math.isfinite(value)
        limit = 0.0 if self.value is None else self.value
        return value > limit if self.kind == "above" else value < limit

    def lasted(self, steps: int, us: int) -> bool:
        """Whether what has held for so many steps and microseconds has held for long enough."""
        if self.for_steps is None and self.for_s is None:
            return True
        long_enough = self.for_s is not None and us >= self.for_s * 1e6
        return long_enough or (self.for_steps is not None and steps >= self.for_steps)


def _listed(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "neither `metric` nor `value`"


@dataclass(frozen=True)
class Rule:
    """A rule as it is kept."""

    id: str
    project: str
    name: str
    filter: str
    severity: Severity
    when: When
    at: datetime
    """When it was saved: what was before is none of its business."""

    @property
    def since_us(self) -> int:
        """The same in microseconds since the epoch."""
        return int(self.at.timestamp() * 1e6)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Rule:
        """From a row of the catalog."""
        fields = {name: row[name] for name in ("id", "project", "name", "filter", "severity", "at")}
        return cls(**fields, when=When(**(row["when"] or {})))


@dataclass
class Line:
    """How far the values of a metric have been judged in an attempt of a run, and since when they have been bad."""

    attempt: int
    after: int | None = None
    """The last step that was judged."""
    since: tuple[int, int] | None = field(default=None)
    """Step and time of the first of the values that fit, up to the last one."""

    def take(self, when: When, step: int, time_us: int, value: float) -> bool:
        """Judge the next value; whether the condition holds at it."""
        self.after = step
        if not when.fits(value):
            self.since = None
            return False
        self.since = self.since or (step, time_us)
        return when.lasted(step - self.since[0], time_us - self.since[1])

    @classmethod
    def resumed(cls, when: When, attempt: int, step: int, time_us: int) -> Line:
        """As it was when the condition held at this step."""
        steps, seconds = when.for_steps or 0, when.for_s or 0.0
        return cls(attempt, step, (step - steps, time_us - int(seconds * 1e6)))
