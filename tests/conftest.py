"""Every test starts from the same state and leaves nothing behind."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from torchtrack import guard
from torchtrack.testing import close_pool, leaks

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more would be child processes that stay
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("RES_OPTIONS", "timeout:1")  # torch looks up loopback peers; a lost packet costs 5 s else

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_LAUNCHERS = ("TORCHTRACK_", "TORCHELASTIC_", "SLURM_", "OMPI_", "PMI_", "PMIX_", "GROUP_", "ROLE_", "MASTER_")
_started = time.monotonic()
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="seed of the `rng` fixture: another one is another chaos")
    parser.addoption("--share-s", type=float, help="shuffle by --seed, run for so many seconds, skip the rest")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--share-s") is not None:
        random.Random(config.getoption("--seed")).shuffle(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    share_s = item.config.getoption("--share-s")
    if share_s is not None and time.monotonic() - _started > share_s:
        pytest.skip("not in this run's share")


def pytest_sessionfinish() -> None:
    close_pool()


@pytest.fixture(autouse=True)
def hygiene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """The surroundings of a test, and the police: what it leaves behind fails it.

    Runs go to `tmp_path / "runs"` without a sidecar, and with one without a lookout; a test that wants them says so.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_LAUNCHERS) or name in _RANK_VARIABLES:
                patch.delenv(name)
        patch.setenv("TORCHTRACK_DIR", str(tmp_path / "runs"))
        patch.setenv("TORCHTRACK_SIDECAR", "0")
        patch.setenv("TORCHTRACK_LIVE_FINDINGS", "0")
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # where `torchtrack login` keeps keys
        guard.failures.clear()
        before = leaks.snapshot()
        yield
        left = leaks.since(before)
        leaks.restore(before)
    failures = dict(guard.failures)
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)
    if failures and "expect_internal_failures" not in request.fixturenames:
        pytest.fail(f"torchtrack failed inside and went on: {failures}", pytrace=False)


@pytest.fixture
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """What git and the packages say takes longer than the rest of a test."""
    monkeypatch.setattr("torchtrack.environment.slow", dict)


@pytest.fixture
def expect_internal_failures() -> Iterator[None]:
    """Ask for this where torchtrack must fail inside and go on; it fails the test if nothing failed."""
    yield
    if not guard.failures:
        pytest.fail("nothing failed inside torchtrack, and the test is about such a failure", pytrace=False)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that depend on --seed and on the test's own name, in whatever order tests run."""
    return random.Random(f"{request.config.getoption('--seed')} {request.node.nodeid}")
