"""`watch(on_nonfinite=)`: a step whose gradients are not finite is left out, or raises, on every rank alike.

    hooks (every step) -> is every gradient finite? -> the host (one sync) -> one small all-reduce -> found_inf | error

Left out is a step as `torch.amp.GradScaler` leaves it out: the optimizer runs with `found_inf` set, and so changes
neither weights nor moments nor its count of steps. The ranks agree (`decision.py`); where they cannot, nobody leaves
anything out any more: replicas that part are worse than a bad step.
"""

from __future__ import annotations

import gc
import json
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from torchtrack import guard, records
from torchtrack.errors import NonFiniteError
from torchtrack.watch import hooks, layout
from torchtrack.watch.decision import FINE, HERE, ORIGIN, Ranks
from torchtrack.watch.holdings import Holdings

if TYPE_CHECKING:
    from torchtrack.job import Job
    from torchtrack.recorder import Recorder
    from torchtrack.watch.local import Norm

ACTIONS: Final = ("record", "skip", "raise")
_NAMED: Final = 8


class Found(NamedTuple):
    """What all ranks know of a step whose gradients are not finite.

    Attributes:
        first: the parameter that the backward pass came to first.
        ranks: whose own gradients were not finite before the average, where that was looked at.
        held_by: ranks that use such a gradient, or a shard of one.
        names: of these gradients on this rank, in the order of the backward pass.
        stage: "pre_clip" if they were so before they were clipped, else "step".
    """

    first: str
    ranks: tuple[int, ...]
    held_by: tuple[int, ...]
    names: tuple[str, ...]
    stage: str


class _Own(NamedTuple):
    """What this rank knows: a code of `decision`, where its first parameter is in the model, names and stage."""

    code: float = FINE
    order: int = -1
    names: tuple[str, ...] = ()
    stage: str = "step"


class Judge:
    """Decides at every step of an optimizer that steps something watched.

    **Threads:** the training thread, which waits for the device and for the other ranks.

    Args:
        action: "skip" or "raise".
        models: prefix and module of each watched model.
        recorder: whose step is told, and where events go.
        job: who the other ranks are.
        ordinal: number of the watch in the run, the same on every rank.
        own: norms of this rank's own gradients before the average, by name in the order of the backward pass, as far
            as they were looked at in this step.
        trains: whether a step is part of the training; others are let be (a learning rate finder means to diverge).
        include: patterns of names to watch.
        exclude: patterns of names to leave out.
    """

    def __init__(
        self,
        action: str,
        models: Sequence[tuple[str, nn.Module]],
        recorder: Recorder,
        job: Job | None,
        ordinal: int,
        own: Callable[[], Mapping[str, Norm]],
        trains: Callable[[], bool],
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        self.action = action
        self.skipped_steps = 0
        self._holdings = Holdings(models, include, exclude)
        self._recorder = recorder
        self._ranks = Ranks(job, ordinal)
        self._own = own
        self._trains = trains
        self._unclipped: dict[int, list[tuple[str, torch.Tensor]]] = {}
        self._known: weakref.WeakKeyDictionary[Optimizer, tuple[list[int], bool]] = weakref.WeakKeyDictionary()
        self._left_out: weakref.WeakKeyDictionary[Optimizer, _LeftOut] = weakref.WeakKeyDictionary()
        hooks.add(self, after_steps=True)

    # -- hooks.Listener, hooks.Judging --------------------------------------------------------------------------------

    def begin(self, optimizer: Optimizer) -> bool:
        """Every step of what is watched is looked at."""
        self._put_back(optimizer)  # of a step that raised
        if not self._trains():
            self.skipped(optimizer)
            return False
        ids = [id(p) for p in _parameters(optimizer)]
        known = self._known.get(optimizer)
        if known is None or known[0] != ids:  # what is held is read anew only then: it would cost too much at each step
            held = self._holdings.now()
            known = self._known[optimizer] = ids, any(key in held for key in ids)
        return known[1]

    def clipping(self, parameters: list[torch.Tensor]) -> hooks.Clipped | None:
        """Remember how large gradients were before the clipping: a norm that is NaN makes all of them NaN."""
        held = self._holdings.last or self._holdings.now()
        fresh = [p for p in parameters if p.grad is not None and id(p) in held and id(p) not in self._unclipped]
        named = [(id(p), name, local) for p in fresh for name, local in self._pieces(p)]
        for (key, name, _), size in zip(named, _largest([local for _, _, local in named]), strict=True):
            self._unclipped.setdefault(key, []).append((name, size))
        return None

    def judge(self, optimizer: Optimizer) -> Exception | None:
        """Look at the gradients of a step; leave it out, or say what to raise before it changes anything."""
        if hooks.backward_pass() is not None:
            return ValueError(
                f'watch(on_nonfinite="{self.action}") cannot stop optimizers that step inside the backward pass: some '
                'weights have changed by then; use "record"'
            )
        if self.action == "skip" and not can_skip(optimizer):
            return ValueError(_refusal([optimizer]))
        unclipped = {id(p): self._unclipped.pop(id(p), []) for p in _parameters(optimizer)}
        bad: list[bool] = []  # a rank that fails here takes its turn all the same: the others wait for it
        guard.attempt("watch", lambda: bad.append(not (self._is_finite(optimizer) or _scaler_skips(optimizer))))
        if not self._ranks.agree(any(bad)):
            return None
        own: list[_Own] = []
        guard.attempt("watch", lambda: own.append(self._look(optimizer, unclipped, bad=any(bad))))
        found = self._found(own[0] if own else _Own())
        guard.attempt("watch", self._tell, found)
        if self.action == "skip":
            self.skipped_steps += 1
            self._left_out[optimizer] = _LeftOut.begin(optimizer)
            hooks.after_step(optimizer, self)
            return None
        return NonFiniteError(self._recorder.step, found.first, found.ranks)

    def gradients_final(self, optimizer: Optimizer) -> None:
        """Judged already."""

    def skipped(self, optimizer: Optimizer) -> None:
        """Not to be judged. A scaler has decided on every rank alike, since it looks at the same gradients."""
        for parameter in _parameters(optimizer):
            self._unclipped.pop(id(parameter), None)

    def stepped(self, optimizer: Optimizer) -> None:
        """A step that was left out has ended."""
        self._put_back(optimizer)

    def stop(self) -> None:
        """Look no more."""
        hooks.remove(self)
        for optimizer in list(self._left_out):
            self._put_back(optimizer)
        self._unclipped.clear()
        self._known.clear()
        self._holdings.forget()
        self._ranks.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _put_back(self, optimizer: Optimizer) -> None:
        left_out = self._left_out.pop(optimizer, None)
        if left_out is not None:
            left_out.end(optimizer)

    def _is_finite(self, optimizer: Optimizer) -> bool:
        """Whether all gradients that lie here are; one wait for each device that holds some."""
        flags: dict[torch.device, list[torch.Tensor]] = {}
        local = [piece for p in _parameters(optimizer) for piece in _local(p.grad)]
        for sizes in _by_type(_largest(local)):
            flags.setdefault(sizes[0].device, []).append(torch.stack(sizes).isfinite().all())
        return all(bool(torch.stack(several).all()) for several in flags.values())

    def _pieces(self, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """What lies here of a parameter's gradient, by name; "" where it is not watched."""
        gradient = parameter.grad
        several = self._holdings.last.get(id(parameter), ())
        if gradient is None:
            return
        if any(held.part is not None for held in several):
            yield from ((held.name, held.local(gradient)) for held in several if not layout.is_dtensor(gradient))
        else:
            yield from ((several[0].name if several else "", local) for local in _local(gradient))

    def _look(
        self, optimizer: Optimizer, unclipped: Mapping[int, list[tuple[str, torch.Tensor]]], *, bad: bool
    ) -> _Own:
        """Which gradients are not finite here; it may take its time, there is a fault."""
        before = [each for several in unclipped.values() for each in several]
        named = [name for name, size in before if not math.isfinite(size)]
        self._holdings.now()
        stage = "pre_clip" if named else "step"
        if not named and bad:
            pieces = [each for p in _parameters(optimizer) for each in self._pieces(p)]
            sizes = _largest([local for _, local in pieces])
            named = [name for (name, _), size in zip(pieces, sizes, strict=True) if not math.isfinite(size)]
        order = {held.name: i for i, held in enumerate(h for several in self._holdings.last.values() for h in several)}
        names = sorted(dict.fromkeys(named), key=lambda name: order.get(name, -1), reverse=True)
        origin = [name for name, norm in self._own().items() if not math.isfinite(norm)]
        names = list(dict.fromkeys([name for name in origin if name] + names))
        code = ORIGIN if origin else HERE if bad else FINE
        return _Own(code, order.get(names[0], -1) if names else -1, tuple(names), stage)

    def _found(self, own: _Own) -> Found:
        """What the ranks know is put together."""
        codes, first = self._ranks.blame(own.code, own.order, own.names[0] if own.names else "")
        origin, held_by = np.flatnonzero(codes == ORIGIN).tolist(), np.flatnonzero(codes != FINE).tolist()
        return Found(first or "a parameter that is not watched", tuple(origin), tuple(held_by), own.names, own.stage)

    def _tell(self, found: Found) -> None:
        """An event: of the whole job, from its lowest rank."""
        if self._ranks.rank != 0:
            return
        about = {
            "action": self.action,
            "kind": "gradient",
            "stage": found.stage,
            "first": found.first,
            "ranks": found.ranks,
            "held_by": found.held_by,
            "names": found.names[:_NAMED],
            "count": len(found.names),
        }
        event = {
            "time": time.time_ns() // 1000,
            "step": self._recorder.step,
            "type": "nonfinite_step",
            "json": json.dumps(about),
        }
        self._recorder.put(records.Table.EVENTS, lambda: event)


class _LeftOut(NamedTuple):
    """An optimizer that is told to leave its step out, and what it was before."""

    found_inf: Any
    without_momentum: list[torch.Tensor]

    @classmethod
    def begin(cls, optimizer: Optimizer) -> _LeftOut:
        """Tell it, as `GradScaler` does."""
        parameters = _parameters(optimizer)
        # SGD's first step takes its momentum from the gradient. One that is left out would leave it as memory was.
        sgd = isinstance(optimizer, torch.optim.SGD)
        fresh = [p for p in parameters if optimizer.state.get(p, {}).get("momentum_buffer") is None] if sgd else []
        before = cls(getattr(optimizer, "found_inf", None), fresh)
        device = next(layout.local_part(p) if layout.is_dtensor(p) else p for p in parameters).device
        optimizer.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]
        return before

    def end(self, optimizer: Optimizer) -> None:
        """Leave it as it was; a scaler that put its own answer there takes it away itself."""
        if self.found_inf is not None:
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
        elif hasattr(optimizer, "found_inf"):
            del optimizer.found_inf
        for parameter in self.without_momentum:
            if parameter in optimizer.state:
                optimizer.state[parameter].pop("momentum_buffer", None)


def can_skip(optimizer: Optimizer) -> bool:
    """Whether an optimizer heeds `found_inf`, as torch's do with `fused=True`."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def check(action: Any, models: Iterable[nn.Module]) -> None:
    """Check what `watch` was given, before anything is touched.

    Raises:
        ValueError: no such action, or none of the optimizers that step these models can leave a step out. One that is
            made later is refused at its first step.
    """
    if action not in ACTIONS:
        raise ValueError(f"watch(on_nonfinite=) takes {', '.join(map(repr, ACTIONS))}, got {action!r:.60}")
    if action != "skip":
        return
    held = Holdings([("", model) for model in models]).now()
    everything = (each for each in gc.get_objects() if issubclass(type(each), Optimizer))
    stepping = [o for o in everything if any(id(p) in held for p in _parameters(o))]
    if stepping and not any(  # one that nobody uses any more may be among them
        can_skip(o) for o in stepping
    ):
        raise ValueError(_refusal(stepping))


def _refusal(optimizers: Sequence[Optimizer]) -> str:
    names = ", ".join(sorted({type(optimizer).__name__ for optimizer in optimizers}))
    return (
        f'watch(on_nonfinite="skip") needs an optimizer that can leave a step out, and {names} as it was made cannot: '
        "make it with fused=True (torch.optim.AdamW, Adam, SGD or Adagrad), or use on_nonfinite="
        '"raise" or "record"'
    )


def _scaler_skips(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler leaves this step out by itself, as it does while it looks for its scale."""
    found_inf = getattr(optimizer, "found_inf", None)
    return isinstance(found_inf, torch.Tensor) and bool(found_inf.item())


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _local(gradient: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """The values of a gradient that lie here, if there are any."""
    if gradient is None:
        return
    local = layout.local_part(gradient) if layout.is_dtensor(gradient) else gradient
    local = local.detach()
    if local.layout is torch.sparse_coo:
        local = local._values()
    if local.is_complex():
        local = torch.view_as_real(local)
    if local.layout is torch.strided and local.is_floating_point() and local.numel() and not local.is_meta:
        yield local


@torch.no_grad()
def _largest(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The largest magnitude in each, 0-dim: NaN or Inf if an element is; no wait."""
    some = [i for i, tensor in enumerate(tensors) if tensor.numel()]
    found = [torch.zeros(())] * len(tensors)
    for same in _places(some, lambda i: (tensors[i].device, tensors[i].dtype)):
        alike = [tensors[i] for i in same]
        is_host = alike[0].device.type == "cpu"  # where the norm takes ten times as long as the two ends
        sizes = list(map(_far_end, alike)) if is_host else torch._foreach_norm(alike, math.inf)
        for i, size in zip(same, sizes, strict=True):
            found[i] = size
    return found


def _far_end(tensor: torch.Tensor) -> torch.Tensor:
    low, high = torch.aminmax(tensor)
    return torch.maximum(high, -low)


def _by_type(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    several = list(tensors)
    for same in _places(range(len(several)), lambda i: (several[i].device, several[i].dtype)):
        yield [several[i] for i in same]


def _places(indices: Iterable[int], key: Callable[[int], object]) -> Iterator[list[int]]:
    by_key: dict[object, list[int]] = {}
    for i in indices:
        by_key.setdefault(key(i), []).append(i)
    yield from by_key.values()
