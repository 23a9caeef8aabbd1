"""What alert rules ask of the index: which runs they are about, and what is new in these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torchtrack.api.held import HeldRows
from torchtrack.api.streams import BACKGROUND
from torchtrack.server.filters import STATE, compile_filter
from torchtrack.server.placement import Placed, arrays, lookup
from torchtrack.server.reading import FIELDS, Reader
from torchtrack.server.rules import Line, Rule

LATELY_US: Final = 7 * 86_400_000_000
"""What ended longer ago is told to nobody: a run that is sent now may be of last year."""
LONGEST_US: Final = 30 * 86_400_000_000
"""Runs that began so long ago are looked at if they go on, or ran until lately without a pause between attempts."""
LATE_US: Final = 120_000_000
"""A rank whose newest value of a metric is so much older than that of others is not waited for."""
MOST_VALUES: Final = 100_000
"""Values asked for at a time; the rest have their turn in the next."""
_RUNS: Final = 64
"""Runs that are looked up at a time, while nobody else reads runs."""
_NEVER: Final = -(1 << 62)


@dataclass
class Seen:
    """A run, as it was when it was looked up."""

    version: tuple[int, int]
    state: str
    name: str
    last_step: int | None
    placed: list[Placed] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    """Of its ranks and nodes."""
    start_us: int = 0
    """When its newest attempt began,"""
    end_us: int = 0
    """and when it gave a sign of life last, by its own clock."""

    @property
    def as_is(self) -> tuple[object, ...]:
        """Another one whenever there may be something to judge: what is held back while a run goes on, no more."""
        return *self.version, self.state

    @property
    def attempt(self) -> int:
        """The number of the newest attempt."""
        return max((one.attempt for one in self.placed), default=1)

    @property
    def newest(self) -> list[Placed]:
        """The streams of the newest attempt."""
        return [one for one in self.placed if one.attempt == self.attempt]


class Watched:
    """The runs that rules are about. Not for several threads.

    Args:
        reader: of the runs.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._seen: dict[str, Seen] = {}
        self._first: dict[tuple[str, int], int] = {}
        self._asked: set[str] = set()

    def runs(self, rule: Rule, now_us: int) -> dict[str, Seen]:
        """The runs a rule is about: those that fit its filter and go on, or ended lately and since it was saved."""
        scope, where = self._reader.scope(rule.project), compile_filter(rule.filter, FIELDS)
        began = "toUnixTimestamp64Micro(parseDateTime64BestEffortOrZero(texts['created'], 6, 'UTC'))"
        ended = f"{began} + toInt64(numbers['duration_s'] * 1e6)"
        rows = self._reader.store.query(
            f"SELECT uid, upto, streams, {STATE} AS state, texts['name'] AS name, texts['last_step'] AS last_step "
            f"FROM {scope.sql} AND {where.sql} AND "
            f"({STATE} = 'running' OR {began} >= {{old:Int64}} OR {ended} >= {{lately:Int64}})",
            **{**scope.parameters, **where.parameters},
            old=now_us - LONGEST_US,
            lately=now_us - LATELY_US,
        ).to_pylist()
        self._look_up(rows)
        self._asked |= {row["uid"] for row in rows}
        since = max(rule.since_us, now_us - LATELY_US)
        mine = {row["uid"]: self._seen[row["uid"]] for row in rows if row["uid"] in self._seen}
        return {uid: seen for uid, seen in mine.items() if seen.state == "running" or seen.end_us >= since}

    def _look_up(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Where the rows of those runs are of which something is new."""
        changed = []
        for row in rows:
            version = row["upto"], row["streams"]
            known = self._seen.get(row["uid"])
            last_step = int(row["last_step"]) if row["last_step"] else None
            if known is None or known.version != version:
                changed.append(row["uid"])
                known = self._seen[row["uid"]] = Seen(version, row["state"], row["name"], last_step)
            known.state, known.name = row["state"], row["name"]
        for first in range(0, len(changed), _RUNS):
            with self._reader.several(changed[first : first + _RUNS]) as runs:
                for run in runs:
                    seen = self._seen[run.uid]
                    seen.placed = self._reader.where(run)
                    seen.streams = [one.number for one in run.every_stream() if isinstance(one, HeldRows)]
                    attempts = run.attempts
                    seen.start_us = int(attempts[-1].start.timestamp() * 1e6)
                    seen.end_us = int(max(one.end for one in attempts).timestamp() * 1e6)

    def forget(self) -> None:
        """Let go of runs that no rule has asked for since this was called."""
        self._seen = {uid: seen for uid, seen in self._seen.items() if uid in self._asked}
        self._first = {key: step for key, step in self._first.items() if key[0] in self._asked}
        self._asked = set()

    def values(self, rule: Rule, lines: Sequence[tuple[Seen, Line]]) -> list[tuple[int, int, int, float]]:
        """Of each line by its number: step, time and value, one a step as `Run.history` has it, that are not judged."""
        streams = {one.stream: (one, number) for number, (seen, _) in enumerate(lines) for one in seen.newest}
        if not streams:
            return []
        placed = [one for one, _ in streams.values()]
        upto = self._complete(rule, lines)
        after = [_NEVER if line.after is None else line.after for _, line in lines]
        run = lookup("owners")
        by_rank = (
            f"SELECT {run} AS run, step, {lookup('ranks')} AS r, argMax((value, reduce, partial, {lookup('worlds')}, "
            f"time), ({lookup('orders')}, seq, row)) AS said FROM scalars WHERE stream IN {{streams:Array(UInt64)}} "
            f"AND name = {{name:String}} AND time >= {{since:Int64}} AND step > {lookup('afters')} "
            f"AND step <= {lookup('uptos')} GROUP BY run, step, r"
        )
        rows = self._reader.store.query(
            "SELECT run, step, argMin(said.5, r) AS at, count() AS n, argMin(said.2, r) AS how, "
            "max(if(said.3, said.4, 0)) AS needed, multiIf(n = 1, any(said.1), how = 'sum', sum(said.1), how = 'min', "
            f"min(said.1), how = 'max', max(said.1), sum(said.1) / n) AS value FROM ({by_rank}) GROUP BY run, step "
            "HAVING n >= needed ORDER BY run, step LIMIT {most:UInt64}",
            **arrays(placed),
            owners=[number for _, number in streams.values()],
            afters=[after[number] for _, number in streams.values()],
            uptos=[upto[number] for _, number in streams.values()],
            name=rule.when.metric,
            since=rule.since_us,
            most=MOST_VALUES,
        )
        columns = (rows[name].to_pylist() for name in ("run", "step", "at", "value"))
        return list(zip(*columns, strict=True))

    def _complete(self, rule: Rule, lines: Sequence[tuple[Seen, Line]]) -> list[int]:
        """Up to which step the values of each line are all there."""
        ends = self.last(rule, [one.stream for seen, _ in lines for one in seen.newest])
        upto = []
        for seen, _ in lines:
            mine = [ends[one.stream] for one in seen.newest if one.stream in ends]
            newest_us = max((at for _, at in mine), default=0)
            steps = [step for step, at in mine if at >= newest_us - LATE_US]
            choose = min if seen.state == "running" else max
            upto.append(choose(steps, default=_NEVER))
        return upto

    def last(self, rule: Rule, streams: Sequence[int]) -> dict[int, tuple[int, int]]:
        """The last step and time at which each stream has the metric."""
        if not streams:
            return {}
        rows = self._reader.store.query(
            "SELECT stream, max(step) AS step, max(time) AS time FROM scalars WHERE stream IN {streams:Array(UInt64)} "
            "AND name = {name:String} GROUP BY stream",
            streams=list(streams),
            name=rule.when.metric,
        )
        columns = (rows[name].to_pylist() for name in ("stream", "step", "time"))
        return {stream: (step, at) for stream, step, at in zip(*columns, strict=True)}

    def first_step(self, uid: str, seen: Seen) -> int:
        """Where the newest attempt began: a run that goes on from a checkpoint has not missed the steps before."""
        key = uid, seen.attempt
        if key not in self._first:
            own = " AND ".join(f"NOT startsWith(name, '{prefix}')" for prefix in BACKGROUND)
            found = self._reader.store.query(
                "SELECT min(step) AS step, count() AS n FROM scalars WHERE stream IN {streams:Array(UInt64)} "
                f"AND {own}",
                streams=[one.stream for one in seen.newest],
            ).to_pylist()[0]
            if not found["n"]:
                return seen.last_step or 0
            self._first[key] = found["step"]
        return self._first[key]

    def findings(self, since_us: int, streams: Sequence[int]) -> list[dict[str, Any]]:
        """What lookouts said in these streams: stream, time, json, in the order of time."""
        if not streams:
            return []
        found: list[dict[str, Any]] = self._reader.store.query(
            "SELECT stream, time, json FROM events WHERE stream IN {streams:Array(UInt64)} AND type = 'finding' "
            "AND time >= {since:Int64} ORDER BY time, stream, seq, row",
            streams=list(streams),
            since=since_us,
        ).to_pylist()
        return found
