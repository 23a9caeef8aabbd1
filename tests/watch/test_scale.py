"""The merge of 256 ranks, each with the shipped group: threads of this process, over real loopback sockets."""

from __future__ import annotations

import importlib
import resource
from collections.abc import Iterator

import pytest
import torch

from tests.watch.groups import Ranks
from torchtrack.watch.tree import levels

group = importlib.import_module("torchtrack.watch.group")
WORLD_SIZE = 256
NODES = [rank // 8 for rank in range(WORLD_SIZE)]


@pytest.fixture
def many_files() -> Iterator[None]:
    """Every rank has its sockets in this one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 3 * sum(len(members) ** 2 for level in levels(WORLD_SIZE, NODES) for members in level)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"a process may open {hard} files here, and this takes up to {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_sums_and_maxima_of_256_ranks_are_exact_on_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_POLL_S", (0.005, 0.02))  # 256 threads that look more often have no time to work
    monkeypatch.setattr(group, "_CONNECT_TIMEOUT_S", 30.0)
    ranks = Ranks(WORLD_SIZE, NODES)
    assert [error for error in ranks.connect() if error is not None] == []
    counts = torch.arange(10 * 330, dtype=torch.float64) + 2.0**40
    for result in ranks.all_reduce(lambda rank: counts + rank):
        assert torch.equal(result, counts * 256 + 256 * 255 / 2)
    for result in ranks.all_reduce(lambda rank: torch.tensor([rank, -rank], dtype=torch.float64), "max"):
        assert result.tolist() == [255, 0]
    ranks.close()
