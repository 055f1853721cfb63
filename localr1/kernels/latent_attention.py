"""Attention of a few tokens over latent rows of 8 or 16 bits, in fixed point: twice the products of float32 a second.

Owns the scales. A block of cache rows becomes int16 once for all queries: int8 latents as they are, bfloat16 numbers
against the row's largest (13 bits and a sign), the rotary key by itself. A query becomes int16 against its own size,
and so do a block's softmax weights, into which the rows' scales are folded. Scores, the softmax and the sums over
blocks are float32. Rows that a query does not see, even if they hold no numbers, do not touch its result.

Invariant: no int32 sum overflows. A sum of products is at most (sum of one side's magnitudes) * (largest of the other
side's), and the scales of queries and of weights keep that below 2^31; a query's magnitudes are summed over at most
SPLIT numbers, after which the sum becomes a float.
"""

import numpy as np

from localr1.kernels.attention_loops import (
    LARGEST_BF16,
    SCORE_ROWS,
    SMALLEST,
    VALUE_PANELS,
    VALUE_ROWS,
    fixed_rows,
    fixed_score_4,
    fixed_score_8,
    fixed_score_all,
    fixed_score_two,
    fixed_softmax,
    fixed_value_one,
    fixed_value_wide,
    widened_rows,
    zip_rows,
)
from localr1.kernels.cache_rows import INT8
from localr1.kernels.features import CHUNK, LANES
from localr1.kernels.intrinsics import MAX_ACTIVATION
from localr1.kernels.jit import (
    address_of,
    bits_of_float,
    compiled,
    copy_numbers,
    float_from_bits,
    floats_at,
    int8_at,
    nearest,
    stay_out_of_line,
    used,
)
from localr1.kernels.packing import largest, padded

BLOCK = 64
"""Cache rows between two updates of the sums."""

SPLIT = 128
"""Numbers of a bfloat16 row whose products are added up in one int32."""

LARGEST_INT8 = 127
INT32_LIMIT = 2**31 - 1
LARGEST_FLOAT = np.float32(3.4028235e38)
LEAST_SCALE = np.float32(1e-35)  # below it the reciprocal of a float32 loses its meaning
NEGATIVE_INFINITY = np.float32(-np.inf)
EXPONENT = np.int32(0x7F800000)
"""Of a float32's bits."""
HIGHEST, TOTAL, SHRINK, BACK = range(4)
"""Rows of the softmax's state."""


@compiled(inline=True)
def magnitude_limit(largest_number, count):  # type: ignore[no-untyped-def]
    """What `count` magnitudes may add up to before they are rounded."""
    return INT32_LIMIT // largest_number - count


@compiled(inline=True)
def split_of(kind, count):  # type: ignore[no-untyped-def]
    """How many of a row's `count` first numbers are added up in one int32."""
    return count if kind == INT8 else min(SPLIT, count)


@compiled()
def fix_query(x_K, split, largest_number, pair_kP2, q):  # type: ignore[no-untyped-def]
    """Write a query as int16; the factor that it was multiplied by, or not-a-number."""
    top, most = largest(x_K), np.float32(0.0)
    for first in range(0, x_K.size, split):
        total = np.float32(0.0)
        for x in x_K[first : first + split]:
            total += abs(x)
        most = max(most, total)
    if not most <= LARGEST_FLOAT:
        return np.nan
    if top < SMALLEST:
        return np.inf
    times = min(np.float64(MAX_ACTIVATION - 1) / top, magnitude_limit(largest_number, split) / np.float64(most))
    for i in range(x_K.size):
        pair_kP2[i // 2, q, i % 2] = np.int16(nearest(np.float32(x_K[i] * times)))
    return times


@compiled(inline=True)
def whole_rows(words, row_bytes, rows, item_bytes, count, copy):  # type: ignore[no-untyped-def]
    """Rows of `count` numbers at an address, or copies that are padded with zeros to whole chunks where they are not
    already; the address and the bytes from row to row."""
    if count % CHUNK == 0:
        return words, row_bytes
    copy_bytes = padded(count) * item_bytes
    copy[: rows * copy_bytes] = 0
    for r in range(rows):
        for i in range(count * item_bytes):
            copy[r * copy_bytes + i] = int8_at(words + r * row_bytes + i)
    return address_of(copy), copy_bytes


@compiled(inline=True)
def fix_keys(words, row_bytes, rows, R, keys, place_bytes, key_scales, copy):  # type: ignore[no-untyped-def]
    """Rotary keys as int16, and their scales; all but counts are addresses."""
    source, source_bytes = whole_rows(words, row_bytes, rows, 2, R, copy)
    fixed_rows(source, source_bytes, rows, keys, place_bytes, padded(R) // CHUNK, key_scales)


@compiled()
def fix_rows(words, row_bytes, kind, rows, C, R, fixed_RW, scale_2B, at, copy):  # type: ignore[no-untyped-def]
    """SCORE_ROWS cache rows, of which `rows` are there, as [latent | zeros | rotary key | zeros]; and their scales."""
    stay_out_of_line()
    width, place_bytes = padded(C), 2 * fixed_RW.shape[1]
    latents, keys = address_of(fixed_RW), address_of(fixed_RW) + 2 * width
    scales, key_scales = address_of(scale_2B) + 4 * at, address_of(scale_2B) + 4 * (scale_2B.shape[1] + at)
    behind = words + ((C + 1) // 2 * 2 if kind == INT8 else 2 * C)
    if kind == INT8:
        source, source_bytes = whole_rows(words, row_bytes, rows, 1, C, copy)
        widened_rows(source, source_bytes, rows, latents, place_bytes, width // CHUNK)
        for r in range(rows):
            scale_2B[0, at + r] = floats_at(behind + 2 * R + r * row_bytes, 1)[0]
    else:
        source, source_bytes = whole_rows(words, row_bytes, rows, 2, C, copy)
        fixed_rows(source, source_bytes, rows, latents, place_bytes, width // CHUNK, scales)
    fix_keys(behind, row_bytes, rows, R, keys, place_bytes, key_scales, copy)
    for r in range(rows, SCORE_ROWS):
        fixed_RW[r] = 0
        scale_2B[0, at + r], scale_2B[1, at + r] = 0, 0


@compiled(inline=True)
def fixed_scores(rows, row_bytes, pairs, split, query, P, columns, row_scale, query_scale, score, following):  # type: ignore[no-untyped-def]
    """Add the products of SCORE_ROWS rows' `pairs` pairs to their scores; all but counts are addresses."""
    for k in range(0, pairs, split):
        count = min(split, pairs - k)
        p = 0
        while p < columns:
            a, b = rows + 4 * k, query + 4 * (k * P + p)
            c, d, ahead = query_scale + 4 * p, score + 4 * p, following + 4 * SCORE_ROWS * k
            if columns - p >= 2 * LANES:
                fixed_score_two(a, row_bytes, b, 4 * P, count, row_scale, c, d, 4 * P, ahead)
                p += 2 * LANES
            elif columns - p >= LANES:
                fixed_score_all(a, row_bytes, b, 4 * P, count, row_scale, c, d, 4 * P, ahead)
                p += LANES
            elif columns - p >= 8:
                fixed_score_8(a, row_bytes, b, 4 * P, count, row_scale, c, d, 4 * P, ahead)
                p += 8
            else:
                fixed_score_4(a, row_bytes, b, 4 * P, count, row_scale, c, d, 4 * P, ahead)
                p += 4


@compiled(inline=True)
def fixed_values(weight_BP, value_B2V, pairs, state_4P, sum_QV):  # type: ignore[no-untyped-def]
    """sum = sum * shrink + weights . values * back."""
    Q, V = sum_QV.shape
    P, pair_bytes = weight_BP.shape[1], 2 * value_B2V.shape[1]
    v = 0
    while v < V:
        for q in range(0, Q, VALUE_ROWS):
            a, b = address_of(weight_BP) + 4 * q, address_of(value_B2V) + 4 * v
            shrink = address_of(state_4P) + 4 * (SHRINK * P + q)
            back, c = shrink + 4 * (BACK - SHRINK) * P, address_of(sum_QV) + 4 * (q * V + v)
            if V - v >= VALUE_PANELS * LANES:
                fixed_value_wide(a, 4 * P, b, pair_bytes, pairs, shrink, back, c, 4 * V)
            else:
                fixed_value_one(a, 4 * P, b, pair_bytes, pairs, shrink, back, c, 4 * V)
        v += VALUE_PANELS * LANES if V - v >= VALUE_PANELS * LANES else LANES


@compiled(inline=True)
def row_ratios(rows, scale_B, ratio_B):  # type: ignore[no-untyped-def]
    """Write what rows are worth in a unit, and return it: the power of two that the largest holds, so that rows which a
    query does not see change no bit of what it gets from the others."""
    largest_scale = np.float32(0.0)
    for r in range(rows):
        largest_scale = scale_B[r] if largest_scale < scale_B[r] <= LARGEST_FLOAT else largest_scale
    unit = float_from_bits(bits_of_float(largest_scale) & EXPONENT)
    for r in range(rows):
        ratio_B[r] = scale_B[r] / unit if LEAST_SCALE < scale_B[r] <= LARGEST_FLOAT else np.float32(0.0)
    return unit


@compiled(inline=True)
def softmax_of_block(score_BP, rows, scale_B, ratio_B, state_4P, weight_BP, largest_number):  # type: ignore[no-untyped-def]
    """Scores of `rows` (an even number of) cache rows to weights, and the state brought up to date."""
    unit = row_ratios(rows, scale_B, ratio_B)
    P = score_BP.shape[1]
    top = np.int64(bits_of_float(np.float32(MAX_ACTIVATION - 1)))
    most = np.int64(bits_of_float(np.float32(magnitude_limit(largest_number, BLOCK))))
    for p in range(0, P, LANES):
        scores, state, weights = (
            address_of(score_BP) + 4 * p,
            address_of(state_4P) + 4 * p,
            address_of(weight_BP) + 4 * p,
        )
        fixed_softmax(scores, 4 * P, rows // 2, address_of(ratio_B), state, 4 * P, weights, top, most)
    for p in range(P):
        state_4P[BACK, p] *= unit


@compiled(inline=True)
def hide_later_rows(score_BP, first, rows, start, heads):  # type: ignore[no-untyped-def]
    """A query of token t sees cache rows up to start + t."""
    for r in range(max(0, start - first), rows):
        row = score_BP[r]
        for q in range(min(row.size, max(0, first + r - start) * heads)):
            row[q] = NEGATIVE_INFINITY


@compiled()
def fix_queries(query_QW, kind, C, scale, pair_kP2, scale_2P):  # type: ignore[no-untyped-def]
    """All queries as int16, [latent | zeros | rotary | zeros] like the rows, and what scores must be multiplied by."""
    width = padded(C)
    R = query_QW.shape[1] - C
    pair_kP2[:] = 0
    scale_2P[:] = 0
    for q in range(query_QW.shape[0]):
        latent = fix_query(
            query_QW[q, :C], split_of(kind, C), LARGEST_INT8 if kind == INT8 else LARGEST_BF16, pair_kP2, q
        )
        rotary = fix_query(query_QW[q, C:], min(SPLIT, R), LARGEST_BF16, pair_kP2[width // 2 :], q)
        scale_2P[0, q], scale_2P[1, q] = scale / latent, scale / rotary


@compiled()
def attend_fixed(words_SW, kind, begin, end, query_GQk, geometry, place, result):  # type: ignore[no-untyped-def]
    """One thread's rows begin .. end of a cache of latents, for all queries, as `attention.attend_run`."""
    stay_out_of_line()
    start, heads, scale = place
    W, C = geometry[3], geometry[4]
    highest_P, total_P, sum_QV = result[0][0], result[1][0], result[2][0]
    query_QW = query_GQk[0]
    columns = highest_P.size
    P = (columns + LANES - 1) // LANES * LANES
    latent, rotary = padded(C), padded(W - C)
    query_kP2, query_scale_2P = np.empty(((latent + rotary) // 2, P, 2), np.int16), np.empty((2, P), np.float32)
    fix_queries(query_QW, kind, C, scale, query_kP2, query_scale_2P)
    fixed_RW, scale_2B = np.empty((SCORE_ROWS, latent + rotary), np.int16), np.empty((2, BLOCK), np.float32)
    value_B2V = np.empty((BLOCK // 2, 2 * latent + CHUNK), np.int16)  # a little longer, for the cache's sets
    score_BP, weight_BP = np.empty((BLOCK, P), np.float32), np.empty((BLOCK // 2, P), np.float32)
    ratio_B, state_4P = np.empty(BLOCK, np.float32), np.zeros((4, P), np.float32)
    state_4P[HIGHEST] = NEGATIVE_INFINITY
    sum_QV[:] = 0
    copy, word_bytes = np.empty(SCORE_ROWS * 2 * max(latent, rotary), np.int8), 2 * words_SW.shape[1]
    row_bytes, pair_bytes, split = 2 * fixed_RW.shape[1], 2 * value_B2V.shape[1], split_of(kind, latent) // 2
    queries, query_scales = address_of(query_kP2), address_of(query_scale_2P)
    for first in range(begin, end, BLOCK):
        rows = min(BLOCK, end - first)
        score_BP[:] = 0
        for r in range(0, rows, SCORE_ROWS):
            words = address_of(words_SW) + (first + r) * word_bytes
            fix_rows(words, word_bytes, kind, min(SCORE_ROWS, rows - r), C, W - C, fixed_RW, scale_2B, r, copy)
            fixed, scales, scores = address_of(fixed_RW), address_of(scale_2B) + 4 * r, address_of(score_BP) + 4 * r * P
            values, following = address_of(value_B2V) + r // 2 * pair_bytes, words + SCORE_ROWS * word_bytes
            zip_rows(fixed, row_bytes, values, pair_bytes, SCORE_ROWS // 2, latent // CHUNK)
            fixed_scores(
                fixed, row_bytes, latent // 2, split, queries, P, columns, scales, query_scales, scores, following
            )  # fmt: skip
            fixed_scores(
                fixed + 2 * latent, row_bytes, rotary // 2, SPLIT // 2, queries + 2 * latent * P, P, columns,
                scales + 4 * BLOCK, query_scales + 4 * P, scores, following + 2 * SCORE_ROWS * latent,
            )  # fmt: skip
        if first + rows - 1 > start:
            hide_later_rows(score_BP, first, rows, start, heads)
        if rows % 2:
            score_BP[rows] = NEGATIVE_INFINITY
        largest_number = LARGEST_INT8 if kind == INT8 else LARGEST_BF16
        softmax_of_block(score_BP, rows + rows % 2, scale_2B[0], ratio_B, state_4P, weight_BP, largest_number)
        fixed_values(weight_BP, value_B2V, (rows + 1) // 2, state_4P, sum_QV)
    copy_numbers(state_4P[HIGHEST, :columns], highest_P)
    copy_numbers(state_4P[TOTAL, :columns], total_P)
    used(copy)
    used(fixed_RW)
    used(query_kP2)
    used(query_scale_2P)
    used(scale_2B)
    used(value_B2V)
    used(weight_BP)
    used(ratio_B)
    used(score_BP)
    used(state_4P)
