"""The loops of the numba kernel: importing this file compiles them, or loads what an earlier process compiled.

All that is compiled is in this one file, because numba's cache on disk looks at its date only.

Half of a plain pass goes into one increment an element. `_paired` makes one for two: a symbol stands for the code of a
number (its sign, exponent and top mantissa bit), two symbols are the index of a counter. A symbol has 7 bits: the sign;
zero; and the codes of a *window* of 31 octaves that ends above the largest number. What lies beyond is counted at the
window's ends; extremes taken on the way tell whether there is any, and then it is looked for again in its block, and
moved. Where much lies beyond (gradients behind a softmax reach from 1e-2 to 1e-38) a symbol has 8 bits: that no longer
fits the innermost cache, but holds 63 octaves, as a rule all that is told apart. A block that repeats one number is
counted by its length, if the one before it did too.

Moments are taken in float64 in the same read, and extremes on the bits; where all have one sign, the one closer to zero
is looked for again. All decisions are made on bits: what the processor flushes to zero changes no count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray, njit, types
from numba.extending import intrinsic

from torchtrack.histogram import CODE_TO_BUCKET

FLOAT32: Final = 0
BFLOAT16: Final = 1
FLOAT16: Final = 2
FLOAT64: Final = 3
"""The formats of items."""

_BLOCK = 4096  # elements that are looked at again while they lie in a cache
_EPOCH = 1 << 20  # elements of one window
_STEP = 32  # elements of one turn of `_paired`
_PAIRED_FROM = 2048  # elements from which on emptying the table is paid back
TABLE: Final = 1 << 16
"""Counters that the caller of `narrow` lends it: zero, and zero again when it returns."""
_AHEAD = 1024  # bytes that are fetched before their turn
_SLOTS, _LAG = 4, 2  # turns whose pairs are kept, and after how many turns they are counted
_NARROW, _WIDE = 63, 127  # the last symbol of a sign; 0 is zero, 1 what lies below the window, the last what lies above
_LOWEST = 2 * (127 - 56) - 2  # the next code is the largest of |x| < 2**-56: below it nothing but zero is told apart
_LANES, _LANE = 4, 1024 + 16
_MANY = 32  # one of so many beyond a window of 64 is many
_WIDE_BLOCK = 1024
_INFINITE = 510
_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "fastmath": {"reassoc", "contract"}, "error_model": "numpy"}
u2, u4, u8, i4, i8 = np.uint16, np.uint32, np.uint64, np.int32, np.int64


def _compiled(function: Callable[..., Any]) -> Any:
    return njit(no_cpython_wrapper=True, **_OPTIONS)(function)


# -- the loop over pairs, as vectors ----------------------------------------------------------------------------------

_I8, _I16, _I32, _I64, _F32, _F64 = (*map(ir.IntType, (8, 16, 32, 64)), ir.FloatType(), ir.DoubleType())
_LINE = 16 if get_host_cpu_features().get("avx512bw") else 8  # words of a vector of integers
_WORDS, _HALVES = ir.VectorType(_I32, _LINE), ir.VectorType(_I16, 2 * _LINE)
_FLOATS, _DOUBLES = ir.VectorType(_F32, 8), ir.VectorType(_F64, 8)


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


class _Loop:
    """Writes the loop of `_paired`: accumulators are named, `body` gives their next values."""

    def __init__(self, builder: Any, turns: Any, start: dict[str, Any]) -> None:
        self.b = builder
        entry = builder.block
        self._head, self._end = builder.append_basic_block("turn"), builder.append_basic_block("end")
        builder.branch(self._head)
        builder.position_at_end(self._head)
        self.turn = builder.phi(_I64)
        self.turn.add_incoming(_I64(0), entry)
        self._turns = turns
        self._phis = {name: builder.phi(value.type) for name, value in start.items()}
        for name, value in start.items():
            self._phis[name].add_incoming(value, entry)
        self.now: dict[str, Any] = dict(self._phis)

    def keep(self, name: str, comparison: str, value: Any, *, signed: bool = False) -> None:
        """Keep the larger or smaller of an accumulator and a value, lane by lane."""
        compare = self.b.icmp_signed if signed else self.b.icmp_unsigned
        self.now[name] = self.b.select(compare(comparison, value, self.now[name]), value, self.now[name])

    def close(self) -> None:
        following = self.b.add(self.turn, _I64(1))
        self.turn.add_incoming(following, self._head)
        for name, value in self.now.items():
            self._phis[name].add_incoming(value, self._head)
        self.b.cbranch(self.b.icmp_unsigned("<", following, self._turns), self._head, self._end)
        self.b.position_at_end(self._end)


def _across(b: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine the lanes of a vector."""
    width = vector.type.count
    while width > 1:
        width //= 2
        halves = [ir.Constant(ir.VectorType(_I32, width), list(range(at, at + width))) for at in (0, width)]
        vector = combine(*(b.shuffle_vector(vector, vector, half) for half in halves))
    return b.extract_element(vector, _I32(0))


def _pairs(b: Any, tops: Any, first: Any, last: int) -> Any:
    """The indices of pairs of symbols, one in the lower half of each word."""

    def larger(x: Any, y: Any) -> Any:
        return b.select(b.icmp_unsigned(">", x, y), x, y)

    def smaller(x: Any, y: Any) -> Any:
        return b.select(b.icmp_unsigned("<", x, y), x, y)

    spare = 15 - last.bit_length()
    code = b.lshr(b.shl(tops, _all(_HALVES, 1)), _all(_HALVES, 7))
    above = smaller(b.sub(larger(code, first), first), _all(_HALVES, last))
    code = larger(above, smaller(code, _all(_HALVES, 1)))
    sign = b.and_(b.lshr(tops, _all(_HALVES, spare)), _all(_HALVES, last + 1))
    twos = b.bitcast(b.or_(code, sign), _WORDS)
    return b.or_(twos, b.lshr(twos, _all(_WORDS, spare)))


def _write_paired(b: Any, last: int, numbers: Any, turns: Any, window: Any, table: Any, scratch: Any, out: Any) -> None:
    """Write `_paired` for symbols of which a sign has 0 to `last`."""
    data, places = (b.inttoptr(address, _I8.as_pointer()) for address in (numbers, scratch))
    counters = b.inttoptr(table, _I32.as_pointer())

    def at(base: Any, offset: int, kind: Any) -> Any:
        return b.bitcast(b.gep(base, [_I64(offset)]), kind.as_pointer())

    def place(turn: Any) -> Any:
        return b.gep(places, [b.mul(b.and_(turn, _I64(_SLOTS - 1)), _I64(64))])

    def count(place: Any) -> None:
        for two in range(8):  # one load of two indices: loads are what there are most of
            indices = b.load(at(place, 8 * two, _I64))
            for index in (indices, b.lshr(indices, _I64(32))):
                counter = b.gep(counters, [b.zext(b.trunc(index, _I16), _I64)])
                b.store(b.add(b.load(counter), _I32(1)), counter)

    byte = _I8.as_pointer()
    fetch = b.module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, *[_I32] * 3]))

    size = 4 * _LINE
    for line in range(0, 64 * _SLOTS, size):  # nothing yet; what is counted of it is taken back
        b.store(_all(_WORDS, 0), at(places, line, _WORDS)).align = size
    b.store(b.sub(b.load(counters), _I32(16 * _LAG)), counters)
    lanes = b.insert_element(ir.Constant(_HALVES, ir.Undefined), b.trunc(window, _I16), _I32(0))
    first = b.shuffle_vector(lanes, lanes, _all(ir.VectorType(_I32, 2 * _LINE), 0))
    zero = _all(_DOUBLES, 0.0)
    start = {"sum": zero, "even": zero, "odd": zero}
    start |= {"umax": _all(_WORDS, 0), "smax": _all(_WORDS, -(1 << 31)), "least": _all(_HALVES, -1)}
    loop = _Loop(b, turns, start)
    here = b.gep(data, [b.mul(loop.turn, _I64(4 * _STEP))])
    for line in range(2):  # a processor looks ahead by itself, but not past the end of a page
        b.call(fetch, [b.gep(here, [_I64(_AHEAD + 64 * line)]), _I32(0), _I32(3), _I32(1)])
    for eight in range(_STEP // 8):
        floats, now, squares = b.load(at(here, 32 * eight, _FLOATS)), loop.now, ("even", "odd")[eight % 2]
        floats.align = 1
        x = b.fpext(floats, _DOUBLES)
        now["sum"] = b.fadd(now["sum"], x, flags=("contract",))
        now[squares] = b.fadd(now[squares], b.fmul(x, x, flags=("contract",)), flags=("contract",))
    for line in range(0, 4 * _STEP, 2 * size):
        words = [b.load(at(here, line + offset, _WORDS)) for offset in (0, size)]
        for bits in words:
            bits.align = 1
            loop.keep("umax", ">", bits)
            loop.keep("smax", ">", bits, signed=True)
        # The upper 16 bits of all: what codes need.
        upper, lower = b.and_(words[0], _all(_WORDS, -(1 << 16))), b.lshr(words[1], _all(_WORDS, 16))
        tops = b.bitcast(b.or_(upper, lower), _HALVES)
        loop.keep("least", "<", b.sub(b.shl(tops, _all(_HALVES, 1)), _all(_HALVES, 1)))
        b.store(_pairs(b, tops, first, last), at(place(loop.turn), line // 2, _WORDS)).align = size
    # Those of two turns ago: they lie ready, so that the increments fill the time in which vectors wait.
    count(place(b.sub(loop.turn, _I64(_LAG))))
    loop.close()
    for late in range(_LAG):
        count(place(b.sub(turns, _I64(late + 1))))
    _write_results(b, loop.now, out)


def _write_results(b: Any, now: dict[str, Any], out: Any) -> None:
    """Store what the accumulators hold, lanes combined."""

    def larger(compare: Callable[..., Any], sign: str) -> Callable[[Any, Any], Any]:
        return lambda x, y: b.select(compare(sign, x, y), x, y)

    moments, extremes = b.inttoptr(out, _F64.as_pointer()), b.inttoptr(b.add(out, _I64(16)), _I64.as_pointer())
    b.store(_across(b, now["sum"], b.fadd), moments)
    b.store(_across(b, b.fadd(now["even"], now["odd"]), b.fadd), b.gep(moments, [_I64(1)]))
    ways = ("umax", b.icmp_unsigned, ">"), ("smax", b.icmp_signed, ">"), ("least", b.icmp_unsigned, "<")
    for place, (name, compare, sign) in enumerate(ways):
        found = _across(b, now[name], larger(compare, sign))
        b.store(b.zext(found, _I64), b.gep(extremes, [_I64(place)]))


def _paired(last: int) -> Any:
    """The intrinsic for symbols of which a sign has 0 to `last`.

    f(words, turns, window, table, scratch, out): moments, extremes and pairs of `turns` times 32 float32, at least one.
    The others are addresses, but `window`, the code of symbol 0. `table` is counted up; `scratch` is 64 bytes a slot,
    at a multiple of 64. `out` gets the sum and the sum of squares (float64), the unsigned and the signed maximum of the
    bits, and of the top 16 of them the minimum of twice these less one, where zero is the largest (int64).
    """

    @intrinsic
    def paired(typing: Any, words: Any, turns: Any, window: Any, table: Any, scratch: Any, out: Any) -> Any:  # noqa: ARG001
        def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
            _write_paired(builder, last, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), write

    return paired


_paired_narrow, _paired_wide = _paired(_NARROW), _paired(_WIDE)


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:  # noqa: ARG001
    """An address as a pointer."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), write


# -- one block: bits of float32 ----------------------------------------------------------------------------------------


@_compiled
def _one_by_one(words, first, end, totals, stats, counted):  # type: ignore[no-untyped-def]
    """Moments and extremes of the finite elements; with `counted` their codes too. Few elements, or not all finite."""
    total, squares, least, most = 0.0, 0.0, np.inf, -np.inf
    for i in range(first, end):
        bits = words[i]
        totals[bits >> u4(22)] += counted
        if bits & u4(0x7FFFFFFF) < u4(0x7F800000):
            x = np.float64(u4(bits).view(np.float32))
            total, squares = total + x, squares + x * x
            least = x if x < least else least
            most = x if x > most else most
    _add(stats, total, squares, least, most)


@_compiled
def _add(stats, total, squares, least, most):  # type: ignore[no-untyped-def]
    stats[0] += total
    stats[1] += squares
    stats[2] = least if least < stats[2] else stats[2]
    stats[3] = most if most > stats[3] else stats[3]


@_compiled
def _extremes(words, end, stats):  # type: ignore[no-untyped-def]
    """Min and max of finite elements. Floats are sign and magnitude, so integers find them."""
    umax, umin, smax = u4(0), u4(0xFFFFFFFF), i4(-0x80000000)
    for i in range(end):
        umax, umin, smax = max(umax, words[i]), min(umin, words[i]), max(smax, i4(words[i]))
    least = umax if umax >= u4(0x80000000) else umin
    most = u4(smax) if smax >= 0 else umin
    _add(stats, 0.0, 0.0, np.float64(u4(least).view(np.float32)), np.float64(u4(most).view(np.float32)))


@_compiled
def _window(words, end, last):  # type: ignore[no-untyped-def]
    """The code of symbol 0 if symbol `last` is to be two octaves above the largest finite number of a block."""
    most = u4(0)
    for i in range(end):
        size = words[i] & u4(0x7FFFFFFF)
        most = max(most, u4(size) if size < u4(0x7F800000) else u4(0))
    return max(min(i8(most >> u4(22)) + 4, _INFINITE - 1) - last, _LOWEST)


@_compiled
def _move(words, end, window, last, totals):  # type: ignore[no-untyped-def]
    """Move what the ends of a window hold of other codes to these; how many there were."""
    lowest = window + 1 if window > _LOWEST else 0
    moved = 0
    for i in range(end):
        code = i8(words[i] >> u4(22))
        size = code & 511
        if size != 0 and (size < lowest or size > window + last):
            totals[(window + 1 if size < lowest else window + last) | (code & 512)] -= 1
            totals[code] += 1
            moved += 1
    return moved


@_compiled
def _empty(table, window, last, totals):  # type: ignore[no-untyped-def]
    """Add the counters of pairs to the codes of a window; they are zero again."""
    symbols = 2 * (last + 1)
    columns = np.zeros(2 * (_WIDE + 1), u4)
    for row in range(symbols):
        line = table[row * symbols : (row + 1) * symbols]
        total = u4(0)
        for column in range(symbols):
            total += line[column]
        if total > u4(0):
            _give(totals, row, window, last, total)
            for column in range(symbols):
                columns[column] += line[column]
                line[column] = u4(0)
    for column in range(symbols):
        _give(totals, column, window, last, columns[column])


@_compiled
def _give(totals, symbol, window, last, number):  # type: ignore[no-untyped-def]
    """Add to the code of a symbol."""
    size = symbol & last
    totals[(window + size if size > 0 else 0) + (512 if symbol > last else 0)] += i8(number)


@_compiled
def _is_constant(words, end):  # type: ignore[no-untyped-def]
    """Whether all words are the same."""
    other = u4(0)
    for i in range(end):
        other |= words[i] ^ words[0]
    return other == u4(0)


# -- tensors -----------------------------------------------------------------------------------------------------------


@_compiled
def _stage(address, count, step, kind, factor, scaled, numbers):  # type: ignore[no-untyped-def]
    """Elements as dense float32, times a factor."""
    bits = numbers.view(u4)
    if kind == FLOAT32:
        words = carray(_pointer(address), count * step, u4)
        if step == 1:
            for i in range(count):
                bits[i] = words[i]
        else:
            for i in range(count):
                bits[i] = words[i * step]
    elif step == 1:
        halves = carray(_pointer(address), count, u2)
        for i in range(count):
            bits[i] = u4(halves[i]) << u4(16)
    else:
        halves = carray(_pointer(address), count * step, u2)
        for i in range(count):
            bits[i] = u4(halves[i * step]) << u4(16)
    if kind == FLOAT16:  # its subnormals are normal in float32, and a conversion sets the top bit of a NaN
        for i in range(count):
            word = bits[i]
            size = u4(word << u4(1)) >> u4(17)
            wide = u4((size << u4(13)) + u4(112 << 23)) | (u4(255 << 23) if size >= u4(0x7C00) else u4(0))
            wide |= u4(1 << 22) if size > u4(0x7C00) else u4(0)
            tiny = np.float32(np.float32(i4(size)) * np.float32(2.0**-24)).view(u4)
            bits[i] = (word & u4(1 << 31)) | (u4(tiny) if size < u4(1024) else u4(wide))
    if scaled:
        for i in range(count):
            numbers[i] *= factor


@_compiled
def _begin(stats, totals):  # type: ignore[no-untyped-def]
    """Empty a row of moments and the counts of codes."""
    totals[:] = 0
    stats[0], stats[1], stats[2], stats[3] = 0.0, 0.0, np.inf, -np.inf
    return stats


@_compiled
def _fold(totals, row):  # type: ignore[no-untyped-def]
    """Counts of codes to counts of buckets."""
    row[:] = 0.0
    for code in range(1024):
        if totals[code] != 0:
            row[CODE_TO_BUCKET[code]] += totals[code]


@_compiled
def _wide_block(words, codes):  # type: ignore[no-untyped-def]
    """Codes in float32, moments and extremes of float64 bits. A number beyond float32 has code 509, below it 0."""
    total, squares = 0.0, 0.0
    umax, umin, smax = u8(0), u8(0xFFFFFFFFFFFFFFFF), i8(-0x8000000000000000)
    for i in range(words.size):
        word = words[i]
        top = i8((word >> u8(51)) & u8(4095))
        code = min(max(top - 1792, 1), _INFINITE - 1)
        code = 0 if top < 1792 else code
        code = top - 3584 if top >= 4094 else code
        codes[i] = u2(code | i8(u8(word >> u8(63)) << u8(9)))
        x = u8(word).view(np.float64)
        total, squares = total + x, squares + x * x
        umax, umin, smax = max(umax, word), min(umin, word), max(smax, i8(word))
    least = umax if smax < 0 or umax >= u8(0x8000000000000000) else umin
    most = u8(smax) if smax >= 0 else umin
    return total, squares, u8(least).view(np.float64), u8(most).view(np.float64)


@_compiled
def _wide_finite(words, stats):  # type: ignore[no-untyped-def]
    """Moments and extremes of the finite ones of float64 bits."""
    for word in words:
        if word & u8(0x7FFFFFFFFFFFFFFF) < u8(0x7FF0000000000000):
            x = u8(word).view(np.float64)
            _add(stats, x, x * x, x, x)


@_compiled
def _block(words, body, wide, window, work, totals, stats):  # type: ignore[no-untyped-def]
    """Count whole turns of a block; how many of its elements had to be moved one by one, or -1 if it is all alike."""
    table, places, out = work
    found, last, here = out.view(i8), _WIDE if wide else _NARROW, i8(words.ctypes.data)
    if wide:
        _paired_wide(here, body // _STEP, window, i8(table.ctypes.data), i8(places.ctypes.data), i8(out.ctypes.data))
    else:
        _paired_narrow(here, body // _STEP, window, i8(table.ctypes.data), i8(places.ctypes.data), i8(out.ctypes.data))
    umax, smax, least = found[2], found[3], found[4]
    negative, positive = umax >= 1 << 31, smax < 1 << 31
    largest = max(umax & 0x7FFFFFFF if negative else 0, smax if positive else 0) >> 16
    if not np.isfinite(out[1]):
        _one_by_one(words, 0, body, totals, stats, 0)
    else:
        low, high = np.float64(u4(umax).view(np.float32)), np.float64(u4(smax).view(np.float32))
        _add(stats, out[0], out[1], low if negative else stats[2], high if positive else stats[3])
        if (not negative and stats[2] > 0.0) or (not positive and stats[3] < 0.0):  # the end that is closer to zero
            _extremes(words, body, stats)
    moved = i8(0)
    if (window > _LOWEST and least < (window + 1) << 7) or largest >> 6 > window + last:
        moved = _move(words, body, window, last, totals)
    alike = umax == smax and (largest == 0 or (least + 1) >> 7 == largest >> 6)
    return i8(-1) if alike else moved


def _narrow(items, counts, moments, factor, scaled, table):  # type: ignore[no-untyped-def]
    """Statistics of float32, bfloat16 and float16 tensors, each into its own row, which is overwritten.

    Args:
        items: int64 [k, 5]: address, number of elements, stride in elements, format, row.
        counts: float64 [rows, 328].
        moments: float64 [rows, 4].
        factor: float32, what elements are multiplied by, if scaled.
        scaled: whether to multiply.
        table: uint32 [TABLE], zeros.
    """
    raw, numbers, totals = np.empty(16 * _SLOTS + 16, u4), np.empty(_BLOCK, np.float32), np.empty(1024, i8)
    work = table, raw[(-i8(raw.ctypes.data) % 64) // 4 :], np.empty(5, np.float64)
    for k in range(items.shape[0]):
        address, size, step, kind, row = items[k]
        stats = _begin(moments[row], totals)
        staged = scaled or step != 1 or kind != FLOAT32
        width = 4 if kind == FLOAT32 else 2
        wide, alike, window = False, False, i8(-1)
        for start in range(0, size, _BLOCK):
            n = min(_BLOCK, size - start)
            here = address + start * step * width
            if staged:
                _stage(here, n, step, kind, factor, scaled, numbers)
                here = i8(numbers.ctypes.data)
            words = carray(_pointer(here), n, u4)
            body = n // _STEP * _STEP if size >= _PAIRED_FROM else 0
            alike = alike and _is_constant(words, n)  # looked for only behind a block that was
            if alike:
                body = n
                totals[words[0] >> u4(22)] += n - 1
                _one_by_one(words, 0, 1, totals, stats, 1)
                x = np.float64(u4(words[0]).view(np.float32))
                if np.isfinite(x):
                    _add(stats, (n - 1) * x, (n - 1) * (x * x), x, x)
            elif body > 0:
                if window < 0:
                    window = _window(words, n, _WIDE if wide else _NARROW)
                moved = _block(words, body, wide, window, work, totals, stats)
                alike = moved < 0
            _one_by_one(words, body, n, totals, stats, 1)
            outgrown = not wide and not alike and body > 0 and moved > body // _MANY
            if window >= 0 and (outgrown or (start + _BLOCK) % _EPOCH == 0 or start + n == size):
                _empty(table, window, _WIDE if wide else _NARROW, totals)
                window = i8(-1)
            wide = wide or outgrown
        _fold(totals, counts[row])


def _wide(items, counts, moments, factor, scaled):  # type: ignore[no-untyped-def]
    """The same for float64 tensors, and a factor in float64."""
    numbers, codes = np.empty(_WIDE_BLOCK, np.float64), np.empty(_WIDE_BLOCK, u2)
    lanes, totals = np.empty(_LANES * _LANE, u4), np.empty(1024, i8)
    for k in range(items.shape[0]):
        address, size, step, _, row = items[k]
        stats = _begin(moments[row], totals)
        lanes[:] = u4(0)
        for start in range(0, size, _WIDE_BLOCK):
            n = min(_WIDE_BLOCK, size - start)
            words = carray(_pointer(address + start * step * 8), n * step, u8)
            if scaled or step != 1:
                for i in range(n):
                    x = u8(words[i * step]).view(np.float64)
                    numbers[i] = x * factor if scaled else x
                words = carray(_pointer(i8(numbers.ctypes.data)), n, u8)
            total, squares, least, most = _wide_block(words, codes)
            if np.isfinite(squares):
                _add(stats, total, squares, least, most)
            else:
                _wide_finite(words, stats)
            even = n // _LANES * _LANES
            for i in range(0, even, _LANES):  # a table a lane: none waits for the increment before it
                for lane in range(_LANES):
                    lanes[u8(codes[i + lane]) + u8(lane * _LANE)] += u4(1)
            for i in range(even, n):
                lanes[codes[i]] += u4(1)
            if (start + _WIDE_BLOCK) % _EPOCH == 0 or start + n == size:
                for lane in range(_LANES):
                    for code in range(1024):
                        totals[code] += i8(lanes[lane * _LANE + code])
                lanes[:] = u4(0)
        _fold(totals, counts[row])


@_compiled
def _norms_of_words(words, row):  # type: ignore[no-untyped-def]
    """Add bits of float32 to a row: sum of squares, largest size as bits, elements that are not finite.

    A block is in the innermost cache for its second loop: one loop over numbers of several widths would be slower.
    """
    for start in range(0, words.size, _BLOCK):
        end = min(words.size, start + _BLOCK)
        squares, largest = 0.0, u4(0)
        for i in range(start, end):
            x = np.float64(u4(words[i]).view(np.float32))
            squares += x * x
        for i in range(start, end):
            largest = max(largest, u4(words[i] & u4(0x7FFFFFFF)))
        row[0] += squares
        row[1] = max(row[1], np.float64(largest))
        if largest >= u4(0x7F800000):
            bad = i8(0)
            for i in range(start, end):
                bad += words[i] & u4(0x7FFFFFFF) >= u4(0x7F800000)
            row[2] += bad


@_compiled
def _norms_of_wide(words, step, row):  # type: ignore[no-untyped-def]
    """The same of float64; sizes as bits of float32, rounded."""
    squares, largest, bad = 0.0, u8(0), i8(0)
    for i in range(0, words.size, step):
        size = words[i] & u8(0x7FFFFFFFFFFFFFFF)
        x = u8(words[i]).view(np.float64)
        squares, largest, bad = squares + x * x, max(largest, size), bad + (size >= u8(0x7FF0000000000000))
    row[0] += squares
    row[1] = max(row[1], np.float64(np.float32(u8(largest).view(np.float64)).view(u4)))
    row[2] += bad


def _norms(items, rows):  # type: ignore[no-untyped-def]
    """What a black box keeps of float32, bfloat16, float16 and float64 tensors: one read, each added to its row.

    Args:
        items: int64 [k, 5]: address, number of elements, stride in elements, format, row.
        rows: float64 [rows, 3]: sum of squares, largest size as the bits of a float32, elements that are not finite.
    """
    numbers = np.empty(_BLOCK, np.float32)
    for k in range(items.shape[0]):
        address, size, step, kind, row = items[k]
        if size == 0:
            continue
        if kind == FLOAT64:
            _norms_of_wide(carray(_pointer(address), (size - 1) * step + 1, u8), step, rows[row])
        elif kind == FLOAT32 and step == 1:
            _norms_of_words(carray(_pointer(address), size, u4), rows[row])
        else:
            for start in range(0, size, _BLOCK):
                n = min(_BLOCK, size - start)
                here = address + start * step * (4 if kind == FLOAT32 else 2)
                _stage(here, n, step, kind, np.float32(1), kind < 0, numbers)
                _norms_of_words(carray(_pointer(i8(numbers.ctypes.data)), n, u4), rows[row])


def _entry(function: Any, *more: Any) -> Any:
    """Compile an entry for its one signature, or load it from the cache on disk."""
    signature = types.void(types.Array(types.int64, 2, "C"), _MATRIX, *more)
    try:
        return njit(signature, cache=True, **_OPTIONS)(function)
    except (OSError, RuntimeError):  # no folder to write to: what it costs is compiling in every process
        return njit(signature, **_OPTIONS)(function)


_MATRIX: Final = types.Array(types.float64, 2, "C")
narrow: Final = _entry(_narrow, _MATRIX, types.float32, types.boolean, types.Array(types.uint32, 1, "C"))
wide: Final = _entry(_wide, _MATRIX, types.float64, types.boolean)
norms: Final = _entry(_norms)
