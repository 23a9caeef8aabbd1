"""What of a folder's journals has reached a server, as far as this machine knows; nobody is asked."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torchtrack.journal.reader import Stream, find_streams
from torchtrack.sidecar.upload.progress import arrived


class Arrival(NamedTuple):
    """One journal: frames here, and how far it is known to have arrived.

    Attributes:
        path: its first file.
        uid: of its run.
        frames: how many it holds.
        arrived: how many of them a server has confirmed.
        time_ns: when one last did; 0 if none has.
        sealed: whether it was ended.
        dropped_rows: rows that its writer says were dropped.
        damaged: frames that are lost to damage.
        problem: why a server refuses it; None if none does.
    """

    path: Path
    uid: str
    frames: int
    arrived: int
    time_ns: int
    sealed: bool
    dropped_rows: int
    damaged: int
    problem: str | None


def arrivals(runs: Path, folder: Path) -> list[Arrival]:
    """Every journal in a folder.

    Args:
        runs: the folder of runs, where it is noted what has arrived.
        folder: the same, or that of one run.
    """
    known, found = arrived(runs), []
    for path in find_streams(folder):
        stream = Stream(path)
        for _ in stream.stored():
            pass
        entry = known.get(f"{stream.stream:016x}", {})
        found.append(
            Arrival(
                path=path,
                uid=stream.uid or path.parent.parent.name,
                frames=stream.next_seq,
                arrived=int(entry.get("next", 0)),
                time_ns=int(entry.get("time_ns", 0)) if entry.get("next") else 0,
                sealed=stream.seal is not None,
                dropped_rows=sum(int(gap.get("rows", 0)) for gap in stream.gaps),
                damaged=sum(damage.lost for damage in stream.damages),
                problem=entry.get("problem"),
            )
        )
    return found
