"""`run.status()`: what of a run a server has."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import torchtrack
from tests.runs import begin, until
from torchtrack.compat.status import RunStatus
from torchtrack.journal.reader import Stream, find_streams
from torchtrack.run import Run
from torchtrack.sidecar.upload.progress import Progress, arrived


def stream_of(run: Run) -> Stream:
    """The run's only journal, as it is by now."""
    (path,) = find_streams(Path(run.dir))
    stream = Stream(path)
    list(stream.stored())
    return stream


def test_a_run_that_records_nothing_has_nothing_to_send() -> None:
    run: Any = begin(mode="disabled")

    assert run.status() == RunStatus(0, 0, None)


def test_without_a_server_all_is_pending() -> None:
    run: Any = begin()
    run.log({"x": 1.0})
    run.finish(quiet=True)
    written = stream_of(run).next_seq

    assert written > 0
    assert run.status() == RunStatus(written, written, None)


def test_what_a_server_has_confirmed_is_not_pending() -> None:
    other: Any = begin(project="other")
    run: Any = begin(reinit="create_new")
    run.log({"x": 1.0})
    for each in (run, other):
        each.finish(quiet=True)
    stream = stream_of(run)
    noted = Progress(run.settings.dir, "http://127.0.0.1:9", "sidecar")
    noted.acked(stream.stream, 2, sealed=False)
    noted.write(now=True)
    status = run.status()

    assert (status.sync_items_total, status.sync_items_pending) == (stream.next_seq, stream.next_seq - 2)
    assert status.sync_time == datetime.fromtimestamp(
        arrived(run.settings.dir)[f"{stream.stream:016x}"]["time_ns"] / 1e9
    )
    assert other.status().sync_items_pending == other.status().sync_items_total > 0


def test_a_run_that_is_written_is_told_of_while_it_runs() -> None:
    run: Any = begin()
    before = until(lambda: run.status().sync_items_total)
    for step in range(3):
        run.log({"x": float(step)})

    assert until(lambda: run.status().sync_items_total > before)
    torchtrack.finish(quiet=True)
