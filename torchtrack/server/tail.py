"""One stream as the Indexer follows it: what its records say, and how far its rows are in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtrack.journal.reader import Stream
from torchtrack.records import Table


class Tail:
    """One stream: its records as readers are told them, and how far its rows are in the store."""

    def __init__(self, path: Path, relative: str) -> None:
        self.path = path
        self.relative = relative
        self.run = Path(relative).parts[0]
        """The name of the folder that it lies in."""
        self.exits: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.damages: list[list[Any]] = []
        self.last_mono_ns: int | None = None
        self.touched: set[str] = set()
        """What rows came of that no record speaks of yet: names of tables, and `findings`."""
        self.tables: dict[str, int] = {}
        """Of each, the counter of the newest record that speaks of such rows."""
        self.stored: dict[Table, int] = {}
        """The newest seq of each table that was in the store when it was asked for the stream `asked`."""
        self.asked = -1
        self.number = 0
        self.last_seq = -1
        self.journal = Stream(path)
        self._told = ""

    @property
    def done(self) -> bool:
        """Whether nothing can follow."""
        return self.journal.seal is not None

    def start_over(self) -> None:
        """Forget what was read: the file is another one."""
        self.exits, self.heartbeats, self.damages = [], [], []
        self.touched, self.tables = set(), {}
        self.last_mono_ns, self.last_seq, self.stored, self.asked = None, -1, {}, -1

    def record(self) -> dict[str, Any]:
        """What readers are told: all records of the stream, and the seq up to which its rows are in the store."""
        journal = self.journal
        return {
            "path": self.relative,
            "opening": journal.opening,
            "joined": journal.joined,
            "ended": journal.ended,
            "seal": journal.seal,
            "gaps": journal.gaps,
            "damages": [[str(d.path), *d[1:]] for d in journal.damages] + self.damages,
            "exits": self.exits,
            "heartbeats": self.heartbeats,
            "last_mono_ns": self.last_mono_ns,
            "next_seq": self.last_seq + 1,
            "tables": self.tables,
        }

    def bookmark(self) -> dict[str, Any]:
        """What `resume` needs beside the record."""
        return {"journal": self.journal.bookmark(), "damages": self.damages}

    def resume(self, record: Mapping[str, Any], bookmark: Mapping[str, Any]) -> None:
        """Go on where a row of `streams` was written."""
        self.exits, self.heartbeats = list(record["exits"]), list(record["heartbeats"])
        self.damages = list(bookmark["damages"])
        self.tables = dict(record["tables"])
        self.last_mono_ns, self.last_seq = record["last_mono_ns"], record["next_seq"] - 1
        self.journal.resume(bookmark["journal"])
        self.number = self.journal.stream
        self._told = json.dumps(record)

    def damaged(self, seq: int, reason: str) -> None:
        """Note a frame that says nothing."""
        self.damages.append([str(self.path), 0, 0, seq, seq, reason])

    def changed(self, batch: int) -> str | None:
        """The record as JSON, to be written with this counter, if it is another than the last time this was asked."""
        self.tables = {**self.tables, **dict.fromkeys(sorted(self.touched), batch)}
        self.touched.clear()
        record = json.dumps(self.record())
        if record == self._told:
            return None
        self._told = record
        return record
