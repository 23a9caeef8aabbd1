"""The kernel that runs everywhere torch runs: operators of torch only.

Three ways, told apart by host-side facts alone (device, dtype, size):

- `_packed`: accelerators, and small tensors on a CPU. Many tensors are laid end to end, each padded with NaN to whole
  lines, so that one operator serves them all; what is not finite is replaced, never selected, so no shape depends on
  the data and nothing waits for the device.
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
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch

from torchtrack.histogram import MAX_EXPONENT, MIN_EXPONENT, NUM_BUCKETS

ACCELERATOR_CHUNK: Final = 1 << 24
"""Elements of one pass on an accelerator: the temporaries are about 16 bytes an element."""

_CPU_CHUNK = 1 << 17
_WORD_CHUNK = 1 << 20
_MAX_COUNTERS = 1 << 22  # of one pass: 1024 a row, 8192 for float64
_CPU_LINE = 256
_ACCELERATOR_LINE = 1024
# From these sizes on a tensor gets its own loop on a CPU: measured, where a loop's fixed cost is paid back.
_HOST: Final = torch.device("cpu")  # named each time: the user may have set another default device
_OWN_LOOP = 12_288
_OWN_WORDS = {1: 4096, 2: 1 << 20}

_Way = Callable[[Sequence[torch.Tensor], "torch.Tensor | None"], tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def statistics(
    tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts float64 [n, 328] and moments float64 [n, 4] of n flat tensors; see `torchtrack.watch.kernels`.

    Raises:
        ValueError: a tensor is not 1-D and floating, or they lie on several devices.
    """
    if not tensors:
        nothing = torch.zeros(0, NUM_BUCKETS, dtype=torch.float64, device=_HOST)
        return nothing, nothing[:, :4]
    require_flat(tensors)
    device = tensors[0].device
    groups: dict[tuple[_Way, torch.dtype], list[int]] = {}
    for row, tensor in enumerate(tensors):
        groups.setdefault((_way(tensor, device), tensor.dtype), []).append(row)
    # Narrow first: then one fold serves all that has 1024 codes.
    ordered = sorted(groups.items(), key=lambda item: item[0][1] == torch.float64)
    order = [row for _, rows in ordered for row in rows]
    parts = [way([tensors[row] for row in rows], multiplier) for (way, _), rows in ordered]
    folded = [
        _fold(torch.cat(same) if len(same) > 1 else same[0])
        for bins in (1024, 8192)
        if (same := [counts for counts, _ in parts if counts.shape[1] == bins])
    ]
    counts, moments = torch.cat(folded), torch.cat([part[1] for part in parts])
    if order == list(range(len(order))):
        return counts, moments
    place = constants(sorted(range(len(order)), key=order.__getitem__), device)
    return counts.index_select(0, place), moments.index_select(0, place)


def require_flat(tensors: Sequence[torch.Tensor]) -> None:
    """Check what every kernel expects.

    Raises:
        ValueError: a tensor is not 1-D and floating, or not on the device of the first.
    """
    device = tensors[0].device
    for row, tensor in enumerate(tensors):
        if tensor.dim() != 1 or not tensor.is_floating_point() or tensor.device != device:
            raise ValueError(
                f"tensor {row} is {tensor.dim()}-D {tensor.dtype} on {tensor.device}; "
                f"expected a 1-D floating tensor on {device}"
            )


def _way(tensor: torch.Tensor, device: torch.device) -> _Way:
    if device.type != "cpu":
        return _packed
    size, numel = tensor.element_size(), tensor.numel()
    if size <= 2 and numel >= _OWN_WORDS[size]:
        return _by_word
    return _chunked if numel >= _OWN_LOOP else _packed


def constants(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """An int64 tensor of values the host knows. On an accelerator they travel as kernel arguments: no copy waits."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.int64, device=device)
    tensor = torch.zeros(len(values), dtype=torch.int64, device=device)
    torch._foreach_add_(list(tensor.unbind()), list(values))
    return tensor


def _codes(x: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """Sign, exponent and top mantissa bit of each float32 or float64, as an integer."""
    if x.dtype == torch.float64:
        return torch.bitwise_right_shift(x.view(torch.int64), 51, out=into).bitwise_and_(8191)
    return torch.bitwise_right_shift(x.view(torch.int32), 22, out=into).bitwise_and_(1023)


def _fold(counts: torch.Tensor) -> torch.Tensor:
    """Counts of codes [n, 1024] (float32) or [n, 8192] (float64) -> counts of buckets, float64 [n, 328].

    Buckets ascend with the code, so slices are enough: no table has to lie on the device.
    """
    half = counts.shape[1] // 2
    bias = half // 4 - 1
    tiny, first, end = max(1, 2 * (bias - 127)), 2 * (bias + MIN_EXPONENT), 2 * (bias + MAX_EXPONENT)
    signs = counts.view(-1, 2, half)
    outside = [signs[:, :, a:b].sum(2) for a, b in ((0, tiny), (tiny, first), (end, half - 2))]
    zero, under, over = (part.unbind(1) for part in outside)
    inf, nan = signs[:, :, half - 2].unbind(1), signs[:, :, half - 1].sum(1)
    regular, negative = signs[:, 0, first:end], signs[:, 1, first:end].flip(1)
    edge = torch.stack([inf[1], over[1], under[1], zero[0] + zero[1], under[0], over[0], inf[0], nan], 1)
    return torch.cat([edge[:, :2], negative, edge[:, 2:5], regular, edge[:, 5:]], 1).to(torch.float64)


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


def _nothing(rows: int, device: torch.device) -> torch.Tensor:
    """Moments of `rows` empty tensors."""
    moments = torch.zeros(rows, 4, dtype=torch.float64, device=device)
    moments[:, 2].fill_(math.inf)
    moments[:, 3].fill_(-math.inf)
    return moments


def _add_moments(moments: torch.Tensor, more: torch.Tensor) -> None:
    moments[:, :2].add_(more[:, :2])
    moments[:, 2].clamp_(max=more[:, 2])
    moments[:, 3].clamp_(min=more[:, 3])


def _packed(tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors of one dtype, in passes of many tensors each: counts of codes and moments."""
    device, cpu = tensors[0].device, tensors[0].device.type == "cpu"
    bins = 8192 if tensors[0].dtype == torch.float64 else 1024
    line, limit = (_CPU_LINE, _CPU_CHUNK) if cpu else (_ACCELERATOR_LINE, ACCELERATOR_CHUNK)
    counts = torch.zeros(len(tensors), bins, dtype=torch.int64, device=device)
    moments = _nothing(len(tensors), device)
    padding = torch.full((line,), math.nan, dtype=torch.float32, device=device).to(tensors[0].dtype)
    tails: dict[int, torch.Tensor] = {}  # a view costs as much as copying 2000 elements, and few sizes differ
    for first, views in _passes(tensors, line, limit, max_rows=_MAX_COUNTERS // bins):
        lines = [-(-view.numel() // line) for view in views]
        padded = [count * line - view.numel() for count, view in zip(lines, views, strict=True)]
        pieces: list[torch.Tensor] = []
        for view, pad in zip(views, padded, strict=True):
            pieces.append(view)
            if pad:
                pieces.append(tails[pad] if pad in tails else tails.setdefault(pad, padding[:pad]))
        x = _scaled(torch.cat(pieces) if len(pieces) > 1 else pieces[0], multiplier).view(-1, line)
        rows = slice(first, first + len(views))
        counts[rows].add_(_count_rows(_codes(x), lines, bins))
        if any(padded):
            counts[rows, bins // 2 - 1].sub_(constants(padded, device))
        _add_moments(moments[rows], _reduce_rows(_finite_moments(x), lines))
    return counts, moments


def _passes(
    tensors: Sequence[torch.Tensor], line: int, limit: int, max_rows: int
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Consecutive tensors, or parts of them, of at most `limit` padded elements: the first row and the parts."""
    views: list[torch.Tensor] = []
    first, room = 0, limit
    for row, tensor in enumerate(tensors):
        at, numel = 0, tensor.numel()
        while at < numel:
            if not views:
                first, room = row, limit
            while len(views) < row - first:  # an empty tensor holds its place between its neighbours
                views.append(tensor[:0])
            size = min(room, numel - at)
            views.append(tensor if size == numel else tensor[at : at + size])
            at += size
            room -= -(-size // line) * line
            if room == 0 or len(views) >= max_rows:
                yield first, views
                views = []
    if views:
        yield first, views


def _count_rows(codes: torch.Tensor, lines: Sequence[int], bins: int) -> torch.Tensor:
    """Counts [rows, bins] of codes [lines, width], of which each row has so many lines."""
    if len(lines) > 1:
        counts = constants(lines, codes.device)
        row = torch.arange(len(lines), device=codes.device).mul_(bins).to(codes.dtype)
        codes.add_(row.repeat_interleave(counts, output_size=codes.shape[0]).unsqueeze_(1))
    flat, size = codes.reshape(-1), bins * len(lines)
    if codes.device.type == "cpu":
        return torch.bincount(flat, minlength=size).view(-1, bins)
    # bincount would wait for the largest code; histc of int32 with a given range does not, and counts in integers.
    return torch.histc(flat.to(torch.int32), size, 0, size).view(-1, bins)


def _reduce_rows(partial: torch.Tensor, lines: Sequence[int]) -> torch.Tensor:
    """Moments [rows, 4] of partial ones [4, lines], of which each row has so many lines."""
    if len(lines) == 1:
        return torch.stack([partial[0].sum(), partial[1].sum(), partial[2].amin(), partial[3].amax()]).unsqueeze_(0)
    lengths = constants(lines, partial.device)
    ways = (("sum", 0.0), ("sum", 0.0), ("min", math.inf), ("max", -math.inf))
    # unsafe only skips a check of the lengths, which would wait for the device.
    return torch.stack(
        [
            torch.segment_reduce(values, how, lengths=lengths, unsafe=True, initial=initial)
            for values, (how, initial) in zip(partial, ways, strict=True)
        ],
        1,
    )


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
    return counts, torch.tensor(moments, dtype=torch.float64, device=_HOST)


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
    return torch.stack(counts).to(torch.int64), torch.tensor(moments, dtype=torch.float64, device=_HOST)


def _count_words(tensor: torch.Tensor, shifted: torch.Tensor) -> torch.Tensor:
    """How often each word occurs: in order of the word read as uint8, or as int16."""
    if tensor.element_size() == 1:
        return torch.bincount(tensor.view(torch.uint8), minlength=256)
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=_HOST)
    for part in torch.split(tensor.view(torch.int16), shifted.numel()):
        index = shifted[: part.numel()].copy_(part).add_(1 << 15)
        counts.add_(torch.bincount(index, minlength=1 << 16))
    return counts
