"""The innermost loops of attention over int8 latents in bytes: four products to a lane.

Owns the instructions and nothing of memory (see `emitter`); what is rounded, and against what, is `byte_attention`'s
affair. Values lie in groups of four cache rows and out of order, as four unpackings leave them: place 16 j + 4 l + i of
each STEP holds number 16 l + 4 j + i.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from localr1.kernels.attention_loops import SCORE_ROWS, SMALLEST, VALUE_PANELS, make_softmax, make_value
from localr1.kernels.byte_products import BYTES, FLOATS, INTS, STEP, dot_bytes
from localr1.kernels.emitter import F32, I8, I16, I32, I64, Emitter, returning_nothing
from localr1.kernels.features import LANES

GROUP = 4
"""Cache rows whose products are added up in a lane, or numbers of one row."""

SPLIT = 64
"""Numbers of a query that share a scale."""

LARGEST_QUERY = 127.0
"""What the largest magnitude of a split becomes."""


def unpack(e: Emitter, kind: Any, a: Any, b: Any, half: int) -> Any:
    """Numbers of two vectors in turn, of the low or the high half of each 128 bits."""
    a, b, lane = e.b.bitcast(a, kind), e.b.bitcast(b, kind), kind.count // (LANES // 4)
    order = []
    for start in range(half * lane // 2, kind.count, lane):
        for j in range(start, start + lane // 2):
            order += [j, kind.count + j]
    return e.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, kind.count), order))


def sums_of_four(e: Emitter, vectors: list[Any]) -> Any:
    """Each one's sum of int32."""

    def added(kind: Any, a: Any, b: Any) -> Any:
        return e.b.add(*(e.b.bitcast(unpack(e, kind, a, b, half), INTS) for half in range(2)))

    total = added(ir.VectorType(I64, LANES // 2), added(INTS, *vectors[:2]), added(INTS, *vectors[2:]))
    width = LANES
    while width > 4:  # every 128 bits have a part of all four
        width //= 2
        parts = [ir.Constant(ir.VectorType(I32, width), list(range(k * width, (k + 1) * width))) for k in range(2)]
        total = e.b.add(*(e.b.shuffle_vector(total, total, part) for part in parts))
    return total


def emit_byte_zip(
    e: Emitter, rows: Any, row_bytes: Any, groups: Any, values: Any, value_bytes: Any, steps: Any, starts: Any
) -> None:
    """`byte_zip(rows, row_bytes, groups, values, value_bytes, steps, starts)`: `groups` groups of rows of `steps`
    vectors of int8 as values [number][row], `value_bytes` from group to group. `starts` [step][SCORE_ROWS] int32 get
    -128 times the sum of each row's step (see `make_byte_score`)."""
    pairs = ir.VectorType(I16, STEP // 2)

    with cgutils.for_range_slice(e.b, I64(0), groups, I64(1)) as (g, _):
        source, group_at = e.at(rows, e.b.mul(e.b.mul(g, I64(GROUP)), row_bytes)), e.at(values, e.b.mul(g, value_bytes))
        with cgutils.for_range_slice(e.b, I64(0), steps, I64(1)) as (i, _):
            at = e.b.mul(i, I64(STEP))
            four = [e.load(BYTES, e.at(e.at(source, e.b.mul(row_bytes, I64(r))), at)) for r in range(GROUP)]
            weighed = [dot_bytes(e, e.zero(INTS), ir.Constant(BYTES, [-128] * STEP), row) for row in four]
            start = e.at(starts, e.b.add(e.b.mul(i, I64(4 * SCORE_ROWS)), e.b.mul(g, I64(4 * GROUP))))
            e.store(e.b.sub(e.zero(ir.VectorType(I32, GROUP)), sums_of_four(e, weighed)), start, 4)
            for high in range(2):
                first_two, last_two = (unpack(e, BYTES, four[k], four[k + 1], high) for k in (0, 2))
                for half in range(2):
                    zipped = unpack(e, pairs, first_two, last_two, half)
                    e.store(zipped, e.at(group_at, e.b.add(e.b.mul(at, I64(GROUP)), I64(STEP * (2 * high + half)))))


def emit_byte_query(e: Emitter, numbers: Any, splits: Any, queries: Any, step_bytes: Any, scales: Any) -> None:
    """`byte_query(numbers, splits, queries, step_bytes, scales)`: `splits` times SPLIT float32 numbers of a query as
    unsigned bytes, 128 more than what they are rounded to, in [step][GROUP], steps `step_bytes` apart, with each
    split's scale.

    A split whose largest magnitude is below SMALLEST becomes zeros; one that holds no numbers is worth not-a-number.
    """
    floats, ints = ir.VectorType(F32, SPLIT), ir.VectorType(I32, SPLIT)
    words = ir.VectorType(I32, SPLIT // GROUP)

    kind = ir.FunctionType(I32, [ints])
    largest = cgutils.get_or_insert_function(e.b.module, kind, f"llvm.vector.reduce.umax.v{SPLIT}i32")
    with cgutils.for_range_slice(e.b, I64(0), splits, I64(1)) as (s, _):
        x = e.load(floats, e.at(numbers, e.b.mul(s, I64(4 * SPLIT))), 4)
        bits = e.b.and_(e.b.bitcast(x, ints), ir.Constant(ints, [0x7FFFFFFF] * SPLIT))
        top_bits = e.b.call(largest, [bits])
        top = e.b.bitcast(top_bits, F32)
        fits = e.b.and_(e.b.fcmp_ordered(">=", top, F32(SMALLEST)), e.b.icmp_unsigned("<", top_bits, I32(0x7F800000)))
        times = e.broadcast(e.b.select(fits, e.b.fdiv(F32(LARGEST_QUERY), top), F32(0.0)), SPLIT)
        whole = e.b.fptosi(e.call(f"llvm.rint.v{SPLIT}f32", floats, e.b.fmul(x, times)), ints)
        whole = e.b.select(e.broadcast(fits, SPLIT), whole, e.zero(ints))
        unsigned = e.b.add(whole, ir.Constant(ints, [128] * SPLIT))
        four = e.b.bitcast(e.b.trunc(unsigned, ir.VectorType(I8, SPLIT)), words)
        place = e.at(queries, e.b.mul(e.b.mul(s, I64(SPLIT // GROUP)), step_bytes))
        for i in range(SPLIT // GROUP):
            e.store(e.b.extract_element(four, I32(i)), e.at(place, e.b.mul(step_bytes, I64(i))), 4)
        of_split = e.b.mul(s, step_bytes)
        worth = e.b.select(fits, e.b.fdiv(top, F32(LARGEST_QUERY)), e.b.fmul(top, F32(0.0)))
        e.store(worth, e.at(scales, of_split), 4)


def make_byte_score(panels: int) -> Any:
    """`byte_score(rows, row_bytes, queries, step_bytes, splits, starts, query_scales, row_scales, scores, score_bytes,
    next)`: scores = row . query * row_scale * query_scale for SCORE_ROWS rows of int8 and `panels * LANES` queries.
    Meanwhile as many bytes from `next` on are asked for as the rows take.

    Queries lie as [step][query][GROUP] unsigned bytes, `step_bytes` from step to step. `starts` [split][SCORE_ROWS]
    have what the 128 that were added to a query's numbers have to lose again; of each SPLIT numbers of a query
    `query_scales` has the scale, `step_bytes` from one to the next. Scores lie as [row][query] float32.
    """

    def emit(
        e: Emitter, rows: Any, row_bytes: Any, queries: Any, step_bytes: Any, splits: Any, starts: Any,
        query_scales: Any, row_scales: Any, scores: Any, score_bytes: Any, following: Any,
    ) -> None:  # fmt: skip
        totals, sums = e.variables(INTS, SCORE_ROWS * panels), e.variables(FLOATS, SCORE_ROWS * panels)
        row_at = [e.at(rows, e.b.mul(row_bytes, I64(r))) for r in range(SCORE_ROWS)]
        per_split = SPLIT // GROUP
        with cgutils.for_range_slice(e.b, I64(0), splits, I64(1)) as (s, _):
            start_at = e.at(starts, e.b.mul(s, I64(4 * SCORE_ROWS)))
            for r in range(SCORE_ROWS):
                start = e.broadcast(e.load(I32, e.at(start_at, 4 * r), 4), LANES)
                for p in range(panels):
                    e.b.store(start, totals[r * panels + p])
            first = e.b.mul(s, I64(per_split))
            with cgutils.for_range_slice(e.b, first, e.b.add(first, I64(per_split)), I64(1)) as (i, _):
                column = e.at(queries, e.b.mul(i, step_bytes))
                e.prefetch(e.at(following, e.b.mul(i, I64(GROUP * SCORE_ROWS))))
                y = [e.load(INTS, e.at(column, p * LANES * 4), 4) for p in range(panels)]
                for r in range(SCORE_ROWS):
                    x = e.broadcast(e.load(I32, e.at(row_at[r], e.b.mul(i, I64(GROUP)))), LANES)
                    for p in range(panels):
                        total = totals[r * panels + p]
                        e.b.store(dot_bytes(e, e.b.load(total), y[p], x), total)
            for p in range(panels):
                scale = e.load(FLOATS, e.at(e.at(query_scales, e.b.mul(s, step_bytes)), p * LANES * 4), 4)
                for r in range(SCORE_ROWS):
                    total, cell = e.b.load(totals[r * panels + p]), sums[r * panels + p]
                    e.b.store(e.fma(e.b.load(cell), e.b.sitofp(total, FLOATS), scale), cell)
        for r in range(SCORE_ROWS):
            row_scale = e.broadcast(e.load(F32, e.at(row_scales, 4 * r), 4), LANES)
            for p in range(panels):
                place = e.at(e.at(scores, e.b.mul(score_bytes, I64(r))), p * LANES * 4)
                e.store(e.b.fmul(e.b.load(sums[r * panels + p]), row_scale), place, 4)

    return returning_nothing(emit, 11, f"byte_score_{panels}")


byte_query = returning_nothing(emit_byte_query, 5, "byte_query")
byte_zip = returning_nothing(emit_byte_zip, 7, "byte_zip")
byte_score_one, byte_score_two = make_byte_score(1), make_byte_score(2)
byte_value = make_value("byte_value", VALUE_PANELS, dot_bytes)
byte_softmax = make_softmax("byte_softmax", GROUP, diffused=True)
