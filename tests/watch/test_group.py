"""The private tree of gloo groups: exact, the same on all ranks, and left at once when a rank is lost."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.rules import source
from tests.watch.conftest import until
from tests.watch.groups import DeathError, Ranks, assert_failed, others
from torchtrack.watch.group import FAILURES, finish, may_connect

group = importlib.import_module("torchtrack.watch.group")
FIVE_NODES_OF_EIGHT = [rank // 8 for rank in range(40)]
UNEVEN = [0] * 3 + [1] + [2] * 20 + [0, 3] * 4
"""Nodes of 7, 1, 20 and 4 ranks; some ranks of the first come last."""
Start = Callable[..., Ranks]


@pytest.fixture
def start() -> Iterator[Start]:
    begun: list[Ranks] = []

    def start(world_size: int, nodes: Sequence[int] | None = None) -> Ranks:
        begun.append(Ranks(world_size, nodes))
        assert [error for error in begun[-1].connect() if error is not None] == []
        return begun[-1]

    yield start
    for ranks in begun:
        ranks.close()
    until(lambda: may_connect() and not group._unfinished)  # else later tests in this process could not connect


def ones(_rank: int) -> torch.Tensor:
    return torch.ones(10, dtype=torch.float64)


def kill(ranks: Ranks, victim: int, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a rank die when it has waited for `at` collectives to end: its connections close."""
    waited = 0
    finish = type(ranks.groups[victim])._finish

    def deadly(link: Any, deadline: float) -> None:
        nonlocal waited
        finish(ranks.groups[victim], link, deadline)
        waited += 1
        if waited == at:
            raise DeathError

    monkeypatch.setattr(ranks.groups[victim], "_finish", deadly)


@pytest.mark.parametrize(
    ("world_size", "nodes"),
    [(1, None), (2, None), (16, None), (17, None), (40, FIVE_NODES_OF_EIGHT), (len(UNEVEN), UNEVEN), (18, range(18))],
    ids=["1", "2", "16", "17 unknown", "5 nodes of 8", "uneven", "18 nodes of 1"],
)
def test_sums_and_maxima_are_exact_on_every_rank(start: Start, world_size: int, nodes: Sequence[int] | None) -> None:
    ranks = start(world_size, nodes)
    counts = torch.arange(1000, dtype=torch.float64) + 2.0**40
    for result in ranks.all_reduce(lambda rank: counts + rank):
        assert torch.equal(result, counts * world_size + world_size * (world_size - 1) / 2)
    values = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    for result in ranks.all_reduce(lambda rank: torch.cat([values * rank, torch.tensor([-math.inf])]), "max"):
        assert result.tolist() == [world_size - 1, 0, 0, -math.inf]


def test_every_rank_has_the_same_bits_where_the_order_of_additions_matters(start: Start) -> None:
    ranks = start(40, FIVE_NODES_OF_EIGHT)
    values = torch.randn(40, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp()
    results = ranks.all_reduce(lambda rank: values[rank].clone())
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.allclose(results[0], values.sum(0), rtol=1e-14)


def test_what_is_larger_than_a_slab_goes_in_slabs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "SLAB_BYTES", 800)
    ranks = start(18, [rank // 9 for rank in range(18)])
    numbers = torch.arange(950, dtype=torch.float64).view(95, 10)
    for result in ranks.all_reduce(lambda rank: numbers * rank):
        assert torch.equal(result, numbers * 153)


@pytest.mark.parametrize("victim", [0, 8, 9], ids=["root", "leader", "neither"])
def test_when_a_rank_dies_in_the_middle_all_others_fail_long_before_the_timeout(
    start: Start, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    ranks = start(40, FIVE_NODES_OF_EIGHT)
    ranks.all_reduce(ones)
    kill(ranks, victim, 1, monkeypatch)  # a leader dies with the sum of its node; a leaf when it has sent its part
    results = ranks.all_reduce(lambda rank: torch.full((5000,), float(rank), dtype=torch.float64))
    assert isinstance(results[victim], DeathError)
    results[victim] = RuntimeError()
    whole = [rank for rank in range(40) if not isinstance(results[rank], FAILURES)]
    if victim == 9:  # its part had arrived: who has a total has the right one, and learns of the death at the next
        assert all(torch.equal(results[rank], torch.full((5000,), 780.0, dtype=torch.float64)) for rank in whole)
        assert_failed(ranks.all_reduce(ones, ranks=whole))
    else:
        assert whole == []


def test_ranks_that_meet_again_after_a_death_count_nothing_twice(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = start(40, FIVE_NODES_OF_EIGHT)
    kill(ranks, 16, 1, monkeypatch)
    ranks.all_reduce(lambda rank: torch.full((10,), float(rank), dtype=torch.float64))
    ranks.connect()
    for result in ranks.all_reduce(lambda rank: torch.full((10,), float(rank), dtype=torch.float64)):
        assert result.tolist() == [780.0] * 10


@pytest.mark.parametrize("late", [0, 8, 39], ids=["root", "leader", "neither"])
def test_when_a_rank_does_not_come_all_others_fail_at_the_deadline(start: Start, late: int) -> None:
    ranks = start(40, FIVE_NODES_OF_EIGHT)
    assert_failed(ranks.all_reduce(ones, timeout_s=0.5, ranks=others(40, late)))


def test_a_rank_that_closes_its_group_ends_the_waiting_of_all_others(start: Start) -> None:
    ranks = start(40, FIVE_NODES_OF_EIGHT)
    ranks.groups[11].close()
    assert_failed(ranks.all_reduce(ones, ranks=others(40, 11)))


def test_a_rank_that_gives_up_waits_no_longer(start: Start) -> None:
    ranks = start(18)
    ranks.gives_up = True
    assert_failed(ranks.all_reduce(ones, timeout_s=1.0, ranks=others(18, 17)))
    with pytest.raises(TimeoutError):
        finish(lambda: False, math.inf, lambda: True)


def test_what_is_done_already_is_not_given_up() -> None:
    finish(lambda: True, -math.inf, lambda: True)


def test_a_group_may_be_closed_twice(start: Start) -> None:
    start(2).close()


def test_a_leader_that_does_not_come_is_learnt_by_those_who_wait_for_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_CONNECT_TIMEOUT_S", 1.0)
    ranks = Ranks(20, [rank // 10 for rank in range(20)])
    made = ranks.connect(others(20, 10))
    assert_failed([made[0], *made[10:]])
    assert made[1:10] == [None] * 9  # connected with all ranks they talk to
    assert_failed(ranks.all_reduce(ones))


def test_ranks_that_imagine_other_nodes_do_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_CONNECT_TIMEOUT_S", 0.5)
    ranks = Ranks(18, [rank // 9 for rank in range(18)])
    made = ranks.connect(nodes={17: [0] * 10 + [1] * 8})
    assert_failed(made[9:])
    ranks.close()


def test_connecting_is_given_up_between_two_levels() -> None:
    ranks = Ranks(18, [rank // 9 for rank in range(18)])
    ranks.gives_up = True
    assert_failed(ranks.connect())


def test_a_process_may_end_while_its_ranks_wait_for_another() -> None:
    """A thread that sat inside a collective would abort the process: exit status -6.

    One group, which nobody leaves before the last has come: torch aborts too if a thread destroys a finished work just
    then, and a run ends its thread before the process does.
    """
    script = """
        import threading, torch
        from tests.watch.groups import Ranks
        ranks = Ranks(16)
        ranks.connect()
        wait = lambda rank: ranks.groups[rank].all_reduce(torch.ones(10, dtype=torch.float64), "sum", 30.0)
        for rank in range(15):
            threading.Thread(target=wait, args=(rank,), daemon=True).start()
        while not all(ranks.groups[rank]._top._work is not None for rank in range(15)):
            pass
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=source.ROOT, timeout=50)
    assert done.returncode == 0
