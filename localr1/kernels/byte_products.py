"""Rows of int8 weights times a few activation rows in bytes, where the processor multiplies unsigned by signed bytes.

Owns the loops and the layout of a row: each activation is an int16 split into two signed bytes, 256 high + low. A
packed group of rows lies as [1 + steps][row][2][STEP] bytes, or one such part after another (see `packing`). The bytes
of a step are the high and the low ones; in place of the first lie int32 sums, lane by lane, of -128 times the part's
bytes. Weights become unsigned by adding 128, which those sums take away again, so that no step needs to widen anything.

Invariant: sums wrap around and come out right for rows of up to LONGEST_ROW weights, since what a lane holds in the
end, at most 128 * 128 * LONGEST_ROW / LANES, is an int32.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from localr1.kernels.emitter import F32, I8, I16, I32, I64, SECOND_LEVEL, Emitter, returning_nothing
from localr1.kernels.features import APART, LANES, STREAM_AHEAD_BYTES, STREAMS

STEP = 4 * LANES
"""Weights of a vector."""

LONGEST_ROW = 1 << 20

UNROLL = 2

AHEAD_BYTES = 2048
MORE_AHEAD_BYTES = 8192
"""How many bytes of weights before their turn memory is asked for into the second-level cache: for one packed row; for
several, or weight rows that are not one stream, together."""

LONG_ROW = 8192
"""Weights of a row from which LONG_TAKEN are taken at once for one packed row, which by itself nearly fills the
first-level cache: it is loaded that much less often."""

LONG_TAKEN = 4

PAIRED_ROWS = 3
"""Packed rows from which two weight rows are taken at once, so that each activation is loaded half as often."""

MOST_ROWS = 6
"""Packed rows at a time; the sums of more, for two weight rows, do not find room in registers."""

MOST_PAIRS = 2 * MOST_ROWS
"""Packed rows times weight rows at a time."""

BYTES, WORDS = ir.VectorType(I8, STEP), ir.VectorType(I16, STEP)
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)


def dot_bytes(e: Emitter, total: Any, unsigned: Any, signed: Any) -> Any:
    """total += products of unsigned and signed bytes, four to a lane, without saturation."""
    both = [e.b.bitcast(factor, INTS) for factor in (unsigned, signed)]
    return e.call(f"llvm.x86.avx512.vpdpbusd.{32 * LANES}", INTS, total, *both)


def emit_split(e: Emitter, source: Any, place: Any, stride: Any, steps: Any) -> None:
    """`split_row(source, place, stride, steps)`: int16 numbers to a packed row; its steps lie `stride` bytes apart."""
    totals = e.variables(INTS, 2)
    with cgutils.for_range_slice(e.b, I64(0), steps, I64(1)) as (i, _):
        whole = e.load(WORDS, e.at(source, e.b.mul(i, I64(2 * STEP))), 2)
        high = e.b.ashr(e.b.add(whole, ir.Constant(WORDS, [128] * STEP)), ir.Constant(WORDS, [8] * STEP))
        at = e.at(place, e.b.mul(e.b.add(i, I64(1)), stride))
        for half, total in enumerate(totals):  # the low byte, read as signed, is what the rounded high one leaves
            narrow = e.b.trunc(whole if half else high, BYTES)
            e.store(narrow, e.at(at, half * STEP))
            e.b.store(dot_bytes(e, e.b.load(total), ir.Constant(BYTES, [-128] * STEP), narrow), total)
    for half, total in enumerate(totals):
        e.store(e.b.sub(e.zero(INTS), e.b.load(total)), e.at(place, half * STEP))


def load_first(e: Emitter, address: Any, count: Any) -> Any:
    """The first `count` bytes at an address and zeros; nothing behind them is read."""
    index = ir.VectorType(I32, STEP)
    counts = e.broadcast(e.b.trunc(count, I32), STEP)
    mask = e.b.icmp_signed("<", ir.Constant(index, list(range(STEP))), counts)
    pointer = e.b.inttoptr(address, BYTES.as_pointer())
    kind = ir.FunctionType(BYTES, [pointer.type, I32, mask.type, BYTES])
    function = cgutils.get_or_insert_function(e.b.module, kind, f"llvm.masked.load.v{STEP}i8.p0")
    return e.b.call(function, [pointer, I32(1), mask, e.zero(BYTES)])


def make_rows(n: int, long: bool = False) -> Any:
    """`rows(weights, row_bytes, length, count, activations, step_bytes, sums, sum_stride, add)`: `count` rows of
    `length` weights, `row_bytes` from one to the next, times n packed rows, whose steps lie `step_bytes` apart;
    `sum_stride` bytes from one packed row's sums to the next one's, which are added to if `add` is not 0."""
    taken = LONG_TAKEN if long else 2 if n >= PAIRED_ROWS else 1
    together = AHEAD_BYTES if n == taken == 1 else MORE_AHEAD_BYTES
    if APART:
        taken = min(STREAMS, MOST_PAIRS // n)
        together = taken * STREAM_AHEAD_BYTES if n < PAIRED_ROWS else MORE_AHEAD_BYTES
    unroll = UNROLL if taken == 1 else 1
    ahead_bytes = I64(together // taken)
    cells = [(w, i, half) for w in range(taken) for i in range(n) for half in range(2)]

    def emit(
        e: Emitter, weights: Any, row_bytes: Any, length: Any, count: Any, activations: Any, step_bytes: Any, sums: Any,
        sum_stride: Any, add: Any,
    ) -> None:  # fmt: skip
        steps, rest = e.b.sdiv(length, I64(STEP)), e.b.srem(length, I64(STEP))
        if n < PAIRED_ROWS:  # these lie by themselves, and known distances need no arithmetic
            step_bytes = I64(n * 2 * STEP)
        next_rows, further = e.b.mul(row_bytes, I64(1 if APART else taken)), e.b.srem(ahead_bytes, length)
        ahead = e.b.add(e.b.mul(e.b.sdiv(ahead_bytes, length), next_rows), further)
        wrap, before_wrap = e.b.sub(next_rows, length), e.b.sub(length, further)

        def distance(offset: Any) -> Any:
            """From a place in a row to what is read so much later."""
            if n == 1 and (APART or taken == 1):  # one packed row has no parts: each row goes on where one ended
                return ahead_bytes
            behind_end = e.b.icmp_signed(">=", offset, before_wrap)
            return e.b.add(ahead, e.b.select(behind_end, wrap, I64(0)))

        even = e.b.sub(steps, e.b.srem(steps, I64(unroll)))
        totals = {(cell, u): cgutils.alloca_once(e.b, INTS) for cell in cells for u in range(unroll)}
        first_step, adding = e.at(activations, step_bytes), e.b.icmp_signed("!=", add, I64(0))

        def multiply(raw: list[Any], x: Any, u: int) -> None:
            unsigned = [e.b.xor(weights_of_row, ir.Constant(BYTES, [-128] * STEP)) for weights_of_row in raw]
            for i in range(n):
                for half in range(2):
                    signed = e.load(BYTES, e.at(x, (2 * i + half) * STEP))
                    for w in range(taken):
                        total = totals[(w, i, half), u]
                        e.b.store(dot_bytes(e, e.b.load(total), unsigned[w], signed), total)

        def run(rows: list[Any], first: Any, last: Any, width: int) -> None:
            with cgutils.for_range_slice(e.b, first, last, I64(width)) as (step, _):
                offset, x = e.b.mul(step, I64(STEP)), e.at(first_step, e.b.mul(step, step_bytes))
                for u in range(width):
                    at = [e.at(e.at(row, offset), u * STEP) for row in rows]
                    later = distance(e.at(offset, u * STEP))
                    for address in at:
                        e.prefetch(e.at(address, later), SECOND_LEVEL)
                    raw = [e.load(BYTES, address) for address in at]
                    multiply(raw, e.at(x, e.b.mul(step_bytes, I64(u))), u)

        whole, last = e.b.sdiv(count, I64(taken)), e.b.sub(count, I64(1))
        turns = e.b.sdiv(e.b.add(count, I64(taken - 1)), I64(taken))

        def place_of(turn: Any, w: int) -> Any:
            """The weight row of a turn; where too few are left, the last one is taken more than once in it."""
            place = e.b.add(e.b.mul(turn, I64(taken)), I64(w))
            if APART:
                apart = e.b.add(turn, e.b.mul(whole, I64(w)))
                place = e.b.select(e.b.icmp_signed("<", turn, whole), apart, place)
            return e.b.select(e.b.icmp_signed("<", place, count), place, last)

        with cgutils.for_range_slice(e.b, I64(0), turns, I64(1)) as (turn, _):
            places = [place_of(turn, w) for w in range(taken)] if taken > 1 else [turn]
            rows = [e.at(weights, e.b.mul(place, row_bytes)) for place in places]
            for ((_, i, half), u), total in totals.items():
                start = e.zero(INTS) if u else e.load(INTS, e.at(activations, (2 * i + half) * STEP))
                e.b.store(start, total)
            run(rows, I64(0), even, unroll)
            if unroll > 1:
                run(rows, even, steps, 1)
            with e.b.if_then(e.b.icmp_signed(">", rest, I64(0))):
                tails = [load_first(e, e.at(row, e.b.mul(steps, I64(STEP))), rest) for row in rows]
                multiply(tails, e.at(first_step, e.b.mul(steps, step_bytes)), 0)
            befores = {}
            for w, place in enumerate(places):
                for i in range(n):
                    cell = e.at(e.at(sums, e.b.mul(sum_stride, I64(i))), e.b.mul(place, I64(4)))
                    befores[w, i] = cell, e.b.select(adding, e.load(F32, cell, 4), F32(0.0))
            for w in range(taken):
                for i in range(n):
                    halves = []
                    for half in range(2):
                        parts = [e.b.load(totals[(w, i, half), u]) for u in range(unroll)]
                        halves.append(e.b.sitofp(parts[0] if unroll == 1 else e.b.add(*parts), FLOATS))
                    total = e.fma(halves[1], halves[0], ir.Constant(FLOATS, [256.0] * LANES))
                    cell, before = befores[w, i]
                    e.store(e.b.fadd(before, e.sum_lanes(total)), cell, 4)

    return returning_nothing(emit, 9, f"rows_{n}{'_long' if long else ''}")


rows_1, rows_2, rows_3, rows_4 = make_rows(1), make_rows(2), make_rows(3), make_rows(4)
rows_5, rows_6 = make_rows(5), make_rows(6)
rows_1_long = make_rows(1, long=True)
split_row = returning_nothing(emit_split, 4, "rows_split")
