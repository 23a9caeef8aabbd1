"""Checksums of the bits of tensors, on their device: who holds equal tensors has equal checksums.

A tensor is read as 64-bit words, laid out in rows of `COLUMNS`; words that fill no row are kept as they are. Every
column and every row is summed, modulo 2^64, which is two reads and no temporary as large as the tensor. What is left,
a number a column, a row and a word, is mixed with its place, and the sum of that is the checksum. Sums that wrap around
do not depend on their order, so neither chunking nor threads change the result. One that mixed nothing would not see
two signs flip, since the highest bits cancel, nor two elements change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from torchtrack.watch import layout

COLUMNS: Final = 1024
_WORD: Final = 8
_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD: Final = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Odd numbers without a pattern in their bits."""


@torch.no_grad()
def checksums(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The checksum of each tensor, int64 [n], without waiting for the device; 0 if all its bits are.

    Args:
        tensors: real, strided, on one device. The order in memory counts where it is that of a plain transposition.
    """
    flat = [_integers(tensor) for tensor in tensors]
    rows = [tensor.numel() * tensor.element_size() // _WORD // COLUMNS for tensor in flat]
    # Places of words, columns and rows; made on the device, since a copy to it would have to wait.
    keys = torch.arange(2 * COLUMNS + max(rows), dtype=torch.int64, device=flat[0].device) * _ODD[0]
    words, places, sizes = [], [], []
    for tensor, n in zip(flat, rows, strict=True):
        rest = _rest(tensor, n)
        block = _block(tensor, n) if n else None
        words += [rest] if block is None else [rest, block.sum(0), block.sum(1)]
        places += [keys[: rest.numel()]] if block is None else [keys[: rest.numel()], keys[COLUMNS : 2 * COLUMNS + n]]
        sizes.append(rest.numel() + (COLUMNS + n if n else 0))
    every = torch.cat(words)
    mixed = _mixed(every + torch.cat(places)) * (every != 0)
    return torch.stack([part.sum() for part in mixed.split(sizes)])


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of the elements, flat."""
    flat = layout.flat(tensor.detach(), whole=True).contiguous()
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
    if missing:
        left = nn.functional.pad(left, (0, missing))
    elif left.storage_offset() * size % _WORD:
        left = left.clone()
    return left.view(torch.int64)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """Other words, of which every bit depends on all bits of the ones given; two that differ still do."""
    for odd, shift in zip(_ODD[1:], (32, 29), strict=True):
        words = words * odd
        words = words ^ ((words >> shift) & ((1 << (64 - shift)) - 1))  # a shift that brings in zeros
    return words
