"""Whose rows: the names of parameters, and which part of each this rank holds, under every wrapper.

Names are those of the user's module. What is held may be all of a tensor (a plain module, DistributedDataParallel), a
shard that DTensor describes (`fully_shard`, tensor parallelism, both), or a range inside a flat parameter (FSDP1).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parameter import is_lazy

KINDS: Final = ("gradient", "parameter")
PLAIN: Final = frozenset((torch.Tensor, torch.nn.Parameter))
"""Types of tensors that lie here whole."""
_NAMED_WRAPPERS: Final = frozenset(("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"))


@dataclass(frozen=True, slots=True)
class Region:
    """Which elements of a named tensor one rank holds. Equal regions are replicas, as far as metadata can tell.

    Attributes:
        numel: elements of the whole tensor, on all ranks.
        key: which shard; "" for elements of the flat whole tensor.
        lo: the first element within the shard.
        count: how many elements.
    """

    numel: int
    key: str
    lo: int
    count: int


@dataclass(frozen=True, slots=True)
class Summand:
    """What one rank holds of a gradient that is a sum over ranks which nobody has taken yet (DTensor's Partial).

    Attributes:
        numel: elements of the whole tensor.
        key: which shard of it, as in `Region`.
        place: which summand; ranks that hold equal ones share it.
        count: how many elements.
        dtype: what the sum is rounded to, by its name in torch.
    """

    numel: int
    key: str
    place: str
    count: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a tensor `Watcher.observe` is given, where an optimizer has cut it up by its own rules.

    Attributes:
        numel: elements of the whole tensor.
        lo: the first element here, of the flat whole tensor (or of the shard that `key` names).
        key: a name for the shard, equal on ranks that hold the same elements, if it is no range of the flat tensor.
    """

    numel: int
    lo: int = 0
    key: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """A named parameter as this rank holds it.

    Attributes:
        name: as the user's module has it.
        parameter: what the optimizer steps.
        part: [lo, hi) of the flat parameter that is this tensor; None if all of it is.
        original: shape of the original tensor, if the parameter does not tell.
        at: where the part begins in the flat original, or in its shard.
        key: the shard, if it is no range of the flat original.
        rows: by (kind, name), what was counted of tensors shaped as this one, and when that holds again.
    """

    name: str
    parameter: torch.Tensor
    part: tuple[int, int] | None = None
    original: torch.Size | None = None
    at: int = 0
    key: str = ""
    rows: dict[tuple[str, str], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor."""
        return self.parameter.shape if self.original is None else self.original

    def local(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of a tensor shaped as the parameter (itself, its gradient, its moments): what lies here, as plain tensor."""
        if type(tensor) not in PLAIN and is_dtensor(tensor):
            tensor = local_part(tensor)
        return tensor if self.part is None else tensor.reshape(-1)[self.part[0] : self.part[1]]

    def region(self, tensor: torch.Tensor) -> Region:
        """Which elements of the whole `tensor`, shaped as the parameter, are here."""
        if self.original is not None:
            count = tensor.numel() if self.part is None else self.part[1] - self.part[0]
            return Region(self.original.numel(), self.key, self.at, count)
        return region_of(tensor)


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Whether a tensor is distributed over a mesh."""
    module = sys.modules.get("torch.distributed.tensor")  # slow to import; without it there is none
    return module is not None and isinstance(tensor, module.DTensor)


def is_partial(tensor: Any) -> bool:
    """Whether a tensor is a DTensor that ranks have yet to add up: its parts say nothing about its elements."""
    return is_dtensor(tensor) and any(placement.is_partial() for placement in tensor.placements)


def summand_of(tensor: Any) -> Summand | None:
    """What this rank holds of a partial tensor; None if it is to be reduced otherwise than by adding up."""
    coordinate = tensor.device_mesh.get_coordinate()
    partial = [i for i, placement in enumerate(tensor.placements) if placement.is_partial()]
    if coordinate is None or any(tensor.placements[i].reduce_op != "sum" for i in partial):
        return None
    place = "+".join(f"{coordinate[i]}/{tensor.device_mesh.size(i)}" for i in partial)
    region = region_of(tensor)
    return Summand(region.numel, region.key, place, region.count, str(tensor.dtype).removeprefix("torch."))


def is_2_norm(total: Any) -> bool:
    """Whether a partial norm is a 2-norm: its parts add up by their squares."""
    return all(getattr(placement, "norm_type", 2) == 2 for placement in total.placements if placement.is_partial())


def local_part(tensor: Any) -> torch.Tensor:
    """The local tensor of a DTensor, without padding. Its last collective has been ordered before what reads it."""
    local: Any = tensor._local_tensor
    wait = getattr(local, "trigger_wait", None)  # an AsyncCollectiveTensor: waits on the stream
    return local if wait is None else wait()  # type: ignore[no-any-return]


def region_of(tensor: Any) -> Region:
    """Which elements of a tensor this rank holds.

    The key of a DTensor's shard names coordinate and size of each mesh dimension that shards it. Dimensions that
    replicate leave no trace: the same shard has the same key on a mesh that has them and on one that has not.
    """
    if not is_dtensor(tensor):
        return Region(tensor.numel(), "", 0, tensor.numel())
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return Region(tensor.numel(), "", 0, 0)
    parts = [
        f"{coordinate[i]}/{tensor.device_mesh.size(i)}d{placement.dim}{_stride(placement)}"
        for i, placement in enumerate(tensor.placements)
        if hasattr(placement, "dim")
    ]
    return Region(tensor.numel(), "+".join(parts), 0, tensor._local_tensor.numel())


def _stride(placement: Any) -> str:
    """Tensor and data parallelism along one dimension deal it out in strides."""
    factor = getattr(placement, "split_factor", 1)
    return "" if factor == 1 else f"s{factor}"


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside DistributedDataParallel, DataParallel, torch.compile and Lightning Fabric's wrappers."""
    while model is not (inner := _inside(model)):
        model = inner
    return model


def _inside(model: nn.Module) -> nn.Module:
    """What a wrapper is around; the module itself if it is none."""
    held_as = "_forward_module" if type(model).__name__ == "_FabricModule" else "_orig_mod"
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        held_as = "module"
    inner = getattr(model, held_as, None)
    return inner if isinstance(inner, nn.Module) else model


def averages(model: nn.Module) -> bool:
    """Whether gradients are averaged over all ranks: by DistributedDataParallel, or `fully_shard` of all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    world_size = dist.get_world_size()
    while model is not (inner := _inside(model)):
        if isinstance(model, nn.parallel.DistributedDataParallel):
            return int(model.process_group.size()) == world_size
        model = inner
    fully_sharded = sys.modules.get("torch.distributed.fsdp")
    modules = [m for m in model.modules() if fully_sharded is not None and isinstance(m, fully_sharded.FSDPModule)]
    groups = [group for module in modules for group in sharded_groups(module)]
    return bool(groups) and all(group.mesh_info.mesh.size() == world_size for group in groups)


def held_by(model: nn.Module, prefix: str = "") -> Iterator[Held]:
    """What this rank holds of each parameter; a tied weight once, under its first name.

    A lazy module's parameters come when its first input has given them a shape.
    """
    inner = unwrap(model)
    modules = list(_named_modules(inner))
    fully_sharded = sys.modules.get("torch.distributed.fsdp")
    sharded: dict[tuple[int, str], torch.Tensor] = {}
    told: set[int] = set()
    if fully_sharded is not None:
        for path, module in modules:
            if isinstance(module, fully_sharded.FSDPModule):
                sharded |= _sharded_parameters(module)
            elif isinstance(module, fully_sharded.FullyShardedDataParallel):
                yield from _inside_flat(module, prefix, path, told)
    for path, module in modules:
        if not module._parameters:
            continue
        owner = prefix + strip(f"{path}.") if path else prefix
        for name, registered in module._parameters.items():
            if registered is None:
                continue
            parameter = sharded.get((id(module), name), registered) if sharded else registered
            if id(parameter) in told or is_lazy(parameter):
                continue
            told.add(id(parameter))
            yield Held(owner + name, parameter)


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `model.named_modules()`, whose nested generators cost more than all else at a sampled step."""
    seen: set[int] = set()
    stack = [("", model)]
    while stack:
        path, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        below = [(f"{path}.{name}" if path else name, m) for name, m in module._modules.items() if m is not None]
        stack += reversed(below)


def _sharded_parameters(module: Any) -> dict[tuple[int, str], torch.Tensor]:
    """(id of a module, name in it) -> what the optimizer holds, where `fully_shard` may have registered another."""
    found: dict[tuple[int, str], torch.Tensor] = {}
    for group in sharded_groups(module):
        for parameter in group.fsdp_params:
            info = parameter._module_info
            owners = [info.module, *info.shared_modules]
            names = [info.param_name, *info.shared_param_names]
            found |= {(id(owner), name): parameter.sharded_param for owner, name in zip(owners, names, strict=True)}
    return found


def sharded_groups(module: Any) -> list[Any]:
    """The groups of parameters that a module of `fully_shard` gathers and reduces together."""
    state: Any = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # torch before 2.12 has at most one
        groups = [group] if (group := state._fsdp_param_group) is not None else []
    return list(groups)


def _inside_flat(module: Any, prefix: str, path: str, told: set[int]) -> Iterator[Held]:
    """What this rank holds of the parameters inside the flat parameter of an FSDP1 module."""
    handle = module._handle
    if handle is None:
        return
    whole = handle.flat_param
    told.add(id(whole))
    originals = whole._params or [None] * len(whole._param_infos)  # None unless use_orig_params
    for info, shard, shape, original in zip(
        whole._param_infos, whole._shard_param_infos, whole._shapes, originals, strict=True
    ):
        if original is not None:
            told.add(id(original))
        if not shard.in_shard:
            continue
        name = prefix + strip(".".join(filter(None, (path, info.module_name, info.param_name))))
        if original is not None:
            yield Held(name, original, None, shape, shard.intra_param_start_idx)
        else:
            part = shard.offset_in_shard, shard.offset_in_shard + shard.numel_in_shard
            yield Held(name, whole, part, shape, shard.intra_param_start_idx)


def class_name(module: nn.Module) -> str:
    """The name of the user's class: `fully_shard` puts a class of its own around it."""
    fully_sharded = sys.modules.get("torch.distributed.fsdp")
    if fully_sharded is not None and isinstance(module, fully_sharded.FSDPModule):
        return type(module).__bases__[-1].__name__
    return type(module).__name__


def strip(name: str) -> str:
    """A parameter name without the parts that wrappers put into it."""
    if not any(wrapper in name for wrapper in _NAMED_WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in _NAMED_WRAPPERS)


def flat(tensor: torch.Tensor, *, whole: bool) -> torch.Tensor:
    """The elements as a 1-D view. Without a copy where the layout allows; the order is free only if all are read.

    Args:
        tensor: dense, any layout.
        whole: every element will be counted, so that their order does not matter.
    """
    if tensor.is_contiguous():
        return tensor.view(-1)
    if whole and tensor.dim() == 2 and tensor.t().is_contiguous():
        return tensor.t().view(-1)
    if whole and tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).view(-1)
    return tensor.reshape(-1)
