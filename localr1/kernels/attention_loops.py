"""The innermost loops of attention over a long cache: float32 tiles, and the same with fixed-point numbers.

Owns the instructions and nothing of memory (see `emitter`); how large fixed-point numbers may be, so that no int32 sum
overflows, is `latent_attention`'s affair.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from localr1.kernels.emitter import F32, I8, I16, I32, I64, Emitter, returning_nothing
from localr1.kernels.features import BITS, CHUNK, LANES, SUMS

VALUE_PANELS = 4 if BITS == 512 else 2
SCORE_ROWS = 8
"""Cache rows of a score tile."""

VALUE_ROWS = 4
"""Queries of a value tile."""

LARGEST_BF16 = 8191
"""The largest magnitude of a bfloat16 row in fixed point."""

SMALLEST = 1e-30
"""Rows of smaller numbers count as zero: their reciprocal loses its meaning."""

ROUND = float(3 << 22)
"""Added to a float32 that is not too large, it leaves the nearest integer in the low bits."""


def rows_at_once(rows: int, panels: int) -> int:
    """Rows of a tile whose sums find room in registers."""
    return rows if rows * panels <= SUMS else rows // 2


def load_bf16(e: Emitter, address: Any, lanes: int) -> Any:
    """So many bfloat16 numbers as float32."""
    wide = ir.VectorType(I32, lanes)
    words = e.b.zext(e.load(ir.VectorType(I16, lanes), address, 2), wide)
    return e.b.bitcast(e.b.shl(words, ir.Constant(wide, [16] * lanes)), ir.VectorType(F32, lanes))


def make_float_tile(rows: int, panels: int, lanes: int, bf16: bool = False) -> Any:
    """`tile(a, a_row, a_step, b, b_step, count, c, c_row)`: c += a b for `rows` rows and `panels * lanes` columns of
    float32; b may be bfloat16.

    `a_row`, `a_step`, `b_step`, `c_row` are strides in bytes; the columns of b and c are contiguous.
    """
    kind, taken = ir.VectorType(F32, lanes), rows_at_once(rows, panels)

    def emit(e: Emitter, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, count: Any, c: Any, c_row: Any) -> None:
        for first in range(0, rows, taken):
            totals = e.variables(kind, taken * panels)
            row_at = [e.at(a, e.b.mul(a_row, I64(first + r))) for r in range(taken)]
            with cgutils.for_range_slice(e.b, I64(0), count, I64(1)) as (i, _):
                column = e.at(b, e.b.mul(i, b_step))
                if bf16:
                    y = [load_bf16(e, e.at(column, p * lanes * 2), lanes) for p in range(panels)]
                else:
                    y = [e.load(kind, e.at(column, p * lanes * 4), 4) for p in range(panels)]
                step = e.b.mul(i, a_step)
                for r in range(taken):
                    x = e.broadcast(e.load(F32, e.at(row_at[r], step), 4), lanes)
                    for p in range(panels):
                        total = totals[r * panels + p]
                        e.b.store(e.fma(e.b.load(total), x, y[p]), total)
            for r in range(taken):
                for p in range(panels):
                    place = e.at(e.at(c, e.b.mul(c_row, I64(first + r))), p * lanes * 4)
                    e.store(e.b.fadd(e.load(kind, place, 4), e.b.load(totals[r * panels + p])), place, 4)

    return returning_nothing(emit, 8, f"float_tile_{rows}_{panels}_{lanes}{'_bf16' if bf16 else ''}")


def make_fixed_score(panels: int, lanes: int) -> Any:
    """`fixed_score(rows, row_bytes, queries, pair_bytes, pairs, row_scales, query_scales, scores, score_bytes, next)`:
    scores += row . query * row_scale * query_scale for SCORE_ROWS rows of int16 and `panels * lanes` queries.
    Meanwhile as many bytes from `next` on are asked for as the rows take.

    Queries lie as [pair][query][2] int16, `pair_bytes` from pair to pair; scores as [row][query] float32.
    """
    sums, pair_kind = ir.VectorType(I32, lanes), ir.VectorType(I16, 2 * lanes)
    floats = ir.VectorType(F32, lanes)
    taken = rows_at_once(SCORE_ROWS, panels)

    def emit(
        e: Emitter, rows: Any, row_bytes: Any, queries: Any, pair_bytes: Any, pairs: Any,
        row_scales: Any, query_scales: Any, scores: Any, score_bytes: Any, following: Any,
    ) -> None:  # fmt: skip
        scale = [e.load(floats, e.at(query_scales, p * lanes * 4), 4) for p in range(panels)]
        for first in range(0, SCORE_ROWS, taken):
            totals = e.variables(sums, taken * panels)
            row_at = [e.at(rows, e.b.mul(row_bytes, I64(first + r))) for r in range(taken)]
            with cgutils.for_range_slice(e.b, I64(0), pairs, I64(1)) as (i, _):
                column = e.at(queries, e.b.mul(i, pair_bytes))
                if first == 0:
                    e.prefetch(e.at(following, e.b.mul(i, I64(4 * SCORE_ROWS))))
                y = [e.load(pair_kind, e.at(column, p * lanes * 4), 4) for p in range(panels)]
                for r in range(taken):
                    pair = e.load(I32, e.at(row_at[r], e.b.mul(i, I64(4))), 4)
                    x = e.b.bitcast(e.broadcast(pair, lanes), pair_kind)
                    for p in range(panels):
                        total = totals[r * panels + p]
                        e.b.store(e.multiply_add(e.b.load(total), x, y[p]), total)
            for r in range(taken):
                row_scale = e.broadcast(e.load(F32, e.at(row_scales, 4 * (first + r)), 4), lanes)
                for p in range(panels):
                    place = e.at(e.at(scores, e.b.mul(score_bytes, I64(first + r))), p * lanes * 4)
                    product = e.b.fmul(e.b.sitofp(e.b.load(totals[r * panels + p]), floats), row_scale)
                    e.store(e.fma(e.load(floats, place, 4), product, scale[p]), place, 4)

    return returning_nothing(emit, 10, f"fixed_score_{panels}_{lanes}")


def add_pairs(e: Emitter, total: Any, weights: Any, values: Any) -> Any:
    """total += products of two int16 a lane."""
    kind = ir.VectorType(I16, CHUNK)
    return e.multiply_add(total, e.b.bitcast(weights, kind), e.b.bitcast(values, kind))


def make_value(name: str, panels: int, add_products: Callable[..., Any]) -> Any:
    """`value(weights, group_bytes, values, value_bytes, groups, shrink, back, sums, sum_bytes)`:
    sums = sums * shrink + weight . value * back for VALUE_ROWS queries and `panels * LANES` values.

    Groups are of as many cache rows as `add_products` takes numbers a lane of 32 bits: weights lie as
    [group][query][row], values as [group][value][row]; sums as [query][value] float32; `shrink` and `back` are a
    float32 for each query.
    """
    ints, floats = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)

    def emit(
        e: Emitter, weights: Any, group_bytes: Any, values: Any, value_bytes: Any, groups: Any,
        shrink: Any, back: Any, sums: Any, sum_bytes: Any,
    ) -> None:  # fmt: skip
        totals = e.variables(ints, VALUE_ROWS * panels)
        with cgutils.for_range_slice(e.b, I64(0), groups, I64(1)) as (i, _):
            column, row = e.at(values, e.b.mul(i, value_bytes)), e.at(weights, e.b.mul(i, group_bytes))
            y = [e.load(ints, e.at(column, p * LANES * 4), 4) for p in range(panels)]
            for r in range(VALUE_ROWS):
                x = e.broadcast(e.load(I32, e.at(row, 4 * r), 4), LANES)
                for p in range(panels):
                    total = totals[r * panels + p]
                    e.b.store(add_products(e, e.b.load(total), x, y[p]), total)
        for r in range(VALUE_ROWS):
            earlier, times = (e.broadcast(e.load(F32, e.at(at, 4 * r), 4), LANES) for at in (shrink, back))
            for p in range(panels):
                place = e.at(e.at(sums, e.b.mul(sum_bytes, I64(r))), p * LANES * 4)
                added = e.b.fmul(e.b.sitofp(e.b.load(totals[r * panels + p]), floats), times)
                e.store(e.fma(added, e.load(floats, place, 4), earlier), place, 4)

    return returning_nothing(emit, 9, f"{name}_{panels}")


def emit_exp(e: Emitter, x: Any) -> Any:
    """e^x as `jit.exp` has it, for x up to 0: below -87 it is 0, and not-a-number stays what it is."""
    kind = x.type

    def all_of(value: float) -> Any:
        return ir.Constant(kind, [value] * kind.count)

    low = e.b.fcmp_ordered("<", x, all_of(-87.0))
    clamped = e.b.select(low, all_of(-87.0), x)
    shifted = e.fma(all_of(ROUND), clamped, all_of(1.44269504))
    whole = e.b.fsub(shifted, all_of(ROUND))
    rest = e.fma(e.fma(clamped, whole, all_of(-0.693359375)), whole, all_of(2.12194440e-4))
    power = all_of(1.0 / 5040.0)
    for coefficient in (1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0):
        power = e.fma(all_of(coefficient), power, rest)
    ints = ir.VectorType(I32, kind.count)
    exponent = e.b.shl(e.b.bitcast(shifted, ints), ir.Constant(ints, [23] * kind.count))
    scaled = e.b.bitcast(e.b.add(e.b.bitcast(power, ints), exponent), kind)
    return e.b.select(low, e.zero(kind), scaled)


def make_softmax(name: str, group: int, diffused: bool = False) -> Any:
    """`softmax(scores, score_bytes, groups, ratios, state, state_bytes, weights, top_bits, sum_bits)`: of LANES
    queries, scores [row][query] of `groups` times `group` rows to weights [group][query][row], integers of
    `32 / group` bits; rows are `score_bytes` long.

    A weight is exp(score - highest) * ratio[row] / back; `back` is chosen so that none is above one limit and their sum
    is not above another (float32 bits). `state` is rows of float32: highest score and sum of exponentials so far,
    which are brought up to date; what earlier sums must be multiplied by; and `back`. If `diffused`, what rounding
    leaves of one row's weight is added to the next one's, so that many small weights do not all become nothing.
    """
    kind, ints, bits = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), 32 // group

    def higher(e: Emitter, a: Any, b: Any) -> Any:
        return e.b.select(e.b.fcmp_ordered(">", a, b), a, b)

    def emit(
        e: Emitter, scores: Any, score_bytes: Any, groups: Any, ratios: Any, state: Any, state_bytes: Any, weights: Any,
        top_bits: Any, sum_bits: Any,
    ) -> None:  # fmt: skip
        state_at = [e.at(state, e.b.mul(state_bytes, I64(k))) for k in range(4)]
        highest, total, top, weight_sum, left = e.variables(kind, 5)
        rows = e.b.mul(groups, I64(group))
        limits = [e.broadcast(e.b.bitcast(e.b.trunc(bits, I32), F32), LANES) for bits in (top_bits, sum_bits)]
        before = e.load(kind, state_at[0], 4)
        e.b.store(before, highest)
        with cgutils.for_range_slice(e.b, I64(0), rows, I64(1)) as (i, _):
            score = e.load(kind, e.at(scores, e.b.mul(i, score_bytes)), 4)
            e.b.store(higher(e, score, e.b.load(highest)), highest)
        now = e.b.load(highest)
        seen = e.b.fcmp_ordered(">", now, ir.Constant(kind, [float("-inf")] * LANES))
        base = e.b.select(seen, now, e.zero(kind))
        shrink = emit_exp(e, e.b.fsub(before, base))
        e.b.store(e.b.fmul(e.load(kind, state_at[1], 4), shrink), total)
        with cgutils.for_range_slice(e.b, I64(0), rows, I64(1)) as (i, _):
            place = e.at(scores, e.b.mul(i, score_bytes))
            power = emit_exp(e, e.b.fsub(e.load(kind, place, 4), base))
            e.b.store(e.b.fadd(e.b.load(total), power), total)
            weight = e.b.fmul(power, e.broadcast(e.load(F32, e.at(ratios, e.b.mul(i, I64(4))), 4), LANES))
            e.store(weight, place, 4)
            e.b.store(higher(e, weight, e.b.load(top)), top)
            e.b.store(e.b.fadd(e.b.load(weight_sum), weight), weight_sum)
        least = ir.Constant(kind, [1e-30] * LANES)
        back = higher(
            e,
            e.b.fdiv(higher(e, e.b.load(top), least), limits[0]),
            e.b.fdiv(higher(e, e.b.load(weight_sum), least), limits[1]),
        )
        times = e.b.fdiv(ir.Constant(kind, [1.0] * LANES), back)
        for value, at in zip((now, e.b.load(total), shrink, back), state_at, strict=True):
            e.store(value, at, 4)
        rounding, mask = ir.Constant(kind, [ROUND] * LANES), ir.Constant(ints, [(1 << bits) - 1] * LANES)
        with cgutils.for_range_slice(e.b, I64(0), groups, I64(1)) as (i, _):
            packed = e.zero(ints)
            for k in range(group):
                at = e.at(scores, e.b.mul(e.b.add(e.b.mul(i, I64(group)), I64(k)), score_bytes))
                weight = e.load(kind, at, 4)
                if diffused:
                    exact = e.fma(e.b.load(left), weight, times)
                    nearest = e.call(f"llvm.rint.v{LANES}f32", kind, exact)
                    e.b.store(e.b.fsub(exact, nearest), left)
                    rounded = e.b.fadd(nearest, rounding)
                else:
                    rounded = e.fma(rounding, weight, times)
                whole = e.b.and_(e.b.bitcast(rounded, ints), mask)
                packed = e.b.or_(packed, e.b.shl(whole, ir.Constant(ints, [bits * k] * LANES)))
            e.store(packed, e.at(weights, e.b.mul(i, score_bytes)), 4)

    return returning_nothing(emit, 9, name)


def emit_fixed_rows(
    e: Emitter, words: Any, row_bytes: Any, rows: Any, place: Any, place_bytes: Any, chunks: Any, scales: Any
) -> None:
    """`fixed_rows(words, row_bytes, rows, place, place_bytes, chunks, scales)`: rows of whole chunks of bfloat16 as
    int16 of at most LARGEST_BF16, and what one of a row is worth.

    Rows whose largest number is below SMALLEST become zeros. Those that hold no numbers are worth not-a-number.
    """
    ints, floats, halves = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES), ir.VectorType(I16, CHUNK)
    rounding, half = ir.Constant(floats, [ROUND] * LANES), ir.Constant(ints, [16] * LANES)
    low, high = ir.Constant(ints, [0xFFFF] * LANES), ir.Constant(ints, [0xFFFF0000] * LANES)
    (top,) = e.variables(halves, 1)
    function = ir.FunctionType(I16, [halves])
    reduce = cgutils.get_or_insert_function(e.b.module, function, f"llvm.vector.reduce.smax.v{CHUNK}i16")
    with cgutils.for_range_slice(e.b, I64(0), rows, I64(1)) as (r, _):
        source, target = e.at(words, e.b.mul(r, row_bytes)), e.at(place, e.b.mul(r, place_bytes))
        e.b.store(e.zero(halves), top)
        with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (i, _):
            bits = e.load(halves, e.at(source, e.b.mul(i, I64(2 * CHUNK))), 2)
            bits = e.b.and_(bits, ir.Constant(halves, [0x7FFF] * CHUNK))
            so_far = e.b.load(top)
            e.b.store(e.b.select(e.b.icmp_signed(">", bits, so_far), bits, so_far), top)
        bits = e.b.zext(e.b.call(reduce, [e.b.load(top)]), I32)
        most = e.b.bitcast(e.b.shl(bits, I32(16)), F32)
        fits = e.b.and_(e.b.fcmp_ordered(">=", most, F32(SMALLEST)), e.b.icmp_signed("<", bits, I32(0x7F80)))
        factor = e.b.select(fits, e.b.fdiv(F32(LARGEST_BF16), most), F32(0.0))
        worth = e.b.select(fits, e.b.fmul(most, F32(1 / LARGEST_BF16)), e.b.fmul(most, F32(0.0)))
        e.store(worth, e.at(scales, e.b.mul(r, I64(4))), 4)
        times = e.broadcast(factor, LANES)
        with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (i, _):
            offset = e.b.mul(i, I64(2 * CHUNK))
            pair = e.load(ints, e.at(source, offset), 2)
            wide = [e.b.bitcast(bits, floats) for bits in (e.b.shl(pair, half), e.b.and_(pair, high))]
            even, odd = (e.b.bitcast(e.fma(rounding, x, times), ints) for x in wide)
            e.store(e.b.or_(e.b.and_(even, low), e.b.shl(odd, half)), e.at(target, offset), 2)


def emit_widened_rows(
    e: Emitter, numbers: Any, row_bytes: Any, rows: Any, place: Any, place_bytes: Any, chunks: Any
) -> None:
    """`widened_rows(numbers, row_bytes, rows, place, place_bytes, chunks)`: rows of whole chunks of int8 as int16."""
    with cgutils.for_range_slice(e.b, I64(0), rows, I64(1)) as (r, _):
        source, target = e.at(numbers, e.b.mul(r, row_bytes)), e.at(place, e.b.mul(r, place_bytes))
        with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (i, _):
            at = e.b.mul(i, I64(CHUNK))
            narrow = e.load(ir.VectorType(I8, CHUNK), e.at(source, at))
            e.store(e.b.sext(narrow, ir.VectorType(I16, CHUNK)), e.at(target, e.b.mul(at, I64(2))), 2)


def emit_zip_rows(e: Emitter, rows: Any, row_bytes: Any, place: Any, pair_bytes: Any, pairs: Any, chunks: Any) -> None:
    """`zip_rows(rows, row_bytes, place, pair_bytes, pairs, chunks)`: the first CHUNK * chunks numbers
    of each two rows of int16 in turn, as [pair][number][2]."""
    kind, index = ir.VectorType(I16, CHUNK), ir.VectorType(I32, CHUNK)
    orders = [[start + j // 2 + CHUNK * (j % 2) for j in range(CHUNK)] for start in (0, CHUNK // 2)]
    with cgutils.for_range_slice(e.b, I64(0), pairs, I64(1)) as (r, _):
        source, target = e.at(rows, e.b.mul(e.b.mul(r, I64(2)), row_bytes)), e.at(place, e.b.mul(r, pair_bytes))
        with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (i, _):
            offset = e.b.mul(i, I64(2 * CHUNK))
            one, other = e.load(kind, e.at(source, offset), 2), e.load(kind, e.at(e.at(source, row_bytes), offset), 2)
            for k, order in enumerate(orders):
                zipped = e.b.shuffle_vector(one, other, ir.Constant(index, order))
                e.store(zipped, e.at(e.at(target, e.b.mul(offset, I64(2))), 2 * CHUNK * k), 2)


score_4, score_8, score_all = (
    make_float_tile(8, 1, 4),
    make_float_tile(8, 1, min(8, LANES)),
    make_float_tile(8, 1, LANES),
)
score_two = make_float_tile(8, 2, LANES)
value_one, value_wide = make_float_tile(4, 1, LANES), make_float_tile(4, VALUE_PANELS, LANES)
value_one_bf16, value_wide_bf16 = make_float_tile(4, 1, LANES, True), make_float_tile(4, VALUE_PANELS, LANES, True)
fixed_score_4, fixed_score_8 = make_fixed_score(1, 4), make_fixed_score(1, min(8, LANES))
fixed_score_all, fixed_score_two = make_fixed_score(1, LANES), make_fixed_score(2, LANES)
fixed_value_one, fixed_value_wide = (make_value("fixed_value", panels, add_pairs) for panels in (1, VALUE_PANELS))
fixed_softmax = make_softmax("fixed_softmax", 2)
fixed_rows = returning_nothing(emit_fixed_rows, 7, "fixed_rows")
widened_rows = returning_nothing(emit_widened_rows, 6, "widened_rows")
zip_rows = returning_nothing(emit_zip_rows, 6, "zip_rows")
