"""Grouped-query attention in float32 where a group has few queries, as in decoding.

Knows one thread's part (see `attention`). A block of rows is gone through group by group: a few keys are widened for
all its queries, values as they are used. Meanwhile the next block is asked for into the second-level cache, since the
columns of one group in many rows are no stream that the processor would foresee.
"""

import numpy as np

from localr1.kernels.arena import LINE_BYTES, after, cube_at, line_at, private_room, room_start, rows_at
from localr1.kernels.attention_loops import (
    VALUE_PANELS,
    VALUE_ROWS,
    value_one,
    value_one_bf16,
    value_wide,
    value_wide_bf16,
)
from localr1.kernels.cache_rows import FLOAT32
from localr1.kernels.features import LANES
from localr1.kernels.few_query_loops import ask_for, few_scores, few_softmax, spread_bf16, spread_float
from localr1.kernels.jit import address_of, compiled, stay_out_of_line, used
from localr1.kernels.latent_attention import NEGATIVE_INFINITY

BLOCK = 32
"""Cache rows between two updates of the sums; a whole number of vectors."""


@compiled(inline=True)
def has_few_queries(queries, key_size, value_size):  # type: ignore[no-untyped-def]
    """Whether a lane for each row is faster than one for each query, and sizes are whole vectors."""
    return queries <= 2 * LANES and key_size % LANES == 0 and value_size % LANES == 0


@compiled(inline=True)
def score_block(kind, keys, row_bytes, rows, query_Qk, place, score_QB, following, lines):  # type: ignore[no-untyped-def]
    """score[q, r] = key r . query q for rows at an address; what is behind the last row is minus infinity."""
    Q, k = query_Qk.shape
    for first in range(0, rows, LANES):
        some, count = keys + first * row_bytes, min(LANES, rows - first)
        if kind == FLOAT32:
            spread_float(some, row_bytes, count, k // LANES, place)
        else:
            spread_bf16(some, row_bytes, count, k // LANES, place)
        for q in range(Q):
            few_scores(place, address_of(query_Qk[q]), k // LANES, address_of(score_QB[q]) + 4 * first)
            ask_for(following, lines)
            following += LINE_BYTES * lines
    score_QB[:, rows:] = NEGATIVE_INFINITY


@compiled(inline=True)
def add_values(kind, values, row_bytes, rows, weight_QB, sum_QV):  # type: ignore[no-untyped-def]
    """sum[q] += weight[q, r] * value r, for rows at an address."""
    Q, V = sum_QV.shape
    for q in range(0, Q, VALUE_ROWS):
        a, v = address_of(weight_QB[q]), 0
        while v < V:
            wide = V - v >= VALUE_PANELS * LANES
            b, c = values + 2 * kind * v, address_of(sum_QV[q]) + 4 * v
            if kind == FLOAT32:
                if wide:
                    value_wide(a, 4 * BLOCK, 4, b, row_bytes, rows, c, 4 * V)
                else:
                    value_one(a, 4 * BLOCK, 4, b, row_bytes, rows, c, 4 * V)
            elif wide:
                value_wide_bf16(a, 4 * BLOCK, 4, b, row_bytes, rows, c, 4 * V)
            else:
                value_one_bf16(a, 4 * BLOCK, 4, b, row_bytes, rows, c, 4 * V)
            v += VALUE_PANELS * LANES if wide else LANES


@compiled()
def attend_few(words_SW, kind, begin, end, query_GQk, geometry, place, result):  # type: ignore[no-untyped-def]
    """One thread's rows begin .. end of the cache, for all queries, as `float_attention.attend_run`."""
    stay_out_of_line()
    key_step, value_first, value_step, _, _ = geometry
    start, heads, scale = place
    highest_GP, total_GP, sum_GQV = result
    highest_GP[:] = NEGATIVE_INFINITY
    total_GP[:] = 0
    sum_GQV[:] = 0
    G, Q, k = query_GQk.shape
    rows_Q = sum_GQV.shape[1]
    room = private_room(4 * (G * Q * k + LANES * k + rows_Q * BLOCK + Q) + 3 * LINE_BYTES)
    query_at = room_start(room)
    key_at = after(query_at, G * Q * k, 4)
    score_at = after(key_at, LANES * k, 4)
    shrink_at = after(score_at, rows_Q * BLOCK, 4)
    scaled_GQk, score_QB = cube_at(query_at, G, Q, k), rows_at(score_at, rows_Q, BLOCK)
    shrink_Q = line_at(shrink_at, Q)
    for g in range(G):
        for q in range(Q):
            for i in range(k):
                scaled_GQk[g, q, i] = query_GQk[g, q, i] * scale
    score_QB[:] = 0
    row_bytes, number_bytes = 2 * words_SW.shape[1], 2 * kind
    share = BLOCK * row_bytes // G
    lines = share // (BLOCK // LANES * Q * LINE_BYTES) + 1
    for first in range(begin, end, BLOCK):
        rows = min(BLOCK, end - first)
        words = address_of(words_SW) + first * row_bytes
        following = words + BLOCK * row_bytes
        for g in range(G):
            keys, values = words + g * key_step * number_bytes, words + (value_first + g * value_step) * number_bytes
            score_block(kind, keys, row_bytes, rows, scaled_GQk[g], key_at, score_QB[:Q], following + g * share, lines)
            for q in range(Q):
                score_B = score_QB[q]
                score_B[max(0, min(rows, start + q // heads + 1 - first)) : rows] = NEGATIVE_INFINITY
                highest, total = address_of(highest_GP[g]) + 4 * q, address_of(total_GP[g]) + 4 * q
                few_softmax(address_of(score_B), BLOCK // LANES, highest, total, shrink_at + 4 * q)
                if shrink_Q[q] != np.float32(1.0):
                    sum_GQV[g, q] *= shrink_Q[q]
            add_values(kind, values, row_bytes, rows, score_QB, sum_GQV[g])
    used(room)
