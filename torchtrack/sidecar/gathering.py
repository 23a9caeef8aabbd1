"""Large jobs: the finished journal files of a node's ranks become one file, in a thread beside the sidecar's loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from torchtrack import guard
from torchtrack.journal.frame import rank_path
from torchtrack.journal.gather import Gatherer
from torchtrack.journal.origin import origin

GATHER_ABOVE: Final = 256
"""Ranks of a run from which on a file for each is too many for the file system."""


class Written(NamedTuple):
    """A stream that a rank of this node writes or has written."""

    uid: str
    rank: int
    stream: int


class Gathering:
    """Gathers what is finished: on `look` while ranks live, on `finish` the rest.

    Args:
        directory: the runs folder.
        stopped: asked between two streams; True leaves the rest where it is, where readers find it as well.
    """

    def __init__(self, directory: Path, stopped: Callable[[], bool]) -> None:
        self._directory = directory
        self._stopped = stopped
        self._gatherers: dict[str, Gatherer] = {}
        self._ended: list[Written] = []
        self._thread: threading.Thread | None = None

    def ended(self, written: Written) -> None:
        """The process that wrote a stream has ended: its last file may be gathered too."""
        self._ended.append(written)

    def look(self, live: Iterable[Written]) -> None:
        """Gather in the background, unless that is still going on; some streams may still be written to."""
        if self._thread is not None and self._thread.is_alive():
            return
        ended, self._ended = self._ended, []
        jobs = [(each, False) for each in live] + [(each, True) for each in ended]
        if jobs:
            self._thread = threading.Thread(target=self._gather, args=(jobs,), name="torchtrack-gather")
            self._thread.start()

    def finish(self) -> None:
        """Wait for what is going on, gather the rest and close the files."""
        if self._thread is not None:
            self._thread.join()
        ended, self._ended = self._ended, []
        self._gather([(each, True) for each in ended])
        for gatherer in self._gatherers.values():
            gatherer.close()

    def _gather(self, jobs: list[tuple[Written, bool]]) -> None:
        for written, ended in jobs:
            if self._stopped():
                return
            if not guard.attempt("gathering journals", self._take, written, ended=ended) and ended:
                self._ended.append(written)  # a full disk may have space later

    def _take(self, written: Written, *, ended: bool) -> None:
        uid, rank, stream = written
        if uid not in self._gatherers:
            opening = {"role": "gathered", "uid": uid, **origin()}
            self._gatherers[uid] = Gatherer(self._directory / uid / "nodes", opening)
        self._gatherers[uid].take(rank_path(self._directory, uid, rank, stream), stream, ended=ended)
