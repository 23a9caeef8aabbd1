"""Ranks as threads: several jobs in one process that share a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from torchtrack.job import Job
from torchtrack.job.handshake import Link

Eventually = Callable[[Callable[[], object]], None]
PATIENCE_S = 40.0
"""How long a test waits for what has to come; on a busy machine that may take a while."""
dist: Any = torch.distributed


class Launch:
    """One launch of a job: its ranks share a store and the variables of torchrun."""

    def __init__(self, directory: Path, store: Any, *, size: int = 2, restart: int = 0, run_id: str = "launch"):
        self.directory = directory
        self.store = store
        self.size = size
        self.restart = restart
        self.run_id = run_id
        self.link = Link
        self.jobs: list[Job] = []

    def environ(self, rank: int) -> dict[str, str]:
        """What torchrun would set."""
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.size)}
        return {**place, "TORCHELASTIC_RUN_ID": self.run_id, "TORCHELASTIC_RESTART_COUNT": str(self.restart)}

    def start(self, rank: int, *, ordinal: int = 0, **arguments: Any) -> Job:
        """init() on a rank."""
        environ = self.environ(rank)
        project = arguments.pop("project", "p")
        job = Job.start(
            dir=self.directory,
            project=project,
            environ=environ,
            ordinal=ordinal,
            connector=lambda: self.link(self.store.clone()),
            **arguments,
        )
        job._patience_s = PATIENCE_S
        self.jobs.append(job)
        return job

    def joins(self, ordinal: int = 0) -> int:
        """How many ranks have asked."""
        return int(dist.PrefixStore(f"torchtrack/{ordinal}", self.store).add("joins", 0))

    def close(self) -> None:
        """finish() on every rank."""
        for job in self.jobs:
            job.close()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    """Make launches; all share a runs folder and a store unless told otherwise."""
    launches: list[Launch] = []
    store = dist.HashStore()

    def make(directory: Path = tmp_path, **arguments: Any) -> Launch:
        made = Launch(directory, arguments.pop("store", store), **arguments)
        launches.append(made)
        return made

    yield make
    for made in launches:
        made.close()


@pytest.fixture
def eventually() -> Eventually:
    """Wait until something is true."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.005)

    return wait
