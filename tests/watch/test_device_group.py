"""The opt-in merge over the user's backend, here gloo on CPU tensors. Not run on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

from torchtrack.testing import ranks
from torchtrack.watch.device_group import DeviceGroup
from torchtrack.watch.group import SLAB_BYTES

CPU = torch.device("cpu")


@ranks(3, init=True)
def test_sums_and_maxima_are_exact_on_every_rank() -> None:
    group = DeviceGroup(CPU, lambda: False)
    numbers = torch.arange(100, dtype=torch.float64) + 2.0**40
    tensor = numbers + group.rank
    group.all_reduce(tensor, "sum", 10.0)
    assert torch.equal(tensor, numbers * 3 + 3)
    tensor = torch.tensor([float(group.rank), float(-group.rank), -math.inf], dtype=torch.float64)
    group.all_reduce(tensor, "max", 10.0)
    assert tensor.tolist() == [2, 0, -math.inf]
    assert (group.rank, group.world_size) == (dist.get_rank(), 3)


@ranks(2, init=True)
def test_what_is_larger_than_a_slab_goes_in_slabs() -> None:
    group = DeviceGroup(CPU, lambda: False)
    tensor = torch.arange(SLAB_BYTES // 8 + 50, dtype=torch.float64).view(-1, 2)
    group.all_reduce(tensor, "sum", 10.0)
    assert torch.equal(tensor.view(-1), torch.arange(tensor.numel(), dtype=torch.float64) * 2)


@ranks(2, init=True)
def test_a_closed_group_may_be_used_again_and_the_users_groups_are_untouched() -> None:
    group = DeviceGroup(CPU, lambda: False)
    for _ in range(2):
        tensor = torch.ones(3, dtype=torch.float64)
        group.all_reduce(tensor, "sum", 10.0)
        assert tensor.tolist() == [2, 2, 2]
        group.close()
    mine = torch.ones(1)
    dist.all_reduce(mine)
    assert mine.item() == 2


@ranks(2, init=True)
def test_a_rank_that_comes_late_breaks_the_group_of_those_who_waited() -> None:
    group = DeviceGroup(CPU, lambda: False)
    tensor = torch.ones(3, dtype=torch.float64)
    if group.rank == 0:
        with pytest.raises(TimeoutError):
            group.all_reduce(tensor, "sum", 0.1)
        assert group.broken
        with pytest.raises(RuntimeError, match="cannot be used again"):
            group.all_reduce(tensor, "sum", 10.0)
    dist.barrier()
    if group.rank == 1:
        group.all_reduce(tensor, "sum", 10.0)  # so that nothing is left unfinished
        assert not group.broken


@ranks(2, init=True)
def test_a_rank_that_gives_up_waits_no_longer() -> None:
    group = DeviceGroup(CPU, lambda: dist.get_rank() == 0)
    tensor = torch.ones(3, dtype=torch.float64)
    if group.rank == 0:
        with pytest.raises(TimeoutError):
            group.all_reduce(tensor, "sum", math.inf)
    dist.barrier()
    if group.rank == 1:
        group.all_reduce(tensor, "sum", 10.0)


def test_without_process_groups_there_is_none() -> None:
    with pytest.raises(ValueError, match="init"):
        DeviceGroup(CPU, lambda: False)
