"""Attention of a few tokens over int8 latents in bytes: twice the products of int16 a second.

Owns the rounding. A query's latent becomes int8, each SPLIT of its numbers against their largest; a block's softmax
weights, into which the rows' scales are folded, become unsigned bytes against the block's largest, and what rounding
leaves of one goes to the next: so the error of a result is about that which the int8 latents have by themselves. Rotary
keys, scores, the softmax and the sums over blocks are as in `latent_attention`.

Invariants: what a weight is rounded against depends on its row's place in the cache alone, since runs of rows of up to
593 numbers are cut between blocks, so one token gets the same result by itself and among others. No int32 sum
overflows: over a SPLIT of a query it stays below 256 * 128 * SPLIT, over a block's rows below 256 * 128 * BLOCK.
"""

import numpy as np

from localr1.kernels.attention_loops import LARGEST_BF16, SCORE_ROWS, VALUE_PANELS, VALUE_ROWS
from localr1.kernels.byte_attention_loops import (
    GROUP,
    SPLIT,
    byte_query,
    byte_score_one,
    byte_score_two,
    byte_softmax,
    byte_value,
    byte_zip,
)
from localr1.kernels.byte_products import STEP
from localr1.kernels.features import LANES
from localr1.kernels.jit import (
    address_of,
    bits_of_float,
    compiled,
    copy_numbers,
    floats_at,
    int8_at,
    stay_out_of_line,
    used,
)
from localr1.kernels.latent_attention import (
    BACK,
    HIGHEST,
    LARGEST_FLOAT,
    NEGATIVE_INFINITY,
    SHRINK,
    TOTAL,
    fix_keys,
    fix_query,
    fixed_scores,
    hide_later_rows,
    row_ratios,
)
from localr1.kernels.latent_attention import SPLIT as KEY_SPLIT
from localr1.kernels.packing import padded, steps_of

BLOCK = 128
"""Cache rows between two updates of the sums."""

LARGEST_WEIGHT = np.float32(254.0)  # half a unit, left by the row before, still rounds to a byte


@compiled()
def take_query(x_C, query_sP, scale_SP, q):  # type: ignore[no-untyped-def]
    """Write a query's latent in bytes, GROUP to an int32 (see `byte_attention_loops.emit_byte_query`)."""
    C, step_bytes = x_C.size, 4 * query_sP.shape[1]
    whole = C // SPLIT
    numbers, queries, scales = address_of(x_C), address_of(query_sP) + 4 * q, address_of(scale_SP) + 4 * q
    byte_query(numbers, whole, queries, step_bytes, scales)
    if whole * SPLIT < C:
        last = np.zeros(SPLIT, np.float32)
        last[: C - whole * SPLIT] = x_C[whole * SPLIT :]
        queries += whole * SPLIT // GROUP * step_bytes
        byte_query(address_of(last), 1, queries, step_bytes, scales + whole * step_bytes)
        used(last)


@compiled()
def byte_queries(query_QW, C, scale, query_sP, scale_SP, key_kP2, key_scale_P):  # type: ignore[no-untyped-def]
    """All queries: latents in bytes, rotary parts as int16, and what scores must be multiplied by."""
    query_sP[:] = 0
    scale_SP[:] = 0
    key_kP2[:] = 0
    key_scale_P[:] = 0
    R = query_QW.shape[1] - C
    for q in range(query_QW.shape[0]):
        take_query(query_QW[q, :C], query_sP, scale_SP, q)
        key_scale_P[q] = scale / fix_query(query_QW[q, C:], min(KEY_SPLIT, R), LARGEST_BF16, key_kP2, q)
    for split in range(scale_SP.shape[0]):
        for q in range(query_QW.shape[0]):
            scale_SP[split, q] *= scale


@compiled(inline=True)
def whole_steps(words, row_bytes, rows, C, copy):  # type: ignore[no-untyped-def]
    """SCORE_ROWS rows of int8 in whole steps: where they lie, or copies padded with zeros; and the bytes from row to
    row."""
    if rows == SCORE_ROWS and C % STEP == 0:
        return words, row_bytes
    width = steps_of(C) * STEP
    copy[: SCORE_ROWS * width] = 0
    for r in range(rows):
        for i in range(C):
            copy[r * width + i] = int8_at(words + r * row_bytes + i)
    return address_of(copy), width


@compiled(inline=True)
def byte_scores(rows, row_bytes, starts, query_sP, scale_SP, columns, row_scale, score, following):  # type: ignore[no-untyped-def]
    """The scores of SCORE_ROWS rows by their latents; all but `columns` and the queries are addresses."""
    splits, P = scale_SP.shape
    p = 0
    while p < columns:
        a, b, c = address_of(query_sP) + 4 * p, address_of(scale_SP) + 4 * p, score + 4 * p
        if columns - p > LANES:
            byte_score_two(rows, row_bytes, a, 4 * P, splits, starts, b, row_scale, c, 4 * P, following)
            p += 2 * LANES
        else:
            byte_score_one(rows, row_bytes, a, 4 * P, splits, starts, b, row_scale, c, 4 * P, following)
            p += LANES


@compiled(inline=True)
def byte_weights(score_BP, groups, ratio_B, unit, state_4P, weight_BP):  # type: ignore[no-untyped-def]
    """Scores to weights, and the state brought up to date."""
    P = score_BP.shape[1]
    top, most = np.int64(bits_of_float(LARGEST_WEIGHT)), np.int64(bits_of_float(LARGEST_FLOAT))
    for p in range(0, P, LANES):
        scores, state = address_of(score_BP) + 4 * p, address_of(state_4P) + 4 * p
        weights = address_of(weight_BP) + 4 * p
        byte_softmax(scores, 4 * P, groups, address_of(ratio_B), state, 4 * P, weights, top, most)
    for p in range(P):
        state_4P[BACK, p] *= unit


@compiled(inline=True)
def byte_values(weight_BP, value_BV4, groups, state_4P, sum_QX):  # type: ignore[no-untyped-def]
    """sum = sum * shrink + weights . values * back."""
    Q, X = sum_QX.shape
    P, group_bytes = weight_BP.shape[1], value_BV4.shape[1]
    for v in range(0, X, VALUE_PANELS * LANES):
        for q in range(0, Q, VALUE_ROWS):
            a, b = address_of(weight_BP) + 4 * q, address_of(value_BV4) + GROUP * v
            shrink = address_of(state_4P) + 4 * (SHRINK * P + q)
            back, c = shrink + 4 * (BACK - SHRINK) * P, address_of(sum_QX) + 4 * (q * X + v)
            byte_value(a, 4 * P, b, group_bytes, groups, shrink, back, c, 4 * X)


@compiled()
def in_order(sum_X, out_V):  # type: ignore[no-untyped-def]
    """Sums in the order of values, from that of the loops."""
    part, whole = STEP // 4, min(sum_X.size, out_V.size // STEP * STEP)
    for first in range(0, whole, STEP):
        for lane in range(4):
            for j in range(part // 4):
                for i in range(4):
                    out_V[first + lane * part + 4 * j + i] = sum_X[first + j * part + 4 * lane + i]
    for v in range(whole, out_V.size):
        lane, i = v % STEP // part, v % part
        out_V[v] = sum_X[v - v % STEP + i // 4 * part + lane * 4 + i % 4] if v < sum_X.size else np.float32(0.0)


@compiled()
def attend_bytes(words_SW, kind, begin, end, query_GQk, geometry, place, result):  # type: ignore[no-untyped-def]
    """One thread's rows begin .. end of a cache of int8 latents, for all queries, as `attention.attend_run`."""
    stay_out_of_line()
    start, heads, scale = place
    W, C = geometry[3], geometry[4]
    highest_P, total_P, sum_QV = result[0][0], result[1][0], result[2][0]
    query_QW, columns, R = query_GQk[0], highest_P.size, W - C
    P, steps = (columns + LANES - 1) // LANES * LANES, steps_of(C)
    width, keys, splits = steps * STEP, padded(R), (C + SPLIT - 1) // SPLIT
    query_sP, scale_SP = np.empty((splits * SPLIT // GROUP, P), np.int32), np.empty((splits, P), np.float32)
    key_kP2, key_scale_P = np.empty((keys // 2, P, 2), np.int16), np.empty(P, np.float32)
    byte_queries(query_QW, C, scale, query_sP, scale_SP, key_kP2, key_scale_P)
    key_RK, start_SR = np.empty((SCORE_ROWS, keys), np.int16), np.empty((splits, SCORE_ROWS), np.int32)
    scale_2B = np.empty((2, BLOCK), np.float32)
    value_BV4 = np.empty((BLOCK // GROUP, GROUP * width + STEP), np.int8)  # a little longer, for the cache's sets
    score_BP, weight_BP = np.empty((BLOCK, P), np.float32), np.empty((BLOCK // GROUP, P), np.float32)
    ratio_B, state_4P = np.empty(BLOCK, np.float32), np.zeros((4, P), np.float32)
    state_4P[HIGHEST] = NEGATIVE_INFINITY
    sum_QX = np.zeros((sum_QV.shape[0], width), np.float32)
    copy, word_bytes = np.empty(SCORE_ROWS * max(width, 2 * keys), np.int8), 2 * words_SW.shape[1]
    behind = (C + 1) // 2 * 2
    for first in range(begin, end, BLOCK):
        rows = min(BLOCK, end - first)
        for r in range(0, rows, SCORE_ROWS):
            words, here = address_of(words_SW) + (first + r) * word_bytes, min(SCORE_ROWS, rows - r)
            scores = address_of(score_BP) + 4 * r * P
            scales, key_scales = address_of(scale_2B) + 4 * r, address_of(scale_2B) + 4 * (BLOCK + r)
            for i in range(here):
                scale_2B[0, r + i] = floats_at(words + behind + 2 * R + i * word_bytes, 1)[0]
            for i in range(here, SCORE_ROWS):
                scale_2B[0, r + i], scale_2B[1, r + i] = 0, 0
            source, source_bytes = whole_steps(words, word_bytes, here, C, copy)
            values = address_of(value_BV4) + r // GROUP * value_BV4.shape[1]
            starts = address_of(start_SR)
            byte_zip(source, source_bytes, SCORE_ROWS // GROUP, values, value_BV4.shape[1], steps, starts)
            following = words + SCORE_ROWS * word_bytes
            byte_scores(source, source_bytes, starts, query_sP, scale_SP, columns, scales, scores, following)
            fix_keys(words + behind, word_bytes, here, R, address_of(key_RK), 2 * keys, key_scales, copy)
            fixed_scores(
                address_of(key_RK), 2 * keys, keys // 2, KEY_SPLIT // 2, address_of(key_kP2), P, columns,
                key_scales, address_of(key_scale_P), scores, following + SCORE_ROWS * width,
            )  # fmt: skip
        if first + rows - 1 > start:
            hide_later_rows(score_BP, first, rows, start, heads)
        groups = (rows + GROUP - 1) // GROUP
        score_BP[rows : GROUP * groups] = NEGATIVE_INFINITY
        unit = row_ratios(GROUP * groups, scale_2B[0], ratio_B)
        byte_weights(score_BP, groups, ratio_B, unit, state_4P, weight_BP)
        byte_values(weight_BP, value_BV4, groups, state_4P, sum_QX)
    for q in range(sum_QV.shape[0]):
        in_order(sum_QX[q], sum_QV[q])
    copy_numbers(state_4P[HIGHEST, :columns], highest_P)
    copy_numbers(state_4P[TOTAL, :columns], total_P)
    used(copy)
    used(key_RK)
    used(query_sP)
    used(start_SR)
    used(scale_SP)
    used(key_kP2)
    used(key_scale_P)
    used(scale_2B)
    used(value_BV4)
    used(weight_BP)
    used(ratio_B)
    used(score_BP)
    used(state_4P)
    used(sum_QX)
