"""A run that is being written, step by step: each step once, in order, when all that belongs to it has come.

Ranks do not write in step. A step is given out once every rank that logs has been past it for `HOLD_S` (rows of tensors
come later than the numbers of their step), or after `PATIENCE_S` whatever the others do. What comes later still, and a
new attempt that goes back to an earlier step, makes the feed `stale`: what it gave out is no longer what a reader of
the whole run would see, and one who needs that starts over with a new feed.

Memory: what was given out is forgotten. Rows are held for the time above, or for some pieces of the files where there
is much to catch up with; `MAX_HELD` of them at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from torchtrack.api import facts, findings, hiding, parts, tensors
from torchtrack.api.facts import Event
from torchtrack.api.hiding import ALL_SHOWN, Hidden
from torchtrack.api.history import Window
from torchtrack.api.source import Folder, Source
from torchtrack.api.streams import Named, Rows, Span, merged
from torchtrack.api.tensors import TensorPart
from torchtrack.journal.reader import find_streams
from torchtrack.records import Table
from torchtrack.stability import Facts, Step

HOLD_S: Final = 5.0
PATIENCE_S: Final = 30.0
MAX_HELD: Final = 200_000
"""Rows of tensors."""
PIECE_BYTES: Final = 4 << 20
"""Read of each file at a time."""
HOLD_PIECES: Final = 3


class TooMuchError(Exception):
    """More rows wait for their step than may be held."""


Key = int | Named
"""A metric by its code; anything else by kind and name."""


class _Front(NamedTuple):
    """How far ranks had come at a time."""

    time_s: float
    look: int
    low: int
    """All ranks that log have logged this step;"""
    top: int
    """one has."""
    complete: bool
    """Whether all that was written by then had been read."""


class _Basis(NamedTuple):
    """What steps rest on besides their rows."""

    begins: dict[int, int]
    hidden: dict[Key, dict[int, Hidden]]
    counted: frozenset[tuple[int, int]]
    world_sizes: dict[int, int]
    known: Facts


class Feed:
    """The steps of one run.

    **Threads:** one.

    Args:
        directory: the folder of runs.
        uid: of the run.
    """

    tables: tuple[Table, ...] = ()
    """Of texts and media, what whoever derives from this reads; the rest is let go of at once."""

    def __init__(self, directory: Path, uid: str) -> None:
        self.stale = False
        self.since: int | None = None
        """The first step that has not been given out; None before the first."""
        self._source = Source(Folder(directory, PIECE_BYTES))
        self._folder = directory / uid
        self._uid = uid
        self._streams: list[Rows] = []
        self._nodes: list[Rows] = []
        self._fronts: deque[_Front] = deque()
        self._looks = 0
        self._versions: dict[Path, int] = {}
        self._basis: _Basis | None = None
        self._models: tuple[int, Facts] = (0, Facts())

    @property
    def uid(self) -> str:
        """Of the run, which may have been another at first."""
        return self._uid

    @property
    def held(self) -> int:
        """Rows of tensors that wait for their step to be complete."""
        return sum(stream.table(Table.TENSORS).num_rows for stream in self._streams)

    @property
    def behind(self) -> bool:
        """Whether more has been written than was read."""
        return any(stream.more for stream in self._streams)

    @property
    def ended(self) -> bool:
        """Whether every rank of the newest attempt, as far as it is seen, has said that it is done."""
        newest = [stream for stream in self._newest() if not stream.parent]
        return bool(newest) and all(stream.seal is not None for stream in newest)

    def admit(self, paths: Sequence[Path]) -> None:
        """Take in streams that may turn out to be of this run."""
        self._source.admit(paths)

    def said(self) -> list[Event]:
        """What earlier lookouts recorded as findings, in the order of time."""
        return findings.in_order(facts.events(self._nodes, ["finding"]))

    def take(self, now_s: float, *, over: bool = False) -> list[Step]:
        """The steps that are complete by now.

        Args:
            now_s: a clock that only goes forward.
            over: nothing more will come: once all is read, give out everything.

        Raises:
            TooMuchError: more rows wait than may be held; none of them is given out.
        """
        fresh = self._read()
        stop = None if over and not self.behind else self._settled(now_s)
        if fresh and self._is_stale():
            self.stale = True
        given: list[Step] = []
        complete = over and stop is None
        if complete or (stop is not None and (self.since is None or stop > self.since)):
            given = self._give(stop)
        for stream in self._streams:
            stream.keep(Table.LOGS)
        if self.held > MAX_HELD:
            raise TooMuchError(f"more than {MAX_HELD:,} rows of tensors wait for a step that is logged on their ranks")
        return given

    def _read(self) -> bool:
        """Read on. True if there was something new."""
        if not self._streams:
            self._source.admit(find_streams(self._folder))
        self._uid, streams = self._source.refresh(self._uid)
        self._streams = parts.ranked(streams)
        self._nodes = [stream for stream in streams if stream.role == "node"]
        before, self._versions = self._versions, {stream.path: stream.version for stream in self._streams}
        return before != self._versions

    def _newest(self) -> list[Rows]:
        """The streams of the newest attempt."""
        last = max((stream.attempt for stream in self._streams), default=0)
        return [stream for stream in self._streams if stream.attempt == last]

    # -- when ---------------------------------------------------------------------------------------------------------

    def _settled(self, now_s: float) -> int | None:
        """The step below which nothing more is expected; None where that is not known."""
        self._looks += 1
        front = self._front(now_s)
        if front is not None:
            self._fronts.append(front)
        stop = self.since
        for front in self._fronts:
            age_s, age = now_s - front.time_s, self._looks - front.look
            step = None
            if age_s >= PATIENCE_S and front.complete:
                step = front.top + 1
            elif age_s >= HOLD_S or (self.behind and age >= HOLD_PIECES):
                step = front.low
            if step is not None and (stop is None or step > stop):
                stop = step
        while self._fronts and now_s - self._fronts[0].time_s >= PATIENCE_S:
            self._fronts.popleft()
        return stop

    def _front(self, now_s: float) -> _Front | None:
        newest = self._newest()
        logging = [s for s in newest if s.load_scalars().first_step is not None]
        last = {stream: told[1] for stream in logging if (told := stream.load_scalars().told) is not None}
        if not last:
            return None
        at_work = [step for stream, step in last.items() if stream.seal is None and stream.ended is None]
        return _Front(now_s, self._looks, min(at_work or last.values()), max(last.values()), not self.behind)

    # -- what ---------------------------------------------------------------------------------------------------------

    def _give(self, stop: int | None) -> list[Step]:
        window = Window(self.since, stop, parts.hides(self._streams, self._source.names))
        events = [event for event in findings.events_of(self._streams) if self._lies_in(event.step or 0, stop)]
        given = list(self._steps(window, events))
        last = given[-1].step + 1 if given else self.since
        self.since = last if stop is None else stop
        self._basis = self._now()
        self._forget()
        return given

    def _steps(self, window: Window, events: Sequence[Event]) -> Iterator[Step]:
        """What is given out of a window, from the rows that are held; who needs other things of a step overrides it."""
        return findings.steps(self._streams, self._source.names, window, events, self._facts())

    def _lies_in(self, step: int, stop: int | None) -> bool:
        return (self.since is None or step >= self.since) and (stop is None or step < stop)

    def _forget(self) -> None:
        """Let go of what lies before the first step that has not been given out."""
        since = self.since
        if since is None:
            return
        held = dict(self._samples())
        for stream in self._streams:
            facts.remember(stream)
            _remember(stream, [held[stream]] if stream in held else [], self.tables)
            stream.load_scalars().forget(since)
            for table in (Table.TEXTS, Table.MEDIA):
                rows = stream.table(table).column("step").to_numpy() >= since if table in self.tables else None
                stream.keep(table, rows)
            if stream in held:
                stream.keep(Table.TENSORS, held[stream].rows.column("step").to_numpy() >= since)
            events = stream.table(Table.EVENTS)
            described = pc.is_in(events["type"].cast(pa.string()), pa.array(findings.DESCRIBE)).to_numpy()
            stream.keep(Table.EVENTS, described | (events["step"].fill_null(0).to_numpy() >= since))

    def _samples(self) -> Iterator[tuple[Rows, TensorPart]]:
        """The streams that hold rows of tensors, with these as they are on the lowest rank's steps."""
        some = [stream for stream in self._streams if stream.table(Table.TENSORS).num_rows]
        held = [tensors.TensorPart(s.attempt, s.rank, s.table(Table.TENSORS)) for s in some]
        yield from zip(some, tensors.aligned(held), strict=True)

    def _facts(self) -> Facts:
        """What is known of the models; worked out anew only when more was described."""
        tables = [stream.table(Table.EVENTS)["type"].cast(pa.string()) for stream in self._streams]
        models = sum(pc.sum(pc.is_in(types, pa.array(findings.DESCRIBE))).as_py() or 0 for types in tables)
        if models != self._models[0]:
            self._models = models, findings.facts_of(self._streams)
        return self._models[1]

    # -- whether what was given out still holds -----------------------------------------------------------------------

    def _now(self) -> _Basis:
        counted = findings.counted(self._streams)
        sizes = {part.attempt: part.world_size for part in counted}
        places = frozenset((part.attempt, part.rank) for part in counted)
        return _Basis(parts.begins(self._streams), self._hidden(), places, sizes, self._facts())

    def _hidden(self) -> dict[Key, dict[int, Hidden]]:
        """What later attempts hide of earlier ones, by what it is of."""
        hides = parts.hides(self._streams, self._source.names)
        if hides is None:
            return {}
        codes = {code for stream in self._streams for code in stream.load_scalars().codes}
        forgotten: dict[Named, dict[int, Span]] = {named: {} for stream in self._streams for named in stream.spans}
        held = forgotten | hiding.spans(part for _, part in self._samples())
        found: dict[Key, dict[int, Hidden]] = {code: hides.metric(code) for code in codes}
        found.update(hides.others(held).items())
        return found

    def _is_stale(self) -> bool:
        """Whether a reader of all rows would by now see other steps than were given out."""
        before, since = self._basis, self.since
        if before is None or since is None:
            return False
        now = self._now()
        moved = {number: step for number, step in now.begins.items() if before.begins.get(number) != step}
        if any(min(step, before.begins.get(number, step)) < since for number, step in moved.items()):
            return True
        for key, attempts in now.hidden.items():
            known = before.hidden.get(key, {})
            if any(each.differs_from(known.get(number, ALL_SHOWN)) < since for number, each in attempts.items()):
                return True
        if not before.counted <= now.counted or now.known != before.known:
            return True
        fresh = now.counted - before.counted
        if any((s.attempt, s.rank) in fresh and s.load_scalars().forgot for s in self._streams):
            return True
        if any(now.world_sizes[attempt] != size for attempt, size in before.world_sizes.items()):
            return True
        return self._is_late(now, since)

    def _is_late(self, now: _Basis, since: int) -> bool:
        """Whether rows came of steps that were given out, and are not hidden by a later attempt."""
        if any((event.step or 0) < since for event in findings.events_of(self._streams)):
            return True
        hides = parts.hides(self._streams, self._source.names)
        window = Window(stop=since, hides=hides)
        for stream in self._streams:
            if (stream.attempt, stream.rank) not in now.counted:
                continue
            for code, points in stream.load_scalars().foreground():
                late = window.clip(stream.attempt, points.step, code)
                if late is None or late.any():
                    return True
        held = [part for _, part in self._samples()]
        for part, shown in zip(held, [None] * len(held) if hides is None else hides.tensors(held), strict=True):
            kinds = part.rows["kind"].cast(pa.string())
            late = window.inside(part.rows["step"].to_numpy()) & pc.is_in(kinds, pa.array(findings.KINDS)).to_numpy()
            if (late if shown is None else late & shown).any():
                return True
        return False


def _remember(stream: Rows, samples: Iterable[TensorPart], tables: Iterable[Table]) -> None:
    """Keep the first and last steps of rows that are let go of: they say what an attempt hides."""
    spans = {named: of[stream.attempt] for named, of in hiding.spans(samples).items()}
    for table in tables:
        spans |= hiding.spans_of_rows(table, stream.table(table))
    for named, span in spans.items():
        stream.spans[named] = merged([span, stream.spans.get(named, span)]) or span
