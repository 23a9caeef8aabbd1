"""Checksums of bits: what they tell apart, what they do not depend on, and that nobody waits for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torchtrack.testing import SyncGuard
from torchtrack.watch.checksum import COLUMNS, checksums

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.bool, torch.int64)
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SIZES = (1, 3, 8, COLUMNS - 1, 2 * COLUMNS + 5, 40_003)


def of(tensor: torch.Tensor) -> int:
    return int(checksums([tensor]).item())


def numbers(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(size)) * 10).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_no_flipped_bit_is_missed(dtype: torch.dtype, size: int) -> None:
    tensor = numbers(size, dtype)
    bits = tensor.view(INTEGERS[tensor.element_size()])
    before, seen = of(tensor), set()
    for place in {0, size // 2, size - 1}:
        for bit in range(8 * tensor.element_size()):
            flipped = bits.clone()
            flipped[place] ^= torch.tensor(1, dtype=bits.dtype) << bit
            seen.add(of(flipped.view(dtype)))
    assert before not in seen  # nor is one flip taken for another:
    assert len(seen) == len({0, size // 2, size - 1}) * 8 * tensor.element_size()


def same_bit_in_two(x: torch.Tensor, a: int, b: int) -> None:
    x.view(torch.int32)[[a, b]] ^= 1 << 12


def swap(x: torch.Tensor, a: int, b: int) -> None:
    x[[a, b]] = x[[b, a]]


def swap_blocks(x: torch.Tensor, a: int, b: int) -> None:
    a, b = 2 * COLUMNS * (a % 8), 2 * COLUMNS * (8 + b % 8)  # whole rows
    x[a : a + 2 * COLUMNS], x[b : b + 2 * COLUMNS] = x[b : b + 2 * COLUMNS].clone(), x[a : a + 2 * COLUMNS].clone()


def other_signs(x: torch.Tensor, a: int, b: int) -> None:
    x[[a, b]] *= -1


@pytest.mark.parametrize("change", [same_bit_in_two, swap, swap_blocks, other_signs])
def test_changes_that_plain_sums_do_not_see_are_seen(change: Callable[[torch.Tensor, int, int], None]) -> None:
    tensor = numbers(32 * COLUMNS + 77)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        a, b = torch.randint(len(tensor), (2,), generator=generator).tolist()
        changed = tensor.clone()
        change(changed, a, b)
        assert of(changed) != of(tensor), (a, b)


def test_where_a_tensor_lies_makes_no_difference_and_its_neighbours_none() -> None:
    for size in SIZES:
        tensor = numbers(size)
        for offset in (1, 2):
            assert of(torch.cat([torch.ones(offset), tensor])[offset:]) == of(tensor)
        assert checksums([tensor, numbers(70_001), tensor]).tolist()[::2] == [of(tensor)] * 2
    matrix = numbers(6000).view(60, 100)
    assert of(matrix.t()) == of(matrix)  # read in the order of memory, without a copy
    assert of(matrix[:, ::2]) == of(matrix[:, ::2].clone())


def test_zeros_have_none() -> None:
    assert checksums([torch.zeros(size) for size in (0, *SIZES)]).tolist() == [0] * (len(SIZES) + 1)


def test_it_never_waits_for_the_device() -> None:
    with FakeTensorMode(), SyncGuard() as guard:
        found = checksums([torch.empty(n, device="lazy:0", dtype=d) for n in SIZES for d in DTYPES[:4]])
    assert (guard.violations, found.device.type) == ([], "lazy")
