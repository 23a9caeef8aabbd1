"""Writers for the tests of the reading side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.journals import RankJournal


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty folder of runs."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def journal(runs: Path) -> Iterator[Callable[..., RankJournal]]:
    """Make streams in `runs`; those still open at the end of the test are closed without a seal."""
    made: list[RankJournal] = []

    def make(*args: Any, **kwargs: Any) -> RankJournal:
        made.append(RankJournal(runs, *args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.abandon()
