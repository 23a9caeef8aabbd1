"""Which steps a metric of a stream has, and whether one comes twice: kept, so that charts ask once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from torchtrack.server.metrics import MetricsStore
from torchtrack.server.placement import Placed

HELD: Final = 200_000
"""Metrics of streams of which this is remembered."""


@dataclass(frozen=True)
class Survey:
    """The rows of one metric of one stream."""

    low: int = 0
    high: int = -1
    points: int = 0
    single: bool = True
    """Whether no step comes twice."""
    partial: bool = False
    """Whether a value is one rank's part of a whole."""
    newest: int = -1
    """The last frame that has such a row. A query that finds a newer one has rows this does not speak of."""


class Surveys:
    """What is known of one store. **Threads:** any."""

    def __init__(self, store: MetricsStore) -> None:
        self._store = store
        self._known: OrderedDict[tuple[int, str], tuple[int, Survey]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, streams: Iterable[Placed], metrics: Iterable[str]) -> dict[tuple[int, str], Survey]:
        """By stream and metric; asked of the store only where the streams' records say that frames have come."""
        frames = {one.stream: one.frames for one in streams}
        keys = [(stream, metric) for stream in frames for metric in dict.fromkeys(metrics)]
        with self._lock:
            held = {key: self._known[key] for key in keys if key in self._known}
        found = {key: survey for key, (upto, survey) in held.items() if 0 < upto == frames[key[0]]}
        missing = [key for key in keys if key not in found]
        if missing:
            found.update(self._ask(missing))
        with self._lock:
            for key in keys:
                self._known[key] = frames[key[0]], found[key]
                self._known.move_to_end(key)
            while len(self._known) > HELD:
                self._known.popitem(last=False)
        return found

    def _ask(self, keys: list[tuple[int, str]]) -> dict[tuple[int, str], Survey]:
        streams, names = list({stream for stream, _ in keys}), sorted({name for _, name in keys})
        several = len(names) > 1
        rows = self._store.query(
            f"SELECT stream, {'name' if several else '{names:Array(String)}[1]'} AS metric, min(step) AS low, "
            "max(step) AS high, count() AS points, uniqExact(step) = points AS single, max(partial) AS partial, "
            "max(seq) AS newest FROM scalars WHERE stream IN {streams:Array(UInt64)} "
            f"AND name IN {{names:Array(String)}} GROUP BY stream{', name' if several else ''}",
            streams=streams,
            names=names,
        ).to_pylist()
        found = dict.fromkeys(keys, Survey())
        for row in rows:
            key = row["stream"], row["metric"]
            if key in found:
                single, partial = bool(row["single"]), bool(row["partial"])
                found[key] = Survey(row["low"], row["high"], row["points"], single, partial, row["newest"])
        return found
