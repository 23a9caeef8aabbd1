"""Where the elements that this rank counts lie: in the tensor it holds, and in the whole one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from torchtrack.watch import layout
from torchtrack.watch.layout import Held
from torchtrack.watch.plan import Plan


class Place(NamedTuple):
    """What this rank counts of one tensor.

    Attributes:
        cut: [lo, hi) of the flat local tensor.
        span: shard and [lo, hi) of its elements, for the `covers` column.
        numel: elements of the whole tensor, on all ranks.
        planned: whether that is this rank's share under a plan.
    """

    cut: tuple[int, int]
    span: tuple[str, int, int]
    numel: int
    planned: bool

    def piece(self, number: int, pieces: int) -> Place:
        """One of several about equal pieces, which no plan knows of; itself if there is only one."""
        if pieces == 1:
            return self
        size, (key, begin, _) = self.cut[1] - self.cut[0], self.span
        lo, hi = size * number // pieces, size * (number + 1) // pieces
        return Place((self.cut[0] + lo, self.cut[0] + hi), (key, begin + lo, begin + hi), self.numel, planned=False)


def place_of(held: Held, tensor: torch.Tensor, local: torch.Tensor, plan: Plan | None) -> Place:
    """What this rank counts of a tensor shaped as a parameter: its share under the plan, else all that is here.

    Args:
        held: the parameter.
        tensor: itself, its gradient or a moment of it.
        local: the part of the tensor that lies here.
        plan: who counts what.
    """
    share = plan.shares.get(held.name) if plan is not None else None
    if plan is None or share is None or share.count != local.numel() or not _is_aligned(held, tensor):
        if held.original is None and type(tensor) in layout.PLAIN:
            numel = local.numel()
            return Place((0, numel), ("", 0, numel), numel, planned=False)
        region = held.region(tensor)
        span = (region.key, region.lo, region.lo + region.count)
        return Place((0, region.count), span, region.numel, planned=False)
    cut, span = (share.at, share.at + share.hi - share.lo), (share.key, share.lo, share.hi)
    if local.is_sparse:  # to cut it would need its data on the host: who counts the first counts all
        cut = (0, share.count if cut[0] == 0 < cut[1] else 0)
        span = (share.key, share.lo, share.lo + cut[1])
    return Place(cut, span, plan.numels[held.name], planned=True)


def _is_aligned(held: Held, tensor: torch.Tensor) -> bool:
    """Whether a tensor is distributed as its parameter is."""
    if tensor is held.parameter or not layout.is_dtensor(tensor):
        return True
    distributed: Any = tensor
    parameter: Any = held.parameter
    return layout.is_dtensor(parameter) and bool(distributed.placements == parameter.placements)


def elements(local: torch.Tensor, cut: tuple[int, int]) -> tuple[torch.Tensor, int]:
    """The elements to count, 1-D or contiguous, and how many zeros a sparse tensor does not store."""
    if local.is_sparse:
        values = local.coalesce().values().reshape(-1)
        return values, local.numel() - values.numel()
    whole = cut == (0, local.numel())
    if whole and local.is_contiguous():
        return local, 0
    view = layout.flat(local, whole=whole)
    return (view, 0) if whole else (view[cut[0] : cut[1]], 0)
