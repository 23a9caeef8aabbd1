"""One engine for all tests of the server's side, since a process can have no second one; a database for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import journal, runs  # noqa: F401  # the same fixtures here
from tests.server.running import Running
from tests.server.team import Team
from torchtrack.server.app import Config
from torchtrack.server.budget import Limits
from torchtrack.server.metrics import MetricsStore

_numbers = itertools.count()
SERVER_DSN = os.environ.get("TORCHTRACK_TEST_CLICKHOUSE_DSN")


@pytest.fixture(scope="session", autouse=True)
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of an engine in this process, open before the first test and until the last has ended."""
    dsn = f"chdb://{tmp_path_factory.mktemp('engine')}"
    first = MetricsStore(dsn, "held_open")
    first.command("SELECT 1")
    yield dsn
    first.close()


@pytest.fixture(params=["chdb", "server"])
def store(request: pytest.FixtureRequest) -> Iterator[MetricsStore]:
    """An empty store: in this process, and on a server where one is named."""
    if request.param == "server":
        if SERVER_DSN is None:
            pytest.skip("not run on a ClickHouse server: TORCHTRACK_TEST_CLICKHOUSE_DSN names none")
        dsn = SERVER_DSN
    else:
        dsn = request.getfixturevalue("engine")
    made = MetricsStore(dsn, f"test_{os.getpid()}_{next(_numbers)}")
    yield made
    made.drop()
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server on loopback that takes requests as fast as they come."""
    limits = Limits(job_requests_per_s=1000, interval_s=0.01, key_requests_per_s=2000, body_bytes=4 << 20)
    running = Running(Config(data=tmp_path_factory.mktemp("server"), limits=limits, queries=False))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A whole server with runs of two projects and keys of all kinds. Tests leave of it what they find."""
    made = Team(tmp_path_factory.mktemp("team"))
    try:
        made.come_together()
        yield made
    finally:
        made.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of local runs."""
    return tmp_path / "runs"
