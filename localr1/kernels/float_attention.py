"""Attention over any cache rows in float32: a block of rows is widened once and used for all queries.

Knows one thread's part (see `attention`).
"""

import numpy as np

from localr1.kernels.attention_loops import (
    SCORE_ROWS,
    VALUE_PANELS,
    VALUE_ROWS,
    score_4,
    score_8,
    score_all,
    score_two,
    value_one,
    value_wide,
)
from localr1.kernels.cache_rows import widen_latent
from localr1.kernels.features import LANES
from localr1.kernels.jit import address_of, compiled, copy_numbers, exp, stay_out_of_line, widen
from localr1.kernels.latent_attention import NEGATIVE_INFINITY, hide_later_rows


@compiled(inline=True)
def block_rows(width):  # type: ignore[no-untyped-def]
    """Cache rows to widen at a time: what fits into about 150 KB."""
    return max(16, min(64, 38_000 // width // SCORE_ROWS * SCORE_ROWS))


@compiled()
def widen_block(words_SW, halves, first, rows, width, values, wide_BW):  # type: ignore[no-untyped-def]
    """Cache rows of `width` numbers as float32; `words` are bfloat16 numbers (halves = 1), the two halves of float32
    numbers (2), or rows whose first `values` numbers are int8 (0; see `cache_rows`)."""
    for r in range(rows):
        words, place = words_SW[first + r], wide_BW[r]
        if halves == 2:
            copy_numbers(words.view(np.float32), place[:width])
        elif halves == 0:
            widen_latent(words, values, place[:width])
        else:
            for i in range(width):
                place[i] = widen(words[i])
    wide_BW[rows : (rows + SCORE_ROWS - 1) // SCORE_ROWS * SCORE_ROWS] = 0


@compiled(inline=True)
def block_scores(wide_BW, rows, key_first, query_kP, score_BP):  # type: ignore[no-untyped-def]
    """score[r, q] = key r . query q."""
    width, P = query_kP.shape
    row_bytes = wide_BW.shape[1] * 4
    score_BP[:] = 0
    for r in range(0, rows, SCORE_ROWS):
        a = address_of(wide_BW) + r * row_bytes + key_first * 4
        p = 0
        while p < P:
            b, c = address_of(query_kP) + p * 4, address_of(score_BP) + (r * P + p) * 4
            if P == 4:
                score_4(a, row_bytes, 4, b, P * 4, width, c, P * 4)
                p += 4
            elif P - p >= 2 * LANES:
                score_two(a, row_bytes, 4, b, P * 4, width, c, P * 4)
                p += 2 * LANES
            elif P - p >= LANES:
                score_all(a, row_bytes, 4, b, P * 4, width, c, P * 4)
                p += LANES
            else:
                score_8(a, row_bytes, 4, b, P * 4, width, c, P * 4)
                p += min(8, LANES)


@compiled(inline=True)
def add_values(wide_BW, rows, value_first, score_BP, sum_QV):  # type: ignore[no-untyped-def]
    """sum[q] += score[r, q] * value r."""
    Q, V = sum_QV.shape
    P = score_BP.shape[1]
    row_bytes = wide_BW.shape[1] * 4
    for q in range(0, Q, VALUE_ROWS):
        a = address_of(score_BP) + q * 4
        v = 0
        while v < V:
            b = address_of(wide_BW) + (value_first + v) * 4
            c = address_of(sum_QV) + (q * V + v) * 4
            if V - v >= VALUE_PANELS * LANES:
                value_wide(a, 4, P * 4, b, row_bytes, rows, c, V * 4)
                v += VALUE_PANELS * LANES
            else:
                value_one(a, 4, P * 4, b, row_bytes, rows, c, V * 4)
                v += LANES


@compiled()
def block_softmax(score_BP, rows, highest_P, total_P, shrink_P):  # type: ignore[no-untyped-def]
    """Scores to weights against the highest score so far; `shrink` is what earlier weights must be multiplied by."""
    P = highest_P.size
    for q in range(P):
        shrink_P[q] = highest_P[q]
    for r in range(rows):
        row = score_BP[r]
        for q in range(P):
            highest_P[q] = row[q] if row[q] > highest_P[q] else highest_P[q]
    for q in range(P):
        base = highest_P[q] if highest_P[q] > NEGATIVE_INFINITY else np.float32(0.0)
        shrink_P[q] = exp(shrink_P[q] - base)
        total_P[q] *= shrink_P[q]
    for r in range(rows):
        row = score_BP[r]
        for q in range(P):
            base = highest_P[q] if highest_P[q] > NEGATIVE_INFINITY else np.float32(0.0)
            weight = exp(row[q] - base)
            row[q] = weight
            total_P[q] += weight


@compiled(inline=True)
def turn_queries(query_GQk, scale, P):  # type: ignore[no-untyped-def]
    """Queries, scaled, as columns."""
    G, Q, k = query_GQk.shape
    query_GkP = np.zeros((G, k, P), np.float32)
    for g in range(G):
        for q in range(Q):
            for i in range(k):
                query_GkP[g, i, q] = query_GQk[g, q, i] * scale
    return query_GkP


@compiled()
def attend_run(words_SW, halves, begin, end, query_GQk, geometry, place, result):  # type: ignore[no-untyped-def]
    """One thread's rows begin .. end of the cache, for all queries."""
    stay_out_of_line()
    key_step, value_first, value_step, W, latent = geometry
    start, heads, scale = place
    highest_GP, total_GP, sum_GQV = result
    G, P = highest_GP.shape
    query_GkP = turn_queries(query_GQk, scale, P)
    block = block_rows(W)
    wide_BW = np.zeros((block, (W + 2 * LANES - 1) // LANES * LANES), np.float32)
    score_BP, shrink_P = np.empty((block, P), np.float32), np.empty(P, np.float32)
    highest_GP[:] = NEGATIVE_INFINITY
    total_GP[:] = 0
    sum_GQV[:] = 0
    for first in range(begin, end, block):
        rows = min(block, end - first)
        widen_block(words_SW, halves, first, rows, W, latent, wide_BW)
        for g in range(G):
            block_scores(wide_BW, rows, g * key_step, query_GkP[g], score_BP)
            if first + rows - 1 > start:
                hide_later_rows(score_BP, first, rows, start, heads)
            block_softmax(score_BP, rows, highest_GP[g], total_GP[g], shrink_P)
            sum_QV = sum_GQV[g]
            for q in range(sum_QV.shape[0]):
                if shrink_P[q] != np.float32(1.0):
                    sum_QV[q] *= shrink_P[q]
            add_values(wide_BW, rows, value_first + g * value_step, score_BP, sum_QV)
