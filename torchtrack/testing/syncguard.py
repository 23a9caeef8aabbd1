"""Proof that code never waits for an accelerator, on a machine without one.

A fake device runs no kernel, so what would wait is told by the operators that are called, not by time. Of the devices
torch knows on every machine, "lazy:0" is the one on which a whole training step runs, optimizer and clipping included:

    with FakeTensorMode():
        model = nn.Linear(64, 64, device="lazy:0")
        optimizer = torch.optim.AdamW(model.parameters())
        with SyncGuard() as guard:
            model(torch.empty(8, 64, device="lazy:0")).sum().backward()
            optimizer.step()
    assert not guard.violations

Only operators are seen: `torch.cuda.synchronize()` and `event.synchronize()` are none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose CUDA implementation reads a result back, though no tag says so.
_WAITING: Final = {
    "aten::_linalg_check_errors",
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::allclose",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::nonzero_static",
    "aten::repeat_interleave",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
_INDEXING: Final = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_COPIES: Final = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}
_FREE: Final = {
    "aten::_unsafe_view",
    "aten::alias",
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::lift_fresh",
    "aten::new_empty",
    "aten::view",
}
_CAT_INPUTS: Final = 128
"""Tensors one launch of a concatenation takes."""
_FOREACH_TENSORS: Final = 64
"""Tensors one launch of a foreach operator takes, with room to spare (96 with a scalar for each)."""
_FOREACH_ELEMENTS: Final = 320 * 65536
"""Elements one launch of a foreach operator takes."""


class SyncGuard(TorchDispatchMode):
    """Records each operator on a device that would make the host wait for it, and counts kernel launches.

    Host memory is pinned if it was asked for under the guard with `pin_memory=True`, which a machine without an
    accelerator cannot give but a fake tensor can ask for, or if torch says so.

    Attributes:
        violations: one line for each operator that waits.
        launches: estimated kernel launches, by operator.
        copies_to_host: copies into pinned host memory that do not wait.

    Args:
        device_types: which devices to judge. With {"cpu"} an ordinary run on the CPU is judged as if it were one on an
            accelerator; copies between host and device cannot be told there.
        pinned: further host tensors to be taken for pinned memory.
    """

    def __init__(
        self, device_types: Iterable[str] = ("cuda", "lazy", "xpu"), pinned: Sequence[torch.Tensor] = ()
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.violations: list[str] = []
        self.launches: Counter[str] = Counter()
        self.copies_to_host = 0
        self._types = frozenset(device_types)
        self._pinned = {_storage(tensor) for tensor in pinned}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Judge one operator, then run it."""
        kwargs = dict(kwargs or {})
        name = func._schema.name
        read = self._judged((args, kwargs))
        if read:
            self._judge(func, name, args, kwargs)
        if name in _COPIES:
            self._judge_copy(func, name, args, kwargs)
        result = func(*args, **kwargs)
        if kwargs.get("pin_memory"):
            self._pinned.add(_storage(result))
        if (read or self._judged(result)) and not (func.is_view or name in _FREE or name.startswith("prim::")):
            self.launches[str(func)] += _launches(name, args, read)
        return result

    def _judged(self, values: Any) -> list[torch.Tensor]:
        leaves = tree_leaves(values)
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.device.type in self._types]

    def _judge(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if name in _INDEXING:
            if any(isinstance(at, torch.Tensor) and at.dtype in (torch.bool, torch.uint8) for at in args[1]):
                self.violations.append(f"{func}: a mask as index counts its elements first")
        elif name == "aten::repeat_interleave" and kwargs.get("output_size") is not None:
            return
        elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags) or name in _WAITING:
            self.violations.append(f"{func}: the host needs data of the device")
        elif name == "aten::histc" and tuple(args[2:4]) in ((), (0, 0)):
            self.violations.append(f"{func}: the range is read from the data")
        elif name == "aten::segment_reduce" and not kwargs.get("unsafe", False):
            self.violations.append(f"{func}: the lengths are checked on the host")

    def _judge_copy(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inplace = name == "aten::copy_"
        source = args[1] if inplace else args[0]
        target = args[0].device if inplace else torch.device(kwargs.get("device") or source.device)
        away, onto = source.device.type in self._types, target.type in self._types
        if away == onto:
            return
        waits_not = kwargs.get("non_blocking", False) or (inplace and len(args) > 2 and args[2])
        host = args[0] if away and inplace else source
        pinned = host.layout is torch.strided and (_storage(host) in self._pinned or host.is_pinned())
        if not (waits_not and pinned):
            how = f"non_blocking={bool(waits_not)}, pinned={pinned}"
            self.violations.append(f"{func}: copy {source.device.type} -> {target.type}, {how}")
        elif away:
            self.copies_to_host += 1


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    """What tells memory: equal for a tensor and its views, and never that of a tensor which is gone."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _launches(name: str, args: tuple[Any, ...], read: Sequence[torch.Tensor]) -> int:
    if name == "aten::cat":
        return -(-len(args[0]) // _CAT_INPUTS)
    if "_foreach_" in name:
        elements = sum(tensor.numel() for tensor in read)
        return max(1, -(-len(args[0]) // _FOREACH_TENSORS), -(-elements // _FOREACH_ELEMENTS))
    return 1
