"""The numba kernel against the suite of all kernels, bit by bit against the reference, and what it alone promises."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from torchtrack.testing.kernels import CASES, DTYPES, Case, check, mixed, normal, spread
from torchtrack.watch import kernels
from torchtrack.watch.kernels import reference

pytest.importorskip("numba")
READ_IN_PLACE = DTYPES[:4]


@pytest.fixture(scope="module")
def numba() -> ModuleType:
    from torchtrack.watch.kernels import numba

    return numba


@pytest.fixture
def three_threads(numba: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(numba, "_THREAD_ELEMENTS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def words(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Uniform random bits: NaNs of every payload too, which no sum of squares could hold."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    info = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(numel)
    return torch.randint(info.min, info.max, (numel,), dtype=integer, generator=generator).view(dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_conforms(numba: ModuleType, case: Case) -> None:
    check(numba.statistics, case)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_conforms_on_several_threads(numba: ModuleType, case: Case) -> None:
    check(numba.statistics, case)


@pytest.mark.parametrize("dtype", READ_IN_PLACE, ids=str)
def test_counts_and_extremes_are_those_of_the_reference_bit_by_bit(numba: ModuleType, dtype: torch.dtype) -> None:
    tensors = [words(n, dtype) for n in (1, 31, 33, 2047, 2048, 2049, 4096, 4129, 70_001)]
    tensors += [words(4100, dtype)[k:] for k in range(9)]
    tensors += [words(9000, dtype)[k::3] for k in range(3)]
    counts, moments = numba.statistics(tensors)
    expected, more = reference.statistics(tensors)
    assert torch.equal(counts, expected)
    assert torch.equal(moments[:, 2:], more[:, 2:])


def test_a_tensor_of_more_than_one_window_is_counted(numba: ModuleType) -> None:
    tensor = torch.cat([normal(1 << 20, torch.float32), spread(1 << 20, torch.float32) * 2.0**60, torch.zeros(4096)])
    check(numba.statistics, Case("two epochs", lambda: [tensor]))


def test_flushing_subnormals_to_zero_changes_no_count(numba: ModuleType) -> None:
    tiny = torch.cat([normal(5000, dtype).float() * 1e-38 for dtype in READ_IN_PLACE])
    tensors = [tiny, tiny.to(torch.bfloat16), (tiny * 1e33).half(), tiny.double() * 1e-271]
    counts, _ = numba.statistics(tensors)
    assert torch.set_flush_denormal(True)
    try:
        flushed, _ = numba.statistics(tensors)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(counts, flushed)


def test_a_negated_view_is_read_with_its_sign(numba: ModuleType) -> None:
    view = torch.view_as_complex(normal(200, torch.float32).view(100, 2)).conj().imag
    assert view.is_neg()
    assert torch.equal(numba.statistics([view])[0], reference.statistics([view])[0])


def test_it_works_in_inference_mode_and_under_deterministic_algorithms(numba: ModuleType) -> None:
    with torch.inference_mode():
        check(numba.statistics, Case("", lambda: [normal(n, torch.float32) for n in (9, 20_000)]))


@pytest.mark.usefixtures("three_threads")
def test_a_thread_that_cannot_be_started_costs_time_alone(numba: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(numba.threading.Thread, "start", refuse)
    check(numba.statistics, Case("", lambda: [mixed(9001, dtype) for dtype in DTYPES]))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_parts_hold_every_element_once(numba: ModuleType, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "_THREAD_ELEMENTS", 1)
    sizes = [0, 5, 0, 0, 100, 1, 0, 7, 0]
    tensors = [torch.arange(n, dtype=torch.float32) for n in sizes]
    items = numba._items(tensors)
    parts, extra = numba._cut(items, len(sizes), threads)
    pieces = [tuple(row) for part in parts for row in part[:, [0, 1, 4]].tolist()]
    owners = [*range(len(sizes)), *extra]
    assert sorted(row for _, _, row in pieces) == list(range(len(owners)))
    for number, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
        own = sorted((address, count) for address, count, row in pieces if owners[row] == number)
        ends = [address + 4 * count for address, count in own]
        assert [address for address, _ in own] == [tensor.data_ptr(), *ends[:-1]]
        assert sum(count for _, count in own) == size


def test_what_is_neither_contiguous_nor_1_d_or_not_floating_is_refused(numba: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"tensor 1 is 2-D torch\.float32 on cpu; expected a floating tensor"):
        numba.statistics([torch.ones(3), torch.ones(3, 3)[:, 1:]])
    with pytest.raises(ValueError, match=r"torch\.int64"):
        numba.statistics([torch.ones(3, dtype=torch.int64)])


def test_without_a_folder_for_its_cache_it_compiles_anew(numba: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def njit(signature: object, *, cache: bool = False, **_: object) -> object:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function '_narrow': no locator available")
        return lambda function: (function, signature)

    loops = numba.numba_loops
    monkeypatch.setattr(loops, "njit", njit)
    assert loops._entry(loops._narrow, loops.types.float32)[0] is loops._narrow
    assert asked == [True, False]


def test_a_forked_child_counts_with_several_threads() -> None:
    script = """
        import os, torch
        from torchtrack.watch import kernels
        torch.set_num_threads(2)
        cpu, tensors = torch.device("cpu"), [torch.ones(600_000), torch.ones(7)]
        kernels.prepare(cpu)
        kernels.wait()
        child = os.fork()
        counts, _ = kernels.choose(cpu)(tensors)
        right = kernels.choose(cpu).__module__.endswith(".numba") and counts.sum().item() == 600_007
        if child == 0:
            os._exit(0 if right else 1)
        print(right, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.split() == ["True", "0"]


def test_the_kernel_chosen_on_a_cpu_is_this_one(numba: ModuleType) -> None:
    cpu = torch.device("cpu")
    kernels.prepare(cpu)
    kernels.wait()
    assert kernels.choose(cpu) is numba.statistics


def test_a_wrapper_whose_numbers_lie_elsewhere_is_counted_by_its_operators(numba: ModuleType) -> None:
    inner = normal(5000, torch.float32)
    wrapped = AsyncCollectiveTensor(inner)
    assert wrapped.data_ptr() == 0
    counts, moments = numba.statistics([wrapped, inner])
    assert torch.equal(counts[0], counts[1])
    assert torch.allclose(moments[0], moments[1])


def some(dtype: torch.dtype) -> list[torch.Tensor]:
    """Tensors of every shape a gradient may have: with gaps, in another order, empty, with all that is not finite."""
    x = mixed(4097, dtype)
    flat = [x, x[1:], x[::3], x[:0], x[:1], normal(70_001, dtype)]
    return [*flat, x[:63].view(7, 9).t(), x[:120].view(2, 3, 4, 5).permute(0, 3, 1, 2), x[:100].view(10, 10)[::2, ::3]]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_are_those_of_the_reference(
    numba: ModuleType, dtype: torch.dtype, threads: int, request: pytest.FixtureRequest
) -> None:
    if threads > 1:
        request.getfixturevalue("three_threads")
    tensors = some(dtype)
    found, expected = numba.norms(tensors), reference.norms(tensors)
    assert torch.equal(found[:, 2], expected[:, 2])
    assert repr(found[:, 1].float().tolist()) == repr(expected[:, 1].float().tolist())
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-12, atol=0, equal_nan=True)


def test_the_reference_of_norms_is_what_torch_says() -> None:
    tensors = [tensor for dtype in (torch.float32, torch.float64) for tensor in some(dtype)]
    for row, tensor in zip(reference.norms(tensors).tolist(), tensors, strict=True):
        wide = tensor.double()
        assert repr(row[1]) == repr(float(wide.abs().max()) if wide.numel() else 0.0)
        assert row[2] == int((~tensor.isfinite()).sum())
        assert row[0] == pytest.approx(float(wide.norm()), rel=1e-12, nan_ok=True)
