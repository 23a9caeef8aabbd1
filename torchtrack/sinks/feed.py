"""The steps of a run as sinks take them: numbers combined over ranks, and every histogram with its moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from torchtrack.api import history, parts, tensors
from torchtrack.api.facts import Event
from torchtrack.api.feed import Feed
from torchtrack.api.history import Window
from torchtrack.histogram import Histogram
from torchtrack.records import Table
from torchtrack.stability import Step


@dataclass(frozen=True)
class Forwarded(Step):
    """A step with what rules do not need."""

    time_s: float = 0.0
    """Wall time."""
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    """By name: that of a logged one, else its kind, `/` and the tensor's name."""


class SinkFeed(Feed):
    """Steps of one run, each once, in order, when all that belongs to it has come."""

    @property
    def back_to(self) -> int | None:
        """The first step of a new attempt that lies before what was given out."""
        first = [step for step in parts.cuts(self._streams).values() if self.since is not None and step < self.since]
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
        for step in sorted({*found, *counted}):
            at, numbers = found.get(step, (0.0, {}))
            later, histograms = counted.get(step, (0.0, {}))
            yield Forwarded(step, numbers, time_s=at or later, histograms=histograms)

    def _histograms(self, window: Window) -> Iterator[tuple[int, tuple[float, dict[str, Histogram]]]]:
        held = [tensors.TensorPart(s.attempt, s.rank, s.table(Table.TENSORS)) for s in self._streams]
        rows = tensors.one_stage(tensors.combined(held, None, None, window), None)
        found: dict[int, tuple[float, dict[str, Histogram]]] = {}
        columns = ("step", "time", "kind", "name", "buckets", "counts", "sum", "sum_sq", "min", "max")
        for row in rows.select(columns).to_pylist():
            name = row["name"] if row["kind"] == "logged" else f"{row['kind']}/{row['name']}"
            moments = row["sum"], row["sum_sq"], row["min"], row["max"]
            made = Histogram.from_sparse(row["buckets"], row["counts"], *moments)
            found.setdefault(row["step"], (row["time"].timestamp(), {}))[1][name] = made
        yield from found.items()
