"""From signs to findings: opening and closing with hysteresis, one finding for many tensors, consequences folded in.

    Step -> each rule's update -> signs by key -> findings open, grow, close -> what changed

A key (a tensor, a metric, a rank) opens a finding once the rule has seen it `patience` times in a row, and leaves it
after `calm` looks that saw nothing. Keys of a rule that open near each other share a finding. A finding that follows
within `horizon` steps of one that may cause it is folded into that one. A rule may be `distinct`: what it finds is
grave by itself, and near enough to share or fold is only what is still going on, or the same in the same place again.

Memory is bounded: a state for each key that is not calm, and at most a fixed number of findings a rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from torchtrack import guard
from torchtrack.stability.finding import SEVERITIES, Finding, Severity, Sign, identity, worst
from torchtrack.stability.metrics import is_learning_rate
from torchtrack.stability.step import Step

_HORIZON: Final = 100
_HINT_STEPS: Final = 20
_MAX_FINDINGS: Final = 32
_MAX_NAMES: Final = 64
_LR_CHANGE: Final = 2.0


class Rule(Protocol):
    """Something to look for. One instance sees one run, step by step, in order.

    One that also has `distinct = True` stands for itself: its findings are folded only into a cause that goes on.
    """

    name: str
    patience: int
    """Looks in a row that have to see it before it is a finding."""
    calm: int
    """Looks in a row that see nothing before it is over."""
    causes: frozenset[str]
    """Rules whose findings, soon after one of this, are its consequences."""

    def update(self, step: Step) -> Mapping[str, Sign | None]:
        """What was looked at in this step, by a key for each thing: a sign, or None where nothing is wrong.

        Keys that a step says nothing of are left out. Runs on a background thread; keeps bounded state.
        """


@dataclass(slots=True)
class _Key:
    """Something a rule has seen signs of."""

    sign: Sign
    """The first of the row that may open a finding;"""
    since: int
    """and its step, or the one that it says."""
    seen: int = 0
    calm: int = 0
    draft: _Draft | None = None


@dataclass(slots=True, eq=False)
class _Draft:
    """A finding as it grows."""

    rule: Rule
    first_step: int
    sign: Sign
    """The first one: its sentences are the finding's."""
    last_step: int
    worst: Sign
    severity: Severity = "info"
    keys: set[str] = field(default_factory=set)
    """What is wrong now;"""
    ever: set[str] = field(default_factory=set)
    """and what was at any time, up to a number."""
    names: dict[str, None] = field(default_factory=dict)
    ranks: dict[int, None] = field(default_factory=dict)
    hints: tuple[str, ...] = ()
    cause: _Draft | None = None
    consequences: list[_Draft] = field(default_factory=list)

    before: int = 0
    """How many findings of the rule began at the same step before it."""

    def see(self, sign: Sign, step: int) -> bool:
        """Take a further sign in. True if it is graver than those before."""
        before = self.severity
        self.last_step = max(self.last_step, step)
        self.severity = worst(self.severity, sign.severity)
        if sign.value > self.worst.value:
            self.worst = sign
        return before != self.severity

    def add(self, key: str, sign: Sign, step: int) -> None:
        """Take a further thing in that shows it."""
        self.keys.add(key)
        if len(self.ever) < _MAX_NAMES:
            self.ever.add(key)
            self.names.update(dict.fromkeys(sign.names))
            self.ranks.update(dict.fromkeys(sign.ranks))
        self.see(sign, step)

    def is_where(self, sign: Sign) -> bool:
        """Whether this began with the same tensor on the same ranks."""
        return sign.names[:1] == self.sign.names[:1] and self.ranks.keys() == set(sign.ranks)

    def lasts(self, into: str) -> bool:
        """Whether this, or what followed from it, is going on and may cause findings of that rule."""
        return any(draft.keys and into in draft.rule.causes for draft in (self, *self.consequences))

    @property
    def id(self) -> str:
        return identity(self.rule.name, self.first_step, self.before)

    def finding(self) -> Finding:
        """As it stands."""
        more = len(self.names) - len(self.sign.names)
        why = self.sign.why + (f" The same holds for {more} more." if more > 0 else "")
        if self.hints:
            why += f" Near it: {'; '.join(self.hints)}. That may be why, or chance."
        return Finding(
            rule=self.rule.name,
            severity=worst(self.severity, *(c.severity for c in self.consequences)),
            first_step=self.first_step,
            last_step=self.last_step,
            why=why,
            look_at=self.sign.look_at,
            kind=self.sign.kind,
            names=tuple(self.names),
            ranks=tuple(sorted(self.ranks)),
            value=self.worst.value,
            is_open=bool(self.keys),
            evidence={**self.sign.evidence, "worst": dict(self.worst.evidence)}
            if self.worst is not self.sign
            else dict(self.sign.evidence),
            consequences=tuple(consequence.brief() for consequence in self.consequences),
            cause=self.cause.id if self.cause else "",
            before=self.before,
        )

    def brief(self) -> dict[str, Any]:
        """What the finding that it is folded into says of it."""
        return {
            "rule": self.rule.name,
            "severity": self.severity,
            "first_step": self.first_step,
            "names": list(self.names)[:8],
            "ranks": sorted(self.ranks),
            "why": self.sign.why,
        }


class Monitor:
    """Runs rules over the steps of a run.

    **Threads:** one at a time; never the training thread.

    Args:
        rules: fresh rules, causes before consequences: of two that open at the same step the earlier is the cause.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = list(rules)
        self._keys: dict[str, dict[str, _Key]] = {rule.name: {} for rule in self._rules}
        self._drafts: list[_Draft] = []
        self._sampled: deque[int] = deque(maxlen=3)
        self._rates: dict[str, float] = {}
        self._events: deque[tuple[int, str]] = deque(maxlen=64)

    @property
    def findings(self) -> list[Finding]:
        """All so far that stand for themselves, in the order they began."""
        return [finding for finding in self.everything if not finding.cause]

    @property
    def everything(self) -> list[Finding]:
        """All so far, also those that are consequences of others, in the order they began."""
        return sorted((draft.finding() for draft in self._drafts), key=lambda finding: finding.first_step)

    def update(self, step: Step) -> list[Finding]:
        """Look at the next step.

        Returns:
            Findings that it opened, closed, made graver or wider, or that became the consequence of another.
        """
        if step.tensors:
            self._sampled.append(step.step)
        self._note_events(step)
        changed: dict[_Draft, None] = {}
        for rule in list(self._rules):
            if not guard.attempt(f"rule {rule.name}", self._ask, rule, step, changed):
                self._rules.remove(rule)
        return [draft.finding() for draft in changed]

    def _ask(self, rule: Rule, step: Step, changed: dict[_Draft, None]) -> None:
        """What a rule sees, which may be anything where the rule is not ours."""
        changed.update(dict.fromkeys(self._take(rule, step, rule.update(step))))

    def _take(self, rule: Rule, step: Step, looked: Mapping[str, Sign | None]) -> list[_Draft]:
        keys, changed, opening = self._keys[rule.name], [], []
        for key, sign in looked.items():
            known = keys.get(key)
            if sign is None:
                if known is not None and self._calmed(rule, key, known):
                    changed.append(known.draft)
                continue
            if known is not None and known.draft is not None and _graver(sign, known.draft.severity):
                known.draft.keys.discard(key)
                changed.append(known.draft)
                known = None
            if known is None:
                if not sign.opens:
                    continue
                known = keys[key] = _Key(sign, step.step if sign.since is None else sign.since)
            known.calm = 0
            if known.draft is not None:
                if known.draft.see(sign, step.step):
                    changed.append(known.draft)
            elif sign.opens:
                known.seen += 1
                if known.seen >= rule.patience:
                    opening.append((known, key, sign))
        if opening:
            changed += self._open(rule, step, opening)
        return [draft for draft in changed if draft is not None]

    def _calmed(self, rule: Rule, key: str, known: _Key) -> bool:
        """A look that saw nothing. True if a finding ended by it."""
        known.calm += 1
        if known.draft is not None and known.calm < rule.calm:
            return False
        del self._keys[rule.name][key]
        if known.draft is None:
            return False
        known.draft.keys.discard(key)
        return not known.draft.keys

    def _open(self, rule: Rule, step: Step, opening: Sequence[tuple[_Key, str, Sign]]) -> list[_Draft]:
        first = min(known.since for known, _, _ in opening)
        own = [draft for draft in self._drafts if draft.rule is rule]
        keys = {key for _, key, _ in opening}
        alike = [d for d in own if not any(_graver(sign, d.severity) for _, _, sign in opening)]
        near = [d for d in alike if first - (d.last_step if keys <= d.ever else d.first_step) <= self._horizon()]
        if _is_distinct(rule, worst(*(sign.severity for _, _, sign in opening))):
            near = [d for d in near if d.keys or d.is_where(opening[0][2])]
        draft = near[-1] if near else own[-1] if len(own) >= _MAX_FINDINGS else None
        fresh = draft is None
        if draft is None:
            sign = opening[0][0].sign
            before = sum(one.first_step == first for one in own)
            draft = _Draft(rule, first, sign, step.step, sign, hints=self._hints(first, sign), before=before)
            self._drafts.append(draft)
        for known, key, sign in opening:
            known.draft = draft
            draft.add(key, sign, step.step)
        return [draft, *(self._fold(draft) if fresh else ())]

    # -- consequences -------------------------------------------------------------------------------------------------

    def _horizon(self) -> int:
        """Steps within which one thing may follow from another: a hundred, or two samples."""
        return max(_HORIZON, self._sampled[-1] - self._sampled[0] if len(self._sampled) > 1 else 0)

    def _fold(self, fresh: _Draft) -> list[_Draft]:
        """Make the new one a consequence of an earlier, and the earlier ones consequences of the new, as rules say.

        Returns:
            The others that this changed.
        """
        horizon, changed = self._horizon(), []
        distinct = _is_distinct(fresh.rule, fresh.severity)
        for draft in self._drafts:
            if draft is fresh or draft.cause is not None or draft.first_step > fresh.first_step:
                continue
            if distinct and not draft.lasts(fresh.rule.name):
                continue
            reach = max([draft.first_step, *(c.first_step for c in draft.consequences)])
            grave = SEVERITIES.index(draft.severity) > 0 or fresh.severity == "info"
            if fresh.rule.name in draft.rule.causes and grave and fresh.first_step - reach <= horizon:
                self._adopt(draft, fresh)
                return [draft]
        for draft in self._drafts:
            later = draft.first_step - fresh.first_step
            first = 1 if _is_distinct(draft.rule, draft.severity) else 0
            follows = first <= later <= horizon and draft.rule.name in fresh.rule.causes
            if draft is not fresh and draft.cause is None and follows:
                self._adopt(fresh, draft)
                changed.append(draft)
        return changed

    @staticmethod
    def _adopt(cause: _Draft, draft: _Draft) -> None:
        draft.cause = cause
        cause.consequences += [draft, *draft.consequences]
        for inner in draft.consequences:
            inner.cause = cause
        draft.consequences = []

    # -- hints --------------------------------------------------------------------------------------------------------

    def _note_events(self, step: Step) -> None:
        """Remember what may explain a finding: marks, and learning rates that jump."""
        for mark in step.marks:
            self._events.append((step.step, f"{mark!r} was marked at step {step.step:,}"))
        for name, value in step.scalars.items():
            if not is_learning_rate(name):
                continue
            before = self._rates.get(name, 0.0)
            if before > 0 and value > 0 and not 1 / _LR_CHANGE < value / before < _LR_CHANGE:
                self._events.append((step.step, f"{name} went from {before:.3g} to {value:.3g} at step {step.step:,}"))
            self._rates[name] = value

    def _hints(self, step: int, sign: Sign) -> tuple[str, ...]:
        """What happened shortly before, but for what the sign itself is about; the same of two metrics once."""
        near = [text for at, text in self._events if step - _HINT_STEPS <= at <= step]
        fresh = [text for text in near if text.partition(" ")[0] not in sign.names]
        return tuple({text.partition(" ")[2]: text for text in fresh[::-1]}.values())[::-1]


def _is_distinct(rule: Rule, severity: Severity) -> bool:
    """Whether what a rule found stands for itself unless its cause is going on; notes do not."""
    return severity != "info" and bool(getattr(rule, "distinct", False))


def _graver(sign: Sign, severity: Severity) -> bool:
    """Whether this is more than the note that a finding was so far: it then is a finding of its own."""
    return severity == "info" and sign.severity != "info"
