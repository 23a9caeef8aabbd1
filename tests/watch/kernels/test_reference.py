"""The reference kernel against the suite of all kernels, and what it alone promises."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchtrack.histogram import Histogram
from torchtrack.testing import SyncGuard
from torchtrack.testing.kernels import CASES, DTYPES, MODELS, Case, check, mixed, normal
from torchtrack.watch.kernels import passes, reference


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch sets it for good on the first call below
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_conforms(case: Case) -> None:
    check(reference.statistics, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_way_of_accelerators_conforms(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_way", lambda *_: passes.packed)
    monkeypatch.setattr(passes, "_CPU_CHUNK", 1 << 12)
    check(reference.statistics, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_way_of_a_cpu_conforms(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_OWN_LOOP", 1)
    monkeypatch.setattr(reference, "_CPU_CHUNK", 1000)
    monkeypatch.setattr(reference, "_WORD_CHUNK", 1000)
    for words in (1, 1 << 40):
        monkeypatch.setattr(reference, "_OWN_WORDS", {1: words, 2: words})
        for multiplier in (None, 2.0**-10):
            check(
                reference.statistics, Case("small chunks", lambda: [mixed(4999, dtype), normal(1, dtype)], multiplier)
            )


def test_a_pass_of_many_rows_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_MAX_COUNTERS", 3 * 8192)
    sizes = (0, 5, 0, 0, 7, 300, 0, 1, 2, 3, 0, 900, 0)
    check(reference.statistics, Case("many", lambda: [mixed(n, dtype) for dtype in DTYPES for n in sizes]))


@pytest.mark.usefixtures("deterministic")
def test_it_works_under_deterministic_algorithms() -> None:
    check(reference.statistics, Case("", lambda: [mixed(n, dtype) for n in (9, 300_000) for dtype in DTYPES]))


def test_it_works_in_inference_mode_and_after_it() -> None:
    with torch.inference_mode():
        check(reference.statistics, Case("", lambda: [normal(n, torch.float32) for n in (9, 20_000)]))
    check(reference.statistics, Case("", lambda: [normal(n, torch.float32) for n in (9, 20_000)]))


def test_ten_million_elements_keep_their_precision() -> None:
    x = torch.full((10_000_000,), 0.1)
    _, moments = reference.statistics([x])
    exact = float(x[0].double())
    assert math.isclose(moments[0, 0].item(), exact * x.numel(), rel_tol=1e-12)
    assert math.isclose(moments[0, 1].item(), exact * exact * x.numel(), rel_tol=1e-12)


def test_squares_neither_underflow_nor_overflow_float32() -> None:
    _, moments = reference.statistics([torch.full((300,), 1e-30), torch.full((20_000,), 1e30)])
    assert math.isclose(moments[0, 1].item(), 300 * 1e-60, rel_tol=1e-6)
    assert math.isclose(moments[1, 1].item(), 20_000 * 1e60, rel_tol=1e-6)


def test_the_rows_build_histograms() -> None:
    x = normal(5000, torch.float32)
    counts, moments = reference.statistics([x])
    made, direct = Histogram(counts[0].numpy(), *moments[0].tolist()), Histogram.of(x)
    assert (made.counts == direct.counts).all()
    assert (made.min, made.max) == (direct.min, direct.max)


def test_what_is_neither_contiguous_nor_1_d_or_not_floating_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"tensor 1 is 2-D torch\.float32 on cpu; expected a floating tensor on cpu, contiguous or 1-D"
    ):
        reference.statistics([torch.ones(3), torch.ones(3, 3)[:, 1:]])
    with pytest.raises(ValueError, match=r"torch\.int64"):
        reference.statistics([torch.ones(3, dtype=torch.int64)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_it_never_waits_for_an_accelerator(dtype: torch.dtype, scaled: bool) -> None:
    with FakeTensorMode():
        tensors = [torch.empty(n, dtype=dtype, device="lazy:0") for n in (0, 5, 1024, 70_000)]
        tensors.append(torch.empty(9, dtype=torch.float32, device="lazy:0"))
        multiplier = torch.empty((), device="lazy:0") if scaled else None
        with SyncGuard() as guard:
            counts, moments = reference.statistics(tensors, multiplier)
        assert (counts.shape, counts.device.type) == ((5, 328), "lazy")
        assert (moments.shape, moments.device.type) == ((5, 4), "lazy")
    assert guard.violations == []


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes on the fake device that are held at once, at most, beside those of the tensors given."""

    def __init__(self, given: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "lazy":
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._release, key, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("model", "dtype", "mebibytes", "bound"),
    [
        ("GPT-2 small", torch.float32, 64, 300),
        ("GPT-2 small", torch.float32, 256, 130),
        ("GPT-2 small", torch.bfloat16, 64, 300),
        ("GPT-2 small", torch.bfloat16, 256, 130),
        ("GPT-2 XL", torch.bfloat16, 256, 800),
        ("mixture of experts", torch.bfloat16, 256, 1000),
    ],
    ids=str,
)
def test_launches_are_bounded_and_none_waits(
    model: str, dtype: torch.dtype, mebibytes: int, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "TEMPORARY_BYTES", mebibytes << 20)
    with FakeTensorMode():
        tensors = [torch.empty(n, dtype=dtype, device="lazy:0") for n in MODELS[model]]
        with SyncGuard() as guard:
            reference.statistics(tensors)
    assert guard.violations == []
    assert guard.launches.total() <= bound


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_temporaries_keep_to_their_limit(dtype: torch.dtype, scaled: bool) -> None:
    with FakeTensorMode():
        tensors = [torch.empty(n, dtype=dtype, device="lazy:0") for n in MODELS["GPT-2 small"]]
        with Held(tensors) as held:
            result = reference.statistics(tensors, torch.empty((), device="lazy:0") if scaled else None)
    lines = sum(n // 1024 + 1 for n in MODELS["GPT-2 small"])
    assert held.most <= passes.TEMPORARY_BYTES + 3 * result[0].nbytes + 100 * lines
