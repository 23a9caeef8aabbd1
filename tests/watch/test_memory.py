"""What a sample takes of memory: chunks of bounded size while it counts, a row a tensor until it is written."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.watch.conftest import Watched
from torchtrack.watch import kernels
from torchtrack.watch.kernels import reference
from torchtrack.watch.reduce import Merger
from torchtrack.watch.sample import Sample

ROW_BYTES = (328 + 4) * 8
MIB = 1 << 20


class Idle(torch.optim.SGD):
    """Its step does nothing, so that what is allocated in it is ours."""

    def step(self, closure: Any = None) -> Any:
        assert closure is None


class Allocations(TorchDispatchMode):
    """The memory that operators make: what each result adds to what was given to it.

    Attributes:
        peak: bytes, the most at any one time.
        largest: bytes, of one tensor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.largest = 0
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        made = {ref: size for ref, size in storages(result).items() if ref not in given}
        self._sizes |= made
        self.peak = max(self.peak, self.held())
        self.largest = max([self.largest, *made.values()])
        return result

    def held(self) -> int:
        """Bytes of what is still there."""
        self._sizes = {ref: size for ref, size in self._sizes.items() if not ref.expired()}  # type: ignore[no-untyped-call]
        return sum(self._sizes.values())


def storages(values: Any) -> dict[StorageWeakRef, int]:
    """The memory under all tensors in a structure, and its bytes."""
    under = [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return {StorageWeakRef(storage): storage.nbytes() for storage in under}  # type: ignore[no-untyped-call]


def sampled_step(watched: Watched, sizes: list[int], *, clip: bool, **on: Any) -> Allocations:
    """A step of parameters of these sizes, all of them and their gradients counted."""
    model = nn.ParameterList([nn.Parameter(torch.full((n,), 0.5, **on)) for n in sizes])
    optimizer = Idle(model.parameters(), lr=0.1)
    watched.watch(model, log="all")
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    allocations = Allocations()
    with allocations:
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return allocations


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Samples as they are handed over, kept as if they waited for their turn."""
    submitted: list[Sample] = []
    monkeypatch.setattr(Merger, "submit", lambda _, sample: submitted.append(sample))
    return submitted


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_on_a_cpu_no_tensor_is_copied_and_a_row_for_each_is_kept(
    watched: Watched, submitted: list[Sample], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, clip: bool
) -> None:
    monkeypatch.setattr(kernels, "choose", lambda _: reference.statistics)
    sizes = [32 * MIB // dtype.itemsize, 7, 16 * MIB // dtype.itemsize, 300]
    allocations = sampled_step(watched, sizes, clip=clip, dtype=dtype)

    assert sum(len(rows) for _, rows in submitted[0].picks) == 8
    assert 0 < allocations.largest <= 4 * MIB
    assert allocations.peak <= 10 * MIB
    assert 0 < allocations.held() <= 8 * ROW_BYTES + 8  # a row for each, and the coefficient of the clipping


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_compiled_kernel_allocates_a_row_for_each_tensor_and_little_else(
    watched: Watched, submitted: list[Sample], dtype: torch.dtype
) -> None:
    kernels.choose(torch.device("cpu"))
    kernels.wait()
    sizes = [32 * MIB // dtype.itemsize, 7, 16 * MIB // dtype.itemsize, 300]
    tracemalloc.start()
    allocations = sampled_step(watched, sizes, clip=False, dtype=dtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert sum(len(rows) for _, rows in submitted[0].picks) == 8
    assert allocations.largest == 0  # of torch's
    assert 8 * ROW_BYTES < peak <= 4 * MIB


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("events", "submitted")
def test_on_an_accelerator_large_tensors_are_read_in_chunks(watched: Watched, dtype: torch.dtype, clip: bool) -> None:
    with FakeTensorMode():
        sizes = [256 * MIB, 7, 128 * MIB]
        allocations = sampled_step(watched, sizes, clip=clip, dtype=dtype, device="lazy:0")

    assert 0 < allocations.largest <= 64 * MIB
    assert allocations.peak <= 256 * MIB
    assert 0 < allocations.held() <= 6 * ROW_BYTES + 8


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.usefixtures("submitted")
def test_a_sample_that_waits_keeps_no_gradient_alive(watched: Watched, model: nn.Module, clip: bool) -> None:
    watched.watch(model, log="all")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    gradients = storages([p.grad for p in model.parameters()])
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()

    assert [ref.expired() for ref in gradients] == [True] * 4  # type: ignore[no-untyped-call]
