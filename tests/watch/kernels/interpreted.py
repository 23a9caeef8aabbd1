"""A script: the Triton kernel in Triton's interpreter, against a share of the suite of all kernels and the reference.

The interpreter is chosen when kernels are decorated, so it takes a process of its own. It takes milliseconds a tensor.
"""

from __future__ import annotations

import os
import warnings

os.environ["TRITON_INTERPRET"] = "1"
warnings.filterwarnings("ignore", "invalid value encountered")  # numpy's, where a NaN is multiplied

import torch  # noqa: E402  # after the switch

from torchtrack.testing.kernels import CASES, Case, check, mixed, normal  # noqa: E402
from torchtrack.watch.kernels import reference, triton  # noqa: E402

NAMES = (
    "no tensors",
    "only empty tensors",
    "all dtypes in one list",
    "an infinite multiplier",
    "one column",
    "large float64",
    *(f"{dtype} specials" for dtype in ("float32", "bfloat16", "float16")),
)
OWN = (
    Case("scaled", lambda: [mixed(n, d, seed=n) for n in (0, 1, 2500) for d in triton.KINDS], 1 / 3),
    Case("off the alignment", lambda: [normal(600 + k, d)[k:] for k in (1, 3, 6, 7) for d in triton.KINDS]),
)


def words(dtype: torch.dtype) -> torch.Tensor:
    """Uniform random bits: NaNs of every payload too."""
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    info = torch.iinfo(integer)
    bits = torch.randint(info.min, info.max, (5001,), dtype=integer, generator=torch.Generator().manual_seed(0))
    return bits.view(dtype)


def main() -> None:
    """Raise AssertionError at the first difference."""
    cases = [case for case in CASES if case.name in NAMES]
    assert len(cases) == len(NAMES)
    for case in cases:
        check(triton.statistics, case)
    vars(triton).update(TILE=512, CHUNK=2048)  # many programs a tensor
    for case in OWN:
        check(triton.statistics, case)
    tensors = [words(dtype) for dtype in triton.KINDS]
    tensors.append(torch.view_as_complex(normal(100, torch.float32).view(50, 2)).conj().imag)  # negated when it is read
    counts, moments = triton.statistics(tensors)
    expected, more = reference.statistics(tensors)
    assert torch.equal(counts, expected)
    assert torch.equal(moments[:, 2:], more[:, 2:])
    assert not triton._broken


if __name__ == "__main__":
    main()
