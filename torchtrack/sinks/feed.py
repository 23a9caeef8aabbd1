"""The steps of a run as sinks take them: numbers combined over ranks, histograms with their moments, texts, media."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from torchtrack.api import hiding, history, parts, tensors
from torchtrack.api.facts import Event
from torchtrack.api.feed import Feed
from torchtrack.api.hiding import ALL_SHOWN
from torchtrack.api.history import Window
from torchtrack.api.streams import Named, Span, merged
from torchtrack.bins import Binned
from torchtrack.histogram import Histogram
from torchtrack.records import Table
from torchtrack.stability import Step


class Medium(NamedTuple):
    """A file that was logged."""

    path: Path
    """Where it lies; named by its content, without an ending."""
    mime: str
    caption: str | None


@dataclass(frozen=True)
class Forwarded(Step):
    """A step with what rules do not need."""

    time_s: float = 0.0
    """Wall time."""
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    """By name: that of a logged one, else its kind, `/` and the tensor's name."""
    texts: Mapping[str, str] = field(default_factory=dict)
    media: Mapping[str, Sequence[Medium]] = field(default_factory=dict)
    """By name; those of a rank, as many as it logged at once. Of several ranks the lowest counts, as with texts."""


class SinkFeed(Feed):
    """Steps of one run, each once, in order, when all that belongs to it has come."""

    tables = (Table.TEXTS, Table.MEDIA)

    @property
    def back_to(self) -> int | None:
        """The first step of a new attempt that lies before what was given out."""
        first = [step for step in parts.begins(self._streams).values() if self.since is not None and step < self.since]
        return min(first, default=None)

    @property
    def attempt(self) -> int:
        """The newest attempt that is seen."""
        return max((stream.attempt for stream in self._streams), default=0)

    def _steps(self, window: Window, events: Sequence[Event]) -> Iterator[Forwarded]:  # noqa: ARG002  # for rules
        rows = parts.scalars(self._streams)
        names = self._source.names.names
        codes = sorted({code for part in rows for own in part.streams for code in own.by_code()})
        keys = [(names[code], code) for code in codes if not names[code].startswith("_tt/")]
        found: dict[int, tuple[float, dict[str, float]]] = {}
        table = history.combined(rows, keys, window)
        times = table.column("time").cast(pa.int64()).to_pylist()
        steps = table.column("step").to_pylist()
        for step, at in zip(steps, times, strict=True):
            found[step] = (at / 1e6, {})
        for (name, _), column in zip(keys, table.columns[2:], strict=True):
            for step, value in zip(steps, column.to_pylist(), strict=True):
                if value is not None:
                    found[step][1][name] = value
        counted = dict(self._histograms(window))
        texts = _by_step(self._rows(Table.TEXTS, window))
        media = _by_step(self._rows(Table.MEDIA, window))
        for step in sorted({*found, *counted, *texts, *media}):
            at, numbers = found.get(step, (0.0, {}))
            later, histograms = counted.get(step, (0.0, {}))
            said, shown = texts.get(step, {}), media.get(step, {})
            others = (row["time"].timestamp() for rows in (*said.values(), *shown.values()) for row in rows)
            yield Forwarded(
                step,
                numbers,
                time_s=at or later or min(others, default=0.0),
                histograms=histograms,
                texts={name: rows[-1]["text"] for name, rows in said.items() if rows[-1]["text"] is not None},
                media={name: [self._medium(row) for row in rows] for name, rows in shown.items()},
            )

    def _rows(self, table: Table, window: Window) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The rank and the row, of each that lies in a window."""
        held: dict[Named, dict[int, Span]] = {}
        for stream in self._streams:
            for named, span in hiding.spans_of_rows(table, stream.table(table)).items():
                of = held.setdefault(named, {})
                of[stream.attempt] = merged([span, of.get(stream.attempt, span)]) or span
        hidden = {} if window.hides is None else window.hides.others(held)
        for stream in self._streams:
            rows = stream.table(table)
            inside = rows.filter(pa.array(window.inside(rows.column("step").to_numpy()))) if rows.num_rows else rows
            for row in inside.to_pylist():
                of_name = hidden.get((table.name, row["name"]), {}).get(stream.attempt, ALL_SHOWN)
                if of_name.shows_step(row["step"]):
                    yield stream.rank, row

    def _medium(self, row: Mapping[str, Any]) -> Medium:
        return Medium(self._folder / "media" / row["sha256"], row["mime"], row["caption"])

    def _histograms(self, window: Window) -> Iterator[tuple[int, tuple[float, dict[str, Histogram]]]]:
        held = [tensors.TensorPart(s.attempt, s.rank, s.table(Table.TENSORS)) for s in self._streams]
        rows = tensors.one_stage(tensors.combined(held, None, None, window), None)
        found: dict[int, tuple[float, dict[str, Histogram]]] = {}
        binned = self._bins()
        columns = ("step", "time", "kind", "name", "buckets", "counts", "sum", "sum_sq", "min", "max")
        for row in rows.select(columns).to_pylist():
            name = row["name"] if row["kind"] == "logged" else f"{row['kind']}/{row['name']}"
            moments = row["sum"], row["sum_sq"], row["min"], row["max"]
            made = Histogram.from_sparse(row["buckets"], row["counts"], *moments)
            bins = binned.get((row["step"], name))
            if bins is not None and sum(bins["counts"]) == made.finite:  # else those of several ranks are added up
                made = Binned.beside(made, bins["counts"], bins["low"], bins["high"])
            found.setdefault(row["step"], (row["time"].timestamp(), {}))[1][name] = made
        yield from found.items()

    def _bins(self) -> dict[tuple[int, str], Mapping[str, Any]]:
        """What was said of bins that a logged histogram has beside the buckets, by step and name."""
        told: list[dict[str, Any]] = []
        for stream in self._streams:
            events = stream.table(Table.EVENTS)
            mine = events.filter(pc.equal(events["type"].cast(pa.string()), "bins"))
            told += map(json.loads, mine.column("json").to_pylist())
        return {(each["step"], each["name"]): each for each in told}


def _by_step(rows: Iterator[tuple[int, Mapping[str, Any]]]) -> dict[int, dict[str, list[Mapping[str, Any]]]]:
    """Rows by step and name: those of the lowest rank that has some."""
    found: dict[int, dict[str, tuple[int, list[Mapping[str, Any]]]]] = {}
    for rank, row in rows:
        names = found.setdefault(row["step"], {})
        known = names.get(row["name"])
        if known is None or rank < known[0]:
            names[row["name"]] = (rank, [row])
        elif rank == known[0]:
            known[1].append(row)
    return {step: {name: held for name, (_, held) in names.items()} for step, names in found.items()}
