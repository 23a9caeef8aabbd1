"""The reference kernel's way on accelerators, and for small tensors on a CPU: passes over many tensors each.

Tensors of one dtype are laid end to end, each padded with NaN to whole lines, so that one operator serves them all.
What is not finite is replaced, never selected: no shape depends on the data, and nothing waits for the device. A pass
takes as many elements as fit into `TEMPORARY_BYTES`. What it leaves is a histogram a row and four numbers a line; those
of all passes are put together at the end.

Launches on a GPU for GPT-2 small (124M elements in 148 tensors), with 64 MiB of temporaries and with 256 MiB: float32
282 and 105, bfloat16 259 and 99.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from torchtrack.histogram import MAX_EXPONENT, MIN_EXPONENT, NAN, NUM_BUCKETS

TEMPORARY_BYTES: Final = 64 << 20
"""What the temporaries of one pass on an accelerator take at most: the more, the fewer launches."""

_CPU_CHUNK = 1 << 17
_MAX_COUNTERS = 1 << 21  # that are folded together: 1024 a row, 8192 for float64
_CPU_LINE, _LINE = 256, 1024
_LONG_LINE, _LONG_FROM = 8192, 1 << 28  # where there is so much that four numbers a line would add up
_PASS_BYTES = {1: 12, 2: 12, 4: 12, 8: 20}
"""Bytes an element takes in a pass, by its own: it in float32 and a float64 for the sums, or a float64 and its code.

A 16-bit one that is not scaled takes two less."""


def packed(tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts float64 [n, 328] and moments float64 [n, 4] of tensors of one dtype on one device."""
    device, bins = tensors[0].device, 8192 if tensors[0].dtype == torch.float64 else 1024
    line, limit = _sizes(tensors, scaled=multiplier is not None)
    lines = [-(-tensor.numel() // line) for tensor in tensors]
    if not any(lines):
        return torch.zeros(len(tensors), NUM_BUCKETS, dtype=torch.float64, device=device), _nothing(tensors)
    cuts = list(_cut(tensors, line, limit, max_rows=_MAX_COUNTERS // bins))
    rows = [first + i for first, views in cuts for i in range(len(views))]
    known = constants([*(tensor.numel() for tensor in tensors), *rows], device)
    sizes = known[: len(tensors)]
    lengths = sizes.add(line - 1).div_(line, rounding_mode="floor")
    # Codes are signed here. To each line is added what makes those of its row follow on those of the row before.
    shifts = torch.arange(bins // 2, bins * len(tensors), bins, dtype=torch.int32, device=device)
    shifts = shifts.repeat_interleave(lengths, output_size=sum(lines)).unsqueeze_(1)
    padding, histograms, moments, at = _Padding(line, tensors[0]), _Histograms(bins), _Lines(), 0
    for first, views in cuts:
        x, own = padding.lay(views)
        end = at + x.shape[0]
        if multiplier is not None:
            x, own = _float32(x), own or x.element_size() < 4
            x, own = torch.mul(x, multiplier.to(x.dtype), out=x if own else None), True
        histograms.take(x, shifts[at:end], first, len(views))
        moments.take(x, own=own)
        del x  # before the next pass takes as much
        at = end
    counts = histograms.counts()
    if rows != list(range(len(tensors))):
        counts = torch.zeros(len(tensors), NUM_BUCKETS, dtype=torch.float64, device=device).index_add_(
            0, known[len(tensors) :], counts
        )
    counts[:, NAN].sub_(lengths.mul(line).sub_(sizes))
    return counts, moments.of_rows(lengths)


def _sizes(tensors: Sequence[torch.Tensor], *, scaled: bool) -> tuple[int, int]:
    """Elements of a line and of a pass."""
    if tensors[0].device.type == "cpu":
        return _CPU_LINE, _CPU_CHUNK
    line = _LINE if sum(tensor.numel() for tensor in tensors) < _LONG_FROM else _LONG_LINE
    size = tensors[0].element_size()
    elements = TEMPORARY_BYTES // (10 if size == 2 and not scaled else _PASS_BYTES[size])
    return line, max(elements // line, 1) * line


def constants(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """An int64 tensor of values the host knows. On an accelerator they travel as kernel arguments: no copy waits."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.int64, device=device)
    tensor = torch.zeros(len(values), dtype=torch.int64, device=device)
    torch._foreach_add_(list(tensor.unbind()), list(values))
    return tensor


def fold(counts: torch.Tensor, *, negative_first: bool = False) -> torch.Tensor:
    """Counts of codes [n, 1024] (float32) or [n, 8192] (float64) -> counts of buckets, float64 [n, 328].

    Buckets ascend with the code, so slices are enough: no table has to lie on the device.
    """
    half = counts.shape[1] // 2
    bias = half // 4 - 1
    tiny, first, end = max(1, 2 * (bias - 127)), 2 * (bias + MIN_EXPONENT), 2 * (bias + MAX_EXPONENT)
    signs = counts.to(torch.int64).view(-1, 2, half)
    positive, negative = (1, 0) if negative_first else (0, 1)
    outside = [signs[:, :, a:b].sum(2) for a, b in ((0, tiny), (tiny, first), (end, half - 2))]
    zero, under, over, inf = (part.unbind(1) for part in (*outside, signs[:, :, half - 2]))
    edge = [inf[negative], over[negative], under[negative], zero[0] + zero[1]]
    edge += [under[positive], over[positive], inf[positive], signs[:, :, half - 1].sum(1)]
    ends = torch.stack(edge, 1)
    regular = signs[:, negative, first:end].flip(1), signs[:, positive, first:end]
    return torch.cat([ends[:, :2], regular[0], ends[:, 2:5], regular[1], ends[:, 5:]], 1).to(torch.float64)


def _float32(x: torch.Tensor) -> torch.Tensor:
    """Float64 as it is, all other formats as float32."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


class _Padding:
    """Lays tensors end to end in lines.

    Args:
        line: elements of a line.
        like: a tensor of the dtype and the device.
    """

    def __init__(self, line: int, like: torch.Tensor) -> None:
        self._line = line
        ready = like.dtype if like.element_size() > 1 else torch.float32  # not every version fills float8
        self._nan = torch.full((line,), math.nan, dtype=ready, device=like.device).to(like.dtype)
        self._tails: dict[int, torch.Tensor] = {}  # a view costs as much as copying 2000 elements, and few sizes differ

    def lay(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, bool]:
        """Lines of the dtype of the views, and whether they are a copy."""
        pieces: list[torch.Tensor] = []
        for view in views:
            pieces.append(view)
            missing = -view.numel() % self._line
            if missing:
                pieces.append(self._tails.setdefault(missing, self._nan[:missing]))
        x = torch.cat(pieces) if len(pieces) > 1 else pieces[0].contiguous()
        return x.view(-1, self._line), len(pieces) > 1


class _Histograms:
    """The histograms of rows, from passes that may end within one."""

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._waiting: list[torch.Tensor] = []
        self._folded: list[torch.Tensor] = []

    def take(self, x: torch.Tensor, shifts: torch.Tensor, first: int, rows: int) -> None:
        """Count lines [lines, line] of rows that begin with `first`; `shifts` are added to their codes."""
        if x.dtype == torch.float64:
            codes = x.view(torch.int64).bitwise_right_shift(51).to(torch.int32)
        else:
            codes = _float32(x).view(torch.int32).bitwise_right_shift(22)
        low, size = (first * self._bins, rows * self._bins) if rows > 1 else (-self._bins // 2, self._bins)
        flat = (codes.add_(shifts) if rows > 1 else codes).view(-1)
        if x.device.type == "cpu":
            counted = torch.bincount(flat.sub_(low), minlength=size)
        else:  # bincount would wait for the largest code; histc of int32 with a given range does not, and is exact
            counted = torch.histc(flat, size, low, low + size)
        self._waiting.append(counted.view(rows, self._bins))
        if sum(len(histogram) for histogram in self._waiting) * self._bins >= _MAX_COUNTERS:
            self._fold()

    def _fold(self) -> None:
        if self._waiting:
            self._folded.append(fold(torch.cat(self._waiting), negative_first=True))
            self._waiting = []

    def counts(self) -> torch.Tensor:
        """Counts of buckets, float64 [rows of all passes, 328]."""
        self._fold()
        return torch.cat(self._folded) if len(self._folded) > 1 else self._folded[0]


class _Lines:
    """The moments of lines; what is not finite counts for nothing."""

    def __init__(self) -> None:
        self._least: list[torch.Tensor] = []
        self._most: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []

    def take(self, x: torch.Tensor, *, own: bool) -> None:
        """Lines [lines, line]; `own`: they may be changed."""
        inf = math.inf
        x, own = (x, own) if x.element_size() > 1 else (_float32(x), True)  # of float8 there are no extremes
        x = torch.nan_to_num(x, inf, inf, inf, out=x if own else torch.empty_like(x))
        self._least.append(x.amin(1))
        torch.nan_to_num(x, inf, -inf, -inf, out=x)
        self._most.append(x.amax(1))
        # What is <= -Inf becomes 0, and all float64, in one launch.
        wide = x if x.dtype == torch.float64 else torch.empty_like(x, dtype=torch.float64)
        torch.threshold(x, -inf, 0.0, out=wide)
        self._sums.append(wide.sum(1))
        self._norms.append(torch.linalg.vector_norm(wide, dim=1))

    def of_rows(self, lengths: torch.Tensor) -> torch.Tensor:
        """Float64 [rows, 4] of rows that have so many lines each."""
        sums, norms = torch.cat(self._sums), torch.cat(self._norms)
        least, most = (torch.cat(values).to(torch.float64) for values in (self._least, self._most))
        ways = (sums, "sum", 0.0), (norms.square_(), "sum", 0.0), (least, "min", math.inf), (most, "max", -math.inf)
        # unsafe only skips a check of the lengths, which would wait for the device.
        return torch.stack(
            [
                torch.segment_reduce(values, how, lengths=lengths, unsafe=True, initial=initial)
                for values, how, initial in ways
            ],
            1,
        )


def _nothing(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Moments of empty tensors."""
    moments = torch.zeros(len(tensors), 4, dtype=torch.float64, device=tensors[0].device)
    moments[:, 2].fill_(math.inf)
    moments[:, 3].fill_(-math.inf)
    return moments


def _cut(
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
