"""The innermost loops of attention where a group has few queries: LANES cache rows lie side by side in a vector.

Owns the instructions and nothing of memory (see `emitter`). A tile of `attention_loops` has a lane for each query; with
three queries most of its lanes would be idle. Here a query is multiplied by one row at a time, along the numbers of the
key, and the LANES sums of LANES rows are added up together.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from localr1.kernels.arena import LINE_BYTES
from localr1.kernels.attention_loops import emit_exp, load_bf16
from localr1.kernels.emitter import F32, I32, I64, SECOND_LEVEL, Emitter, returning_nothing
from localr1.kernels.features import LANES

FLOATS = ir.VectorType(F32, LANES)
VECTOR_BYTES = 4 * LANES


def make_spread_keys(bf16: bool) -> Any:
    """`spread_keys(keys, row_bytes, rows, chunks, place)`: up to LANES rows of `chunks` times LANES numbers, bfloat16
    or float32, as [chunk][row][LANES] float32."""

    def emit(e: Emitter, keys: Any, row_bytes: Any, rows: Any, chunks: Any, place: Any) -> None:
        with cgutils.for_range_slice(e.b, I64(0), rows, I64(1)) as (r, _):
            row, target = e.at(keys, e.b.mul(r, row_bytes)), e.at(place, e.b.mul(r, I64(VECTOR_BYTES)))
            with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (i, _):
                source = e.at(row, e.b.mul(i, I64(LANES * (2 if bf16 else 4))))
                numbers = load_bf16(e, source, LANES) if bf16 else e.load(FLOATS, source, 4)
                e.store(numbers, e.at(target, e.b.mul(i, I64(LANES * VECTOR_BYTES))), 4)

    return returning_nothing(emit, 5, f"spread_keys_{16 if bf16 else 32}")


def add_up(e: Emitter, vectors: list[Any]) -> Any:
    """Of LANES vectors, a vector of their sums: two become one that holds half as many partial sums of each."""
    width = LANES
    while width > 1:
        half, pairs = width // 2, len(vectors) // 2
        low = [j + (j // half % 2) * (LANES - half) for j in range(LANES)]
        picks = [ir.Constant(ir.VectorType(I32, LANES), [j + k * half for j in low]) for k in range(2)]
        joined = zip(vectors[:pairs], vectors[pairs:], strict=True)
        vectors = [e.b.fadd(*(e.b.shuffle_vector(a, b, pick) for pick in picks)) for a, b in joined]
        width = half
    return vectors[0]


def emit_few_scores(e: Emitter, keys: Any, query: Any, chunks: Any, scores: Any) -> None:
    """`few_scores(keys, query, chunks, scores)`: the products of one query with LANES keys, which lie as
    [chunk][row][LANES] float32."""
    totals = e.variables(FLOATS, LANES)
    with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (i, _):
        part = e.load(FLOATS, e.at(query, e.b.mul(i, I64(VECTOR_BYTES))), 4)
        key = e.at(keys, e.b.mul(i, I64(LANES * VECTOR_BYTES)))
        for r, total in enumerate(totals):
            e.b.store(e.fma(e.b.load(total), e.load(FLOATS, e.at(key, r * VECTOR_BYTES), 4), part), total)
    e.store(add_up(e, [e.b.load(total) for total in totals]), scores, 4)


def emit_few_softmax(e: Emitter, scores: Any, chunks: Any, highest: Any, total: Any, shrink: Any) -> None:
    """`few_softmax(scores, chunks, highest, total, shrink)`: `chunks` times LANES scores of one query to weights,
    exp(score - highest). The highest score and the sum of weights so far, a float32 each, are brought up to date, and
    what earlier weights must be multiplied by is written."""

    def reduced(name: str, vector: Any, *first: Any) -> Any:
        kind = ir.FunctionType(F32, [*[F32] * len(first), FLOATS])
        function = cgutils.get_or_insert_function(e.b.module, kind, f"llvm.vector.reduce.{name}.v{LANES}f32")
        return e.b.call(function, [*first, vector], fastmath=("reassoc",))

    top, added = e.variables(FLOATS, 2)
    before = e.load(F32, highest, 4)
    e.b.store(e.broadcast(before, LANES), top)
    with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (i, _):
        score, so_far = e.load(FLOATS, e.at(scores, e.b.mul(i, I64(VECTOR_BYTES))), 4), e.b.load(top)
        e.b.store(e.b.select(e.b.fcmp_ordered(">", score, so_far), score, so_far), top)
    now = reduced("fmax", e.b.load(top))
    base = e.b.select(e.b.fcmp_ordered(">", now, F32(float("-inf"))), now, F32(0.0))
    base_all = e.broadcast(base, LANES)
    with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (i, _):
        place = e.at(scores, e.b.mul(i, I64(VECTOR_BYTES)))
        weight = emit_exp(e, e.b.fsub(e.load(FLOATS, place, 4), base_all))
        e.store(weight, place, 4)
        e.b.store(e.b.fadd(e.b.load(added), weight), added)
    factor = e.b.extract_element(emit_exp(e, e.broadcast(e.b.fsub(before, base), LANES)), I32(0))
    sum_before = e.b.fmul(e.load(F32, total, 4), factor)
    e.store(now, highest, 4)
    e.store(factor, shrink, 4)
    e.store(e.b.fadd(sum_before, reduced("fadd", e.b.load(added), F32(0.0))), total, 4)


def emit_ask_for(e: Emitter, first: Any, lines: Any) -> None:
    """`ask_for(first, lines)`: so many cache lines from an address on, which need not be there."""
    with cgutils.for_range_slice(e.b, I64(0), lines, I64(1)) as (i, _):
        e.prefetch(e.at(first, e.b.mul(i, I64(LINE_BYTES))), SECOND_LEVEL)


ask_for = returning_nothing(emit_ask_for, 2, "ask_for")
spread_bf16, spread_float = make_spread_keys(True), make_spread_keys(False)
few_scores = returning_nothing(emit_few_scores, 4, "few_scores")
few_softmax = returning_nothing(emit_few_softmax, 5, "few_softmax")
