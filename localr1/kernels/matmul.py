"""A block of weight rows times a group of packed activation rows, as float sums not yet scaled.

Owns the choice between the two integer loops: up to FEW rows share one streaming pass over each weight row; more go
through register tiles, for which the weights are widened once a block. It knows nothing of what the rows mean.

Sums lie token by token: `sums[i * block + r]` is weight row r times activation row i, where there are up to `block`
weight rows.
"""

import numpy as np

from localr1.kernels import byte_products, intrinsics
from localr1.kernels.byte_products import LONG_ROW, MOST_ROWS, STEP
from localr1.kernels.features import APART, BYTE_PRODUCTS, CHUNK, LANES
from localr1.kernels.intrinsics import MAX_STEPS, QUAD, SHORT_ROW, TILE_PANELS, TILE_ROWS, WEIGHT_ROWS
from localr1.kernels.jit import address_of, compiled, int8_at, stay_out_of_line, used
from localr1.kernels.packing import FEW, padded, part_steps

ROW_BLOCK = 8 * TILE_ROWS  # and a multiple of LANES
"""Weight rows of one task where activation rows go through tiles."""

TASK_ROWS = 64
"""Weight rows of one task at most where they do not."""

TASKS_AT_ONCE = 8
"""So many of these at a time keep a thread's stream from memory unbroken; towards a phase's end there are fewer."""

DEPTH = 2 * MAX_STEPS
"""Weights of a row that are widened at a time."""

WIDE_STRIDE = DEPTH + 32  # not a power of two, so that the rows of a tile fall into different cache sets

dot_1, dot_2, dot_3, dot_4 = intrinsics.dot_1, intrinsics.dot_2, intrinsics.dot_3, intrinsics.dot_4
quad_1, quad_2, quad_3, quad_4 = intrinsics.quad_1, intrinsics.quad_2, intrinsics.quad_3, intrinsics.quad_4
dot_5, dot_6, dot_7, dot_8 = intrinsics.dot_5, intrinsics.dot_6, intrinsics.dot_7, intrinsics.dot_8
rows_1, rows_2, rows_3, rows_4 = byte_products.rows_1, byte_products.rows_2, byte_products.rows_3, byte_products.rows_4
rows_5, rows_6 = byte_products.rows_5, byte_products.rows_6
rows_1_long = byte_products.rows_1_long
widen_chunks, transpose = intrinsics.widen_chunks, intrinsics.transpose
tile_1, tile_2, tile_3, tile_4 = intrinsics.tile_1, intrinsics.tile_2, intrinsics.tile_3, intrinsics.tile_4


@compiled(inline=True)
def sums_size(n, block):  # type: ignore[no-untyped-def]
    """Floats that the sums of n activation rows take, for up to `block` weight rows."""
    return (n + LANES - 1) // LANES * LANES * block


@compiled(inline=True)
def task_rows(n, rows_in_all, threads):  # type: ignore[no-untyped-def]
    """Weight rows of a task for n activation rows, so many that every thread takes several times."""
    return ROW_BLOCK if n > FEW else max(32, min(TASK_ROWS, rows_in_all // (4 * TASKS_AT_ONCE * threads) // 8 * 8))


@compiled(inline=True)
def tasks_at_once(n):  # type: ignore[no-untyped-def]
    """How many tasks a thread may take at a time, for n activation rows."""
    return 1 if n > FEW else TASKS_AT_ONCE


@compiled(inline=True)
def dot(n, weights, row_stride, packed, chunks, sums, sum_stride):  # type: ignore[no-untyped-def]
    """WEIGHT_ROWS of n weight rows times n packed rows; all but n as `intrinsics.make_dot` says."""
    if n == 1:
        dot_1(weights, row_stride, packed, chunks, sums, sum_stride)
    elif n == 2:
        dot_2(weights, row_stride, packed, chunks, sums, sum_stride)
    elif n == 3:
        dot_3(weights, row_stride, packed, chunks, sums, sum_stride)
    elif n == 4:
        dot_4(weights, row_stride, packed, chunks, sums, sum_stride)
    elif n == 5:
        dot_5(weights, row_stride, packed, chunks, sums, sum_stride)
    elif n == 6:
        dot_6(weights, row_stride, packed, chunks, sums, sum_stride)
    elif n == 7:
        dot_7(weights, row_stride, packed, chunks, sums, sum_stride)
    else:
        dot_8(weights, row_stride, packed, chunks, sums, sum_stride)


@compiled(inline=True)
def quad(n, weights, row_stride, packed, chunks, sums, sum_stride):  # type: ignore[no-untyped-def]
    """QUAD weight rows times up to QUAD packed rows; as `intrinsics.make_dot` says."""
    if n == 1:
        quad_1(weights, row_stride, packed, chunks, sums, sum_stride)
    elif n == 2:
        quad_2(weights, row_stride, packed, chunks, sums, sum_stride)
    elif n == 3:
        quad_3(weights, row_stride, packed, chunks, sums, sum_stride)
    else:
        quad_4(weights, row_stride, packed, chunks, sums, sum_stride)


@compiled(inline=True)
def multiply_words(q, rows, K, packed, n, sums, block):  # type: ignore[no-untyped-def]
    """Some rows at a time; what is left of a row after whole chunks is copied and padded with zeros."""
    whole_chunks = K // CHUNK
    rest = K - whole_chunks * CHUNK
    in_quads = n <= QUAD and (APART or (K <= SHORT_ROW and rest == 0))
    taken = QUAD if in_quads else WEIGHT_ROWS[n]
    whole = rows // taken
    tails, dots = np.zeros((QUAD, CHUNK), np.int8), np.empty((QUAD, LANES), np.float32)
    packed_at, dots_at = address_of(packed), address_of(dots)
    for part in range(2 if rest else 1):
        for turn in range(whole + rows - whole * taken):
            many, first, between = taken, turn if APART else turn * taken, whole if APART else 1
            if turn >= whole:  # a row that is left by itself
                many, first, between = 1, whole * taken + turn - whole, 0
            weights, stride = q + first * K, between * K
            if part:
                for w in range(many):
                    for i in range(rest):
                        tails[w, i] = int8_at(q + (first + w * between) * K + whole_chunks * CHUNK + i)
                weights, stride = address_of(tails), CHUNK
            chunks, x = (1, packed_at + whole_chunks * n * CHUNK * 2) if part else (whole_chunks, packed_at)
            if in_quads:
                quad(n, weights, stride, x, chunks, dots_at, LANES * 4)
            else:
                dot(n, weights, stride, x, chunks, dots_at, LANES * 4)
            for w in range(many):
                for i in range(n):
                    at = i * block + first + w * between
                    sums[at] = dots[w, i] + (sums[at] if part else np.float32(0.0))
    used(tails)
    used(dots)


@compiled(inline=True)
def rows_in_bytes(n, q, row_bytes, length, rows, x, step_bytes, sums, sum_stride, add):  # type: ignore[no-untyped-def]
    """All but n as `byte_products.make_rows` says."""
    if n == 1 and length >= LONG_ROW:
        rows_1_long(q, row_bytes, length, rows, x, step_bytes, sums, sum_stride, add)
    elif n == 1:
        rows_1(q, row_bytes, length, rows, x, step_bytes, sums, sum_stride, add)
    elif n == 2:
        rows_2(q, row_bytes, length, rows, x, step_bytes, sums, sum_stride, add)
    elif n == 3:
        rows_3(q, row_bytes, length, rows, x, step_bytes, sums, sum_stride, add)
    elif n == 4:
        rows_4(q, row_bytes, length, rows, x, step_bytes, sums, sum_stride, add)
    elif n == 5:
        rows_5(q, row_bytes, length, rows, x, step_bytes, sums, sum_stride, add)
    else:
        rows_6(q, row_bytes, length, rows, x, step_bytes, sums, sum_stride, add)


@compiled(inline=True)
def multiply_bytes(q, rows, K, packed, n, sums, block):  # type: ignore[no-untyped-def]
    """As `multiply_words`, of rows packed in bytes: all rows' first parts, then their second."""
    part, turns = part_steps(K, n) * STEP, (n + MOST_ROWS - 1) // MOST_ROWS
    taken = (n + turns - 1) // turns
    for first in range(0, K, part):
        length, x = min(part, K - first), address_of(packed) + 2 * n * (first // part) * (STEP + part)
        for i in range(0, n, taken):
            turn_x, turn_sums = x + 2 * STEP * i, address_of(sums) + block * 4 * i
            few = min(taken, n - i)
            rows_in_bytes(few, q + first, K, length, rows, turn_x, 2 * STEP * n, turn_sums, block * 4, first)
    used(packed)
    used(sums)


multiply_few = multiply_bytes if BYTE_PRODUCTS else multiply_words


@compiled(inline=True)
def widen_rows(q, rows, K, begin, depth, wide):  # type: ignore[no-untyped-def]
    """Weights begin .. begin + depth of each row as int16; rows up to a whole tile and an odd last weight become
    zeros."""
    for r in range((rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS):
        place, source = r * WIDE_STRIDE, q + r * K + begin
        if r < rows:
            whole = depth // CHUNK
            widen_chunks(source, address_of(wide) + 2 * place, whole)
            for i in range(whole * CHUNK, depth):
                wide[place + i] = int8_at(source + i)
            wide[place + depth] = 0
        else:
            wide[place : place + depth + 1] = 0


@compiled(inline=True)
def tile(panels, weights, activations, panel_bytes, pairs, place):  # type: ignore[no-untyped-def]
    """TILE_ROWS widened weight rows times some panels, added to the tiles at `place` (see `intrinsics.make_tile`)."""
    row_bytes, sum_bytes = WIDE_STRIDE * 2, ROW_BLOCK * LANES * 4
    if panels == 1:
        tile_1(weights, row_bytes, activations, panel_bytes, pairs, place, sum_bytes)
    elif panels == 2:
        tile_2(weights, row_bytes, activations, panel_bytes, pairs, place, sum_bytes)
    elif panels == 3:
        tile_3(weights, row_bytes, activations, panel_bytes, pairs, place, sum_bytes)
    else:
        tile_4(weights, row_bytes, activations, panel_bytes, pairs, place, sum_bytes)


@compiled(inline=True)
def multiply_many(q, rows, K, packed, n, sums, block, wide, tiles):  # type: ignore[no-untyped-def]
    panels = (n + LANES - 1) // LANES
    turns = (panels + TILE_PANELS - 1) // TILE_PANELS
    panel_bytes = padded(K) * LANES * 2
    tiles[: panels * ROW_BLOCK * LANES] = 0
    for begin in range(0, K, DEPTH):
        depth = min(DEPTH, K - begin)
        pairs = (depth + 1) // 2
        widen_rows(q, rows, K, begin, depth, wide)
        for turn in range(turns):
            p, next_p = turn * panels // turns, (turn + 1) * panels // turns
            activations = address_of(packed) + p * panel_bytes + begin * LANES * 2
            for r in range(0, rows, TILE_ROWS):
                weights = address_of(wide) + r * WIDE_STRIDE * 2
                place = address_of(tiles) + (p * ROW_BLOCK + r) * LANES * 4
                tile(next_p - p, weights, activations, panel_bytes, pairs, place)

    for p in range(panels):
        for r in range(0, ROW_BLOCK, LANES):
            source = address_of(tiles) + (p * ROW_BLOCK + r) * LANES * 4
            place = address_of(sums) + (p * LANES * block + r) * 4
            transpose(source, LANES * 4, place, block * 4, LANES)


@compiled()
def multiply(q, rows, K, packed, n, sums, block, scratch):  # type: ignore[no-untyped-def]
    """`rows` int8 rows of K weights that lie at address `q`, times n packed rows, into `sums`.

    `block` is what `task_rows` and `tasks_at_once` allow for at least n, and rows are no more; `scratch` is from
    `make_scratch`.
    """
    stay_out_of_line()
    if n <= FEW:
        multiply_few(q, rows, K, packed, n, sums, block)
    else:
        multiply_many(q, rows, K, packed, n, sums, block, scratch[0], scratch[1])


@compiled(inline=True)
def make_scratch(n):  # type: ignore[no-untyped-def]
    """Room for `multiply` with up to n activation rows: widened weights, and sums as the tiles leave them."""
    if n <= FEW:
        return np.empty(1, np.int16), np.empty(1, np.float32)
    panels = (n + LANES - 1) // LANES
    return np.empty(ROW_BLOCK * WIDE_STRIDE, np.int16), np.empty(panels * ROW_BLOCK * LANES, np.float32)
