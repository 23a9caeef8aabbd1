"""watch(model): which parameters, at which steps, counted into which sample."""

from __future__ import annotations

import fnmatch
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from torchtrack.watch import hooks, kernels, layout
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.reduce import Merger
from torchtrack.watch.sample import Part, Sample

if TYPE_CHECKING:
    from torchtrack.job import Job
    from torchtrack.recorder import Recorder

LOGS: Final = {"all": layout.KINDS, "gradients": ("gradient",), "parameters": ("parameter",), None: ()}
logger = logging.getLogger("torchtrack")


@dataclass(slots=True)
class _Count:
    """How often one optimizer was seen, how many of these steps were ours, and whether its parameters are watched."""

    seen: int = 0
    steps: int = 0
    watched: bool = False


@dataclass(slots=True)
class _Clipped:
    """A gradient that was counted before it was clipped, and how to tell that nothing else happened to it since."""

    part: Part
    row: int
    mark: tuple[int, int]


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
        self._sampling: Sample | None = None
        self._told: set[str] = set()
        self.merger = Merger(recorder, job, ordinal)
        if self.kinds:
            hooks.add(self)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Stop watching: hooks are gone at once, what was sampled is written."""
        hooks.remove(self)
        self._forget()
        return self.merger.close(timeout_s)

    # -- hooks.Listener ---------------------------------------------------------------------------------------------

    def begin(self, optimizer: Optimizer) -> bool:
        """Count a step; True if it is sampled."""
        count = self._counts.get(optimizer)
        if count is None:
            count = self._counts[optimizer] = _Count()
        due = (count.steps if count.watched else count.seen) % self.log_freq == 0
        count.seen += 1
        if due:
            names = self._names()
            held = _parameters(optimizer)
            count.watched = any(id(p) in names for p in held)
            if count.watched:
                self._owners |= dict.fromkeys(map(id, held), count)
        if not count.watched:
            return False
        count.steps += 1
        number, self.samples = self.samples, self.samples + 1
        self.merger.next_sample = self.samples
        self._sampling = Sample(number, self._recorder.ticket(), self._plan(number)) if due else None
        return due

    def gradients_final(self, optimizer: Optimizer) -> None:
        """Count what this step uses and hand it over."""
        sample, self._sampling = self._sampling, None
        if sample is not None:
            self._capture(sample, optimizer)

    def skipped(self, optimizer: Optimizer) -> None:
        """Count the gradients that the scaler refused."""
        if self.begin(optimizer):
            sample, self._sampling = self._sampling, None
            if sample is not None:
                sample.skipped = True
                self._capture(sample, optimizer)

    def clipping(self, parameters: list[torch.Tensor], coefficient: Callable[[], torch.Tensor] | None) -> bool:
        """Count gradients before they are clipped, if the step they belong to is sampled."""
        known = not parameters or id(parameters[0]) in self._owners
        if known and not any(c.watched and c.steps % self.log_freq == 0 for c in self._counts.values()):
            return False
        names = self._names()
        due = [p for p in parameters if id(p) in names and self._is_due(p)]
        if not due:
            return False
        if coefficient is not None:
            self._coefficients.append(HostCopy(coefficient()))
        if "gradient" in self.kinds:
            todo = [("gradient", names[id(p)], _gradient(p), p.numel()) for p in due]
            for part in self._count(todo, "pre_clip", self._plan(self.samples)):
                for row, (_, name) in enumerate(part.keys):
                    self._clipped[name] = _Clipped(part, row, (0, 0))
        return True

    def clipped(self, parameters: list[torch.Tensor]) -> None:
        """Remember how the gradients look right after the clipping."""
        names = self._names()
        for p in parameters:
            clipped = self._clipped.get(names.get(id(p), ""))
            if clipped is not None and p.grad is not None:
                clipped.mark = _mark(p.grad)

    # -- counting ---------------------------------------------------------------------------------------------------

    def _is_due(self, parameter: torch.Tensor) -> bool:
        owner = self._owners.get(id(parameter))
        return owner is None or owner.steps % self.log_freq == 0

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
        found_inf = getattr(optimizer, "found_inf", None)
        todo: list[tuple[str, str, torch.Tensor | None, int]] = []
        if "gradient" in self.kinds:
            kept: dict[int, tuple[Part, list[int]]] = {}
            for name, p in own.items():
                clipped = self._clipped.pop(name, None)
                if clipped is not None and p.grad is not None and clipped.mark == _mark(p.grad):
                    kept.setdefault(id(clipped.part), (clipped.part, []))[1].append(clipped.row)
                else:
                    todo.append(("gradient", name, _gradient(p), p.numel()))
            sample.picks += kept.values()
            if kept:  # counted at the clip: a plan that came since must not be mixed in
                plans = {id(part.plan): part.plan for part, _ in kept.values()}
                sample.plan = next(iter(plans.values())) if len(plans) == 1 else None
        multiplier = scale.detach().reciprocal() if isinstance(scale, torch.Tensor) else None
        if multiplier is not None:
            self._add(sample, todo, multiplier)
            todo = []
        if "parameter" in self.kinds:
            others = self._unowned(names, own) if next(iter(self._counts), None) is optimizer else {}
            todo += [("parameter", name, p.detach(), p.numel()) for name, p in (own | others).items()]
        self._add(sample, todo, None)
        if isinstance(found_inf, torch.Tensor):
            sample.found_inf = HostCopy(found_inf.detach().clone())
        sample.scalars += [("watch/clip_coef", copy) for copy in self._coefficients]
        self._coefficients = []
        self.merger.submit(sample)

    def _unowned(self, names: dict[int, str], own: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Parameters that no optimizer steps (frozen ones); they are counted with those of the first optimizer."""
        owned = {id(p) for optimizer in self._counts for p in _parameters(optimizer)}
        return {
            name: parameter
            for prefix, model in self.models
            for name, parameter in layout.named_parameters(model, prefix)
            if name not in own and id(parameter) in names and id(parameter) not in owned
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
            share = ranges.get(name, (0, numel)) if not tensor.is_sparse else (0, numel)
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
        from torch.distributed.tensor import DTensor

        if isinstance(tensor, DTensor):
            return self._tell(name, "is sharded (DTensor); this version counts plain tensors only")
        if not tensor.is_floating_point():
            return self._tell(name, f"has dtype {tensor.dtype}; only real floating point is counted")
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


def _mark(gradient: torch.Tensor) -> tuple[int, int]:
    return gradient.data_ptr() if not gradient.is_sparse else id(gradient), gradient._version


def _elements(tensor: torch.Tensor, part: tuple[int, int] | None) -> tuple[torch.Tensor, int]:
    """The elements to count as a 1-D view, and how many zeros a sparse tensor does not store."""
    if tensor.is_sparse:
        values = tensor.coalesce().values().reshape(-1)
        return values, tensor.numel() - values.numel()
    view = layout.flat(tensor, whole=part is None)
    return (view, 0) if part is None else (view[part[0] : part[1]], 0)
