"""The suite every statistics kernel passes: `check` runs one case of `CASES` against numpy and `math.fsum`.

@pytest.mark.parametrize("case", CASES, ids=str)
def test_conforms(case):
    check(my_kernel, case, device=torch.device("cuda"))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from torchtrack.histogram import Histogram, edges

DTYPES: Final = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
SIZES: Final = (0, 1, 2, 7, 255, 256, 257, 1000, 4097, 12_289)
LARGE: Final = 150_001
"""Elements of a tensor that takes every kernel more than one chunk or block."""
_NAN_WORDS = {torch.float32: 0x7FA00000, torch.bfloat16: 0x7FA0, torch.float64: 0x7FF4 << 48}

_BLOCK = (1, 1, (3, 1), 3, (1, 1), 1, 1, 1, (4, 1), 4, (1, 4), 1)


def _gpt2(width: int, blocks: int) -> tuple[int, ...]:
    block = [n * width if isinstance(n, int) else n[0] * n[1] * width**2 for n in _BLOCK]
    return (50257 * width, 1024 * width, *block * blocks, width, width)


MODELS: Final = {
    "GPT-2 small": _gpt2(768, 12),
    "GPT-2 XL": _gpt2(1600, 48),
    "mixture of experts": (32_000 * 1024, *(1024, 3 << 20, 1 << 20, 1024, 128 << 10, *[512 << 7, 512] * 205) * 24),
}
"""Elements of each tensor: 124M in 148, 1.6B in 580, and 10,000 tensors, half of them small."""

Kernel = Callable[[Sequence[torch.Tensor], "torch.Tensor | None"], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Case:
    """One list of tensors to compute the statistics of."""

    name: str
    make: Callable[[], list[torch.Tensor]]
    multiplier: float | None = None

    def __str__(self) -> str:
        return self.name


def specials() -> torch.Tensor:
    """Numbers at which kernels go wrong: edges and their neighbours, limits, subnormals, NaN and Inf."""
    inner = edges()[1:-1]
    narrow = inner.astype(np.float32)
    around = [inner, np.nextafter(inner, np.inf), np.nextafter(inner, -np.inf)]
    around += [np.nextafter(narrow, np.float32(end)).astype(np.float64) for end in (np.inf, -np.inf)]
    odd = [0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1e-45, 1e-40, -2e-38, 3e38, -1e39, 1e150]
    limits = [2.0**-149, 2.0**-126, 2.0**-24, 2.0**-16, 2.0**-9, 448.0, 57344.0, 65504.0, 65520.0]
    return torch.from_numpy(np.concatenate([*around, odd, limits]))


def normal(numel: int, dtype: torch.dtype, *, seed: int = 0, std: float = 0.02) -> torch.Tensor:
    """Normal numbers of a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(numel, dtype=torch.float64, generator=generator) * std).to(dtype)


def mixed(numel: int, dtype: torch.dtype, *, seed: int = 0) -> torch.Tensor:
    """Normal numbers, a tenth of them replaced by `specials`."""
    generator = torch.Generator().manual_seed(seed)
    numbers, odd = torch.randn(numel, dtype=torch.float64, generator=generator), specials()
    chosen = odd[torch.randint(odd.numel(), (numel,), generator=generator)]
    return torch.where(torch.rand(numel, generator=generator) < 0.9, numbers, chosen).to(dtype)


def words(numel: int, dtype: torch.dtype, *, seed: int = 0) -> torch.Tensor:
    """Uniform random bits: every exponent, subnormals, NaNs of one kind (squares fit in float64)."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    info = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(info.min, info.max, (numel,), generator=generator).to(integer).view(dtype)
    wide = numbers.double()
    return wide.masked_fill(wide.isnan() | (wide.isfinite() & (wide.abs() > 1e150)), math.nan).to(dtype)


def payloads(dtype: torch.dtype) -> torch.Tensor:
    """Both signs of a quiet and of a signalling NaN between ordinary numbers."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    bits, top = _NAN_WORDS[dtype], 1 << (8 * dtype.itemsize - 1)
    quiet = bits | {torch.float32: 1 << 22, torch.bfloat16: 1 << 6, torch.float64: 1 << 51}[dtype]
    nans = torch.tensor([bits, quiet, bits - top, quiet - top], dtype=torch.int64).to(integer).view(dtype)
    return torch.cat([torch.ones(3, dtype=dtype), nans, -torch.ones(2, dtype=dtype)])


def spread(numel: int, dtype: torch.dtype, *, seed: int = 0) -> torch.Tensor:
    """Normal numbers of a magnitude that changes by up to 40 octaves on the way, a third of them zeros of one sign."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(numel, dtype=torch.float64, generator=generator)
    numbers *= torch.exp2(20 * torch.sin(torch.arange(numel, dtype=torch.float64) / max(numel, 1) * 12))
    zero = math.copysign(0.0, -1.0 if seed % 2 else 1.0)
    return numbers.masked_fill(torch.rand(numel, generator=generator) < 1 / 3, zero).to(dtype)


def faint(numel: int, dtype: torch.dtype, *, seed: int = 0) -> torch.Tensor:
    """Numbers that reach from 1 to 1e-38 with as many in each octave, as gradients behind a softmax do."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(-128 * torch.rand(numel, dtype=torch.float64, generator=generator))
    return (torch.randn(numel, dtype=torch.float64, generator=generator).sign() * sizes).to(dtype)


def _cases() -> list[Case]:
    cases = [
        Case("no tensors", list),
        Case("only empty tensors", lambda: [torch.empty(0), torch.empty(0, dtype=torch.bfloat16)]),
        Case("all dtypes in one list", lambda: [mixed(n, dtype, seed=n) for n in SIZES for dtype in DTYPES]),
        Case("all dtypes, large", lambda: [mixed(LARGE, dtype) for dtype in DTYPES]),
        Case("all dtypes, scaled", lambda: [mixed(n, d, seed=n) for n in (5, 999, LARGE) for d in DTYPES], 2.0**-16),
        Case("a multiplier that rounds", lambda: [mixed(n, d, seed=n) for n in (300, LARGE) for d in DTYPES], 1 / 3),
        Case("an infinite multiplier", lambda: [mixed(300, dtype) for dtype in DTYPES], math.inf),
        Case("signalling NaNs", lambda: [payloads(dtype).repeat(n) for dtype in _NAN_WORDS for n in (1, 30_000)]),
        Case("strided", lambda: [normal(2 * n, d)[::2] for n in (512, LARGE) for d in DTYPES]),
        Case("of any shape", lambda: [normal(n * 6, d).view(2, n, 3) for n in (5, 999, LARGE) for d in DTYPES]),
        Case("one column", lambda: [normal(4096 * 64, torch.float32).view(4096, 64)[:, 3]]),
        Case(
            "off the alignment", lambda: [normal(n + k, d)[k:] for n in (9, LARGE) for k in (1, 3, 7) for d in DTYPES]
        ),
        Case("of many magnitudes", lambda: [spread(n, d, seed=n) for n in (300, 4096, LARGE) for d in DTYPES]),
        Case("down to nothing", lambda: [faint(n, d, seed=n) for n in (300, 9000, LARGE) for d in DTYPES]),
        Case("of one sign", lambda: [f(normal(LARGE, d)) for f in (torch.abs, lambda x: -x.abs()) for d in DTYPES[:4]]),
        Case("many small ones", lambda: [mixed(n % 61, d, seed=n) for n in range(500) for d in DTYPES[:4]]),
        Case("large float64", lambda: [torch.tensor([1e300, -1e300, 1e308, 1e-320, 0.5], dtype=torch.float64)]),
    ]
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        cases += [
            Case(f"{name} normal", lambda d=dtype: [normal(n, d, seed=n) for n in (*SIZES, LARGE)]),  # type: ignore[misc]
            Case(f"{name} words", lambda d=dtype: [words(n, d, seed=n) for n in (*SIZES, LARGE)]),  # type: ignore[misc]
            Case(f"{name} specials", lambda d=dtype: [specials().to(d)]),  # type: ignore[misc]
            Case(f"{name} constants", lambda d=dtype: _constants(d)),  # type: ignore[misc]
        ]
    return cases


def _constants(dtype: torch.dtype) -> list[torch.Tensor]:
    values = (0.0, 0.1, -3.0, math.nan, math.inf, -math.inf)
    return [torch.full((n,), value).to(dtype) for value in values for n in (3, 20_000)]


CASES: Final = _cases()


def check(kernel: Kernel, case: Case, device: torch.device | None = None) -> None:
    """Run one case on a device and compare each row with numpy.

    Raises:
        AssertionError: a row is wrong, an input was changed, or random numbers were drawn.
    """
    device = device or torch.device("cpu")
    tensors = case.make()
    given = [_place(tensor, device) for tensor in tensors]
    before = [_bits(tensor) for tensor in given]
    state = torch.get_rng_state()
    multiplier = None if case.multiplier is None else torch.tensor(case.multiplier, device=device)
    counts, moments = kernel(given, multiplier)
    _require(torch.equal(state, torch.get_rng_state()), "it drew random numbers")
    _require(all(map(torch.equal, before, map(_bits, given))), "it changed an input")
    _require(counts.shape == (len(tensors), 328) and moments.shape == (len(tensors), 4), "the shapes are wrong")
    _require(counts.dtype == moments.dtype == torch.float64, "the results are not float64")
    _require(not (counts.requires_grad or moments.requires_grad), "it recorded a graph")
    for row, tensor in enumerate(tensors):
        scaled = _scale(tensor, case.multiplier)
        what = f"row {row} ({tensor.numel()} of {tensor.dtype})"
        _check_row(what, scaled, counts[row].cpu().numpy(), moments[row].tolist())


def _place(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device, with its strides, as a leaf that requires grad where the dtype can."""
    placed = tensor.detach().to(device)
    return placed.requires_grad_() if tensor.element_size() > 1 else placed


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().contiguous().view(torch.uint8)


def _scale(tensor: torch.Tensor, multiplier: float | None) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
    wide = tensor.dtype == torch.float64
    scaled = tensor if wide else tensor.float()
    if multiplier is not None:
        factor = torch.tensor(multiplier)
        scaled = scaled * (factor.double() if wide else factor)
    array: npt.NDArray[np.float32] | npt.NDArray[np.float64] = scaled.numpy()
    return array


def _check_row(what: str, array: npt.NDArray[np.floating], counts: npt.NDArray[np.float64], got: list[float]) -> None:
    expected = Histogram.of(array)
    wrong = np.flatnonzero(expected.counts != counts)
    _require(wrong.size == 0, f"{what}: buckets {wrong.tolist()[:9]} are {counts[wrong][:9]}, not those of numpy")
    with np.errstate(invalid="ignore"):
        finite = array.astype(np.float64)[np.isfinite(array)]
    total, squares, least, most = got
    _require(least == finite.min(initial=math.inf) and most == finite.max(initial=-math.inf), f"{what}: min or max")
    with np.errstate(over="ignore"):
        exact = np.square(finite)
    if np.isfinite(exact).all():
        _require(math.isclose(squares, math.fsum(exact), rel_tol=1e-7), f"{what}: sum of squares {squares}")
    else:
        _require(squares == math.inf, f"{what}: sum of squares {squares}, but it overflows")
    _require(abs(total - math.fsum(finite)) <= 1e-7 * math.fsum(np.abs(finite)), f"{what}: sum {total}")


def _require(truth: bool, otherwise: str) -> None:
    if not truth:
        raise AssertionError(otherwise)
