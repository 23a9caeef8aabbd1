"""The reference kernel against the suite of all kernels, and what it alone promises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torchtrack.histogram import Histogram
from torchtrack.testing import SyncGuard
from torchtrack.testing.kernels import CASES, DTYPES, Case, check, mixed, normal
from torchtrack.watch.kernels import reference

BLOCK = [768, 768, 2304 * 768, 2304, 768 * 768, 768, 768, 768, 3072 * 768, 3072, 3072 * 768, 768]
GPT2_SMALL = [50257 * 768, 1024 * 768, *BLOCK * 12, 768, 768]


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
    monkeypatch.setattr(reference, "_way", lambda *_: reference._packed)
    monkeypatch.setattr(reference, "_CPU_CHUNK", 1 << 12)
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
    monkeypatch.setattr(reference, "_MAX_COUNTERS", 3 * 8192)
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


def test_what_is_not_flat_and_floating_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"tensor 1 is 2-D torch\.float32 on cpu; expected a 1-D floating tensor on cpu"
    ):
        reference.statistics([torch.ones(3), torch.ones(3, 3)])
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


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 320), (torch.bfloat16, 340)], ids=str)
def test_the_launches_of_a_gpt2_are_bounded(dtype: torch.dtype, bound: int) -> None:
    with FakeTensorMode():
        tensors = [torch.empty(n, dtype=dtype, device="lazy:0") for n in GPT2_SMALL]
        with SyncGuard() as guard:
            reference.statistics(tensors)
    assert guard.violations == []
    assert guard.launches.total() <= bound
