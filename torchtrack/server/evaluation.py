"""Alert rules, judged beside the index: what holds in which run now, and what becomes of that in the catalog.

A rule is about the runs that go on and those that ended lately. Values of a metric are judged step by step, each once,
as `Run.history` has them, when all ranks that log it are past the step; nothing that came before the rule was saved.
What a rule fires on is over once it has not held for `CALM_S`: until then the rule does not fire on it again, and a
process that takes over reads in the catalog where the one before it was.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from torchtrack import guard
from torchtrack.alerts import Alert
from torchtrack.server.catalog import Catalog
from torchtrack.server.firings import Firing
from torchtrack.server.reading import Reader
from torchtrack.server.rules import BADLY, OF_VALUES, Line, Rule
from torchtrack.server.watched import MOST_VALUES, Seen, Watched

CALM_S: Final = 600.0
"""How long a condition has to be away before it counts as new when it comes back."""


@dataclass
class Board:
    """What has changed for those who watch, and who is told: shared with the routes. **Threads:** any."""

    targets: tuple[str, ...] = ()
    """What serves each target, without its address."""
    changes: Counter[str] = field(default_factory=Counter)
    """How often something changed, by project."""


class _Sign(NamedTuple):
    """That a condition holds in a run, at a moment of it."""

    uid: str
    text: str
    at_us: int
    step: int | None = None
    what: str = ""


@dataclass
class _Open:
    """What a rule fired on last in a run."""

    number: int
    last_us: int
    last_step: int | None
    over: bool = False


class _Held:
    """What one version of a rule knows of its runs."""

    def __init__(self, rule: Rule, rows: Mapping[tuple[str, str], Mapping[str, Any]], now_us: int) -> None:
        self.rule = rule
        self.rows = rows
        self.judged: dict[str, tuple[object, ...]] = {}
        """By uid, the run as it was when it was judged to its end."""
        self.lines: dict[str, Line] = {}
        self.told_us: dict[str, int] = {}
        """By uid, the time of the newest finding that was judged."""
        self.firings = {key: self._open(row, now_us) for key, row in rows.items()}

    def _open(self, row: Mapping[str, Any], now_us: int) -> _Open:
        over = row["cleared"] is not None
        last_us = row["last_us"] or (row["since_us"] if over or self.by_the_run else now_us)
        last_step = row["step"] if row["last_step"] is None else row["last_step"]
        return _Open(row["id"], last_us, last_step, over)

    @property
    def by_the_run(self) -> bool:
        """Whether the moments at which it holds are told by the clock of the run."""
        return self.rule.when.kind in OF_VALUES or self.rule.when.kind == "finding"

    def fresh(self, runs: Mapping[str, Seen]) -> dict[str, Seen]:
        """The runs that are not judged as they are now."""
        return {uid: seen for uid, seen in runs.items() if self.judged.get(uid) != seen.as_is}

    def line(self, uid: str, attempt: int) -> Line:
        """How far the values of this attempt are judged."""
        known = self.lines.get(uid)
        row, firing = self.rows.get((uid, "")), self.firings.get((uid, ""))
        if known is not None and known.attempt == attempt:
            line = known
        elif known is not None or row is None or firing is None or row["attempt"] != attempt:
            line = Line(attempt)
        elif firing.over or firing.last_step is None:
            line = Line(attempt, firing.last_step)
        else:
            line = Line.resumed(self.rule.when, attempt, firing.last_step, firing.last_us)
        self.lines[uid] = line
        return line


class Evaluation:
    """Judges all rules. Not for several threads.

    Args:
        reader: of the runs.
        catalog: of the rules, and of what they fired on.
        board: told what changes.
        on_fired: called once a firing is recorded.
        clock: microseconds since the epoch.
    """

    def __init__(
        self,
        reader: Reader,
        catalog: Catalog,
        board: Board,
        on_fired: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._watched = Watched(reader)
        self._catalog = catalog
        self._board = board
        self._on_fired = on_fired
        self._clock = clock
        self._held: dict[str, _Held] = {}

    def judge(self) -> None:
        """Judge every rule as things are now; one that cannot be judged harms no other."""
        rules = [Rule.of(row) for row in self._catalog.alert_rules()]
        self._held = {rule.id: self._held[rule.id] for rule in rules if self._knows(rule)}
        for rule in rules:
            if not guard.attempt("judging an alert rule", self._judge, rule):
                self._held.pop(rule.id, None)  # what was judged may not be in the catalog
        self._watched.forget()

    def _knows(self, rule: Rule) -> bool:
        held = self._held.get(rule.id)
        return held is not None and held.rule == rule

    def _judge(self, rule: Rule) -> None:
        now_us = self._clock()
        held = self._held.get(rule.id)
        if held is None:
            held = self._held[rule.id] = _Held(rule, self._catalog.firings.newest(rule.id), now_us)
        runs = self._watched.runs(rule, now_us)
        signs, whole = self._signs(held, runs, now_us)
        for sign in signs:
            self._take(held, runs[sign.uid], sign)
        if whole:
            self._clear(held, runs, now_us)

    # -- what holds ----------------------------------------------------------------------------------------------------

    def _signs(self, held: _Held, runs: Mapping[str, Seen], now_us: int) -> tuple[list[_Sign], bool]:
        """What holds, and whether that is all there is so far."""
        rule = held.rule
        if rule.when.kind in OF_VALUES:
            return self._of_values(held, runs)
        if rule.when.kind == "absent":
            return list(self._absent(rule, {uid: each for uid, each in runs.items() if each.state == "running"})), True
        if rule.when.kind == "finding":
            return list(self._findings(held, runs)), True
        if rule.when.kind == "ended":
            runs = {uid: seen for uid, seen in runs.items() if seen.state in BADLY}
        text = "ended as {}" if rule.when.kind == "ended" else f"fits {rule.filter}"
        return [_Sign(uid, text.format(seen.state), now_us, seen.last_step) for uid, seen in runs.items()], True

    def _of_values(self, held: _Held, runs: Mapping[str, Seen]) -> tuple[list[_Sign], bool]:
        when, fresh = held.rule.when, held.fresh(runs)
        lines = [(uid, seen, held.line(uid, seen.attempt)) for uid, seen in fresh.items()]
        rows = self._watched.values(held.rule, [(seen, line) for _, seen, line in lines])
        signs = [
            _Sign(lines[number][0], f"{when}: {value:g}", at_us, step)
            for number, step, at_us, value in rows
            if lines[number][2].take(when, step, at_us, value)
        ]
        if len(rows) == MOST_VALUES:
            return signs, False
        held.judged |= {uid: seen.as_is for uid, seen in fresh.items()}
        return signs, True

    def _absent(self, rule: Rule, runs: Mapping[str, Seen]) -> Iterator[_Sign]:
        """Runs whose other signs of life are so much newer than the last value of a metric."""
        when = rule.when
        ends = self._watched.last(rule, [one.stream for seen in runs.values() for one in seen.placed])
        for uid, seen in runs.items():
            mine = [ends[one.stream] for one in seen.placed if one.stream in ends]
            last_us = max((at for _, at in mine), default=0)
            steps = 0
            if when.for_steps and seen.last_step is not None:
                steps = seen.last_step - max([self._watched.first_step(uid, seen), *(step for step, _ in mine)])
            if when.lasted(steps, seen.end_us - max(last_us, rule.since_us, seen.start_us)):
                since = f"since step {max(step for step, _ in mine)}" if mine else "at all"
                yield _Sign(uid, f"{when}: none {since}", self._clock(), seen.last_step)

    def _findings(self, held: _Held, runs: Mapping[str, Seen]) -> Iterator[_Sign]:
        """What the lookouts of the runs said since."""
        fresh = held.fresh(runs)
        owner = {stream: uid for uid, seen in fresh.items() for stream in seen.streams}
        least = held.rule.when.least or "critical"
        for row in self._watched.findings(held.rule.since_us, list(owner)):
            uid, at_us = owner[row["stream"]], int(row["time"])
            told = guard.outcome(json.loads, row["json"])
            if at_us <= held.told_us.get(uid, 0) or not isinstance(told, dict):
                continue
            held.told_us[uid] = at_us
            alert = Alert.of_event("finding", told, at_us / 1e6, least)
            what = str(told.get("rule") or "finding")[:64]
            known = held.firings.get((uid, what))
            if alert is not None and (known is None or at_us > known.last_us):
                step = told.get("first_step")
                yield _Sign(uid, f"{alert.title}\n{alert.text}", at_us, step if isinstance(step, int) else None, what)
        held.judged |= {uid: seen.as_is for uid, seen in fresh.items()}

    # -- what becomes of it --------------------------------------------------------------------------------------------

    def _take(self, held: _Held, seen: Seen, sign: _Sign) -> None:
        """Record that a rule fired, unless this is what it fired on before."""
        key = sign.uid, sign.what
        known = held.firings.get(key)
        if known is not None and sign.at_us <= known.last_us:  # judged before, perhaps by another process
            return
        if known is not None and not known.over:
            if sign.at_us - known.last_us < CALM_S * 1e6:
                known.last_us, known.last_step = sign.at_us, sign.step
                return
            self._over(held, known)
        firing = Firing(sign.uid, seen.name, sign.what, sign.text, sign.at_us, sign.step, seen.attempt)
        number = self._catalog.firings.add(held.rule, firing, self._board.targets)
        if number is None:
            return
        held.firings[key] = _Open(number, sign.at_us, sign.step)
        self._board.changes[held.rule.project] += 1
        self._on_fired()

    def _clear(self, held: _Held, runs: Mapping[str, Seen], now_us: int) -> None:
        """What has not held for long is over; in a run that has ended, it stays as it was."""
        for (uid, _), known in held.firings.items():
            seen = runs.get(uid)
            goes_on = seen is not None and seen.state == "running"
            reference = seen.end_us if seen is not None and held.by_the_run else now_us
            if not known.over and goes_on and reference - known.last_us >= CALM_S * 1e6:
                self._over(held, known)

    def _over(self, held: _Held, known: _Open) -> None:
        self._catalog.firings.clear(known.number, known.last_step, known.last_us)
        known.over = True
        self._board.changes[held.rule.project] += 1
