"""From what the shims and the hooks of watch tell to a run: it begins with the first optimizer step of the process.

A step of the run is one step of the leading optimizer: the one that stepped first, until another steps twice without
it. What other optimizers bring joins the step that is there.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.optim.optimizer import Optimizer

from torchtrack import active, guard
from torchtrack.launch import command_line
from torchtrack.launch.models import Scan, are_parts_of_one, parameters_of
from torchtrack.launch.options import Options
from torchtrack.watch import hooks, layout

if TYPE_CHECKING:
    from torchtrack.run import Run
    from torchtrack.watch import Watcher

_MAX_SCANS: Final = 16
"""A script that makes new models all the time (meta-learning) is not searched for ever."""
_MAX_SCALED: Final = 16
_MAX_GROUPS: Final = 16
Number = float | torch.Tensor


@dataclass(slots=True)
class _Steps:
    """What is known of one optimizer.

    Attributes:
        name: where there are several.
        one_backward: whether all its steps so far had at most one backward call, so that its value may be called loss.
        one_rate: whether its groups have had one learning rate so far.
        since: how often it has stepped since the leading one did.
    """

    name: str
    one_backward: bool = True
    one_rate: bool = True
    since: int = 0


class Recording:
    """The run of a process that knows nothing of it.

    **Threads:** called on the threads that train; nothing here waits, but the first step takes what `init` takes.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._run: Run | None = None
        self._own = False
        """Whether the run is ours. In one that the script began, models are watched and nothing else is done."""
        self._thread = 0
        self._scans = 0
        self._names: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
        self._met: set[int] = set()
        """Ids of the parameters of optimizers that are known."""
        self._steps: weakref.WeakKeyDictionary[Optimizer, _Steps] = weakref.WeakKeyDictionary()
        self._several = False
        self._leader: weakref.ref[Optimizer] | None = None
        self._at = 0
        """The step of the run under way."""
        self._calls: list[Number | None] = []
        """Values of the backward calls since the last optimizer step; None for one that is no single number."""
        self._usual_calls = 1
        self._of_step: list[Number | None] = []
        """The same since the step of the run began."""
        self._one_backward = True
        """Whether all steps of the run had at most one."""
        self._scaled: deque[tuple[weakref.ref[torch.Tensor], torch.Tensor]] = deque(maxlen=_MAX_SCALED)
        """What a gradient scaler has made lately, and of what."""
        self._scales = False
        """Whether it has since the last optimizer step: a value that is not among these may be scaled or not."""
        self._fresh: list[Watcher] = []
        """Watchers made in the optimizer step under way: hooks will tell them from the next one on."""
        self._in_backward: Optimizer | None = None
        self._loads = False

    def in_child(self) -> Recording | None:
        """For a forked child; None if the run has begun, since then the child only helps."""
        return Recording(self._options) if self._run is None else None

    # -- the shims --------------------------------------------------------------------------------------------------

    def before_backward(self, tensors: Any) -> list[Number | None] | None:
        """A backward pass begins. What `after_backward` is to be told; None for one inside another."""
        if hooks.backward_pass() is not None or hooks.is_capturing():
            return None
        self._enter("backward")
        return [self._value(tensors)]

    def after_backward(self, call: list[Number | None]) -> None:
        """It has ended, without an exception."""
        self._calls += call
        optimizer, self._in_backward = self._in_backward, None
        if optimizer is not None:
            self._close(optimizer)
        more = len(self._calls) < self._usual_calls  # accumulation: another forward pass comes
        inside = hooks.enclosing_optimizer() is not None
        self._enter("optimizer" if inside else "forward" if more else self._between())

    def scaled(self, outputs: Any, scaled: Any) -> None:
        """A gradient scaler has made these of those."""
        self._scales = True
        for old, new in zip(_as_list(outputs), _as_list(scaled), strict=True):
            if old.numel() == 1:
                self._scaled.append((weakref.ref(new), old.detach()))

    def before_batch(self) -> None:
        """A data loader is asked for a batch."""
        if torch.is_grad_enabled():  # not in evaluation
            self._loads = True
            self._enter("data")

    def after_batch(self, *, delivered: bool) -> None:
        """It has delivered one, or has no more."""
        if torch.is_grad_enabled():
            self._enter("forward" if delivered else "other")

    # -- hooks.Listener ---------------------------------------------------------------------------------------------

    def clipping(self, parameters: list[torch.Tensor]) -> hooks.Clipped | None:
        """Gradients are about to be clipped: those of the first step of an optimizer have no watcher yet."""
        if not parameters or id(parameters[0]) in self._met or self._scans >= _MAX_SCANS:
            return None
        self._met.add(id(parameters[0]))
        first = parameters[0]
        holders = (o for o in Scan().optimizers if any(p is first for p in parameters_of(o)))
        optimizer = next(holders, None)
        if optimizer is None or optimizer in self._steps:
            return None
        told = [then for watcher in self._meet(optimizer) if (then := watcher.clipping(parameters)) is not None]

        def clipped(max_norm: float | None, total: torch.Tensor | None) -> None:
            for then in told:
                then(max_norm, total)

        return clipped

    def begin(self, optimizer: Optimizer) -> bool:
        """An optimizer step begins. True if watchers that were made just now have it sampled."""
        if hooks.backward_pass() is None:
            hooks.after_step(optimizer, self)
        elif self._in_backward is None:
            self._in_backward = optimizer
        self._fresh = []
        if optimizer not in self._steps:
            self._fresh = [watcher for watcher in self._meet(optimizer) if watcher.begin(optimizer)]
        self._enter("optimizer")
        return bool(self._fresh)

    def gradients_final(self, optimizer: Optimizer) -> None:
        """What its gradients are, for those watchers."""
        for watcher in self._fresh:
            guard.attempt("watch", watcher.gradients_final, optimizer)
        self._fresh = []

    def stepped(self, optimizer: Optimizer) -> None:
        """An optimizer step has ended."""
        self._close(optimizer)
        self._enter(self._between())

    def skipped(self, optimizer: Optimizer) -> None:
        """A gradient scaler has left a step out: its loss is worth knowing."""
        if optimizer not in self._steps:
            for watcher in self._meet(optimizer):
                guard.attempt("watch", watcher.skipped, optimizer)
        self.stepped(optimizer)

    # -- a new optimizer --------------------------------------------------------------------------------------------

    def _meet(self, optimizer: Optimizer) -> Sequence[Watcher]:
        """Begin the run if this is the first optimizer; watch what it steps."""
        self._steps[optimizer] = steps = _Steps(_unique(type(optimizer).__name__.lower(), self._step_names()))
        stepped = parameters_of(optimizer)
        if hooks.backward_pass() is not None and all(id(p) in self._met for p in stepped):
            return ()  # one of hundreds, each with a parameter of its own
        run = self._begin()
        if run.disabled or run._finished or self._scans >= _MAX_SCANS:
            return ()
        self._scans += 1
        covered = {id(h.parameter) for w in run._watchers for _, model in w.models for h in layout.held_by(model)}
        self._met.update(covered, map(id, stepped))
        missing = [p for p in stepped if id(p) not in covered]
        scan = Scan([optimizer])
        others = [o for o in scan.optimizers if not _shares(o, optimizer)] if hooks.backward_pass() is None else []
        self._several = self._several or bool(others)
        models = scan.owners(missing)
        self._name(scan, models, {prefix.rstrip("/") for prefix in run._prefixes.values()})
        watchers = self._watch(run, optimizer, models)
        if (
            len(models) == 1
            and self._names[models[0]]
            and not any(models == scan.owners(parameters_of(o)) for o in others)
        ):
            steps.name = self._names[models[0]]
        self._met |= {id(h.parameter) for w in watchers for _, model in w.models for h in layout.held_by(model)}
        return watchers

    def _begin(self) -> Run:
        """The run of this process: the script's own, else a new one."""
        if self._run is None:
            self._thread = threading.get_ident()
            self._run = active.active()
            if self._run is None:
                _speak_apart()
                self._run = active.init(config=command_line.config())
                self._own = True
        return self._run

    def _name(self, scan: Scan, models: Sequence[torch.nn.Module], taken: set[str]) -> None:
        """Names for new models. The only one needs none, nor do the stages of one."""
        if not self._names:
            everyone = scan.owners(p for optimizer in scan.optimizers for p in parameters_of(optimizer))
            if len(everyone) == 1 or are_parts_of_one(everyone):
                self._names.update(dict.fromkeys(everyone, ""))
            models = [*models, *everyone]
        for model in models:
            if model not in self._names:
                self._names[model] = _unique(scan.name(model), taken | set(self._names.values()))

    def _watch(self, run: Run, optimizer: Optimizer, models: Sequence[torch.nn.Module]) -> Sequence[Watcher]:
        options = self._options
        stages = len(models) > 1 and not any(self._names[model] for model in models)
        watchers = []
        for part in [list(models)] if stages else [[model] for model in models]:
            watcher = run.watch(
                part,
                log=options.log,  # type: ignore[arg-type]  # checked by watch
                log_freq=options.log_freq,
                budget=options.budget,
                name=self._names[part[0]] or None,
            )
            if watcher is not None:  # it must not keep the model longer than the script does
                weakref.finalize(optimizer, watcher.let_go).atexit = False
                watchers.append(watcher)
        return watchers

    def _step_names(self) -> set[str]:
        return {steps.name for steps in self._steps.values()}

    # -- a step -----------------------------------------------------------------------------------------------------

    def _close(self, optimizer: Optimizer) -> None:
        """Log what a step of an optimizer brought."""
        calls, self._calls, self._scales = self._calls, [], False
        self._usual_calls = len(calls)
        run, steps = self._run, self._steps.get(optimizer)
        if run is None or steps is None or not self._own or run._finished:
            return
        leads = self._leads(optimizer, steps)
        self._at = run.step if leads else self._at
        self._of_step = [*([] if leads else self._of_step), *calls]
        self._one_backward = self._one_backward and len(self._of_step) <= 1
        steps.one_backward = steps.one_backward and len(calls) <= 1
        end = f"/{steps.name}" if self._several else ""
        row = _rates(optimizer, steps, end)
        if calls:
            row |= _totals(self._of_step, "")
            if self._several and any(self._names.values()):
                row |= _totals(calls, end) | _loss(calls, end, one=steps.one_backward)
            else:
                row |= _loss(self._of_step, "", one=self._one_backward)
        run.log(row, step=self._at)

    def _leads(self, optimizer: Optimizer, steps: _Steps) -> bool:
        """Whether this optimizer's step is a step of the run."""
        leader = self._leader() if self._leader is not None else None
        if leader is not None and leader is not optimizer and steps.since == 0:
            steps.since = 1
            return False
        self._leader = weakref.ref(optimizer)
        for known in self._steps.values():
            known.since = 0
        return True

    def _value(self, tensors: Any) -> Number | None:
        """What a backward call is about, unscaled; None if that is not one number."""
        roots = _as_list(tensors)
        if len(roots) != 1:
            return None
        unscaled = next((old for new, old in self._scaled if new() is roots[0]), None)
        if unscaled is None and self._scales:
            return None
        value = guard.outcome(_read, roots[0] if unscaled is None else unscaled)
        return None if isinstance(value, Exception) else value

    def _enter(self, phase: str) -> None:
        if self._own and self._run is not None and self._thread == threading.get_ident():
            self._run.phase(phase)

    def _between(self) -> str:
        """What comes after a backward pass or a step. Without a data loader all that is left is called forward."""
        return "other" if self._loads else "forward"


def _speak_apart() -> None:
    """Say warnings on stderr, whatever the script has made of logging: it may have sent the root's to its output."""
    logger = logging.getLogger("torchtrack")
    if not logger.handlers and logger.level == logging.NOTSET and logging.lastResort is not None:
        logger.addHandler(logging.lastResort)
        logger.propagate = False


def _as_list(tensors: Any) -> list[Any]:
    """Tensors, of which an iterator can give none without being used up."""
    return (
        [tensors] if isinstance(tensors, torch.Tensor) else list(tensors) if isinstance(tensors, (list, tuple)) else []
    )


def _read(root: torch.Tensor) -> Number | None:
    """The one number in a tensor. On an accelerator it is copied there, and nobody waits for it."""
    if layout.is_dtensor(root):
        distributed: Any = root
        if not all(placement.is_replicate() for placement in distributed.placements):
            return None
        root = layout.local_part(root)
    if root.numel() != 1:
        return None
    root = root.detach().reshape(())
    if root.device.type == "cpu":
        return float(root.item())
    return root.clone() if root.dtype == torch.float64 else root.to(torch.float32, copy=True)


def _totals(calls: Sequence[Number | None], end: str) -> dict[str, Any]:
    values = [value for value in calls if value is not None]
    total = guard.outcome(sum, values)
    if not values or isinstance(total, Exception):  # on several devices
        return {}
    return {f"backward/sum{end}": total, f"backward/mean{end}": total / len(values)}


def _loss(calls: Sequence[Number | None], end: str, *, one: bool) -> dict[str, Any]:
    return {f"loss{end}": calls[0]} if one and calls[0] is not None else {}


def _rates(optimizer: Optimizer, steps: _Steps, end: str) -> dict[str, Any]:
    rates = [group.get("lr") for group in optimizer.param_groups]
    plain = all(isinstance(rate, (int, float)) for rate in rates)
    steps.one_rate = steps.one_rate and (len(rates) == 1 or (plain and len(set(rates)) == 1))
    if steps.one_rate:
        return {} if rates[0] is None else {f"lr{end}": rates[0]}
    names = [str(group.get("name", i)) for i, group in enumerate(optimizer.param_groups)]
    return {f"lr{end}/{n}": r for n, r in list(zip(names, rates, strict=True))[:_MAX_GROUPS] if r is not None}


def _shares(optimizer: Optimizer, other: Optimizer) -> bool:
    mine = {id(p) for p in parameters_of(optimizer)}
    return any(id(p) in mine for p in parameters_of(other))


def _unique(name: str, taken: set[str]) -> str:
    return next(n for n in (f"{name}{i or ''}" for i in range(len(taken) + 1)) if n not in taken)
