"""A folder of runs and a way to type commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click.testing
import numpy as np
import pytest

from tests.api.journals import RankJournal
from tests.server.running import Running
from torchtrack import credentials
from torchtrack.cli import main
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits

Cli = Callable[..., click.testing.Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `torchtrack` with some arguments in an empty folder, at a width."""

    def run(*args: str, width: int = 100) -> click.testing.Result:
        monkeypatch.chdir(tmp_path)
        return click.testing.CliRunner(env={"COLUMNS": str(width)}).invoke(main, list(args), catch_exceptions=False)

    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs: a finished one of two ranks with everything in it, and a newer one that is running."""
    folder = tmp_path / "runs"
    rng = np.random.default_rng(0)
    for number in range(2):
        with RankJournal(folder, rank=number, world_size=2) as rank:
            if number == 0:
                rank.about(id="baseline", tags=["ablation"], notes="Half the warmup.")
                rank.event("config", {"lr": 3e-4, "model": {"width": 64}, "optimizer": "adamw", "seed": 0})
                rank.event("environment", {"argv": ["python", "train.py", "--lr", "3e-4"]})
                rank.event("finding", {"rule": "loss_spike", "severity": "warning", "why": "it rose"}, step=17)
                rank.text(3, "prompt", "hello")
                rank.line("stdout", "epoch 1")
                for sample in (0, 10):
                    for name in ("layers.2.weight", "layers.10.weight"):
                        rank.tensor(sample, name, rng.normal(0, 0.01, 500), stage="pre_clip", ranks=2)
            for step in range(20):
                rank.log(step, {"loss": 3.0 / (step + 1) + number, "watch/grad_norm": 1.0})
            rank.log(20, {"loss": float("nan")})
    newest = RankJournal(folder, "ffee000011112222", start_us=time.time_ns() // 1000)
    newest.about(name="red-fox-1", project="vision")
    newest.log(0, {"acc": 0.5})
    newest.abandon()
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server on loopback, logged in to."""
    limits = Limits(job_requests_per_s=1000, interval_s=0.01)
    running = Running(Config(data=tmp_path / "server", limits=limits, queries=False))
    credentials.keep(running.url, running.key)
    yield running
    running.stop()
