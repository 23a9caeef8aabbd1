"""What ranks should hold alike, as checksums: taken on the training thread, on the device, before the update.

Parameters are read as this rank holds them; `compare` finds out which ranks hold the same. Of a tensor that is not yet
known to be a replica the gradient is read too: equal gradients tell replicas from experts, whatever the weights are.

A buffer is read while nothing writes to it (rotary tables, masks), or if it belongs to a SyncBatchNorm, whose
statistics are those of all ranks. What each rank writes by itself, such as the running statistics of a BatchNorm, may
differ: under DistributedDataParallel it does, between the broadcasts that precede every forward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from torchtrack.watch import layout
from torchtrack.watch.checksum import checksums
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.layout import Held

if TYPE_CHECKING:
    from torchtrack.watch.compare import Comparison
    from torchtrack.watch.plan import Plan

WRITTEN: Final = 1
"""Stands for the checksum of a buffer that was written to since the last look."""


class Entry(NamedTuple):
    """A tensor whose bits are compared.

    Attributes:
        kind: "parameter" or "buffer".
        name: as the user's module has it.
        key: of the region, as in `Region`.
        identity: what else has to be the same on ranks that hold the same, contents aside.
        promised: whether ranks hold equal tensors by contract, not only by what was seen.
        value: place of the checksum among the numbers; None for a buffer that was written to.
        gradient: place of the gradient's checksum; None where it was not read.
    """

    kind: str
    name: str
    key: str
    identity: str
    promised: bool = False
    value: int | None = None
    gradient: int | None = None


_Read = tuple[Entry, torch.Tensor | None, torch.Tensor | None]
"""An entry, the tensor and its gradient, as far as they are to be read."""


@dataclass(slots=True)
class Checks:
    """Checksums of one sample, on their way to the host."""

    entries: list[Entry] = field(default_factory=list)
    copies: list[HostCopy] = field(default_factory=list)
    size: int = 0
    """Checksums in all copies."""

    def ready(self) -> bool:
        """Whether the numbers are on the host."""
        return all(copy.ready() for copy in self.copies)

    def numbers(self) -> list[tuple[int, int]]:
        """Of each entry the checksums of the tensor and of its gradient, as unsigned numbers; 0 for none."""
        raw = [copy.numpy() for copy in self.copies]
        found = np.concatenate(raw).view(np.uint64).tolist() if raw else []
        return [
            (WRITTEN if e.value is None else found[e.value], 0 if e.gradient is None else found[e.gradient])
            for e in self.entries
        ]

    def add(self, found: Sequence[_Read]) -> None:
        """Take the checksums of tensors and of gradients, one call a device; entries get their places."""
        by_device: dict[torch.device, list[tuple[int, bool, torch.Tensor]]] = {}
        for i, (_, *tensors) in enumerate(found):
            for is_gradient, tensor in enumerate(tensors):
                if tensor is not None:
                    by_device.setdefault(tensor.device, []).append((i, bool(is_gradient), tensor))
        places: dict[tuple[int, bool], int] = {}
        for items in by_device.values():
            self.copies.append(HostCopy(checksums([tensor for _, _, tensor in items])))
            places |= {(i, is_gradient): self.size + n for n, (i, is_gradient, _) in enumerate(items)}
            self.size += len(items)
        self.entries += [
            entry._replace(value=places.get((i, False)), gradient=places.get((i, True)))
            for i, (entry, _, _) in enumerate(found)
        ]


class Replicas:
    """When checksums are taken, and of what.

    **Threads:** everything here runs on the training thread.

    Args:
        every: samples from one check to the next; 0 for none.
        comparison: what other ranks have shown.
    """

    def __init__(self, every: int, comparison: Comparison) -> None:
        self._every, self._comparison = every, comparison
        self._checked: weakref.WeakKeyDictionary[Optimizer, Plan] = weakref.WeakKeyDictionary()
        self._written: dict[str, tuple[int, int]] = {}
        """By buffer: where it was and how often it had been written to."""

    def is_due(self, optimizer: Optimizer, plan: Plan | None, step: int, interval: int) -> bool:
        """Whether a sampled step is checked: the first that ranks merge under a plan, and every so many samples.

        Args:
            optimizer: whose step it is.
            plan: of the sample.
            step: how many steps the optimizer had made.
            interval: steps from one sample to the next.
        """
        if not self._every or plan is None:
            return False
        is_first = self._checked.get(optimizer) is not plan
        self._checked[optimizer] = plan
        return is_first or step % (interval * self._every) == 0

    def parameters(self, held: Sequence[Held], models: Sequence[tuple[str, nn.Module]], checks: Checks) -> None:
        """Add what is here of these parameters."""
        promised = set[int]().union(*(_promised(model) for _, model in models))
        settled, alone = self._comparison.settled, self._comparison.alone
        found: list[_Read] = []
        for one in (one for one in held if one.name not in alone):
            local = _bits(one, one.parameter)
            if local is None:
                continue
            region = one.region(one.parameter)
            if not region.count:
                continue
            identity = f"{one.name} {region.lo}+{region.count}/{region.numel} {local.dtype} {_order(local)}"
            entry = Entry("parameter", one.name, region.key, identity, id(one.parameter) in promised)
            gradient = one.parameter.grad if one.name not in settled else None
            found.append((entry, local, None if gradient is None else _bits(one, gradient)))
        checks.add(found)

    def buffers(self, models: Iterable[tuple[str, nn.Module]], wants: Callable[[str], bool], checks: Checks) -> None:
        """Add the buffers that are here."""
        found: list[_Read] = []
        for name, owner, buffer in _buffers(models):
            if not wants(name) or name in self._comparison.alone:
                continue
            mark = _mark(buffer)
            is_still = self._written.get(name) == mark or isinstance(owner, nn.SyncBatchNorm)
            self._written[name] = mark
            local = _bits(Held(name, buffer), buffer)
            if local is not None:
                identity = f"{name} {tuple(buffer.shape)} {local.dtype} {_order(local)}"
                entry = Entry("buffer", name, layout.region_of(buffer).key, identity)
                found.append((entry, local if is_still else None, None))
        checks.add(found)

    def look(self, models: Iterable[tuple[str, nn.Module]]) -> None:
        """Remember the buffers as they are, so that the first check knows which have been written to since."""
        if self._every and not self._written:
            self._written = {name: _mark(buffer) for name, _, buffer in _buffers(models)}


def _buffers(models: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Name, owner and buffer of each that is there."""
    told: set[int] = set()
    for prefix, model in models:
        for path, module in layout.unwrap(model).named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and id(buffer) not in told:
                    told.add(id(buffer))
                    yield prefix + layout.strip(f"{path}.{name}" if path else name), module, buffer


def _mark(buffer: Any) -> tuple[int, int]:
    """Tells whether a buffer was replaced or written to."""
    local = layout.local_part(buffer) if layout.is_dtensor(buffer) else buffer
    return id(buffer), -1 if local.is_inference() else local._version


def _bits(held: Held, tensor: torch.Tensor) -> torch.Tensor | None:
    """What lies here of a tensor shaped as a parameter, if its bits can be read."""
    if type(tensor) not in layout.PLAIN and layout.is_partial(tensor):
        return None
    local = held.local(tensor)
    if type(local) not in layout.PLAIN or local.layout is not torch.strided or local.is_meta:
        return None
    return None if local.is_complex() or local.is_neg() or local.is_quantized else local


def _order(local: torch.Tensor) -> str:
    """How the elements lie in memory; ranks that have them in another order cannot be compared."""
    return "" if local.is_contiguous() else str(local.stride())


def _promised(model: nn.Module) -> set[int]:
    """Ids of the parameters that DistributedDataParallel keeps equal on all ranks, late ones included."""
    while not isinstance(model, nn.parallel.DistributedDataParallel):
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return set()
        model = inner
    if model.process_group.size() != torch.distributed.get_world_size():
        return set()  # ranks of other groups hold something else
    return {id(p) for name, p in model.module.named_parameters() if name not in model.parameters_to_ignore}
