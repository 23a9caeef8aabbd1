"""What the Triton kernel runs on the device: one launch a format that counts, and one that finishes the moments.

Both are laid out by tables of `torchtrack.watch.kernels.triton`, where a program is one chunk of one tensor.

Compiled for compute capability 8.0, 9.0 and 10.0 (Triton 3.9, no GPU at hand): 8 warps, at most 57 registers, no stack,
4 KiB of shared memory, 16-byte loads. There `tl.histogram` is one atomic increment in shared memory an element.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = 5
"""Numbers of a tensor in the table: address, elements, row, its first program, its programs (all int64)."""
TILE = 2048
CHUNK = 1 << 16
"""Elements of one program."""
ALIGN = 16
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}

_FIELDS = tl.constexpr(FIELDS)
_ALIGN = tl.constexpr(ALIGN)
_CODES = tl.constexpr(1024)
_BUCKETS = tl.constexpr(328)
_FOUR = tl.constexpr(4)
_NAN_CODE = tl.constexpr(511)
_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def _bucket(code):  # type: ignore[no-untyped-def]
    """Code (sign, exponent and top mantissa bit of a float32) -> bucket: the table of torchtrack.histogram."""
    size = code & 511
    # 142 is the code of 2**-56, the first regular one; 163 zero, 164 underflow, 325 overflow, 326 Inf, 327 NaN
    bucket = tl.minimum(tl.maximum(size + (165 - 142), 164), 325)
    bucket = tl.where(size == 0, 163, tl.where(size == 510, 326, bucket))
    return tl.where(size == 511, 327, tl.where(code < 512, bucket, 2 * 163 - bucket))


@triton.jit
def _float32_bits(words, KIND: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803  # Triton's constants
    """Words of a format -> the bits of the same numbers in float32."""
    width: tl.constexpr = KIND.primitive_bitwidth // 8
    if width == 4:
        bits = words
    elif KIND.is_bf16():
        bits = words.to(tl.uint32) << 16
    else:
        bits = words.to(tl.float16, bitcast=True).to(tl.float32).to(tl.uint32, bitcast=True)
        bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, bits | 0x00400000, bits)  # not every converter does
    return bits


@triton.jit(do_not_specialize=["factor", "start"])
def count(  # type: ignore[no-untyped-def]
    table,
    owners,
    factor,
    counts,
    partials,
    start,
    KIND: tl.constexpr,  # noqa: N803
    SCALED: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    CHUNK: tl.constexpr,  # noqa: N803
):
    """One program reads one chunk of one tensor: counts go to the row by atomics, moments to a place of their own.

    Args:
        table: int64 [tensors, FIELDS].
        owners: int64, the tensor of each program.
        factor: float32 of one element, what elements are multiplied by, if SCALED.
        counts: float64 [rows, 328], added to: whole numbers, so that their order shows nowhere.
        partials: float64 [programs, 4].
        start: number of the first program of this launch.
        KIND: the format, a type of Triton.
        SCALED: whether to multiply.
        TILE: elements of one turn.
        CHUNK: elements of one program.
    """
    program = tl.program_id(0).to(tl.int64) + start
    entry = table + tl.load(owners + program) * _FIELDS
    address, size, row = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    width: tl.constexpr = KIND.primitive_bitwidth // 8
    word: tl.constexpr = tl.uint32 if width == 4 else tl.uint16
    base = address // _ALIGN * _ALIGN + (program - tl.load(entry + 3)) * (CHUNK * width)
    # Counted from an aligned base, so that whole tiles load 16 bytes a thread.
    begin = tl.maximum((address - base) // width, 0).to(tl.int32)
    end = tl.maximum(tl.minimum((address - base) // width + size, CHUNK).to(tl.int32), begin)
    data, lane = tl.multiple_of(base.to(tl.pointer_type(word)), _ALIGN), tl.arange(0, TILE)
    histogram = tl.zeros([_CODES], tl.int32)
    total, squares = tl.zeros([TILE // _FOUR], tl.float64), tl.zeros([TILE // _FOUR], tl.float64)
    least = tl.full([TILE // _FOUR], float("inf"), tl.float32)
    most = tl.full([TILE // _FOUR], float("-inf"), tl.float32)
    for first in range(0, end, TILE):
        at = first + lane
        if (first >= begin) & (first + TILE <= end):
            words = tl.load(data + at)
        else:
            words = tl.load(data + at, mask=(at >= begin) & (at < end), other=0)
        bits = _float32_bits(words, KIND)
        if SCALED:
            bits = (bits.to(tl.float32, bitcast=True) * tl.load(factor)).to(tl.uint32, bitcast=True)
        if (first < begin) | (first + TILE > end):
            bits = tl.where((at >= begin) & (at < end), bits, _NAN)  # moments pass over NaN, counts are set right below
        histogram += tl.histogram((bits >> 22).to(tl.int32), _CODES)
        bits = tl.reshape(
            bits, [TILE // _FOUR, _FOUR]
        )  # four that one thread has loaded: a quarter of the accumulators
        x = bits.to(tl.float32, bitcast=True)
        finite = (bits & 0x7FFFFFFF) < 0x7F800000
        wide = tl.where(finite, x, 0.0).to(tl.float64)
        total += tl.sum(wide, 1)
        squares += tl.sum(wide * wide, 1)
        least = tl.minimum(least, tl.min(tl.where(finite, x, float("inf")), 1))
        most = tl.maximum(most, tl.max(tl.where(finite, x, float("-inf")), 1))
    code = tl.arange(0, _CODES)
    histogram -= tl.where(code == _NAN_CODE, tl.cdiv(end, TILE) * TILE - (end - begin), 0)
    into = counts + row * _BUCKETS + _bucket(code)
    tl.atomic_add(into, histogram.to(tl.float64), mask=histogram > 0, sem="relaxed")
    place = partials + 4 * program
    tl.store(place, tl.sum(total))
    tl.store(place + 1, tl.sum(squares))
    tl.store(place + 2, tl.min(least).to(tl.float64))
    tl.store(place + 3, tl.max(most).to(tl.float64))


@triton.jit
def finish(table, partials, moments, STEP: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """One program a tensor: the moments of its chunks, always in the same order, into its row of float64 [rows, 4]."""
    entry, lane = table + tl.program_id(0).to(tl.int64) * _FIELDS, tl.arange(0, STEP)
    row, begin = tl.load(entry + 2), tl.load(entry + 3)
    end = begin + tl.load(entry + 4)
    total, squares = tl.zeros([STEP], tl.float64), tl.zeros([STEP], tl.float64)
    least, most = tl.full([STEP], float("inf"), tl.float64), tl.full([STEP], float("-inf"), tl.float64)
    for first in range(begin, end, STEP):
        inside = first + lane < end
        place = partials + 4 * (first + lane)
        total += tl.load(place, mask=inside, other=0.0)
        squares += tl.load(place + 1, mask=inside, other=0.0)
        least = tl.minimum(least, tl.load(place + 2, mask=inside, other=float("inf")))
        most = tl.maximum(most, tl.load(place + 3, mask=inside, other=float("-inf")))
    into = moments + 4 * row
    tl.store(into, tl.sum(total))
    tl.store(into + 1, tl.sum(squares))
    tl.store(into + 2, tl.min(least))
    tl.store(into + 3, tl.max(most))
