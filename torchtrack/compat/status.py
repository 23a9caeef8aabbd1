"""`run.status()`: what of a run the server has."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from torchtrack import guard
from torchtrack.api.arrival import arrivals
from torchtrack.run import Run


@dataclass(frozen=True)
class RunStatus:
    """How far a run has been sent, in frames of its journals."""

    sync_items_total: int = 0
    """Frames that all ranks whose journals lie in this folder have written."""
    sync_items_pending: int = 0
    """Those of them that no server has confirmed."""
    sync_time: datetime | None = None
    """When a server last confirmed some, in local time; None if none has."""


def status(run: Run) -> RunStatus:
    """How far the run has been sent; of one that records nothing, nothing. Asks nobody, reads the folder."""
    told = RunStatus() if run.disabled else guard.outcome(_status, run)
    return told if isinstance(told, RunStatus) else RunStatus()


def _status(run: Run) -> RunStatus:
    journals = arrivals(run.settings.dir, Path(run.dir))
    newest_ns = max((journal.time_ns for journal in journals), default=0)
    return RunStatus(
        sync_items_total=sum(journal.frames for journal in journals),
        sync_items_pending=sum(max(0, journal.frames - journal.arrived) for journal in journals),
        sync_time=datetime.fromtimestamp(newest_ns / 1e9) if newest_ns else None,
    )
