"""Checksums of the bits of tensors, on their device: who holds equal tensors has equal checksums.

A tensor is read as 64-bit words, laid out in rows of `COLUMNS`. Its checksum is the sum of word times weight, modulo
2^64, where a weight is one number for the column plus one for the row: two plain sums, no temporary as large as the
tensor. Sums that wrap around do not depend on their order, so neither chunking nor threads change the result. Every
weight is odd, hence has an inverse: a change of one word, a flipped bit, is never missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from torchtrack.watch import layout

COLUMNS: Final = 4096
_WORD: Final = 8
_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MIX: Final = (-0x61C8864680B583EB, -0x3B314601E57A13AD)
"""Odd numbers without a pattern in their bits."""


@torch.no_grad()
def checksums(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The checksum of each tensor, int64 [n], without waiting for the device.

    Args:
        tensors: real, strided, on one device. The order in memory counts where it is that of a plain transposition.
    """
    flat = [_integers(tensor) for tensor in tensors]
    device = flat[0].device
    rows = [tensor.numel() * tensor.element_size() // _WORD // COLUMNS for tensor in flat]
    by_column, by_row = _numbers(COLUMNS, device) | 1, _numbers(max(rows) + 1, device) * 2
    # What does not fill a row, all tensors in one: most tensors have nothing else.
    rest = [_rest(tensor, n) for tensor, n in zip(flat, rows, strict=True)]
    weights = [by_column[: words.numel()] + by_row[n] for words, n in zip(rest, rows, strict=True)]
    products = (torch.cat(rest) * torch.cat(weights)).split([words.numel() for words in rest])
    sums = [product.sum() for product in products]
    for i, n in enumerate(rows):
        if n:
            block = _block(flat[i], n)
            sums[i] = sums[i] + (block.sum(0) * by_column).sum() + (block.sum(1) * by_row[:n]).sum()
    return torch.stack(sums)


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of the elements, flat."""
    flat = layout.flat(tensor.detach(), whole=True)
    return flat.view(_INTEGERS[flat.element_size()])


def _block(flat: torch.Tensor, rows: int) -> torch.Tensor:
    """The words that fill rows."""
    size = flat.element_size()
    words = flat[: rows * COLUMNS * _WORD // size]
    if words.storage_offset() * size % _WORD:
        words = words.clone()  # words begin at multiples of their size
    return words.view(torch.int64).view(rows, COLUMNS)


def _rest(flat: torch.Tensor, rows: int) -> torch.Tensor:
    """The words behind these rows, the last one filled up with zeros."""
    size = flat.element_size()
    left = flat[rows * COLUMNS * _WORD // size :]
    missing = -left.numel() % (_WORD // size)
    if missing or left.storage_offset() * size % _WORD:
        left = nn.functional.pad(left, (0, missing)) if missing else left.clone()
    return left.view(torch.int64)


def _numbers(count: int, device: torch.device) -> torch.Tensor:
    """As many 64-bit numbers, the same everywhere; made on the device, since a copy to it would have to wait."""
    numbers = (torch.arange(count, dtype=torch.int64, device=device) + 1) * _MIX[0]
    numbers = (numbers ^ (numbers >> 29)) * _MIX[1]
    return numbers ^ (numbers >> 32)
