"""The kernel that runs everywhere torch runs: operators of torch only.

Three ways, told apart by host-side facts alone (device, dtype, size):

- `packed`: accelerators, and small tensors on a CPU; see `torchtrack.watch.kernels.passes`.
- `_chunked`: a large float32 or float64 tensor on a CPU, in chunks that stay in the cache.
- `_by_word`: a large tensor of a 16-bit or 8-bit format on a CPU. The words are counted, not the numbers: counts and
  moments then follow from the table of all words.

Time as a multiple of one `x.sum()` pass over the same tensors, one thread of a Zen 4 CPU, torch 2.13 (8M elements |
a transformer, 74 tensors, 5.8M elements): float32 9 to 13 | 9 to 15, bfloat16 16 | 20, float16 14 to 17 | 19, float64
8 | 7. That is 2 ns an element in float32, 1.1 by words in the 16-bit formats, 0.5 in float8, and 9 us a small tensor.
Half of the float32 pass is `bincount`; `scatter_add_` takes 1.5 times as long, several interleaved tables gain nothing,
int16 codes are as fast, and float64 sums out of a scratch buffer cost less than `sum` and `vector_norm` in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch

from torchtrack.histogram import NUM_BUCKETS
from torchtrack.watch.kernels.passes import constants, fold, packed

_CPU_CHUNK = 1 << 17
_WORD_CHUNK = 1 << 20
# From these sizes on a tensor gets its own loop on a CPU: measured, where a loop's fixed cost is paid back.
_HOST: Final = torch.device("cpu")  # named each time: the user may have set another default device
_OWN_LOOP = 12_288
_OWN_WORDS = {1: 4096, 2: 1 << 20}

_Way = Callable[[Sequence[torch.Tensor], "torch.Tensor | None"], tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def statistics(
    tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts float64 [n, 328] and moments float64 [n, 4] of n tensors; see `torchtrack.watch.kernels`.

    Raises:
        ValueError: a tensor is neither contiguous nor 1-D, or not floating, or they lie on several devices.
    """
    if not tensors:
        nothing = torch.zeros(0, NUM_BUCKETS, dtype=torch.float64, device=_HOST)
        return nothing, nothing[:, :4]
    tensors = flattened(tensors)
    device = tensors[0].device
    groups: dict[tuple[_Way, torch.dtype], list[int]] = {}
    for row, tensor in enumerate(tensors):
        groups.setdefault((_way(tensor, device), tensor.dtype), []).append(row)
    order = [row for rows in groups.values() for row in rows]
    parts = [way([tensors[row] for row in rows], multiplier) for (way, _), rows in groups.items()]
    counts, moments = (torch.cat(same) if len(same) > 1 else same[0] for same in zip(*parts, strict=True))
    if order == list(range(len(order))):
        return counts, moments
    place = constants(sorted(range(len(order)), key=order.__getitem__), device)
    return counts.index_select(0, place), moments.index_select(0, place)


@torch.no_grad()
def norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a black box keeps of each of some floating tensors on one device, whatever their strides.

    On an accelerator these are two launches for all tensors (torch makes more of many) and one to pack them.

    Returns:
        On a CPU float64 [n, 3]: norm, largest size and number of elements that are not finite; norm and size are not
        finite if an element is not. On an accelerator [n, 2], without the number: to count is another read.
    """
    if not tensors:
        return torch.zeros(0, 3, dtype=torch.float64, device=_HOST)
    if tensors[0].device.type != "cpu":
        found = [*torch._foreach_norm(list(tensors), 2), *torch._foreach_norm(list(tensors), math.inf)]
        same = all(each.dtype is found[0].dtype for each in found)
        return torch.stack(found if same else [each.float() for each in found]).view(2, -1).T
    rows = torch.zeros(len(tensors), 3, dtype=torch.float64, device=_HOST)
    for row, tensor in zip(rows, tensors, strict=True):
        x = tensor if tensor.element_size() > 1 else tensor.float()  # of float8 there are no extremes
        if x.numel():
            low, high = map(float, torch.aminmax(x))
            bad = 0 if math.isfinite(low) and math.isfinite(high) else x.numel() - int(torch.isfinite(x).sum())
            norm = float(torch.linalg.vector_norm(x, dtype=torch.float64))
            row.copy_(torch.tensor([norm, math.nan if math.isnan(low) else max(-low, high), bad], dtype=row.dtype))
    return rows


def flattened(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same as 1-D views, once it is sure that they are what every kernel expects.

    Raises:
        ValueError: a tensor is neither contiguous nor 1-D, or not floating, or not on the device of the first.
    """
    device = tensors[0].device
    for row, tensor in enumerate(tensors):
        is_flat = tensor.dim() == 1 or tensor.is_contiguous()
        if not is_flat or not tensor.is_floating_point() or tensor.device != device:
            raise ValueError(
                f"tensor {row} is {tensor.dim()}-D {tensor.dtype} on {tensor.device}; "
                f"expected a floating tensor on {device}, contiguous or 1-D"
            )
    return [tensor if tensor.dim() == 1 else tensor.view(-1) for tensor in tensors]


def _way(tensor: torch.Tensor, device: torch.device) -> _Way:
    if device.type != "cpu":
        return packed
    size, numel = tensor.element_size(), tensor.numel()
    if size <= 2 and numel >= _OWN_WORDS[size]:
        return _by_word
    return _chunked if numel >= _OWN_LOOP else packed


def _codes(x: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """Sign, exponent and top mantissa bit of each float32 or float64, as an integer."""
    if x.dtype == torch.float64:
        return torch.bitwise_right_shift(x.view(torch.int64), 51, out=into).bitwise_and_(8191)
    return torch.bitwise_right_shift(x.view(torch.int32), 22, out=into).bitwise_and_(1023)


def _scaled(x: torch.Tensor, multiplier: torch.Tensor | None, into: torch.Tensor | None = None) -> torch.Tensor:
    """The numbers to count: float64 as they are, all others as float32, times the multiplier."""
    if x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float32) if into is None else into.copy_(x)
    return x if multiplier is None else torch.mul(x, multiplier.to(x.dtype), out=into)


def _finite_moments(x: torch.Tensor) -> torch.Tensor:
    """Float64 [lines, 4] of [lines, width]: what is not finite counts for nothing."""
    inf = math.inf
    clean = torch.nan_to_num(x, 0.0, 0.0, 0.0)
    total = clean.sum(1, dtype=torch.float64)
    squares = torch.linalg.vector_norm(clean, dim=1, dtype=torch.float64).square_()
    least = torch.nan_to_num(x, inf, inf, inf).amin(1).to(torch.float64)
    most = torch.nan_to_num(x, -inf, -inf, -inf).amax(1).to(torch.float64)
    return torch.stack([total, squares, least, most])


def _chunked(tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Large tensors of one dtype on a CPU: counts of codes and moments."""
    wide = tensors[0].dtype == torch.float64
    size = min(max(tensor.numel() for tensor in tensors), _CPU_CHUNK)
    codes = torch.empty(size, dtype=torch.int64 if wide else torch.int32, device=_HOST)
    numbers = torch.empty(size, dtype=torch.float64 if wide else torch.float32, device=_HOST)
    doubles = torch.empty(size, dtype=torch.float64, device=_HOST)
    counts = torch.zeros(len(tensors), 8192 if wide else 1024, dtype=torch.int64, device=_HOST)
    moments = []
    for tensor, row in zip(tensors, counts, strict=True):
        total, squares, least, most = 0.0, 0.0, math.inf, -math.inf
        for part in torch.split(tensor, size):
            n = part.numel()
            x = _scaled(part, multiplier, into=numbers[:n])
            row.add_(torch.bincount(_codes(x, into=codes[:n]), minlength=row.numel()))
            low, high = map(float, torch.aminmax(x))
            if math.isfinite(low) and math.isfinite(high):
                exact = x if wide else doubles[:n].copy_(x)
                s, q = float(exact.sum()), float(torch.dot(exact, exact))
            else:
                s, q, low, high = _finite_moments(x.unsqueeze(0)).squeeze(1).tolist()
            total, squares, least, most = total + s, squares + q, min(least, low), max(most, high)
        moments.append((total, squares, least, most))
    return fold(counts), torch.tensor(moments, dtype=torch.float64, device=_HOST)


def _by_word(tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Large tensors of one 16-bit or 8-bit format on a CPU: counts of codes and moments."""
    if tensors[0].element_size() == 1:
        every = torch.arange(256, dtype=torch.uint8, device=_HOST)
    else:
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16, device=_HOST)
    values = _scaled(every.view(tensors[0].dtype), multiplier)
    codes, usable = _codes(values), values.isfinite()
    exact = torch.nan_to_num(values, 0.0, 0.0, 0.0).to(torch.float64)
    powers = torch.stack([exact, exact.square()], 1)
    shifted = torch.empty(_WORD_CHUNK, dtype=torch.int32, device=_HOST)
    counts, moments = [], []
    for tensor in tensors:
        words = _count_words(tensor, shifted)
        weights = words.to(torch.float64)
        counts.append(torch.bincount(codes, weights, minlength=1024))
        seen = values[(words > 0).logical_and_(usable)]
        least, most = map(float, torch.aminmax(seen)) if seen.numel() else (math.inf, -math.inf)
        moments.append((*(weights @ powers).tolist(), least, most))
    return fold(torch.stack(counts)), torch.tensor(moments, dtype=torch.float64, device=_HOST)


def _count_words(tensor: torch.Tensor, shifted: torch.Tensor) -> torch.Tensor:
    """How often each word occurs: in order of the word read as uint8, or as int16."""
    if tensor.element_size() == 1:
        return torch.bincount(tensor.view(torch.uint8), minlength=256)
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=_HOST)
    for part in torch.split(tensor.view(torch.int16), shifted.numel()):
        index = shifted[: part.numel()].copy_(part).add_(1 << 15)
        counts.add_(torch.bincount(index, minlength=1 << 16))
    return counts
