"""What clipping would hide: the gradients before it, until a step uses them, and what they were multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from torchtrack.watch import layout
from torchtrack.watch.counting import Counter, Item
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.layout import Held
from torchtrack.watch.plan import Plan
from torchtrack.watch.sample import Part, Sample


class Clipping:
    """The gradients of a step that were clipped before it.

    **Threads:** the training thread.

    Args:
        counter: counts them.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._counted: dict[str, _Counted] = {}
        self._coefficients: list[HostCopy] = []
        self._max_norm: float | None = None

    def before(self, due: Sequence[Held], plan: Plan | None) -> list[Part]:
        """Count gradients before the first clipping that changes them; a second one finds them clipped already."""
        todo = []
        for held in due:
            counted = self._counted.get(held.name)
            if counted is None or not counted.is_of(held.parameter):
                self._counted.pop(held.name, None)
                todo += gradient_of(held)
        parts = self._counter.count(todo, "pre_clip", plan)
        for part in parts:
            for row, ((_, name), _) in enumerate(part.rows):
                self._counted[name] = _Counted(part, row, plan)
        return parts

    def after(self, due: Sequence[Held], max_norm: float | None, total: torch.Tensor | None, *, whole: bool) -> None:
        """How the gradients look right after the clipping, and what it multiplied them by.

        Args:
            due: what may have been counted before it.
            max_norm: what their norm was clipped to; None where single values were.
            total: their norm before it.
            whole: whether the norm is over watched parameters only.
        """
        for held in due:
            counted = self._counted.get(held.name)
            if counted is not None and held.parameter.grad is not None:
                counted.mark = _Mark.of(held.parameter.grad)
        if max_norm is None or total is None:
            return
        if layout.is_partial(total):  # to know it here would be a collective, on this rank alone
            self._max_norm = max_norm if whole and layout.is_2_norm(total) else None
        else:
            norm = (layout.local_part(total) if layout.is_dtensor(total) else total).detach()
            self._coefficients.append(HostCopy((max_norm / (norm + 1e-6)).clamp(max=1.0)))

    def give(self, sample: Sample, own: Sequence[Held], *, scaled: bool) -> list[Item]:
        """Add to a sample what was counted of the gradients that its step uses; those left to count.

        Args:
            sample: of the step.
            own: what the step uses.
            scaled: whether the gradients still carry the loss scale: then what was counted of them is of no use.
        """
        kept: dict[int, tuple[Part, list[int]]] = {}
        plans, todo = [], []
        for held in own:
            counted = self._counted.pop(held.name, None)
            if counted is not None and counted.is_of(held.parameter) and not scaled:
                kept.setdefault(id(counted.part), (counted.part, []))[1].append(counted.row)
                plans.append(counted.plan)
            elif held.name not in self._counter.summands or scaled:
                todo += gradient_of(held)
        sample.picks += kept.values()
        if kept:  # counted at the clip: a plan that came since must not be mixed in
            sample.plan = plans[0] if all(plan is plans[0] for plan in plans) else None
        return todo

    def tell(self, sample: Sample) -> None:
        """Add to a sample by how much its gradients were clipped."""
        sample.scalars += [("watch/clip_coef", copy) for copy in self._coefficients]
        sample.max_norm, self._max_norm = self._max_norm, None
        self._coefficients = []

    def forget(self) -> None:
        """Let go of all that no step has used."""
        self._counted.clear()
        self._coefficients.clear()


def gradient_of(held: Held) -> list[Item]:
    """The gradient of a parameter, to be counted; nothing where there is none."""
    gradient = held.parameter.grad
    return [] if gradient is None else [Item("gradient", held.name, held, gradient)]


@dataclass(slots=True)
class _Counted:
    """A gradient that was counted before it was clipped, and how to tell that nothing else happened to it since."""

    part: Part
    row: int
    plan: Plan | None
    mark: _Mark | None = None

    def is_of(self, parameter: torch.Tensor) -> bool:
        """Whether the clipping was the last that happened to this parameter's gradient."""
        return self.mark is not None and (gradient := parameter.grad) is not None and self.mark.is_on(gradient)


class _Mark(NamedTuple):
    """Tells whether anything has happened to a gradient.

    An address would not do: the next gradient may lie at the same one, with as many changes behind it. A weak reference
    to the tensor would forbid `torch.utils.swap_tensors`, which is the user's to call.
    """

    storage: StorageWeakRef
    offset: int
    version: int

    @classmethod
    def of(cls, gradient: torch.Tensor) -> _Mark | None:
        """Of a gradient as it is now; None where that cannot be told."""
        local = _local(gradient)
        if local.layout is not torch.strided or local.is_inference():
            return None
        storage = StorageWeakRef(local.untyped_storage())  # type: ignore[no-untyped-call]
        return cls(storage, int(local.storage_offset()), local._version)

    def is_on(self, gradient: torch.Tensor) -> bool:
        """Whether it is that gradient, unchanged."""
        local = _local(gradient)
        if local.layout is not torch.strided or local.is_inference():
            return False
        is_same = local.untyped_storage()._cdata == self.storage.cdata  # the reference keeps others off this address
        return is_same and local.storage_offset() == self.offset and local._version == self.version


def _local(gradient: torch.Tensor) -> torch.Tensor:
    is_here = type(gradient) in layout.PLAIN or not layout.is_dtensor(gradient)
    return gradient if is_here else layout.local_part(gradient)
