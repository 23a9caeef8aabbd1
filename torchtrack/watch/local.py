"""Each rank's own gradients, before they are averaged: who is unlike the others, and where a NaN comes from.

The average hides which rank it owes to. Its summands are there for a moment in the backward pass, of a sampled step:

    DistributedDataParallel     in a callback that the engine runs before DDP's own, which waits for the all-reduce;
                                with `gradient_as_bucket_view` as each gradient arrives, since DDP then divides in place
    fully_shard                 in the buffer that is about to be reduced and scattered

One norm a tensor is taken there, in float32 or wider, and nothing is kept: a NaN or an infinity in a tensor is one in
its norm. The same is told of what the rank holds when its step begins: a replica is read by one rank in turn, and what
went wrong on another after the average would not be seen. What this rank has counted is not read for that once more.
DDP's communication hook is left alone: there can be only one, and having one changes how DDP averages.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.nn.parallel import DistributedDataParallel

from torchtrack import guard
from torchtrack.histogram import NAN, NEG_INF, POS_INF
from torchtrack.watch import hooks, kernels, layout
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.layers import layers_of

if TYPE_CHECKING:
    from torchtrack.watch.layout import Held
    from torchtrack.watch.sample import Part

_NOT_FINITE: Final = (NEG_INF, POS_INF, NAN)
_UNDIVIDED: Final = (torch.float32, torch.bfloat16)
"""What `fully_shard` reduces as it is; of other types it divides the summands by a factor of its own first."""
_NARROW: Final = (torch.float16, torch.bfloat16)
_NAMED: Final = 8
"""So many tensors that are not finite are named; their number is told."""


Norm = torch.Tensor | float
"""On its way to the host, or there."""


class LocalNorms:
    """Norms of one rank's gradients of one step, on their way to the host.

    Args:
        norms: by parameter, in the order in which the backward pass came to them; "" for those that have no one name.
        held: by parameter, of what the rank holds as the step begins, in the order of the model.
        scale: 0-dim; what the loss was multiplied by.
        whole: whether `norms` are of the gradient of all micro-batches of this rank and of nothing else.
    """

    def __init__(
        self,
        norms: Mapping[str, Norm],
        held: Mapping[str, Norm],
        scale: torch.Tensor | None,
        *,
        whole: bool,
    ) -> None:
        self.names, self.held = list(norms), list(held)
        self.whole = whole and bool(norms)
        numbers = [*norms.values(), *held.values()]
        if any(isinstance(number, torch.Tensor) for number in numbers):
            stacked = torch.stack([torch.as_tensor(number) for number in numbers]).double()
        else:
            stacked = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        self._norms = HostCopy(stacked if scale is None else stacked / scale.detach().double())

    def ready(self) -> bool:
        """Whether the numbers are on the host."""
        return self._norms.ready()

    def norm(self) -> float | None:
        """The norm over all tensors, once `ready`; None if they are of something else, or not finite."""
        norm = math.hypot(*self._norms.numpy().tolist()[: len(self.names)])
        return norm if self.whole and math.isfinite(norm) else None

    def by_layer(self) -> dict[str, float]:
        """The norm over the tensors of each layer, once `ready`; empty where `norm` is None."""
        if self.norm() is None or "" in self.names:
            return {}
        norms = self._norms.numpy()
        return {layer: math.hypot(*norms[rows].tolist()) for layer, rows in layers_of(self.names).items()}

    def nonfinite(self) -> dict[str, Any] | None:
        """Which gradients were not finite here, the first in backward order first; None if all were; once `ready`."""
        return _nonfinite(self.names, self._norms.numpy().tolist()[: len(self.names)])

    def held_nonfinite(self) -> dict[str, Any] | None:
        """The same of what the rank holds as the step begins: its own, the others', and what came later."""
        return _nonfinite(self.held[::-1], self._norms.numpy().tolist()[len(self.names) :][::-1])


def _nonfinite(names: Sequence[str], norms: Sequence[float]) -> dict[str, Any] | None:
    found = [name for name, norm in zip(names, norms, strict=True) if not math.isfinite(norm)]
    if not found:
        return None
    return {"kind": "gradient", "first": found[0], "names": found[:_NAMED], "count": len(found)}


@dataclass
class _Seen:
    """What was seen in the backward passes of one step so far.

    Attributes:
        norms: by parameter, in the order in which the passes came to them.
        whole: whether that is the rank's own gradient of the whole step.
        held: by parameter, of what is there once the ranks have averaged.
    """

    norms: dict[str, Norm] = field(default_factory=dict)
    whole: bool = True
    held: dict[str, Norm] = field(default_factory=dict)


class LocalGradients:
    """Looks at this rank's gradients in the backward passes whose optimizer step will be sampled.

    **Threads:** the hooks run on the engine's threads, while the training thread waits for them.

    Args:
        models: what is watched; those inside that average over ranks are found.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._seen = _Seen()
        modules = [module for model in models for module in model.modules()]
        replicas = [module for module in modules if isinstance(module, DistributedDataParallel)]
        fully_sharded = sys.modules.get("torch.distributed.fsdp")
        sharded = [m for m in modules if fully_sharded is not None and isinstance(m, fully_sharded.FSDPModule)]
        self._sources: list[_Replica | _Sharded] = [_Replica(module, self._seen) for module in replicas]
        self._sources += [_Sharded(module, self._seen) for module in sharded]

    def __bool__(self) -> bool:
        return bool(self._sources)

    def renew(self, held: Mapping[int, Sequence[Held]], *, due: bool) -> None:
        """Forget what was seen, and look from now on if the next step is due.

        Args:
            held: by id, the parameters to look at.
            due: whether the next step may be sampled.
        """
        self._seen.norms, self._seen.whole, self._seen.held = {}, True, {}
        for source in self._sources:
            if due:
                source.look(held)
            else:
                source.stop()

    @property
    def seen(self) -> Mapping[str, Norm]:
        """Norms since the last `renew`, by parameter; still multiplied by the loss scale."""
        return self._seen.norms

    def stop(self) -> None:
        """Take every hook away."""
        for source in self._sources:
            source.stop()
        self._sources = []

    @torch.no_grad()
    def final(self, every: Iterable[Held], counted: Iterable[Part] = ()) -> None:
        """Gradients are averaged: look at those that were not looked at since the last `renew`.

        To be called before they are clipped, which makes all of them NaN where one was.

        Args:
            every: what to look at.
            counted: what this rank has counted of the same gradients, as they are.
        """
        seen = self._seen.held
        known = _counted_whole(counted)
        names, gradients = [], []
        for held in every:
            gradient = held.parameter.grad
            if gradient is None or held.name in seen:
                continue
            if type(gradient) not in layout.PLAIN and layout.is_dtensor(gradient):
                gradient = layout.local_part(gradient)
            numel = gradient.numel()
            if not numel or gradient.layout is not torch.strided or gradient.is_meta:
                continue
            seen[held.name], size = known.get(held.name, (0.0, -1))
            if size != numel or held.part is not None:
                names.append(held.name)
                gradients.append(gradient)
        seen |= zip(names, _norms(gradients), strict=True)  # in the places that they have

    def take(self, names: Container[str], scale: torch.Tensor | None) -> LocalNorms | None:
        """What was seen of some parameters since the last `renew`; None for nothing.

        Args:
            names: of the parameters.
            scale: 0-dim; what the loss was multiplied by.
        """
        norms = {name: norm for name, norm in self._seen.norms.items() if not name or name in names}
        held = {name: norm for name, norm in self._seen.held.items() if name in names}
        return LocalNorms(norms, held, scale, whole=self._seen.whole) if norms or held else None


class _Replica:
    """One `DistributedDataParallel`."""

    def __init__(self, module: DistributedDataParallel, seen: _Seen) -> None:
        self._seen = seen
        self._module = weakref.ref(module)
        self._handles: dict[int, tuple[torch.Tensor, Any]] = {}
        self._held: Mapping[int, Sequence[Held]] = {}
        self._arrived: list[tuple[str, torch.Tensor]] = []
        self._tasks: set[int] = set()
        self._averaged: Mapping[str, Norm] | None = None
        """What was being filled when a pass was averaged: a second average of one step is added to the first."""
        self._late = bool(module.static_graph)
        """Whether the pass to come is the first of a static graph, where DDP's callback comes before ours."""

    def look(self, held: Mapping[int, Sequence[Held]]) -> None:
        module = self._module()
        if module is None or (self._handles and held is self._held):
            return
        self._held = held
        there = {id(p): p for p in module.module.parameters() if p.requires_grad and id(p) in held}
        for key in self._handles.keys() - there.keys():
            self._handles.pop(key)[1].remove()
        for key, parameter in there.items():
            if key not in self._handles and type(parameter) in layout.PLAIN:
                handle = parameter.register_post_accumulate_grad_hook(_Arrival(self, held[key][0].name))
                self._handles[key] = parameter, handle

    def stop(self) -> None:
        for _, handle in self._handles.values():
            handle.remove()
        self._handles, self._held = {}, {}

    def arrived(self, name: str, parameter: torch.Tensor) -> None:
        """A gradient has been accumulated."""
        module, task, gradient = self._module(), hooks.backward_pass(), parameter.grad
        if module is None or task is None or gradient is None or gradient.layout is not torch.strided:
            return
        if task not in self._tasks:  # one may run inside another, to compute anew what was not kept
            self._tasks.add(task)
            hooks.after_backward(self._passed)
        if module.gradient_as_bucket_view:
            self._seen.norms[name] = _norms([gradient])[0]
            return
        self._arrived.append((name, parameter))

    def _passed(self) -> None:
        """The backward pass has come to its end, and nothing has been averaged yet."""
        module, arrived = self._module(), self._arrived
        self._arrived, self._tasks = [], set()
        if module is None:
            return
        there = [(name, p.grad) for name, p in arrived if p.grad is not None]
        norms = _norms([gradient for _, gradient in there])
        self._seen.norms.update(zip([name for name, _ in there], norms, strict=True))
        if module.require_forward_param_sync:  # DDP decides in the forward pass whether the backward pass averages
            twice = self._averaged is self._seen.norms
            self._seen.whole = self._seen.whole and not twice and not self._late
            self._averaged, self._late = self._seen.norms, False


class _Arrival:
    """The hook of one parameter. A copy of the parameter has one that does nothing."""

    def __init__(self, replica: _Replica, name: str) -> None:
        self._replica, self._name = replica, name

    @_disable_dynamo
    def __call__(self, parameter: torch.Tensor) -> None:
        if not hooks.is_capturing():
            guard.attempt("watch", self._replica.arrived, self._name, parameter)


class _Sharded:
    """One module of `fully_shard`, whose parameters are reduced and scattered together."""

    def __init__(self, module: Any, seen: _Seen) -> None:
        self._seen = seen
        self._module = weakref.ref(module)
        self._names: dict[int, str] = {}
        self._around: list[tuple[Any, _ReduceScatter]] = []

    def look(self, held: Mapping[int, Sequence[Held]]) -> None:
        module = self._module()
        if module is None or self._around:
            return
        self._names = {}
        for group in layout.sharded_groups(module):
            for parameter in group.fsdp_params:
                several = held.get(id(parameter.sharded_param))
                if several:
                    self._names[id(parameter)] = several[0].name
            inner = getattr(group, "_reduce_scatter_comm", None)
            if inner is not None and not isinstance(inner, _ReduceScatter):
                group._reduce_scatter_comm = around = _ReduceScatter(inner, self)
                self._around.append((group, around))

    def stop(self) -> None:
        for group, around in self._around:
            if group._reduce_scatter_comm is around:
                group._reduce_scatter_comm = around.inner
        self._around = []

    @torch.no_grad()
    def reducing(self, buffer: torch.Tensor, world_size: int, parameters: Sequence[Any]) -> None:
        """Gradients are about to be reduced: side by side in the buffer, which has a row for each rank."""
        seen = self._seen
        seen.whole = seen.whole and buffer.dtype in _UNDIVIDED
        sizes = [parameter.padded_sharded_param_size.numel() for parameter in parameters]
        named = [self._names.get(id(parameter)) for parameter in parameters]
        rows = buffer.view(world_size, -1)
        if sum(sizes) != rows.shape[1]:
            sizes, named = [rows.shape[1]], [""]
        pieces = zip(named, rows.split(sizes, 1), strict=True)
        for name, piece in reversed([(name, piece) for name, piece in pieces if name is not None]):
            norm = torch.linalg.vector_norm(piece, dtype=_wide(piece))
            before = seen.norms.get(name)
            if before is not None:  # of another group, or reduced in an earlier micro-batch too
                norm, seen.whole = torch.hypot(norm, torch.as_tensor(before)), seen.whole and name == ""
            seen.norms[name] = norm


class _ReduceScatter:
    """Around what reduces the gradients of one group; passes everything through."""

    def __init__(self, inner: Any, sharded: _Sharded) -> None:
        self.inner, self._sharded = inner, sharded

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_locals.get("fsdp_params", ())
        if not hooks.is_capturing():
            guard.attempt("watch", self._see, kwargs, caller)
        return self.inner(*args, **kwargs)

    def _see(self, call: Mapping[str, Any], parameters: Sequence[Any]) -> None:
        if "input_tensor" in call:
            self._sharded.reducing(call["input_tensor"], call["group"].size(), parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in _NARROW else tensor.dtype


@torch.no_grad()
def _norms(gradients: Sequence[torch.Tensor]) -> list[Norm]:
    """One norm a tensor: one call for all of a type; on a CPU one for all, and they are there at once."""
    if not gradients:
        return []
    is_here = all(gradient.is_cpu for gradient in gradients)
    fast = kernels.fast_norms(gradients[0].device)
    if fast is not None and is_here and len(gradients) > 1:
        norms: list[Norm] = fast(gradients)[:, 0].tolist()
        return norms
    found: list[Norm] = [0.0] * len(gradients)
    for dtype, at in _by_type(gradients):
        same = [gradients[i] for i in at]
        several = torch._foreach_norm(same, 2, torch.float32) if dtype in _NARROW else torch._foreach_norm(same)
        for i, norm in zip(at, torch.stack(several).tolist() if is_here else several, strict=True):
            found[i] = norm
    return found


def _counted_whole(parts: Iterable[Part]) -> dict[str, tuple[float, int]]:
    """By parameter: norm and elements of the gradients that were counted here from end to end, as far as it is known.

    Only on a CPU: else their numbers are still on their way.
    """
    known = {}
    for part in parts:
        if not part.is_here:
            continue
        bad = part.counts.numpy()[:, _NOT_FINITE].any(1)
        norms = np.where(bad, np.nan, np.sqrt(part.moments.numpy()[:, 1])).tolist()
        for ((kind, name), place), norm in zip(part.rows, norms, strict=True):
            if kind == "gradient" and place.cut[0] == 0:
                known[name] = norm, place.cut[1]
    return known


def _by_type(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.dtype, list[int]]]:
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        yield dtype, [i for i, tensor in enumerate(tensors) if tensor.dtype is dtype]
