"""watch(model): which parameters, at which steps, counted into which sample."""

from __future__ import annotations

import fnmatch
import logging
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import Optimizer

from torchtrack.watch import hooks, kernels, layout
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.reduce import Merger
from torchtrack.watch.sample import Part, Sample

if TYPE_CHECKING:
    from torchtrack.job import Job
    from torchtrack.recorder import Recorder

LOGS: Final = {"all": layout.KINDS, "gradients": ("gradient",), "parameters": ("parameter",), None: ()}
_UNCLAIMED_CLIPS: Final = 8
"""So many clippings are counted for an optimizer that has yet to show up; a hand-written update has none."""
logger = logging.getLogger("torchtrack")


@dataclass(slots=True)
class _Count:
    """How often one optimizer was seen, how many of these steps were ours, and whether its parameters are watched."""

    optimizer: weakref.ref[Optimizer]
    seen: int = 0
    steps: int = 0
    watched: bool = False
    sample: Sample | None = None
    """Of the step under way: begun, and its gradients are not final yet."""


@dataclass(slots=True)
class _Clipped:
    """A gradient that was counted before it was clipped, and how to tell that nothing else happened to it since."""

    part: Part
    row: int
    mark: tuple[Any, ...] | None = None

    def is_last_of(self, parameter: torch.Tensor) -> bool:
        """Whether the clipping was the last that happened to this parameter's gradient."""
        return self.mark is not None and parameter.grad is not None and self.mark == _mark(parameter.grad)


class Watcher:
    """Counts the watched parameters and their gradients at every `log_freq`-th step of each optimizer.

    **Threads:** everything here runs on the training thread, inside the user's optimizer step or clip call.

    Args:
        models: prefix and module of each watched model.
        kinds: "gradient", "parameter" or both.
        log_freq: the first step of an optimizer and every log_freq-th after it are sampled.
        recorder: where rows go, and whose step they carry.
        job: who the other ranks are.
        ordinal: number of this watch in the run.
        include: patterns (as in fnmatch) of names to watch; empty for all.
        exclude: patterns of names to leave out.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, nn.Module]],
        kinds: Sequence[str],
        log_freq: int,
        recorder: Recorder,
        job: Job | None,
        ordinal: int,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        self.models = list(models)
        self.kinds = tuple(kinds)
        self.log_freq = log_freq
        self.samples = 0
        self._recorder = recorder
        self._include, self._exclude = tuple(include), tuple(exclude)
        self._counts: weakref.WeakKeyDictionary[Optimizer, _Count] = weakref.WeakKeyDictionary()
        self._clipped: dict[str, _Clipped] = {}
        self._coefficients: list[HostCopy] = []
        self._owners: dict[int, _Count] = {}
        self._unclaimed = 0
        self._told: set[str] = set()
        self.merger = Merger(recorder, job, ordinal, self.kinds, log_freq)
        if self.kinds:
            self.merger.start()
            hooks.add(self)

    def stop(self, within_s: float, patience_s: float) -> None:
        """Stop watching: hooks are gone at once, what was sampled will be written; see `Merger.end`."""
        hooks.remove(self)
        self._forget()
        self.models = []
        self.merger.end(within_s, patience_s)

    def join(self, timeout_s: float) -> bool:
        """Wait until all of it is written. False after the timeout."""
        return self.merger.join(timeout_s)

    # -- hooks.Listener ---------------------------------------------------------------------------------------------

    def begin(self, optimizer: Optimizer) -> bool:
        """Count a step; True if it is sampled."""
        count = self._counts.get(optimizer)
        if count is None:
            count = self._counts[optimizer] = _Count(weakref.ref(optimizer))
            self._unclaimed = 0
        due = (count.steps if count.watched else count.seen) % self.log_freq == 0
        count.seen += 1
        if due:
            names = self._names()
            held = _parameters(optimizer)
            count.watched = any(id(p) in names for p in held)
            self._owners |= dict.fromkeys(map(id, held), count)
        if not count.watched:
            return False
        count.steps += 1
        number, self.samples = self.samples, self.samples + 1
        self.merger.next_sample = self.samples
        count.sample = Sample(number, self._recorder.ticket(), self._plan(number)) if due else None
        return due

    def gradients_final(self, optimizer: Optimizer) -> None:
        """Count what this step uses and hand it over."""
        count = self._counts[optimizer]
        sample, count.sample = count.sample, None
        if sample is not None:
            self._capture(sample, optimizer)

    def skipped(self, optimizer: Optimizer) -> None:
        """Count the gradients that the scaler refused."""
        if self.begin(optimizer):
            sample = self._counts[optimizer].sample
            if sample is not None:
                sample.skipped = True
            self.gradients_final(optimizer)

    def clipping(
        self, parameters: list[torch.Tensor], coefficient: Callable[[], torch.Tensor] | None
    ) -> Callable[[], None] | None:
        """Count gradients before they are clipped, if the step they belong to is sampled."""
        probe = next((p for p in parameters if p.grad is not None), None)
        if probe is None:
            return None
        stepping = self._stepping()
        counts = self._counts.values()
        if self._owner(probe) is None:
            self._unclaimed += 1
            if self._unclaimed > _UNCLAIMED_CLIPS:
                return None
        elif not any(c.watched and self._is_due(c, stepping) for c in counts):
            return None
        names = self._names()
        due = {
            names[id(p)]: p
            for p in parameters
            if p.grad is not None and id(p) in names and self._is_due(self._owner(p), stepping)
        }
        if not due:
            return None
        if coefficient is not None:
            self._coefficients.append(HostCopy(coefficient()))
        if "gradient" in self.kinds:
            number = stepping.sample.number if stepping and stepping.sample else self.samples
            self._count_unclipped(due, self._plan(number))
        return lambda: self._remember_clipped(due)

    # -- counting ---------------------------------------------------------------------------------------------------

    def _stepping(self) -> _Count | None:
        """The optimizer in whose step (in a closure) this happens: it has been counted already."""
        optimizer = hooks.enclosing_optimizer()
        return None if optimizer is None else self._counts.get(optimizer)

    def _owner(self, parameter: torch.Tensor) -> _Count | None:
        """The optimizer that steps a parameter, as far as it has been seen and is still there."""
        owner = self._owners.get(id(parameter))
        return owner if owner is not None and owner.optimizer() is not None else None

    def _is_due(self, owner: _Count | None, stepping: _Count | None) -> bool:
        """Whether the next step of an optimizer, or the one under way, is sampled; one not seen yet has its first."""
        if owner is not None and owner is stepping:
            return owner.sample is not None  # None too if its gradients were final after the closure's first call
        return owner is None or owner.steps % self.log_freq == 0

    def _count_unclipped(self, due: dict[str, torch.Tensor], plan: layout.Plan | None) -> None:
        """Count gradients before the first clipping that changes them; a second one finds them clipped already."""
        todo = []
        for name, p in due.items():
            before = self._clipped.get(name)
            if before is None or not before.is_last_of(p):
                self._clipped.pop(name, None)
                todo.append(("gradient", name, _gradient(p), p.numel()))
        for part in self._count(todo, "pre_clip", plan):
            for row, (_, name) in enumerate(part.keys):
                self._clipped[name] = _Clipped(part, row)

    def _remember_clipped(self, due: dict[str, torch.Tensor]) -> None:
        """How the gradients look right after the clipping."""
        for name, p in due.items():
            clipped = self._clipped.get(name)
            if clipped is not None and p.grad is not None:
                clipped.mark = _mark(p.grad)

    def _plan(self, number: int) -> layout.Plan | None:
        plan = self.merger.plan
        return plan if plan is not None and number >= plan.start else None

    def _names(self) -> dict[int, str]:
        """Id of every watched parameter -> name. Read anew each time: parameters may have been replaced."""
        names: dict[int, str] = {}
        for prefix, model in self.models:
            for name, parameter in layout.named_parameters(model, prefix):
                if self._wanted(name):
                    names.setdefault(id(parameter), name)
        return names

    def _wanted(self, name: str) -> bool:
        if self._include and not any(fnmatch.fnmatchcase(name, pattern) for pattern in self._include):
            return False
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in self._exclude)

    def _capture(self, sample: Sample, optimizer: Optimizer) -> None:
        names = self._names()
        own = {names[id(p)]: p for p in _parameters(optimizer) if id(p) in names}
        scale = getattr(optimizer, "grad_scale", None)
        multiplier = scale.detach().reciprocal() if isinstance(scale, torch.Tensor) else None
        found_inf = getattr(optimizer, "found_inf", None)
        todo: list[tuple[str, str, torch.Tensor | None, int]] = []
        if "gradient" in self.kinds:
            kept: dict[int, tuple[Part, list[int]]] = {}
            for name, p in own.items():
                clipped = self._clipped.pop(name, None)
                if clipped is not None and clipped.is_last_of(p) and multiplier is None:
                    kept.setdefault(id(clipped.part), (clipped.part, []))[1].append(clipped.row)
                else:
                    todo.append(("gradient", name, _gradient(p), p.numel()))
            sample.picks += kept.values()
            if kept:  # counted at the clip: a plan that came since must not be mixed in
                plans = {id(part.plan): part.plan for part, _ in kept.values()}
                sample.plan = next(iter(plans.values())) if len(plans) == 1 else None
        if multiplier is not None:
            self._add(sample, todo, multiplier)
            todo = []
        if "parameter" in self.kinds:
            first = next((o for o, count in self._counts.items() if count.watched), None)
            others = self._unowned(names, own, self._counts[optimizer]) if first is optimizer else {}
            todo += [("parameter", name, p.detach(), p.numel()) for name, p in (own | others).items()]
        self._add(sample, todo, None)
        if isinstance(found_inf, torch.Tensor):
            sample.found_inf = HostCopy(found_inf.detach().clone())
        sample.scalars += [("watch/clip_coef", copy) for copy in self._coefficients]
        self._coefficients = []
        self.merger.submit(sample)

    def _unowned(self, names: dict[int, str], own: dict[str, Any], first: _Count) -> dict[str, torch.Tensor]:
        """Parameters that no optimizer steps (frozen ones); they are counted with those of the first optimizer.

        At its first step the optimizers of the trainable ones may yet show up.
        """
        owned = {id(p) for optimizer in self._counts for p in _parameters(optimizer)}
        return {
            name: parameter
            for prefix, model in self.models
            for name, parameter in layout.named_parameters(model, prefix)
            if name not in own
            and id(parameter) in names
            and id(parameter) not in owned
            and (first.steps > 1 or not parameter.requires_grad)
        }

    def _add(self, sample: Sample, todo: Sequence[tuple[str, str, torch.Tensor | None, int]], multiplier: Any) -> None:
        for part in self._count(todo, "step", sample.plan, multiplier):
            sample.picks.append((part, list(range(len(part.keys)))))

    def _count(
        self,
        todo: Sequence[tuple[str, str, torch.Tensor | None, int]],
        stage: str,
        plan: layout.Plan | None,
        multiplier: torch.Tensor | None = None,
    ) -> list[Part]:
        """One kernel call a device over this rank's share of (kind, name, tensor, elements)."""
        ranges = self.merger.ranges(plan)
        parts: dict[torch.device, tuple[Part, list[torch.Tensor]]] = {}
        for kind, name, tensor, numel in todo:
            if tensor is None or not self._countable(name, tensor):
                continue
            share = ranges.get(name, (0, numel))
            if plan is not None and name in ranges and plan.numel(name) != numel:
                share = (0, numel)  # replaced since by one of another size
            if tensor.is_sparse:  # cutting one would need its data on the host: the rank of the first element counts it
                share = (0, numel if share[0] == 0 < share[1] else 0)
            if share[0] == share[1]:
                continue
            part, views = parts.setdefault(tensor.device, (Part(stage, plan), []))
            whole = share == (0, numel)
            view, implied_zeros = _elements(tensor, None if whole else share)
            part.keys.append((kind, name))
            part.ranges.append(None if whole else share)
            part.numels.append(numel)
            part.implied_zeros.append(implied_zeros)
            views.append(view)
        for device, (part, views) in parts.items():
            counts, moments = kernels.choose(device)(views, multiplier)
            part.counts, part.moments = HostCopy(counts), HostCopy(moments)
        return [part for part, _ in parts.values()]

    def _countable(self, name: str, tensor: torch.Tensor) -> bool:
        module = sys.modules.get("torch.distributed.tensor")  # slow to import; without it there is none
        if module is not None and isinstance(tensor, module.DTensor):
            return self._tell(name, "is sharded (DTensor); this version counts plain tensors only")
        if not tensor.is_floating_point():
            return self._tell(name, f"has dtype {tensor.dtype}; only real floating point is counted")
        if tensor.layout not in (torch.strided, torch.sparse_coo):
            return self._tell(name, f"has layout {tensor.layout}; only strided and sparse_coo are counted")
        if tensor.is_sparse and tensor.device.type != "cpu" and not tensor.is_coalesced():
            return self._tell(name, "is sparse and not coalesced; to coalesce it would wait for the device")
        return tensor.device.type != "meta"

    def _tell(self, name: str, why: str) -> bool:
        if why not in self._told:
            self._told.add(why)
            logger.warning("torchtrack watch leaves out %s and others like it: it %s", name, why)
        return False

    def _forget(self) -> None:
        self._clipped.clear()
        self._coefficients.clear()
        self._owners.clear()


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _gradient(parameter: torch.Tensor) -> torch.Tensor | None:
    return None if parameter.grad is None else parameter.grad.detach()


def _mark(gradient: torch.Tensor) -> tuple[Any, ...] | None:
    """Equal as long as nothing happened to a gradient; None where that cannot be told.

    An address would not do: the next gradient may lie at the same one, with as many changes behind it. A weak reference
    to the tensor would forbid `torch.utils.swap_tensors`, which is the user's to call.
    """
    if gradient.layout is not torch.strided or gradient.is_inference():
        return None
    storage = StorageWeakRef(gradient.untyped_storage())  # type: ignore[no-untyped-call]
    return storage, gradient.storage_offset(), gradient._version


def _elements(tensor: torch.Tensor, part: tuple[int, int] | None) -> tuple[torch.Tensor, int]:
    """The elements to count as a 1-D view, and how many zeros a sparse tensor does not store."""
    if tensor.is_sparse:
        values = tensor.coalesce().values().reshape(-1)
        return values, tensor.numel() - values.numel()
    view = layout.flat(tensor, whole=part is None)
    return (view, 0) if part is None else (view[part[0] : part[1]], 0)
