"""The kernel for CPUs: one compiled call for a whole list of tensors, which reads each of them once.

float32, bfloat16, float16 and float64 are read where they lie, whatever their strides; float8 goes by the reference
kernel. It runs outside of the interpreter's lock. With several torch threads the elements of all tensors, laid end to
end, are cut into that many equal parts; the threads live as long as the call, so that nothing survives into a fork.

Importing this module imports numba and compiles (seconds), or loads what an earlier process has compiled.

A transformer, 11.7M elements in 152 tensors, one thread of a Sapphire Rapids CPU, numba 0.68: in nanoseconds an
element, and as a multiple of `x.sum()` of each, float32 0.54 and 2.4; bfloat16 0.56 and 3.7; float16 0.84 and 6.3;
float64 1.7 and 2.4. A tensor of 256 elements takes 2 to 3 us.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from torchtrack.histogram import NUM_BUCKETS
from torchtrack.watch.kernels import numba_loops, reference

_FORMATS: Final = {
    torch.float32: numba_loops.FLOAT32,
    torch.bfloat16: numba_loops.BFLOAT16,
    torch.float16: numba_loops.FLOAT16,
    torch.float64: numba_loops.FLOAT64,
}
_BYTES: Final = np.array([4, 2, 2, 8])
_OTHER: Final = -1
_ADDRESS, _SIZE, _STEP, _FORMAT, _ROW = range(5)
_THREAD_ELEMENTS: Final = 1 << 18
"""Elements that are worth a thread: it takes some 50 us to start one."""

_tables: list[npt.NDArray[np.uint32]] = []
"""What `numba_loops.narrow` is lent, one a thread: memory that is new would cost it page faults."""

_Items = npt.NDArray[np.int64]


def statistics(
    tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts float64 [n, 328] and moments float64 [n, 4] of n tensors; see `torchtrack.watch.kernels`.

    Raises:
        ValueError: a tensor is neither contiguous nor 1-D, or not floating, or they lie on several devices.
    """
    items = _items(tensors)
    others = np.flatnonzero(items[:, _FORMAT] == _OTHER)
    if others.size:
        reference.flattened(tensors)
        items = items[items[:, _FORMAT] != _OTHER]
    parts, extra = _cut(items, len(tensors), torch.get_num_threads())
    rows = len(tensors) + len(extra)
    counts, moments = np.empty((rows, NUM_BUCKETS)), np.empty((rows, 4))
    factor = None if multiplier is None else multiplier.detach()
    helpers = [_Helper(_count, part, counts, moments, factor) for part in parts[1:]]
    _count(parts[0], counts, moments, factor)
    for helper in helpers:
        helper.join()
    for row, into in enumerate(extra, len(tensors)):
        counts[into] += counts[row]
        moments[into, :2] += moments[row, :2]
        moments[into, 2] = min(moments[into, 2], moments[row, 2])
        moments[into, 3] = max(moments[into, 3], moments[row, 3])
    if others.size:
        more = reference.statistics([tensors[row] for row in others.tolist()], multiplier)
        counts[others], moments[others] = more[0].numpy(), more[1].numpy()
    return torch.from_numpy(counts[: len(tensors)]), torch.from_numpy(moments[: len(tensors)])


def norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Norm, largest size and number of elements that are not finite of each tensor; see `reference.norms`."""
    # Some are copies: they have to live until they are read.
    flat = [tensor if tensor.is_contiguous() else _flat(tensor) for tensor in tensors]
    items = _items(flat)
    others = np.flatnonzero(items[:, _FORMAT] == _OTHER)
    if others.size:
        items = items[items[:, _FORMAT] != _OTHER]
    parts, extra = _cut(items, len(tensors), torch.get_num_threads())
    rows = np.zeros((len(tensors) + len(extra), 3))
    helpers = [_Helper(numba_loops.norms, part, rows) for part in parts[1:]]
    numba_loops.norms(parts[0], rows)
    for helper in helpers:
        helper.join()
    for row, into in enumerate(extra, len(tensors)):
        rows[into, ::2] += rows[row, ::2]
        rows[into, 1] = max(rows[into, 1], rows[row, 1])
    rows = rows[: len(tensors)]
    rows[:, 0] = np.sqrt(rows[:, 0])
    rows[:, 1] = rows[:, 1].astype(np.uint32).view(np.float32)
    if others.size:
        rows[others] = reference.norms([tensors[row] for row in others.tolist()]).numpy()
    return torch.from_numpy(rows)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without gaps as 1-D, in whatever order its elements lie: norms do not ask for it."""
    if tensor.dim() < 2:
        return tensor
    expected = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and step != expected:
            return tensor.contiguous().view(-1)
        expected *= size
    return tensor.as_strided((tensor.numel(),), (1,))


class _Helper:
    """Does a part in a thread of its own; where none can be started, at once."""

    def __init__(self, work: Callable[..., object], *arguments: Any) -> None:
        self._thread = threading.Thread(target=work, args=arguments, name="torchtrack kernel", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            work(*arguments)

    def join(self) -> None:
        """Wait until it is counted."""
        if self._thread.ident is not None:
            self._thread.join()


def _count(
    part: _Items, counts: npt.NDArray[np.float64], moments: npt.NDArray[np.float64], factor: torch.Tensor | None
) -> None:
    wide = part[:, _FORMAT] == numba_loops.FLOAT64
    scaled = factor is not None
    if wide.any():
        numba_loops.wide(part[wide], counts, moments, 1.0 if factor is None else factor.item(), scaled)
        part = part[~wide]
    table = _tables.pop() if _tables else np.zeros(numba_loops.TABLE, np.uint32)
    numba_loops.narrow(
        part, counts, moments, np.float32(1.0 if factor is None else factor.float().item()), scaled, table
    )
    _tables.append(table)


def _items(tensors: Sequence[torch.Tensor]) -> _Items:
    """int64 [n, 5]: address, elements, stride, format and row of each tensor.

    What a small tensor costs is mostly these calls, some 0.1 us each.
    """
    items = []
    for row, tensor in enumerate(tensors):
        form, dense = _OTHER, tensor.is_contiguous()
        # Whether its numbers are at its address, a step apart: those of an AsyncCollectiveTensor, say, are not.
        if (dense or tensor.dim() == 1) and type(tensor) in _PLAIN and tensor.is_cpu and not tensor.is_neg():
            form = _FORMATS.get(tensor.dtype, _OTHER)
        if form == _OTHER:
            items.append((0, 0, 1, _OTHER, row))
        else:
            items.append((tensor.data_ptr(), tensor.numel(), 1 if dense else tensor.stride(0), form, row))
    return np.array(items, np.int64).reshape(-1, 5)


_PLAIN: Final = frozenset((torch.Tensor, torch.nn.Parameter))


def _cut(items: _Items, rows: int, threads: int) -> tuple[list[_Items], list[int]]:
    """Items in parts of as many elements each, one a thread.

    A tensor that is cut has its first piece in its own row, and each further one in a row behind all others.

    Returns:
        The parts, and for each row behind the first `rows` the row it belongs to.
    """
    threads = min(threads, int(items[:, _SIZE].sum()) // _THREAD_ELEMENTS) if threads > 1 else 1
    if threads <= 1:
        return [items], []
    ends = np.cumsum(items[:, _SIZE])
    total = int(ends[-1])
    cuts = [total * part // threads for part in range(1, threads)]
    inner = [int(np.searchsorted(ends, cut, side="right")) for cut in cuts]
    offsets = [0, *(cut - int(ends[at] - items[at, _SIZE]) for cut, at in zip(cuts, inner, strict=True)), 0]
    firsts = [0, *inner, len(items)]
    parts, extra = [], []
    for part in range(threads):
        first, last, begin, end = firsts[part], firsts[part + 1], offsets[part], offsets[part + 1]
        piece = items[first : last + (end > 0)].copy()
        if end > 0:
            piece[-1, _SIZE] = end
        if begin > 0:
            piece[0, _ADDRESS] += begin * piece[0, _STEP] * _BYTES[piece[0, _FORMAT]]
            piece[0, _SIZE] -= begin
            extra.append(int(piece[0, _ROW]))
            piece[0, _ROW] = rows + len(extra) - 1
        parts.append(piece)
    return parts, extra
