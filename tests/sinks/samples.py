"""A run to forward, and sinks that misbehave."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import torchtrack
from tests.api.journals import UID, RankJournal
from torchtrack.sinks import About, Sink
from torchtrack.sinks.feed import Forwarded

VALUES = [0.5, -0.25, 3e-9, 0.0, float("nan"), float("inf"), 1e9]


def two_ranks(runs: Path) -> str:
    """A finished run of two ranks with a histogram; its uid."""
    for rank in range(2):
        with RankJournal(runs, rank=rank, world_size=2) as journal:
            if rank == 0:
                journal.about(name="calm", project="llm", tags=["a"], notes="words")
                journal.event("config", {"lr": 0.1, "model": {"width": 3}})
                journal.tensor(1, "w", VALUES)
            for step in range(4):
                journal.log(step, {"loss": float(step + 2 * rank)})
    return UID


def with_media(runs: Path) -> str:
    """A finished run with a text, an image, a sound and a table in its two steps; its uid."""
    run: Any = torchtrack.init(project="llm", dir=runs, system_interval=0, sidecar=False, config={"lr": 0.1})
    image = torchtrack.Image(np.zeros((3, 5, 3), np.uint8), caption="black")
    sound = torchtrack.Audio(np.zeros(80, np.int16), sample_rate=8000)
    table = torchtrack.Table(columns=["a", "b"], data=[[1, "x|y"], [2, "z"]])
    run.log({"loss": 1.0, "said": "hello", "picture": image, "sound": sound, "table": table})
    run.log({"said": "bye", "pictures": [image, image]})
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


class Hanging(Sink):
    """Never returns, but says in a file that it was asked."""

    def __init__(self, about: About, where: str | None) -> None:
        self._file = about.folder / "hangs"
        about.folder.mkdir(parents=True, exist_ok=True)

    def write(self, steps: Sequence[Forwarded]) -> None:
        self._file.touch()
        threading.Event().wait()


class Raising(Sink):
    """Fails, and says so in a file."""

    def __init__(self, about: About, where: str | None) -> None:
        about.folder.mkdir(parents=True, exist_ok=True)
        (about.folder / "raises").touch()
        raise RuntimeError("no service")

    def write(self, steps: Sequence[Forwarded]) -> None:
        """Never called."""


class Noting(Sink):
    """Keeps what it gets."""

    steps: list[Forwarded] = []  # noqa: RUF012  # shared on purpose
    rewound: list[int] = []  # noqa: RUF012

    def __init__(self, about: About, where: str | None) -> None:
        self.about = about

    def write(self, steps: Sequence[Forwarded]) -> None:
        self.steps.extend(steps)

    def rewind(self, step: int) -> None:
        self.rewound.append(step)

    def close(self, state: str, summary: Mapping[str, Any]) -> None:
        """Nothing to do."""
