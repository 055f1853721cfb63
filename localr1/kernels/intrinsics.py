"""The innermost loops: products of int8 weights with int16 activations, and what prepares their operands.

Owns the instructions and nothing of memory (see `emitter`).

Invariant of the integer loops: at most `MAX_STEPS` products of two pairs are added into an int32 before the sum moves
to a float, so that no row is long enough to overflow (2 * 128 * 32767 * 256 < 2^31).
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from localr1.kernels.arena import LINE_BYTES
from localr1.kernels.emitter import F32, FIRST_LEVEL, I8, I16, I32, I64, SECOND_LEVEL, Emitter, returning_nothing
from localr1.kernels.features import APART, BITS, CHUNK, LANES, STREAM_AHEAD_BYTES, STREAMS, SUMS

MAX_STEPS = 256
MAX_ACTIVATION = 32767
PREFETCH_AHEAD_BYTES = STREAM_AHEAD_BYTES if APART else 0 if BITS == 512 else 1024
PREFETCH_LEVEL = SECOND_LEVEL if APART else FIRST_LEVEL
"""How far ahead of a weight row's loop memory is asked for, and into which cache. In one stream Zen 3 gains by asking
into the first level; Zen 4 loses a fifth (into the second it gains: `byte_products`)."""


WEIGHT_ROWS = tuple(2 if 3 <= rows <= SUMS // 2 else 1 for rows in range(9))
"""How many weight rows are taken at once for so many activation rows: with two, each activation is loaded half as
often."""

SHORT_ROW = 512
"""Weights of a row up to which QUAD rows are taken at once for up to QUAD activation rows: a row is over too soon to
hide the adding up of its lanes."""

QUAD = 4


def make_dot(rows: int, taken: int) -> Any:
    """`dot(weights, row_stride, activations, chunks, sums, sum_stride)`: the `taken` weight rows that lie `row_stride`
    bytes apart, times `rows` packed activation rows.

    Activations lie as [chunk][row][CHUNK] int16; `rows` floats are written for each weight row, `sum_stride` bytes
    apart.
    """
    int_kind, float_kind = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
    cells = [(w, r) for w in range(taken) for r in range(rows)]
    unroll = max(u for u in (1, 2, 4) if u == 1 or u * len(cells) <= SUMS)
    width = max(unroll, LINE_BYTES // CHUNK) if taken == QUAD else unroll

    def step(e: Emitter, totals: dict[Any, Any], at: list[Any], activation: Any, u: int) -> None:
        wide = []
        for address in at:
            narrow = e.load(ir.VectorType(I8, CHUNK), e.at(address, u * CHUNK))
            wide.append(e.b.sext(narrow, ir.VectorType(I16, CHUNK)))
        for r in range(rows):
            x = e.load(ir.VectorType(I16, CHUNK), e.at(activation, (u * rows + r) * CHUNK * 2))
            for w in range(taken):
                total = totals[w, r, u % unroll]
                e.b.store(e.multiply_add(e.b.load(total), x, wide[w]), total)

    def emit(
        e: Emitter, weights: Any, row_stride: Any, activations: Any, chunks: Any, sums: Any, sum_stride: Any
    ) -> None:
        floats = dict(zip(cells, e.variables(float_kind, len(cells)), strict=True))
        keys = [(w, r, u) for w, r in cells for u in range(unroll)]
        totals = dict(zip(keys, e.variables(int_kind, len(keys)), strict=True))

        def run(first: Any, last: Any, width: int) -> None:
            with cgutils.for_range_slice(e.b, first, last, I64(width)) as (i, _):
                offset = e.b.mul(i, I64(CHUNK))
                at = [e.at(e.at(weights, e.b.mul(row_stride, I64(w))), offset) for w in range(taken)]
                for address in at if PREFETCH_AHEAD_BYTES else ():
                    for line in range(0, max(width * CHUNK, 64), 64):
                        e.prefetch(e.at(address, PREFETCH_AHEAD_BYTES + line), PREFETCH_LEVEL)
                activation = e.at(activations, e.b.mul(i, I64(rows * CHUNK * 2)))
                for u in range(width):
                    step(e, totals, at, activation, u)

        block = I64((MAX_STEPS - width) * unroll)  # what is behind its last whole width goes to one sum
        with cgutils.for_range_slice(e.b, I64(0), chunks, block) as (first, _):
            end = e.b.add(first, block)
            last = e.b.select(e.b.icmp_signed("<", end, chunks), end, chunks)
            count = e.b.sub(last, first)
            even = e.b.add(first, e.b.sub(count, e.b.srem(count, I64(width))))
            run(first, even, width)
            if width > 1:
                run(even, last, 1)
            for key, total in totals.items():
                place = floats[key[:2]]
                as_float = e.b.sitofp(e.b.load(total), float_kind)
                e.b.store(e.b.fadd(e.b.load(place), as_float), place)
                e.b.store(e.zero(int_kind), total)
        for (w, r), place in floats.items():
            row_sums = e.at(sums, e.b.mul(sum_stride, I64(w)))
            e.store(e.sum_lanes(e.b.load(place)), e.at(row_sums, 4 * r), 4)

    return returning_nothing(emit, 6, f"dot_{rows}" if taken < QUAD else f"dot_quad_{rows}")


TILE_ROWS = 6
"""Weight rows of a tile. Ice Lake multiplies twice a cycle in tiles of 6 rows, and once where 8 meet three panels."""

TILE_PANELS = 4 if BITS == 512 else 2
"""Panels of a tile at most: their sums, activations and a weight fill the registers."""


def make_tile(panels: int) -> Any:
    """`tile(weights, row_stride, activations, panel_stride, pairs, sums, sum_stride)`: TILE_ROWS weight rows, already
    widened to int16, times `panels` panels of LANES tokens; adds to `sums`.

    A panel lies as [pair][LANES][2] int16; sums lie as [panel][row][LANES] float, `sum_stride` bytes from panel to
    panel. At most MAX_STEPS pairs.
    """
    int_kind, float_kind = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
    pair_kind = ir.VectorType(I16, CHUNK)

    def emit(
        e: Emitter,
        weights: Any,
        row_stride: Any,
        activations: Any,
        panel_stride: Any,
        pairs: Any,
        sums: Any,
        sum_stride: Any,
    ) -> None:
        totals = e.variables(int_kind, TILE_ROWS * panels)
        row_at = [e.at(weights, e.b.mul(row_stride, I64(r))) for r in range(TILE_ROWS)]
        panel_at = [e.at(activations, e.b.mul(panel_stride, I64(p))) for p in range(panels)]
        with cgutils.for_range_slice(e.b, I64(0), pairs, I64(1)) as (i, _):
            x = [e.load(pair_kind, e.at(base, e.b.mul(i, I64(4 * LANES)))) for base in panel_at]
            for r in range(TILE_ROWS):
                pair = e.load(I32, e.at(row_at[r], e.b.mul(i, I64(4))), 4)
                weight = e.b.bitcast(e.broadcast(pair, LANES), pair_kind)
                for p in range(panels):
                    total = totals[p * TILE_ROWS + r]
                    e.b.store(e.multiply_add(e.b.load(total), x[p], weight), total)
        for p in range(panels):
            for r in range(TILE_ROWS):
                place = e.at(e.at(sums, e.b.mul(sum_stride, I64(p))), r * LANES * 4)
                as_float = e.b.sitofp(e.b.load(totals[p * TILE_ROWS + r]), float_kind)
                e.store(e.b.fadd(e.load(float_kind, place), as_float), place)

    return returning_nothing(emit, 7, f"tile_{panels}")


def emit_widen(e: Emitter, source: Any, place: Any, chunks: Any) -> None:
    """`widen_chunks(source, place, chunks)`: whole chunks of int8 to int16."""
    with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (i, _):
        at = e.b.mul(i, I64(CHUNK))
        narrow = e.load(ir.VectorType(I8, CHUNK), e.at(source, at))
        e.store(e.b.sext(narrow, ir.VectorType(I16, CHUNK)), e.at(place, e.b.mul(at, I64(2))))


def emit_read(e: Emitter, source: Any, kilobytes: Any, place: Any) -> None:
    """`read(source, kilobytes, place)`: read these, in STREAMS places at once, and then what is left; one int64 that
    depends on all of them goes to `place`."""
    kind = ir.VectorType(I64, 8)
    totals = e.variables(kind, 4)

    def run(starts: list[Any], count: Any) -> None:
        with cgutils.for_range_slice(e.b, I64(0), count, I64(1)) as (i, _):
            for line in range(0, 1024, LINE_BYTES):
                for stream, start in enumerate(starts):
                    at = e.at(e.at(start, e.b.mul(i, I64(1024))), line)
                    if len(starts) > 1:
                        e.prefetch(e.at(at, STREAM_AHEAD_BYTES), SECOND_LEVEL)
                    total = totals[(line // LINE_BYTES + stream) % 4]
                    e.b.store(e.b.add(e.b.load(total), e.load(kind, at)), total)

    share = e.b.sdiv(kilobytes, I64(STREAMS))
    starts = [e.at(source, e.b.mul(share, I64(1024 * stream))) for stream in range(STREAMS + 1)]
    run(starts[:STREAMS], share)
    if STREAMS > 1:
        run(starts[STREAMS:], e.b.srem(kilobytes, I64(STREAMS)))
    both = [e.b.add(e.b.load(totals[0]), e.b.load(totals[1])), e.b.add(e.b.load(totals[2]), e.b.load(totals[3]))]
    function = ir.FunctionType(I64, [kind])
    add = cgutils.get_or_insert_function(e.b.module, function, "llvm.vector.reduce.add.v8i64")
    e.store(e.b.call(add, [e.b.add(*both)]), place, 8)


def make_round(run: int) -> Any:
    """`round(source, times_bits, place, stride, runs)`: floats times a factor (its float32 bits), rounded to int16,
    `run` at a time, written `stride` bytes apart."""

    def emit(e: Emitter, source: Any, times_bits: Any, place: Any, stride: Any, runs: Any) -> None:
        kind = ir.VectorType(F32, run)
        times = e.broadcast(e.b.bitcast(e.b.trunc(times_bits, I32), F32), run)
        with cgutils.for_range_slice(e.b, I64(0), runs, I64(1)) as (i, _):
            x = e.load(kind, e.at(source, e.b.mul(i, I64(4 * run))), 4)
            whole = e.call(f"llvm.rint.v{run}f32", kind, e.b.fmul(x, times))
            as_int = e.b.fptosi(whole, ir.VectorType(I32, run))
            e.store(e.b.trunc(as_int, ir.VectorType(I16, run)), e.at(place, e.b.mul(i, stride)), 2)

    return returning_nothing(emit, 5, f"round_{run}")


def emit_largest(e: Emitter, source: Any, vectors: Any, place: Any) -> None:
    """`largest(source, vectors, place)`: the largest magnitude among whole vectors of float32, as its bits (an int32):
    magnitudes compare like their bits, and infinity and not-a-number come out on top."""
    kind = ir.VectorType(I32, LANES)
    mask = ir.Constant(kind, [0x7FFFFFFF] * LANES)
    (top,) = e.variables(kind, 1)
    with cgutils.for_range_slice(e.b, I64(0), vectors, I64(1)) as (i, _):
        bits = e.b.and_(e.load(kind, e.at(source, e.b.mul(i, I64(4 * LANES))), 4), mask)
        so_far = e.b.load(top)
        e.b.store(e.b.select(e.b.icmp_signed(">", bits, so_far), bits, so_far), top)
    function = cgutils.get_or_insert_function(
        e.b.module, ir.FunctionType(I32, [kind]), f"llvm.vector.reduce.smax.v{LANES}i32"
    )
    e.store(e.b.call(function, [e.b.load(top)]), place, 4)


def emit_transpose(e: Emitter, source: Any, row_bytes: Any, place: Any, out_bytes: Any, columns: Any) -> None:
    """`transpose(source, row_bytes, place, out_bytes, columns)`: LANES rows of 32-bit numbers to `columns` rows of
    LANES; `columns` is a multiple of LANES."""
    lane = ir.VectorType(I32, LANES)
    with cgutils.for_range_slice(e.b, I64(0), columns, I64(LANES)) as (i, _):
        rows = []
        for r in range(LANES):
            row = e.at(source, e.b.mul(row_bytes, I64(r)))
            rows.append(e.load(lane, e.at(row, e.b.mul(i, I64(4))), 4))
        for k, column in enumerate(transposed(e, rows)):
            e.store(column, e.at(place, e.b.mul(e.b.add(i, I64(k)), out_bytes)), 4)


def transposed(e: Emitter, rows: list[Any]) -> list[Any]:
    """A square of vectors transposed in log2(n) rounds of exchanges between vectors whose numbers differ in one bit."""
    n = len(rows)
    index = ir.VectorType(I32, n)
    distance = n // 2
    while distance:
        low = ir.Constant(index, [j if not j & distance else n + j - distance for j in range(n)])
        high = ir.Constant(index, [j + distance if not j & distance else n + j for j in range(n)])
        exchanged = list(rows)
        for i in range(n):
            if not i & distance:
                exchanged[i] = e.b.shuffle_vector(rows[i], rows[i + distance], low)
                exchanged[i + distance] = e.b.shuffle_vector(rows[i], rows[i + distance], high)
        rows = exchanged
        distance //= 2
    return rows


dot_1, dot_2, dot_3, dot_4, dot_5, dot_6, dot_7, dot_8 = (make_dot(rows, WEIGHT_ROWS[rows]) for rows in range(1, 9))
quad_1, quad_2, quad_3, quad_4 = make_dot(1, QUAD), make_dot(2, QUAD), make_dot(3, QUAD), make_dot(4, QUAD)
read_kilobytes = returning_nothing(emit_read, 3, "read_kilobytes")
widen_chunks = returning_nothing(emit_widen, 3, "widen_chunks")
largest_of_vectors = returning_nothing(emit_largest, 3, "largest_of_vectors")
transpose = returning_nothing(emit_transpose, 5, "transpose")
round_chunks = make_round(CHUNK)
tile_1, tile_2, tile_3, tile_4 = make_tile(1), make_tile(2), make_tile(3), make_tile(4)
