"""What later attempts of a run hide of earlier ones: see docs/adr/0018-what-an-attempt-hides.md.

An attempt hides what it recorded again, name by name. A line that goes on hides the earlier ones from its own first
step on: what came after the checkpoint was undone. What has one step alone, as an evaluation of a run that is done,
replaces that step and nothing else. Where the user has said from which step on a run goes on, everything that earlier
attempts recorded from there on is hidden, logged again or not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchtrack.api import facts
from torchtrack.api.streams import OWN_PREFIXES, Ints, Named, Names, Rows, Span, merged
from torchtrack.api.tensors import TensorPart
from torchtrack.records import Table

Bools = npt.NDArray[np.bool_]
FOREVER: Final = (1 << 63) - 1


@dataclass(frozen=True)
class Hidden:
    """What is hidden of the rows that one attempt has under a name: from `stop` on, and at the steps `holes`."""

    stop: int = FOREVER
    holes: tuple[int, ...] = ()

    def shows(self, steps: Ints) -> Bools:
        """Which steps are not hidden."""
        shown: Bools = steps < self.stop
        for hole in self.holes:
            shown &= steps != hole
        return shown

    def shows_step(self, step: int) -> bool:
        """Whether a step is not hidden."""
        return step < self.stop and step not in self.holes

    def differs_from(self, other: Hidden) -> int:
        """The first step of which only one says that it is hidden; `FOREVER` if there is none."""
        low, high = sorted((self, other), key=lambda each: each.stop)
        first = next((step for step in range(low.stop, high.stop) if step not in high.holes), FOREVER)
        apart = (step for step in {*self.holes} ^ {*other.holes} if step < low.stop)
        return min([first, *apart])


ALL_SHOWN: Final = Hidden()


def hidden(
    spans: Mapping[int, Span], begins: Mapping[int, int] | None = None, told: Mapping[int, int] | None = None
) -> dict[int, Hidden]:
    """What is hidden of each attempt that has rows under a name.

    Args:
        spans: by attempt, its first and last step under this name.
        begins: the step from which on an attempt hides anything; without an attempt in it, it hides nothing.
        told: by attempt for which the user said it, the step from which on it takes back what earlier ones recorded.
    """
    found: dict[int, Hidden] = {}
    stop, replaced = FOREVER, set[int]()
    told = told or {}
    for attempt in sorted({*spans, *told}, reverse=True):
        if attempt in spans:
            low, high = spans[attempt]
            holes = {step for step in replaced if low <= step <= high and step < stop}
            found[attempt] = Hidden(stop, tuple(sorted(holes))) if stop < high else _at(holes | ({stop} & {high}))
            low = low if begins is None else max(low, begins.get(attempt, FOREVER))
            if low < high:
                stop = min(stop, low)
            elif low == high:
                replaced.add(low)
        stop = min(stop, told.get(attempt, FOREVER))
    return found


def _at(holes: set[int]) -> Hidden:
    return Hidden(holes=tuple(sorted(holes))) if holes else ALL_SHOWN


class Begun(Protocol):
    """A stream, as far as it says where its attempt begins."""

    @property
    def attempt(self) -> int:
        """Its number."""

    @property
    def from_step(self) -> int | None:
        """The step from which on it takes back what earlier ones recorded, if the user said so."""


def told(streams: Iterable[Begun]) -> dict[int, int]:
    """By attempt for which the user said it, the step from which on it takes back what earlier ones recorded."""
    found: dict[int, int] = {}
    for stream in streams:
        if stream.from_step is not None:
            found[stream.attempt] = min(stream.from_step, found.get(stream.attempt, FOREVER))
    return found


def last_step(spans: Mapping[int, Span], told: Mapping[int, int]) -> int | None:
    """How far a run has come, by the spans of its attempts: a later one that has a single step takes nothing back.

    Args:
        spans: by attempt, its first and last step.
        told: see `hidden`.
    """
    shown: dict[int, Span] = {}
    stop = FOREVER
    for attempt in sorted({*spans, *told}, reverse=True):
        low, high = spans.get(attempt, (FOREVER, FOREVER))
        if low < stop:
            shown[attempt] = low, min(high, stop - 1)
        stop = min(stop, told.get(attempt, FOREVER))
    line = max((number for number, (low, high) in shown.items() if low < high), default=0)
    return max((high for number, (_, high) in shown.items() if number >= line), default=None)


class Hides:
    """What is hidden in a run of several attempts; worked out name by name, as it is asked for.

    Args:
        streams: of its ranks, in the order of attempts.
        names: of their metrics.
    """

    def __init__(self, streams: Sequence[Rows], names: Names) -> None:
        self._attempts = {n: list(group) for n, group in itertools.groupby(streams, key=lambda stream: stream.attempt)}
        self._names = names
        self._told = told(streams)
        self._metrics: dict[int, dict[int, Hidden]] = {}

    @functools.cached_property
    def begins(self) -> dict[int, int]:
        """The first step of each attempt that has one: what `watch` and the system record hides nothing before it."""
        first = {number: facts.first_step(group) for number, group in self._attempts.items()}
        return {number: step for number, step in first.items() if step is not None}

    def metric(self, code: int) -> dict[int, Hidden]:
        """Of the rows of a metric, by attempt."""
        if code not in self._metrics:
            spans = {}
            for number, group in self._attempts.items():
                span = merged(span for stream in group if (span := stream.load_scalars().span(code)) is not None)
                if span is not None:
                    spans[number] = span
            is_ours = self._names.names[code].startswith(OWN_PREFIXES)
            self._metrics[code] = hidden(spans, self.begins if is_ours and len(spans) > 1 else None, self._told)
        return self._metrics[code]

    def tensors(self, parts: Sequence[TensorPart]) -> list[Bools]:
        """Which rows of tensors are shown.

        Args:
            parts: all rows there are of the tensors in it, as `tensors.aligned` gives them.
        """
        hidden = self.others(spans(parts))
        return [_shown(part, hidden) for part in parts]

    def others(self, held: Mapping[Named, Mapping[int, Span]]) -> dict[Named, dict[int, Hidden]]:
        """Of tensors, texts and files, by attempt.

        Args:
            held: the first and last step in each attempt of the rows that are held; those of rows that a stream has
                let go of are added.
        """
        found: dict[Named, dict[int, Hidden]] = {}
        for named, of in held.items():
            known = {}
            for number, group in self._attempts.items():
                forgotten = [stream.spans[named] for stream in group if named in stream.spans]
                span = merged([*forgotten, *([of[number]] if number in of else [])])
                if span is not None:
                    known[number] = span
            is_ours = named[0] not in _USERS and len(known) > 1
            found[named] = hidden(known, self.begins if is_ours else None, self._told)
        return found


_USERS: Final = ("logged", Table.TEXTS.name, Table.MEDIA.name)
"""What a user logs: where an attempt begins follows from it."""


def spans(parts: Iterable[TensorPart]) -> dict[Named, dict[int, Span]]:
    """Of tensors by kind and name, and by attempt: the first and the last step."""
    found: dict[Named, dict[int, Span]] = {}
    for part in parts:
        every, which = _named(part.rows)
        step = part.rows.column("step").to_numpy()
        low, high = np.full(len(every), FOREVER), np.full(len(every), -FOREVER)
        np.minimum.at(low, which, step)
        np.maximum.at(high, which, step)
        for named, first, last in zip(every, low.tolist(), high.tolist(), strict=True):
            of = found.setdefault(named, {})
            known = of.get(part.attempt, (first, last))
            of[part.attempt] = min(first, known[0]), max(last, known[1])
    return found


def spans_of_rows(table: Table, rows: pa.Table) -> dict[Named, Span]:
    """Of texts or files by table and name: the first and the last step."""
    grouped = rows.select(["name", "step"]).group_by("name").aggregate([("step", "min"), ("step", "max")])
    return {
        (table.name, row["name"]): (row["step_min"], row["step_max"])
        for row in grouped.to_pylist()
        if row["step_min"] is not None
    }


def _shown(part: TensorPart, hidden: Mapping[Named, Mapping[int, Hidden]]) -> Bools:
    every, which = _named(part.rows)
    step = part.rows.column("step").to_numpy()
    each = [hidden[named][part.attempt] for named in every]
    shown: Bools = step < np.array([one.stop for one in each], np.int64)[which]
    for number, one in enumerate(each):
        if one.holes:
            shown &= (which != number) | ~np.isin(step, one.holes)
    return shown


def _named(rows: pa.Table) -> tuple[list[Named], Ints]:
    """The kinds and names there are, and which of them each row has."""
    kinds, names = (rows.column(column).combine_chunks() for column in ("kind", "name"))
    kind, name = (each.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) for each in (kinds, names))
    of_kind, of_name = (["", *each.dictionary.to_pylist()] for each in (kinds, names))
    there, which = np.unique((kind + 1) * len(of_name) + name + 1, return_inverse=True)
    return [(of_kind[pair // len(of_name)], of_name[pair % len(of_name)]) for pair in there.tolist()], which
