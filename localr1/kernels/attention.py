"""Attention of a few new tokens over a long cache: absorbed latent (MLA) and grouped-query, in one way.

Owns the online softmax. The cache is cut into as many runs as there are threads; a thread widens BLOCK rows at a time
into float32 and uses them for every head and token before it goes on, so the cache is read from memory once. Each
thread keeps its own highest score, sum and weighted values for every query, and they are merged at the end in the
threads' order: the result depends on the number of threads, never on timing. Tokens are taken PASS_QUERIES / H at a
time.

Q queries of a group (token-major: q = t * (H / G) + head within the group), padded to P; `geometry` is (key_step,
value_first, value_step, W, C): a group's keys start at column `g * key_step` of a row of W numbers, and its values at
`value_first + g * value_step`.
"""

import numpy as np
from numba import prange

from localr1.kernels import intrinsics
from localr1.kernels.cache_rows import widen_latent
from localr1.kernels.features import LANES
from localr1.kernels.intrinsics import VALUE_PANELS
from localr1.kernels.jit import address_of, compiled, exp, stay_out_of_line, widen

PASS_QUERIES = 1024
SCORE_ROWS = 8  # cache rows of a score tile
VALUE_ROWS = 4  # queries of a value tile
SMALL_WORK = 1 << 19  # numbers of the cache times queries below which other threads are not woken
NEGATIVE_INFINITY = np.float32(-np.inf)

score_4, score_8, score_all, score_two = (
    intrinsics.score_4,
    intrinsics.score_8,
    intrinsics.score_all,
    intrinsics.score_two,
)
value_one, value_wide = intrinsics.value_one, intrinsics.value_wide


@compiled(inline=True)
def padded_queries(queries):  # type: ignore[no-untyped-def]
    """Queries rounded up to a vector that suits their number."""
    if queries <= 4:
        return 4
    if queries <= 8 or LANES <= 8:
        return (queries + min(8, LANES) - 1) // min(8, LANES) * min(8, LANES)
    return (queries + LANES - 1) // LANES * LANES


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
            place[:width] = words.view(np.float32)
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


@compiled(inline=True)
def hide_later_rows(score_BP, first, rows, start, heads):  # type: ignore[no-untyped-def]
    """A query of token t sees cache rows up to start + t."""
    for r in range(rows):
        row = score_BP[r]
        for q in range(min(row.size, max(0, first + r - start) * heads)):
            row[q] = NEGATIVE_INFINITY


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


@compiled()
def attend_run(words_SW, halves, begin, end, query_GkP, geometry, place, result):  # type: ignore[no-untyped-def]
    """One thread's rows begin .. end of the cache, for all queries."""
    stay_out_of_line()
    G, _, P = query_GkP.shape
    key_step, value_first, value_step, W, latent = geometry
    start, heads = place
    highest_GP, total_GP, sum_GQV = result
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


@compiled()
def merge(g, q, highest_NGP, total_NGP, sum_NGQV, out_V):  # type: ignore[no-untyped-def]
    """The runs' results for one query into one."""
    runs = highest_NGP.shape[0]
    highest = NEGATIVE_INFINITY
    for n in range(runs):
        highest = max(highest, highest_NGP[n, g, q])
    total = np.float32(0.0)
    out_V[:] = 0
    for n in range(runs):
        weight = exp(highest_NGP[n, g, q] - highest)
        total += weight * total_NGP[n, g, q]
        values = sum_NGQV[n, g, q]
        for v in range(out_V.size):
            out_V[v] += weight * values[v]
    for v in range(out_V.size):
        out_V[v] /= total


@compiled(inline=True)
def runs_of(visible, width, P, threads):  # type: ignore[no-untyped-def]
    """Into how many runs `visible` cache rows are cut."""
    block = block_rows(width)
    return 1 if visible * width * P < SMALL_WORK else min(threads, (visible + block - 1) // block)


@compiled(inline=True)
def padded_values(queries, V):  # type: ignore[no-untyped-def]
    """The shape of a run's weighted values: queries and values rounded up to whole tiles."""
    return (queries + VALUE_ROWS - 1) // VALUE_ROWS * VALUE_ROWS, (V + LANES - 1) // LANES * LANES


@compiled(inline=True)
def attend_part(n, words_SW, halves, visible, query_GkP, geometry, place, partial):  # type: ignore[no-untyped-def]
    """Run n of the cache."""
    highest_NGP, total_NGP, sum_NGQV = partial
    runs = highest_NGP.shape[0]
    block = block_rows(geometry[3])
    blocks = (visible + block - 1) // block
    begin, end = n * blocks // runs * block, min(visible, (n + 1) * blocks // runs * block)
    mine = (highest_NGP[n], total_NGP[n], sum_NGQV[n])
    attend_run(words_SW, halves, begin, end, query_GkP, geometry, place, mine)


@compiled(parallel=True)
def attend(words_SW, halves, query_GkP, queries, geometry, start, heads, out_GQV, threads):  # type: ignore[no-untyped-def]
    """`queries` queries of each group, token-major, over cache rows 0 .. start + tokens - 1; writes out[g, q]."""
    G, _, P = query_GkP.shape
    visible = start + queries // heads
    runs = runs_of(visible, geometry[3], P, threads)
    rows, columns = padded_values(queries, out_GQV.shape[2])
    highest_NGP, total_NGP = np.empty((runs, G, P), np.float32), np.empty((runs, G, P), np.float32)
    sum_NGQV = np.empty((runs, G, rows, columns), np.float32)
    partial = (highest_NGP, total_NGP, sum_NGQV)
    place = (start, heads)
    if runs == 1:
        attend_part(0, words_SW, halves, visible, query_GkP, geometry, place, partial)
    else:
        for n in prange(runs):
            attend_part(n, words_SW, halves, visible, query_GkP, geometry, place, partial)
    for g in range(G):
        for q in range(queries):
            merge(g, q, highest_NGP, total_NGP, sum_NGQV, out_GQV[g, q])


@compiled()
def mla_attention(q_latent_THC, q_rope_THR, words_SW, halves, start, scale, out_THC, threads):  # type: ignore[no-untyped-def]
    scale = np.float32(scale)
    T, H, C = q_latent_THC.shape
    R = q_rope_THR.shape[2]
    step = max(1, PASS_QUERIES // H)
    for t in range(0, T, step):
        queries = min(step, T - t) * H
        query_GkP = np.zeros((1, C + R, padded_queries(queries)), np.float32)
        for q in range(queries):
            latent, rope = q_latent_THC[t + q // H, q % H], q_rope_THR[t + q // H, q % H]
            for c in range(C):
                query_GkP[0, c, q] = latent[c] * scale
            for r in range(R):
                query_GkP[0, C + r, q] = rope[r] * scale
        out = out_THC[t : t + queries // H].reshape((1, queries, C))
        attend(words_SW, halves, query_GkP, queries, (0, 0, 0, C + R, C), start + t, H, out, threads)


@compiled()
def gqa_attention(q_THd, words_SW, halves, kv_heads, start, scale, out_THd, threads):  # type: ignore[no-untyped-def]
    scale = np.float32(scale)
    T, H, d = q_THd.shape
    heads = H // kv_heads
    step = max(1, PASS_QUERIES // H)
    for t in range(0, T, step):
        tokens = min(step, T - t)
        queries = tokens * heads
        query_GkP = np.zeros((kv_heads, d, padded_queries(queries)), np.float32)
        out_GQd = np.empty((kv_heads, queries, d), np.float32)
        for g in range(kv_heads):
            for q in range(queries):
                query = q_THd[t + q // heads, g * heads + q % heads]
                for i in range(d):
                    query_GkP[g, i, q] = query[i] * scale
        attend(
            words_SW,
            halves,
            query_GkP,
            queries,
            (d, kv_heads * d, d, 2 * kv_heads * d, 0),
            start + t,
            heads,
            out_GQd,
            threads,
        )
        for g in range(kv_heads):
            for q in range(queries):
                out_THd[t + q // heads, g * heads + q % heads] = out_GQd[g, q]
