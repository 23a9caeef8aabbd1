"""From tensors to counted parts: this rank's share of each, in one kernel call a device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from torchtrack.watch import kernels, layout
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.layout import Held, Summand
from torchtrack.watch.place import Place, elements, place_of
from torchtrack.watch.plan import Plan, RowKey
from torchtrack.watch.sample import Part

logger = logging.getLogger("torchtrack")


class Item(NamedTuple):
    """Something to count: a tensor shaped as a parameter that this rank holds a part of."""

    kind: str
    name: str
    held: Held
    tensor: torch.Tensor


class _Known(NamedTuple):
    """What is counted of a plain contiguous tensor, for all that are like it."""

    plan: Plan | None
    dtype: torch.dtype
    device: torch.device
    numel: int
    row: tuple[RowKey, Place]

    def holds(self, tensor: torch.Tensor, plan: Plan | None) -> bool:
        """Whether this one is."""
        return (
            plan is self.plan
            and type(tensor) in layout.PLAIN
            and tensor.dtype is self.dtype
            and tensor.numel() == self.numel
            and tensor.layout is torch.strided
            and tensor.is_contiguous()
            and tensor.device == self.device
        )


class Counter:
    """Counts tensors, on the training thread.

    Args:
        timed: measure on the device how long the kernels take.
    """

    def __init__(self, *, timed: bool = False) -> None:
        self.summands: dict[str, tuple[str, HostCopy]] = {}
        """By parameter: stage and elements of a gradient that is added up before it is counted."""
        self.offered: dict[str, Summand] = {}
        """By parameter: such a gradient that no plan knows of yet."""
        self.events: list[tuple[Any, Any]] = []
        """On the device: before and behind each kernel call."""
        self._timed = timed
        self._told: set[str] = set()

    @torch.no_grad()
    def count(
        self, items: Iterable[Item], stage: str, plan: Plan | None, multiplier: torch.Tensor | None = None
    ) -> list[Part]:
        """Count this rank's share of each tensor, or all of it without a plan; a part for each device.

        Args:
            items: what to count.
            stage: of the rows.
            plan: who counts what.
            multiplier: 0-dim; what each element is multiplied by first.
        """
        parts: dict[torch.device, tuple[Part, list[torch.Tensor]]] = {}
        for item in items:
            found = self._find(item, stage, plan, multiplier)
            if found is None:
                continue
            device, row, tensor, implied_zeros = found
            if device not in parts:
                parts[device] = Part(stage), []
            part, tensors = parts[device]
            if implied_zeros:
                part.implied_zeros[len(tensors)] = implied_zeros
            part.rows.append(row)
            tensors.append(tensor)
        for device, (part, tensors) in parts.items():
            with self._timing(device):
                counts, moments = kernels.choose(device)(tensors, multiplier)
            part.counts, part.moments = HostCopy(counts), HostCopy(moments)
        return [part for part, _ in parts.values()]

    def forget(self) -> None:
        """Let go of what was kept for a sample that will not be."""
        self.summands, self.offered, self.events = {}, {}, []

    def _find(
        self, item: Item, stage: str, plan: Plan | None, multiplier: torch.Tensor | None
    ) -> tuple[torch.device, tuple[RowKey, Place], torch.Tensor, int] | None:
        """Device, row, elements and implied zeros of what this rank counts of a tensor; None for nothing."""
        kind, name, held, tensor = item
        key = kind, name
        known: _Known | None = held.rows.get(key)
        if known is not None and known.holds(tensor, plan):
            cut = known.row[1].cut
            if cut == (0, known.numel):
                return known.device, known.row, tensor, 0
            return (known.device, known.row, tensor.view(-1)[cut[0] : cut[1]], 0) if cut[0] < cut[1] else None
        local = self._local(item, stage, plan, multiplier)
        if local is None:
            return None
        place = place_of(held, tensor, local, plan)
        row = key, place
        if local is tensor and type(tensor) in layout.PLAIN and held.original is None and not tensor.is_sparse:
            held.rows[key] = _Known(plan, tensor.dtype, tensor.device, tensor.numel(), row)
        if place.cut[0] == place.cut[1]:
            return None
        return local.device, row, *elements(local, place.cut)

    def _local(self, item: Item, stage: str, plan: Plan | None, multiplier: torch.Tensor | None) -> torch.Tensor | None:
        """What lies here of a tensor, if it can be counted."""
        name, tensor = item.name, item.tensor
        if not tensor.is_floating_point():
            self._tell(name, f"has dtype {tensor.dtype}; only real floating point is counted")
            return None
        if type(tensor) not in layout.PLAIN and layout.is_partial(tensor):
            self._keep_summand(item, stage, plan, multiplier)
            return None
        local = item.held.local(tensor)
        if local.layout is torch.strided:
            return None if local.is_meta else local
        if local.layout is not torch.sparse_coo:
            self._tell(name, f"has layout {local.layout}; only strided and sparse_coo are counted")
            return None
        if local.device.type != "cpu" and not local.is_coalesced():
            self._tell(name, "is sparse and not coalesced; to coalesce it would wait for the device")
            return None
        return local

    def _keep_summand(self, item: Item, stage: str, plan: Plan | None, multiplier: torch.Tensor | None) -> None:
        """Ranks have yet to add a gradient up: to do so here would be a collective, so the merge thread does it."""
        summand = layout.summand_of(item.tensor)
        if summand is None:
            self._tell(item.name, "is a DTensor that is yet to be reduced, otherwise than by adding up")
            return
        if plan is None or not any(summed.name == item.name for summed in plan.summed):
            self.offered[item.name] = summand
            return
        local = layout.local_part(item.tensor).detach().reshape(-1).to(torch.float32, copy=True)
        self.summands[item.name] = stage, HostCopy(local if multiplier is None else local.mul_(multiplier))

    def _tell(self, name: str, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            logger.warning("torchtrack watch leaves out %s and others like it: it %s", name, why)

    @contextlib.contextmanager
    def _timing(self, device: torch.device) -> Iterator[None]:
        if not self._timed or device.type == "cpu":  # there the training thread's time says it all
            yield
            return
        module = torch.get_device_module(device.type)
        before, behind = module.Event(enable_timing=True), module.Event(enable_timing=True)
        before.record(module.current_stream(device))
        yield
        behind.record(module.current_stream(device))
        self.events.append((before, behind))
