"""The kernel for GPUs (CUDA, ROCm) in Triton: one launch a format reads all tensors of it, one more finishes.

Tensors are told to the device by a table of their addresses. It is copied from pinned memory, without waiting, when a
list of tensors is new; parameters, and gradients that lie where they lay, need none. Beside the table and the results
there are 32 bytes a chunk of 65536 elements. float64, float8 and wrappers of tensors go by the reference kernel within
the same call, and a strided tensor is copied first.

**Nothing here has ever run on a GPU.** It was run in Triton's interpreter on a CPU against the suite of all kernels,
and compiled for compute capability 8.0, 9.0 and 10.0 and for gfx942; see docs/gpu.md. What fails on a device is
reported in one line, and the reference kernel goes on from there.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl

from torchtrack import guard
from torchtrack.histogram import NUM_BUCKETS
from torchtrack.watch.kernels import passes, reference, triton_kernels
from torchtrack.watch.kernels.triton_kernels import ALIGN, CHUNK, FIELDS, OPTIONS, TILE

KINDS: Final = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_FINISH_STEP: Final = 128
_FINISH_TYPES: Final = (torch.int64, torch.float64, torch.float64)
_MAX_LAYOUTS: Final = 8
"""Lists of tensors whose tables are kept: those of parameters and of gradients, on a stream or two."""
logger = logging.getLogger("torchtrack")
_Table = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Layout:
    """A list of tensors as the device knows it: the table and the owners in one buffer; programs by format."""

    buffer: torch.Tensor
    tensors: int
    programs: int
    launches: tuple[tuple[torch.dtype, int, int], ...]


_layouts: OrderedDict[tuple[Any, ...], _Layout] = OrderedDict()
_broken: set[torch.device] = set()


def statistics(
    tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts float64 [n, 328] and moments float64 [n, 4] of n tensors; see `torchtrack.watch.kernels`.

    Raises:
        ValueError: a tensor is neither contiguous nor 1-D, or not floating, or they lie on several devices.
    """
    if not tensors or tensors[0].device in _broken:
        return reference.statistics(tensors, multiplier)
    tensors = reference.flattened(tensors)
    device = tensors[0].device
    result = guard.outcome(_statistics, tensors, multiplier, device)
    if isinstance(result, Exception):
        _broken.add(device)
        logger.warning("torchtrack watch counts with plain torch operators, as triton fails on %s: %s", device, result)
        return reference.statistics(tensors, multiplier)
    done: tuple[torch.Tensor, torch.Tensor] = result
    return done


@torch.no_grad()
def _statistics(
    tensors: Sequence[torch.Tensor], multiplier: torch.Tensor | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    ours = [tensor.dtype in KINDS and _lies_here(tensor) for tensor in tensors]
    rows, others = ([row for row, own in enumerate(ours) if own is wanted] for wanted in (True, False))
    if not rows:
        return reference.statistics(tensors, multiplier)
    dense = [_dense(tensors[row]) for row in rows]
    layout = _layout(dense, rows, device)
    counts = torch.zeros(len(tensors), NUM_BUCKETS, dtype=torch.float64, device=device)
    moments = torch.empty(len(tensors), 4, dtype=torch.float64, device=device)
    partials = torch.empty(max(layout.programs, 1), 4, dtype=torch.float64, device=device)
    factor = partials if multiplier is None else multiplier.to(torch.float32)
    owners = layout.buffer[FIELDS * layout.tensors :]
    for dtype, start, programs in layout.launches:
        arguments = layout.buffer, owners, factor, counts, partials, start
        constants = {"KIND": KINDS[dtype], "SCALED": multiplier is not None, "TILE": TILE, "CHUNK": CHUNK}
        _launch(triton_kernels.count, programs, arguments, constants, device)
    _launch(triton_kernels.finish, layout.tensors, (layout.buffer, partials, moments), {"STEP": _FINISH_STEP}, device)
    if others:
        place = passes.constants(others, device)
        more = reference.statistics([tensors[row] for row in others], multiplier)
        counts.index_copy_(0, place, more[0])
        moments.index_copy_(0, place, more[1])
    return counts, moments


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


def _layout(tensors: Sequence[torch.Tensor], rows: Sequence[int], device: torch.device) -> _Layout:
    """The layout of dense tensors that belong into these rows, from an earlier call if they lie where they lay."""
    order = sorted(range(len(tensors)), key=lambda i: list(KINDS).index(tensors[i].dtype))
    dtypes = [tensors[i].dtype for i in order]
    table = np.empty((len(tensors), FIELDS), np.int64)
    table[:, 0] = [_address(tensors[i]) for i in order]
    table[:, 1] = [tensors[i].numel() for i in order]
    table[:, 2] = [rows[i] for i in order]
    lead = table[:, 0] % ALIGN // np.array([dtype.itemsize for dtype in dtypes])
    table[:, 4] = np.where(table[:, 1] > 0, -(-(table[:, 1] + lead) // CHUNK), 0)
    table[:, 3] = np.cumsum(table[:, 4]) - table[:, 4]
    key = device, _stream(device), tuple(dtypes.count(dtype) for dtype in KINDS), table.tobytes()
    layout = _layouts.pop(key, None)
    if layout is None:
        owners = np.repeat(np.arange(len(tensors)), table[:, 4])
        buffer = _upload(np.concatenate([table.reshape(-1), owners]), device)
        layout = _Layout(buffer, len(tensors), len(owners), _launches(table, dtypes))
    _layouts[key] = layout
    if len(_layouts) > _MAX_LAYOUTS:
        _layouts.popitem(last=False)
    return layout


def _launches(table: _Table, dtypes: Sequence[torch.dtype]) -> tuple[tuple[torch.dtype, int, int], ...]:
    """Format, first program and number of programs of each launch that has any."""
    found = []
    for dtype in KINDS:
        mine = [i for i, other in enumerate(dtypes) if other == dtype]
        programs = int(table[mine, 4].sum())
        if programs:
            found.append((dtype, int(table[mine[0], 3]), programs))
    return tuple(found)


def _lies_here(tensor: torch.Tensor) -> bool:
    """Whether its numbers are at its address: those of a wrapper (an AsyncCollectiveTensor, say) are not."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and (tensor.data_ptr() != 0 or tensor.numel() == 0)


def _address(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()


def _stream(device: torch.device) -> int:
    """The current stream: what was uploaded on another may not have arrived for this one."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _upload(numbers: _Table, device: torch.device) -> torch.Tensor:
    """To the device, from pinned memory that torch keeps until it has been read; never waits."""
    if device.type == "cpu":
        return torch.from_numpy(numbers)
    host = torch.empty(len(numbers), dtype=torch.int64, pin_memory=True, device="cpu")
    host.numpy()[:] = numbers
    return host.to(device, non_blocking=True)


def _launch(
    kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any], device: torch.device
) -> None:
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*arguments, **constants, **OPTIONS)
    else:
        kernel[(programs,)](*arguments, **constants, **OPTIONS)


def prepare(device: torch.device) -> None:
    """Compile for a device, without running anything on it. Takes seconds; on a thread that may."""
    with torch.cuda.device(device):
        for kind in KINDS.values():
            for scaled in (False, True):
                types = torch.int64, torch.int64, torch.float32 if scaled else torch.float64, torch.float64
                constants = {"KIND": kind, "SCALED": scaled, "TILE": TILE, "CHUNK": CHUNK}
                triton_kernels.count.warmup(*types, torch.float64, 0, grid=(1,), **constants, **OPTIONS)
        triton_kernels.finish.warmup(*_FINISH_TYPES, grid=(1,), STEP=_FINISH_STEP, **OPTIONS)
