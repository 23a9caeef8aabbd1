"""What the rules conclude: a finding, and the sign at one step that it is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

Severity = Literal["info", "warning", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "critical")


@dataclass(frozen=True)
class Sign:
    """What a rule sees of one thing (a tensor, a metric, a rank) at one step.

    Args:
        why: a sentence of what was seen, with numbers.
        look_at: a sentence of what to look at.
        value: how bad it is, in the rule's own measure; larger is worse.
        severity: how bad it is for people.
        kind: kind of the tensors.
        names: tensors or metrics.
        ranks: ranks, where the fault is of some.
        evidence: numbers that the sentences rest on; plain JSON.
        since: the step at which it began, if the rule can tell; else the first at which it was seen.
        opens: False keeps an open finding open, but opens none: between two limits.
    """

    why: str
    look_at: str
    value: float
    severity: Severity = "warning"
    kind: str = ""
    names: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    since: int | None = None
    opens: bool = True


@dataclass(frozen=True)
class Finding:
    """Something that is or was wrong with a run over some steps."""

    rule: str
    severity: Severity
    first_step: int
    last_step: int
    """The last step at which it was seen."""
    why: str
    look_at: str = ""
    kind: str = ""
    names: tuple[str, ...] = ()
    """Tensors or metrics; those that showed it first come first."""
    ranks: tuple[int, ...] = ()
    value: float = math.nan
    """The worst seen, in the rule's own measure."""
    is_open: bool = False
    """Whether it has not been seen to end."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    consequences: tuple[Mapping[str, Any], ...] = ()
    """What followed from it: rule, first_step, severity, names and why of each."""
    cause: str = ""
    """The id of the finding that this one is a consequence of; empty for one that stands for itself."""
    before: int = 0
    """How many findings of this rule began at the same step before it."""

    @property
    def id(self) -> str:
        """What tells it from the other findings of a run."""
        return identity(self.rule, self.first_step, self.before)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], step: int | None = None) -> Finding:
        """The inverse; what is missing or cannot be read takes its default.

        Args:
            data: as `as_dict` made it, or what somebody else recorded as a finding.
            step: where it was recorded, for one that does not say.
        """
        first = _whole(data.get("first_step"), step or 0)
        severity = data.get("severity")
        return cls(
            rule=str(data.get("rule") or "finding"),
            severity=severity if severity in SEVERITIES else "info",
            first_step=first,
            last_step=_whole(data.get("last_step"), first),
            why=str(data.get("why") or ""),
            look_at=str(data.get("look_at") or ""),
            kind=str(data.get("kind") or ""),
            names=tuple(str(name) for name in _list(data.get("names"))),
            ranks=tuple(rank for rank in _list(data.get("ranks")) if isinstance(rank, int)),
            value=float(value) if isinstance(value := data.get("value"), (int, float)) else math.nan,
            is_open=bool(data.get("is_open", False)),
            evidence=evidence if isinstance(evidence := data.get("evidence"), dict) else {},
            consequences=tuple(part for part in _list(data.get("consequences")) if isinstance(part, dict)),
            cause=str(data.get("cause") or ""),
            before=_whole(data.get("before"), 0),
        )


def identity(rule: str, first_step: int, before: int) -> str:
    """What tells a finding from the others of a run."""
    return f"{rule}-{first_step}" + (f"-{before + 1}" if before else "")


def worst(*severities: Severity) -> Severity:
    """The gravest of some severities."""
    return max(severities, key=SEVERITIES.index)


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []
