"""No test of these finds a run of another, or is spared a line because another has seen it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import torchtrack
from torchtrack import active
from torchtrack.compat import said


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing has been said, and no run is left, also if it records nothing."""
    monkeypatch.setattr(said, "_said", set())
    monkeypatch.setattr(active._process, "ended", None)
    yield
    while torchtrack.run is not None:
        torchtrack.finish(quiet=True)
