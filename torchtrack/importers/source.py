"""What a kind of source offers: runs, and their rows in chunks that say how far the source was read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from torchtrack.histogram import Histogram
from torchtrack.records import MAX_NAME, RESERVED, encodable

CHUNK_ROWS: Final = 50_000
"""Rows of a chunk, about."""
CHUNK_BYTES: Final = 16 << 20
"""Of media and text in a chunk, about."""


@dataclass(frozen=True)
class About:
    """What a run is called and when it began."""

    project: str
    id: str
    name: str
    start_ns: int
    """Wall time; 0 where the source does not say, then that of the first row counts."""
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    host: str = ""


class End(NamedTuple):
    """How a run ended, in the words of the journal."""

    reason: str
    """finish, exception or signal."""
    error: str | None = None
    time_ns: int | None = None
    """Wall time; None: that of the last row."""


class Losses:
    """What of a source is not in the journal afterwards, in plain words and counted."""

    def __init__(self) -> None:
        self.formats: Counter[str] = Counter()
        """What torchtrack has no place for, or holds in another form."""
        self.damages: Counter[str] = Counter()
        """What could not be read."""

    def note(self, what: str, count: int = 1) -> None:
        """Count something that has no place here."""
        self.formats[what] += count

    def damage(self, what: str, count: int = 1) -> None:
        """Count something that could not be read."""
        self.damages[what] += count

    def add(self, other: Losses) -> None:
        """Count those of another too."""
        self.formats.update(other.formats)
        self.damages.update(other.damages)


class Medium(NamedTuple):
    """A file, with the place where it was logged."""

    step: int
    time_us: int
    name: str
    data: bytes
    mime: str
    caption: str | None


@dataclass
class Chunk:
    """A stretch of a source: rows by table, each table in the order of the source.

    Times are in microseconds since the epoch. The same cursor gives the same rows again in the same order, and more
    after them if the source has grown.
    """

    cursor: Any = None
    """Where reading goes on after this chunk; JSON."""
    attempt: int = 1
    from_step: int | None = None
    """The step from which on the attempt takes back what earlier ones recorded, if the source says so."""
    position: int = 0
    """How much of `SourceRun.size` has been read."""
    scalars: list[tuple[int, int, str, float]] = field(default_factory=list)
    texts: list[tuple[int, int, str, str | None]] = field(default_factory=list)
    histograms: list[tuple[int, int, str, Histogram]] = field(default_factory=list)
    media: list[Medium] = field(default_factory=list)
    lines: list[tuple[int, str, str]] = field(default_factory=list)
    events: list[tuple[int, int | None, str, Mapping[str, Any]]] = field(default_factory=list)
    weight: int = 0
    """Bytes of media and text."""

    def scalar(self, step: int, time_us: int, name: str, value: float) -> None:
        """Add a number."""
        self.scalars.append((step, time_us, name, value))

    def text(self, step: int, time_us: int, name: str, text: str | None) -> None:
        """Add a text."""
        self.texts.append((step, time_us, name, text))
        self.weight += len(text or "")

    def histogram(self, step: int, time_us: int, name: str, histogram: Histogram) -> None:
        """Add a histogram."""
        self.histograms.append((step, time_us, name, histogram))
        self.weight += 3000

    def medium(self, step: int, time_us: int, name: str, data: bytes, mime: str, caption: str | None = None) -> None:
        """Add an image, a sound, a table or another file."""
        self.media.append(Medium(step, time_us, name, data, mime, caption))
        self.weight += len(data)

    def line(self, time_us: int, stream: str, line: str) -> None:
        """Add a line of the console."""
        self.lines.append((time_us, stream, line))
        self.weight += len(line)

    def event(self, time_us: int, kind: str, data: Mapping[str, Any], step: int | None = None) -> None:
        """Add an event: "config", "summary", "metric" or "environment"."""
        self.events.append((time_us, step, kind, data))

    @property
    def rows(self) -> int:
        """Of all tables."""
        tables = (self.scalars, self.texts, self.histograms, self.media, self.lines, self.events)
        return sum(len(table) for table in tables)

    @property
    def full(self) -> bool:
        """Whether it should be written before more is added."""
        return self.rows >= CHUNK_ROWS or self.weight >= CHUNK_BYTES


class SourceRun(ABC):
    """One run of a source.

    Attributes:
        kind: of the source, such as "tensorboard".
        key: what tells this run from all others of its kind, wherever the source is moved to.
        about: what it is called.
        size: how much there is to read, in any unit.
        losses: what is not taken over; complete once all has been read.
        end: how it ended; known once all has been read.
    """

    kind: str
    key: str
    about: About
    size: int

    def __init__(self) -> None:
        self.losses = Losses()
        self.end = End("finish")
        self._names: dict[str, str] = {}

    def named(self, name: str) -> str:
        """The name a metric of this run gets: its own, but for those that torchtrack keeps for itself."""
        known = self._names.get(name)
        if known is None:
            known = self._names[name] = self._named(name)
        return known

    def _named(self, name: str) -> str:
        name = encodable(name)
        if len(name) > MAX_NAME:
            self.losses.note(f"names longer than {MAX_NAME} characters: cut off there")
            name = name[:MAX_NAME]
        if name.startswith(RESERVED):
            self.losses.note("names that torchtrack keeps for itself: under imported/ now")
            return f"imported/{name}"
        return name

    @abstractmethod
    def read(self, cursor: Any) -> Iterator[Chunk]:
        """What the source holds after a cursor; None: all of it."""


def file_in(folder: Path, path: str) -> Path | None:
    """A file that a source names; None if it is not there, or not in this folder."""
    file = (folder / path).resolve()
    return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
