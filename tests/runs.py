"""What the tests of a run share: starting one, reading it back, a journal in memory, scripts of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import torchtrack
from torchtrack import records
from torchtrack.api.run import Run as RecordedRun
from torchtrack.journal import Kind
from torchtrack.recorder import Recorder
from torchtrack.run import Run

DEADLINE_S = 20.0


def begin(**arguments: Any) -> Run:
    """A run without samples of the system."""
    return torchtrack.init(**{"system_interval": 0, **arguments})


def recorded(run: Run) -> RecordedRun:
    """The run as readers see it."""
    return torchtrack.Api(run.settings.dir).run(run.uid)


def finished(run: Run) -> RecordedRun:
    """The run as readers see it once it has ended."""
    run.finish(quiet=True)
    return recorded(run)


def column(run: RecordedRun, name: str) -> list[Any]:
    """The values of a metric as they were logged: every one, in order."""
    return [value for value in run.history(name, raw=True).column(name).to_pylist() if value is not None]


def own(run: RecordedRun) -> list[str]:
    """The names of the user's metrics."""
    return [name for name in run.keys() if not name.startswith(("watch/", "system/", "_tt/"))]  # noqa: SIM118


def texts(run: RecordedRun) -> dict[str, Any]:
    """Name to text, the last of each."""
    return {row["name"]: row["text"] for row in run.texts().to_pylist()}


def until(what: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Wait for something to become true."""
    deadline = time.monotonic() + deadline_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.005)
    return found


def script(
    text: str, folder: Path, *, environ: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, maybe under another program; `DIR` in it is the folder of its runs."""
    path = folder / "train.py"
    path.write_text(f"DIR = {str(folder / 'runs')!r}\n" + textwrap.dedent(text))
    return subprocess.run(
        [*prefix, sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(torchtrack.__file__).parent.parent), **(environ or {})},
        check=False,
    )


def only_run(folder: Path) -> RecordedRun:
    """The one run a script has recorded."""
    (run,) = torchtrack.Api(folder / "runs").runs()
    return run


class Memory:
    """A journal writer that keeps what it gets; `gate` lets it hang."""

    def __init__(self) -> None:
        self.frames: list[tuple[records.Table, pa.Table]] = []
        self.gaps: list[tuple[int, str]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.stuck = threading.Event()

    def append(self, kind: Kind, payload: pa.Buffer, *, table: int = 0, rows: int = 0) -> bool:
        """Keep a frame, once the gate is open."""
        if not self.gate.is_set():
            self.stuck.set()
            self.gate.wait(DEADLINE_S)
        self.threads.add(threading.current_thread().name)
        decoded = records.decode(records.Table(table), payload)
        assert kind is Kind.DATA
        assert decoded.num_rows == rows
        self.frames.append((records.Table(table), decoded))
        return True

    def gap(self, rows: int, reason: str, since_ns: int, until_ns: int) -> bool:
        """Keep a gap."""
        assert 0 < since_ns <= until_ns
        self.gaps.append((rows, reason))
        return True

    def rows(self, table: records.Table = records.Table.SCALARS) -> list[dict[str, Any]]:
        """All rows of a table, in the order they were written."""
        return [row for which, frame in self.frames if which is table for row in frame.to_pylist()]

    def values(self, name: str) -> list[float]:
        """The values of one metric."""
        frames = [frame for which, frame in self.frames if which is records.Table.SCALARS]
        found = [frame.filter(pc.equal(frame["name"].cast(pa.string()), name))["value"].to_pylist() for frame in frames]
        return [value for values in found for value in values]


def recorder(writer: Memory, **options: Any) -> Recorder:
    """A recorder that writes to memory, started."""
    made = Recorder(lambda: writer, **options)  # type: ignore[arg-type,return-value]  # as much of a Writer as it uses
    made.start()
    return made
