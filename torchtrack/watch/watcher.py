"""watch(model): which parameters, at which steps, counted into which sample."""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from torchtrack import guard
from torchtrack.watch import hooks, layout
from torchtrack.watch.activations import Activations
from torchtrack.watch.clipping import Clipping
from torchtrack.watch.counting import Counter, Item
from torchtrack.watch.drain import HostCopy, Known
from torchtrack.watch.holdings import Holdings, matches
from torchtrack.watch.layout import Held, Shard
from torchtrack.watch.local import LocalGradients, Norm
from torchtrack.watch.moments import moments
from torchtrack.watch.plan import Plan
from torchtrack.watch.reduce import Merger
from torchtrack.watch.replicas import Checks, Replicas
from torchtrack.watch.rounding import rounded
from torchtrack.watch.sample import Sample
from torchtrack.watch.schedule import Schedule
from torchtrack.watch.updates import Kept, Updates, changes
from torchtrack.watch.waits import Waits

if TYPE_CHECKING:
    from torchtrack.job import Job
    from torchtrack.phases import Phases
    from torchtrack.recorder import Recorder
    from torchtrack.watch.blackbox import BlackBox
    from torchtrack.watch.nonfinite import Judge

KINDS: Final = {
    "gradients": "gradient",
    "parameters": "parameter",
    "updates": "update",
    "activations": "activation",
    "optimizer": "optimizer",
}
"""What may be logged -> the kind of its rows."""
_UNCLAIMED_CLIPS: Final = 8
"""So many clippings are counted for an optimizer that has yet to show up; a hand-written update has none."""
_RESTING: Final = 8
"""After so many steps of others an optimizer that is due is not waited for: it may never step again."""
logger = logging.getLogger("torchtrack")


@dataclass(slots=True, eq=False)
class _Count:
    """How often one optimizer was seen, how many of these steps were ours, and whether its parameters are watched."""

    optimizer: weakref.ref[Optimizer]
    seen: int = 0
    steps: int = 0
    watched: bool = False
    last: int = 0
    """How many samples had been counted when it stepped last."""
    sample: Sample | None = None
    """Of the step under way: begun, and its gradients are not final yet."""


@dataclass(slots=True)
class _InBackward:
    """The optimizers that step inside one backward pass, each a parameter of its own: together they make one step.

    Attributes:
        task: autograd's number of the pass.
        steps: how many such passes there were.
        sample: of this pass; None if it is not sampled.
    """

    task: int = -1
    steps: int = 0
    sample: Sample | None = None


class _Stepping(NamedTuple):
    """A step under way whose change will be counted, and whether its sample is handed over when it has ended."""

    sample: Sample
    kept: list[Kept]
    submits: bool


class Watcher:
    """Counts the watched parameters and their gradients at the scheduled steps of each optimizer.

    **Threads:** everything here runs on the training thread, inside the user's optimizer step or clip call.

    Args:
        models: prefix and module of each watched model.
        kinds: values of `KINDS`.
        schedule: which steps of each optimizer are sampled.
        recorder: where rows go, and whose step they carry.
        job: who the other ranks are.
        ordinal: number of this watch in the run.
        include: patterns (as in fnmatch) of names to watch; empty for all.
        exclude: patterns of names to leave out.
        device: where ranks merge with the backend that training uses; None for the host.
        checksum_every: samples from one comparison of replicas to the next; 0 for none.
        phases: the clock that is told how long this rank waits for the others; None for nobody.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, nn.Module]],
        kinds: Sequence[str],
        schedule: Schedule,
        recorder: Recorder,
        job: Job | None,
        ordinal: int,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        device: torch.device | None = None,
        checksum_every: int = 0,
        phases: Phases | None = None,
    ) -> None:
        self.models = list(models)
        self.kinds = tuple(kinds)
        self.schedule = schedule
        self.samples = 0
        self.blackbox: BlackBox | None = None
        self.on_nonfinite: Judge | None = None
        self._recorder = recorder
        self._holdings = Holdings(models, include, exclude)
        self._counts: weakref.WeakKeyDictionary[Optimizer, _Count] = weakref.WeakKeyDictionary()
        self._in_backward = _InBackward()
        self._observed: Sample | None = None
        self._observed_steps = 0
        self._owners: dict[int, _Count] = {}
        self._ownerless = False
        self._unclaimed = 0
        self._armed = False
        self._trains: Callable[[], bool] | None = None
        self._updates = Updates()
        self._kept: weakref.WeakKeyDictionary[Optimizer, _Stepping] = weakref.WeakKeyDictionary()
        self._job = job
        self._activations: Activations | None = None
        self._local: LocalGradients | None = None
        self._waits: Waits | None = None
        self._counter = Counter(timed=schedule.budget is not None)
        self._clipping = Clipping(self._counter)
        self._host_s = 0.0
        self.merger = Merger(recorder, job, ordinal, self.kinds, schedule, device)
        self._replicas = Replicas(checksum_every, self.merger.comparison)
        if self.kinds:
            self.merger.start()
            if "gradient" in self.kinds:
                self._local = LocalGradients(model for _, model in models) or None
            if phases is not None and (waits := Waits((model for _, model in models), phases)):
                self._waits = waits
                recorder.log_beside(phases.take)
            looks = self._local is not None or not {"update", "activation"}.isdisjoint(self.kinds)
            hooks.add(self, after_steps=looks)
        if "activation" in self.kinds:
            wanted = (lambda name: matches(name, include)) if include else None
            self._activations = Activations(models, wanted, lambda name: matches(name, exclude))
        self._look_ahead()

    def stop(self, within_s: float, patience_s: float) -> None:
        """Stop watching: hooks are gone at once, what was sampled will be written; see `Merger.end`."""
        hooks.remove(self)
        if self.on_nonfinite is not None:
            self.on_nonfinite.stop()
        self._forget()
        self.let_go()
        self.merger.end(within_s, patience_s)

    def let_go(self) -> None:
        """Keep none of the models alive, and so watch none from here on."""
        self.models.clear()
        self._holdings.forget()

    def join(self, timeout_s: float) -> bool:
        """Wait until all of it is written. False after the timeout."""
        return self.merger.join(timeout_s)

    def own_norms(self) -> Mapping[str, Norm]:
        """Norms of this rank's own gradients of the step under way, as far as the passes were looked at."""
        return self._local.seen if self._local is not None else {}

    # -- hooks.Listener ---------------------------------------------------------------------------------------------

    def begin(self, optimizer: Optimizer) -> bool:
        """Count a step; True if it is sampled."""
        self._hand_over(optimizer)
        if self._trains is not None and not self._trains():
            self.schedule.interrupted()
            if self._armed:
                hooks.after_step(optimizer, self)  # there what was seen of its backward pass is forgotten
            return False
        task = hooks.backward_pass()
        if task is not None:
            return self._begin_in_backward(optimizer, task)
        count = self._counts.get(optimizer)
        if count is None:
            count = self._counts[optimizer] = _Count(weakref.ref(optimizer))
            self._unclaimed = 0
        if self.schedule.budget is not None and count is self._leader():
            self.schedule.began(time.perf_counter())
        due = self.schedule.is_due(count.steps if count.watched else count.seen)
        count.seen += 1
        if due:
            stepped = _parameters(optimizer)
            held = self._holdings.now()
            count.watched = any(id(p) in held for p in stepped)
            self._owners |= dict.fromkeys(map(id, stepped), count)
            if self._looks_ahead:
                trainable = (key for key, several in held.items() if several[0].parameter.requires_grad)
                self._ownerless = any(key not in self._owners for key in trainable)
        if not count.watched:
            return False
        count.steps += 1
        if self._waits is not None:
            self._waits.phases.step()
        count.sample = self._next_sample() if due else None
        if not due:
            self._skip_sample()
        count.last = self.samples
        if self._looks_ahead and (due or self._armed or self._is_next_due()):
            hooks.after_step(optimizer, self)
        return due

    def gradients_final(self, optimizer: Optimizer) -> None:
        """Count what this step uses and hand it over."""
        if hooks.backward_pass() is not None:
            sample = self._in_backward.sample
            if sample is not None:
                self._capture(sample, optimizer, None)
            return
        count = self._counts[optimizer]
        sample, count.sample = count.sample, None
        if sample is not None:
            self._capture(sample, optimizer, count)
            if optimizer not in self._kept:
                self.merger.submit(sample)

    def stepped(self, optimizer: Optimizer) -> None:
        """Count what the step changed, and hand its sample over."""
        if optimizer in self._kept:
            begin = time.perf_counter()
            sample, kept, _ = self._kept[optimizer]
            try:
                if (lost := rounded(kept)) is not None:
                    sample.rounded.append(lost)
                sample.add(changes(kept))
                self._charge(begin, sample)
            finally:
                self._hand_over(optimizer)
        self._look_ahead()

    def skipped(self, optimizer: Optimizer) -> None:
        """Count the gradients that the scaler refused."""
        if self.begin(optimizer):
            sample = self._counts[optimizer].sample
            if sample is not None:
                sample.skipped = True
            self.gradients_final(optimizer)
        self._look_ahead()

    def clipping(self, parameters: list[torch.Tensor]) -> hooks.Clipped | None:
        """Count gradients before they are clipped, if the step they belong to is sampled."""
        probe = next((p for p in parameters if p.grad is not None), None)
        if probe is None or (self._trains is not None and not self._trains()):
            return None
        stepping = self._stepping()
        counts = self._counts.values()
        if self._owner(probe) is None:
            self._unclaimed += 1
            if self._unclaimed > _UNCLAIMED_CLIPS:
                return None
        elif not any(c.watched and self._is_due(c, stepping) for c in counts):
            return None
        held = self._holdings.now()
        clipped = [p for p in parameters if p.grad is not None]
        is_due = functools.cache(lambda owner: self._is_due(owner, stepping))
        due = [h for p in clipped if is_due(self._owner(p)) for h in held.get(id(p), ())]
        if not due:
            return None
        if "gradient" in self.kinds:
            begin = time.perf_counter()
            number = stepping.sample.number if stepping and stepping.sample else self.samples
            counted = self._clipping.before(due, self._plan(number))
            if self._local is not None:
                self._local.final(due, counted)
            self._charge(begin)
        whole = all(id(p) in held for p in clipped)
        return lambda max_norm, total: self._clipping.after(due, max_norm, total, whole=whole)

    # -- steps that are no part of the training ---------------------------------------------------------------------

    def only_while(self, trains: Callable[[], bool]) -> None:
        """Take no notice of optimizer steps that are no part of the training, as those of a learning rate finder.

        Args:
            trains: asked at each step and each clipping of gradients, on the training thread; it says the same on every
                rank. False: the step is neither counted nor sampled.
        """
        self._trains = trains
        if self.blackbox is not None:
            self.blackbox.trains = trains

    def trains(self) -> bool:
        """Whether the step under way is part of the training, as far as `only_while` was told."""
        return self._trains is None or self._trains()

    # -- optimizers that are not torch's ----------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether the step under way is sampled: only then what `observe` is given is counted, else skip the work."""
        return bool(self.kinds) and self.schedule.is_due(self._observed_steps)

    def observe(
        self,
        name: str,
        tensor: torch.Tensor,
        *,
        kind: str = "gradient",
        shard: Shard | None = None,
        stage: str = "step",
        multiplier: torch.Tensor | None = None,
    ) -> None:
        """Count a tensor of the step under way, for optimizers that are not torch's (DeepSpeed ZeRO, Megatron).

        Never raises and never waits; does nothing at steps that are not sampled. Every element must be given by exactly
        one rank, or by each of several under the same shard: these are taken for replicas if they are equal.

        Args:
            name: of the parameter, as the user's module has it.
            tensor: what this rank holds, of any shape, floating; it is read before the call returns (on its stream).
            kind: "gradient" or "parameter"; only what `watch(log=)` asked for is counted.
            shard: which part of the whole tensor it is; None for all of it.
            stage: "step" or "pre_clip".
            multiplier: 0-dim on the tensor's device: the inverse of a loss scale that the gradient still carries.
        """
        guard.attempt("observe()", self._observe, name, tensor, kind, shard, stage, multiplier)

    def step(self, *, skipped: bool = False) -> None:
        """End the step that `observe` told of: at every optimizer step, sampled or not, on every rank.

        Args:
            skipped: the optimizer left it out, because a gradient is not finite.
        """
        guard.attempt("watch", self._observed_step, skipped=skipped)

    def _observe(
        self,
        name: str,
        tensor: torch.Tensor,
        kind: str,
        shard: Shard | None,
        stage: str,
        multiplier: torch.Tensor | None,
    ) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"observe(tensor=) takes a torch.Tensor, got {type(tensor).__name__}")
        if kind not in layout.KINDS:
            raise ValueError(f"observe(kind=) takes one of {layout.KINDS}, got {kind!r}")
        if stage not in ("step", "pre_clip"):
            raise ValueError(f'observe(stage=) takes "step" or "pre_clip", got {stage!r}')
        if kind not in self.kinds or not self._holdings.wants(name) or not self.is_due():
            return
        begin = time.perf_counter()
        if self._observed is None:
            self._observed = self._next_sample()
        sample = self._observed
        held = Held(name, tensor)
        if shard is not None:
            held = Held(name, tensor, None, torch.Size([shard.numel]), shard.lo, shard.key)
        sample.add(self._counter.count([Item(kind, name, held, tensor)], stage, sample.plan, multiplier))
        if sample.plan is None:
            sample.held[name] = held.region(tensor)
        self._charge(begin)

    def _observed_step(self, *, skipped: bool) -> None:
        sample, self._observed = self._observed, None
        if self.schedule.budget is not None:
            self.schedule.began(time.perf_counter())
        self._observed_steps += 1
        if sample is None:
            self._skip_sample()
            return
        sample.skipped = skipped
        self._charge(time.perf_counter(), sample)
        self.merger.submit(sample)

    # -- optimizers inside the backward pass ------------------------------------------------------------------------

    def _begin_in_backward(self, optimizer: Optimizer, task: int) -> bool:
        """Every parameter has an optimizer of its own, and steps as soon as its gradient is there."""
        if task != self._in_backward.task:
            held = self._holdings.now()
            if not any(id(p) in held for p in _parameters(optimizer)):
                return False
            self._end_backward()
            steps = self._in_backward.steps
            due = self.schedule.is_due(steps)
            self._in_backward = _InBackward(task, steps + 1, self._next_sample() if due else None)
            if due:
                hooks.after_backward(self._end_backward)
            else:
                self._skip_sample()
                self._look_ahead()
        return self._in_backward.sample is not None

    def _end_backward(self) -> None:
        """Hand over what the optimizers of the last backward pass had."""
        sample, self._in_backward.sample = self._in_backward.sample, None
        if sample is not None:
            self.merger.submit(sample)
            self._look_ahead()

    def _hand_over(self, optimizer: Optimizer) -> None:
        """Hand over the sample of a step that has ended, in whatever way: one that raised leaves no updates."""
        stepping = self._kept.pop(optimizer, None)
        if stepping is not None and stepping.submits:
            self.merger.submit(stepping.sample)

    # -- counting ---------------------------------------------------------------------------------------------------

    def _next_sample(self) -> Sample:
        number = self._skip_sample()
        return Sample(number, self._recorder.ticket(), self._plan(number))

    def _skip_sample(self) -> int:
        number, self.samples = self.samples, self.samples + 1
        self.merger.next_sample = self.samples
        return number

    def _stepping(self) -> _Count | None:
        """The optimizer in whose step (in a closure) this happens: it has been counted already."""
        optimizer = hooks.enclosing_optimizer()
        return None if optimizer is None else self._counts.get(optimizer)

    def _leader(self) -> _Count | None:
        """The first of the optimizers that step something watched."""
        return next((count for count in self._counts.values() if count.watched), None)

    def _owner(self, parameter: torch.Tensor) -> _Count | None:
        """The optimizer that steps a parameter, as far as it has been seen and is still there."""
        owner = self._owners.get(id(parameter))
        return owner if owner is not None and owner.optimizer() is not None else None

    def _is_due(self, owner: _Count | None, stepping: _Count | None) -> bool:
        """Whether the next step of an optimizer, or the one under way, is sampled; one not seen yet has its first."""
        if owner is not None and owner is stepping:
            return owner.sample is not None  # None too if its gradients were final after the closure's first call
        return owner is None or self.schedule.is_due(owner.steps)

    def _plan(self, number: int) -> Plan | None:
        plan = self.merger.plan
        return plan if plan is not None and number >= plan.start else None

    def _capture(self, sample: Sample, optimizer: Optimizer, count: _Count | None) -> None:
        """Add to a sample what one optimizer is about to use."""
        stepped = _parameters(optimizer)
        by_id = self._holdings.last  # read when the step began
        own = [held for p in stepped for held in by_id.get(id(p), ())]
        others = self._unowned(count, by_id) if count is not None and "parameter" in self.kinds else []
        inside = getattr(optimizer, "grad_scale", None)
        multiplier = inside.detach().reciprocal() if isinstance(inside, torch.Tensor) else None
        scale = inside if isinstance(inside, torch.Tensor) else hooks.loss_scale()
        found_inf = getattr(optimizer, "found_inf", None)
        begin = time.perf_counter()
        todo: list[Item] = []
        every = [*own, *others]
        if "gradient" in self.kinds:
            todo += self._clipping.give(sample, own, scaled=multiplier is not None)
        if multiplier is not None:
            self._add(sample, todo, multiplier)
            todo = []
        if "parameter" in self.kinds:
            todo += [Item("parameter", held.name, held, held.parameter) for held in every]
        if "optimizer" in self.kinds:
            todo += [
                Item("optimizer", f"{held.name}.{key}", held, moment)
                for held in own
                for key, moment in moments(optimizer, held.parameter)
            ]
        self._add(sample, todo, None)
        guard.attempt("the comparison of replicas", self._check_replicas, sample, optimizer, count)
        if sample.plan is None and not self.merger.alone:
            sample.held |= {held.name: held.region(held.parameter) for held in every}
        sample.summands = {h.name: self._counter.summands.pop(h.name) for h in own if h.name in self._counter.summands}
        sample.offered, self._counter.offered = self._counter.offered, {}
        if isinstance(found_inf, torch.Tensor):
            sample.found_inf = HostCopy(found_inf.detach().clone())
        self._clipping.tell(sample)
        if scale is not None and own:
            sample.scalars.append(("watch/loss_scale", HostCopy(scale.detach().clone())))
        if (rate := _learning_rate(optimizer)) is not None and own:
            sample.scalars.append(("watch/lr", rate))
        if self._activations is not None:
            rank, world_size = (self._job.identity.rank, self._job.identity.world_size) if self._job else (0, 1)
            sample.add(self._activations.take(rank, world_size, planned=sample.plan is not None))
        if self._local is not None:
            self._take_local(sample, own, scale, scaled=multiplier is not None)
        if "update" in self.kinds and not sample.skipped:
            self._keep(sample, optimizer, own)
        self._charge(begin, sample)

    def _check_replicas(self, sample: Sample, optimizer: Optimizer, count: _Count | None) -> None:
        """Take checksums of what the step is about to change, if it is their turn."""
        if self.merger.alone:
            return
        self._replicas.look(self.models)
        steps = self._in_backward.steps if count is None else count.steps
        if not self._replicas.is_due(optimizer, sample.plan, steps - 1, self.schedule.interval):
            return
        by_id = self._holdings.last
        held = [held for p in _parameters(optimizer) for held in by_id.get(id(p), ())]
        held += self._unowned(count, by_id) if count is not None else []
        if sample.checks is None:
            sample.checks = Checks()
            self._replicas.buffers(self.models, self._holdings.wants, sample.checks)
        self._replicas.parameters(held, self.models, sample.checks)

    @property
    def _looks_ahead(self) -> bool:
        """Whether there is something to see before a step begins."""
        return self._activations is not None or self._local is not None

    def _look_ahead(self) -> None:
        """Between two steps: look at the forward and backward passes of the next one if it will be sampled."""
        if not self._looks_ahead:
            return
        blames = self.on_nonfinite is not None and self.on_nonfinite.action == "raise"
        self._armed = due = blames or self._is_next_due() or not self._counts
        if self._activations is not None:
            self._activations.renew(due=due)
        if self._local is not None:
            self._local.renew(self._holdings.now(), due=due)

    def _is_next_due(self) -> bool:
        """Whether the next step may be a sampled one, of whichever optimizer comes."""
        recent = (c for c in self._counts.values() if c.watched and self.samples - c.last <= _RESTING)
        if any(self._is_due(count, None) for count in recent) or (self._ownerless and self.samples <= _RESTING):
            return True  # one that has yet to show up is sampled at its first step
        return self._in_backward.task >= 0 and self.schedule.is_due(self._in_backward.steps)

    def _take_local(self, sample: Sample, own: Sequence[Held], scale: torch.Tensor | None, *, scaled: bool) -> None:
        """What this rank's own gradients were, under this loss scale; `scaled` if they were counted without it."""
        if self._local is not None:
            self._local.final(own, () if scaled else [part for part, _ in sample.picks if part.stage == "step"])
            sample.local = self._local.take({held.name for held in own}, scale)

    def _keep(self, sample: Sample, optimizer: Optimizer, own: Sequence[Held]) -> None:
        """Copy what the step is about to change; counted and handed over when it has."""
        kept = self._updates.keep(optimizer, own, sample.plan)
        if sample.plan is None:
            sample.expected += [("update", held.name) for held in own if held.parameter.requires_grad]
        if kept:
            self._kept[optimizer] = _Stepping(sample, kept, hooks.backward_pass() is None)
            hooks.after_step(optimizer, self)

    def _charge(self, begin: float, sample: Sample | None = None) -> None:
        """Count the time since then as what the sample under way costs, and put it down to that if it is there."""
        took = time.perf_counter() - begin
        self._host_s += took
        self.schedule.took(took)
        if sample is not None:
            sample.host_s, self._host_s = sample.host_s + self._host_s, 0.0
            sample.events, self._counter.events = sample.events + self._counter.events, []

    def _unowned(self, first: _Count, by_id: dict[int, list[Held]]) -> list[Held]:
        """Parameters that no optimizer steps (frozen ones); they are counted with those of the first optimizer.

        At its first step the optimizers of the trainable ones may yet show up.
        """
        if self._leader() is not first:
            return []
        owned = {id(p) for optimizer in self._counts for p in _parameters(optimizer)}
        return [
            held
            for key, several in by_id.items()
            for held in several
            if key not in owned and (first.steps > 1 or not held.parameter.requires_grad)
        ]

    def _add(self, sample: Sample, todo: Sequence[Item], multiplier: torch.Tensor | None) -> None:
        sample.add(self._counter.count(todo, "step", sample.plan, multiplier))

    def _forget(self) -> None:
        if self._activations is not None:
            self._activations.stop()
            self._activations = None
        if self._local is not None:
            self._local.stop()
            self._local = None
        if self._waits is not None:
            self._waits.stop()
            self._waits = None
        for optimizer in list(self._kept):
            self._hand_over(optimizer)
        self._end_backward()
        self._observed = None
        self._clipping.forget()
        self._counter.forget()
        self._trains = None
        self._owners.clear()


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _learning_rate(optimizer: Optimizer) -> HostCopy | Known | None:
    """The largest learning rate of its groups."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    numbers = [float(rate) for rate in rates if isinstance(rate, (int, float))]
    held = [rate.detach().reshape(()) for rate in rates if isinstance(rate, torch.Tensor) and rate.numel() == 1]
    if held:
        return HostCopy(torch.stack([rate.to(held[0].device, torch.float32) for rate in held]).amax())
    return Known(max(numbers)) if numbers else None
