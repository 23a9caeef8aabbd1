"""How long this rank waits for the others, at every step: the slow rank is the one that does not.

    DistributedDataParallel     from the end of the rank's own backward pass until its gradients are averaged: between
                                two callbacks of the engine, before and after DDP's own
    fully_shard                 in every all-gather and every reduce-scatter

All ranks leave such a point together. Of two that come to it the later one waits less, and has spent more time by
itself since the point before it, whatever it did there. Only where the host waits: on an accelerator kernels do.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchtrack import guard
from torchtrack.watch import hooks, layout

if TYPE_CHECKING:
    from torchtrack.phases import Phases

_COLLECTIVES: Final = ("_all_gather_comm", "_reduce_scatter_comm")


class Waits:
    """Tells a clock when the rank meets the others; false where it sees no such point.

    **Threads:** the training thread, and the engine's while that waits for it.

    Args:
        models: what is watched; those inside that average over ranks are found.
        phases: the clock.
    """

    def __init__(self, models: Iterable[nn.Module], phases: Phases) -> None:
        self.phases = phases
        self._handles: list[Any] = []
        self._collectives: list[_Collective] = []
        fully_sharded = sys.modules.get("torch.distributed.fsdp")
        for module in [module for model in models for module in model.modules()]:
            if isinstance(module, DistributedDataParallel):
                self._look_at_replica(module)
            elif fully_sharded is not None and isinstance(module, fully_sharded.FSDPModule):
                groups = [group for group in layout.sharded_groups(module) if group.device.type == "cpu"]
                self._collectives += [
                    _Collective(group, name, phases)
                    for group in groups
                    for name in _COLLECTIVES
                    if _is_free(group, name)
                ]

    def __bool__(self) -> bool:
        return bool(self._handles or self._collectives)

    def stop(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        for collective in self._collectives:
            collective.stop()
        self._handles, self._collectives = [], []

    def _look_at_replica(self, module: DistributedDataParallel) -> None:
        """One parameter is enough: DDP's callback is queued once all gradients are there."""
        parameter = next((p for p in module.parameters() if p.requires_grad and type(p) in layout.PLAIN), None)
        if parameter is not None and parameter.device.type == "cpu" and module.process_group.size() > 1:
            register: Any = parameter.register_post_accumulate_grad_hook
            self._handles.append(register(_Arrival(self.phases)))


class _Arrival:
    """The hook of one parameter."""

    def __init__(self, phases: Phases) -> None:
        self._phases = phases

    def __call__(self, parameter: torch.Tensor) -> None:
        del parameter
        if not torch.compiler.is_compiling() and hooks.backward_pass() is not None:
            guard.attempt("watch", hooks.after_backward, self._passed)

    def _passed(self) -> None:
        """The rank's own backward pass is over, and DDP has not waited yet."""
        hooks.after_backward(self._phases.resume)
        self._phases.sync()


class _Collective:
    """Around what gathers the parameters of one group, or reduces its gradients; passes everything through."""

    def __init__(self, group: Any, name: str, phases: Phases) -> None:
        self.inner, self._name, self._phases = getattr(group, name), name, phases
        self._group = weakref.ref(group)
        setattr(group, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.inner(*args, **kwargs)
        self._phases.sync()
        try:
            return self.inner(*args, **kwargs)
        finally:
            self._phases.resume()

    def stop(self) -> None:
        group = self._group()
        if group is not None and getattr(group, self._name) is self:
            setattr(group, self._name, self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _is_free(group: Any, name: str) -> bool:
    """Whether there is such a collective, and no other watch looks at it."""
    inner = getattr(group, name, None)
    return inner is not None and not isinstance(inner, _Collective)
