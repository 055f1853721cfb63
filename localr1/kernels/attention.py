"""Attention of a few new tokens over a long cache: absorbed latent (MLA) and grouped-query, in one way.

Owns how the work is shared out. The cache is cut into as many runs as there are threads; a thread goes through its
run in blocks and uses each for every head and token before it goes on, so the cache is read from memory once. Each
thread keeps its own highest score, sum and weighted values for every query, and they are merged at the end in the
threads' order: the result depends on the number of threads, never on timing. Tokens are taken PASS_QUERIES / H at a
time; of latents, where there are enough such passes, a thread does whole passes by itself. Latents of 8 or 16 bits go
through `latent_attention`, few queries of a group through `few_query_attention`, and everything else through
`float_attention`.

Q queries of a group (token-major: q = t * (H / G) + head within the group), padded to P; `geometry` is (key_step,
value_first, value_step, W, C): a group's keys start at column `g * key_step` of a row of W numbers, and its values at
`value_first + g * value_step`; C is 0 but for latents. `place` is (tokens before the first query's, heads of a group,
what scores are multiplied by).
"""

import numpy as np
from numba import prange

from localr1.kernels.arena import cache_at, cube_at, int64s_at, rows_at
from localr1.kernels.attention_loops import VALUE_ROWS
from localr1.kernels.byte_attention import attend_bytes
from localr1.kernels.cache_rows import FLOAT32, INT8
from localr1.kernels.emitter import calling
from localr1.kernels.features import BITS, BYTE_PRODUCTS, LANES
from localr1.kernels.few_query_attention import attend_few, has_few_queries
from localr1.kernels.float_attention import attend_run, block_rows
from localr1.kernels.jit import (
    address_of,
    bits_of_float,
    compiled,
    copy_numbers,
    exp,
    float_from_bits,
    stay_out_of_line,
    used,
)
from localr1.kernels.latent_attention import NEGATIVE_INFINITY, attend_fixed
from localr1.kernels.packing import FEW
from localr1.kernels.team import fetch_and_add

PASS_QUERIES = 256
"""What of a pass is used again for every block of the cache must stay in the second-level cache: with 1,024 queries, a
prefill took 1.3 times as long."""

PASSES_A_THREAD = 2
"""Passes that each thread must have for it to do them alone."""

SMALL_WORK = 1 << 19  # numbers of the cache times queries below which other threads are not woken

attend_latents = attend_fixed if BITS else attend_run
attend_int8_latents = attend_bytes if BYTE_PRODUCTS else attend_latents
attend_rows = calling("attend_rows", 1)
"""`attend_job` by its name, so that it is not compiled again into all that calls it."""

(
    WORDS, ROWS, ROW_WORDS, KIND, BEGIN, END, QUERY, GROUPS, QUERIES, KEYS, START, HEADS, SCALE, KEY_STEP, VALUE_FIRST,
    VALUE_STEP, WIDTH, LATENT, HIGHEST, TOTAL, PADDED, SUM, SUM_ROWS, SUM_COLUMNS, FRAME,
) = range(25)  # fmt: skip
"""Places in the frame of `attend_job`."""


@compiled(inline=True)
def padded_queries(queries):  # type: ignore[no-untyped-def]
    """Queries rounded up to a vector that suits their number."""
    if queries <= 4:
        return 4
    if queries <= 8 or LANES <= 8:
        return (queries + min(8, LANES) - 1) // min(8, LANES) * min(8, LANES)
    return (queries + LANES - 1) // LANES * LANES


@compiled()
def attend_job(frame_at):  # type: ignore[no-untyped-def]
    """One thread's rows of the cache, for all queries."""
    frame = int64s_at(frame_at, FRAME)
    words_SW = cache_at(frame[WORDS], frame[ROWS], frame[ROW_WORDS])
    query_GQk = cube_at(frame[QUERY], frame[GROUPS], frame[QUERIES], frame[KEYS])
    geometry = (frame[KEY_STEP], frame[VALUE_FIRST], frame[VALUE_STEP], frame[WIDTH], frame[LATENT])
    place = (frame[START], frame[HEADS], float_from_bits(np.int32(frame[SCALE])))
    result = (
        rows_at(frame[HIGHEST], frame[GROUPS], frame[PADDED]),
        rows_at(frame[TOTAL], frame[GROUPS], frame[PADDED]),
        cube_at(frame[SUM], frame[GROUPS], frame[SUM_ROWS], frame[SUM_COLUMNS]),
    )
    if frame[LATENT] and frame[KIND] == INT8:
        attend_int8_latents(words_SW, frame[KIND], frame[BEGIN], frame[END], query_GQk, geometry, place, result)
    elif frame[LATENT] and frame[KIND] != FLOAT32:
        attend_latents(words_SW, frame[KIND], frame[BEGIN], frame[END], query_GQk, geometry, place, result)
    elif not frame[LATENT] and has_few_queries(frame[QUERIES], frame[KEYS], frame[VALUE_STEP]):
        attend_few(words_SW, frame[KIND], frame[BEGIN], frame[END], query_GQk, geometry, place, result)
    else:
        attend_run(words_SW, frame[KIND], frame[BEGIN], frame[END], query_GQk, geometry, place, result)


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
def run_step(width):  # type: ignore[no-untyped-def]
    """Runs begin at multiples of so many cache rows: two blocks, or one of bytes where rows have up to 593 numbers."""
    return 2 * block_rows(width)


@compiled(inline=True)
def runs_of(visible, width, tokens, heads, threads):  # type: ignore[no-untyped-def]
    """Into how many runs `visible` cache rows are cut; for few tokens as for one, which gets what it would alone."""
    step, P = run_step(width), padded_queries(heads if tokens <= FEW else tokens * heads)
    return 1 if visible * width * P < SMALL_WORK else min(threads, (visible + step - 1) // step)


@compiled(inline=True)
def padded_values(queries, V):  # type: ignore[no-untyped-def]
    """The shape of a run's weighted values: queries and values rounded up to whole tiles."""
    return (queries + VALUE_ROWS - 1) // VALUE_ROWS * VALUE_ROWS, (V + LANES - 1) // LANES * LANES


@compiled(inline=True)
def attend_part(n, words_SW, halves, visible, query_GQk, geometry, place, partial):  # type: ignore[no-untyped-def]
    """Run n of the cache."""
    highest_NGP, total_NGP, sum_NGQV = partial
    runs = highest_NGP.shape[0]
    step = run_step(geometry[3])
    steps = (visible + step - 1) // step
    begin, end = n * steps // runs * step, min(visible, (n + 1) * steps // runs * step)
    G, P = highest_NGP.shape[1:]
    rows, columns = sum_NGQV.shape[2:]
    frame = np.array(
        (
            *(address_of(words_SW), words_SW.shape[0], words_SW.shape[1], halves, begin, end),
            *(address_of(query_GQk), G, query_GQk.shape[1], query_GQk.shape[2], place[0], place[1]),
            np.int64(bits_of_float(place[2])),
            *geometry,
            *(address_of(highest_NGP) + 4 * n * G * P, address_of(total_NGP) + 4 * n * G * P, P),
            *(address_of(sum_NGQV) + 4 * n * G * rows * columns, rows, columns),
        )
    )
    attend_rows(address_of(frame))
    used(frame)


@compiled(parallel=True)
def attend(words_SW, halves, query_GQk, geometry, place, out_GQV, threads):  # type: ignore[no-untyped-def]
    """The queries of each group, token-major, over cache rows 0 .. start + tokens - 1; writes out[g, q]."""
    G, queries, _ = query_GQk.shape
    start, heads, _ = place
    P, tokens = padded_queries(queries), queries // heads
    visible = start + tokens
    runs = runs_of(visible, geometry[3], tokens, heads, threads)
    rows, columns = padded_values(queries, out_GQV.shape[2])
    highest_NGP, total_NGP = np.empty((runs, G, P), np.float32), np.empty((runs, G, P), np.float32)
    sum_NGQV = np.empty((runs, G, rows, columns), np.float32)
    partial = (highest_NGP, total_NGP, sum_NGQV)
    if runs == 1:
        attend_part(0, words_SW, halves, visible, query_GQk, geometry, place, partial)
    else:
        for n in prange(runs):
            attend_part(n, words_SW, halves, visible, query_GQk, geometry, place, partial)
    for g in range(G):
        for q in range(queries):
            merge(g, q, highest_NGP, total_NGP, sum_NGQV, out_GQV[g, q])


@compiled()
def latent_pass(n, q_latent_THC, q_rope_THR, words_SW, halves, start, scale, out_THC, threads):  # type: ignore[no-untyped-def]
    """The n-th PASS_QUERIES / H tokens."""
    stay_out_of_line()
    T, H, C = q_latent_THC.shape
    W, step = C + q_rope_THR.shape[2], max(1, PASS_QUERIES // H)
    t = n * step
    tokens = min(step, T - t)
    query_THW = np.empty((tokens, H, W), np.float32)
    for i in range(tokens):
        for h in range(H):
            copy_numbers(q_latent_THC[t + i, h], query_THW[i, h, :C])
            copy_numbers(q_rope_THR[t + i, h], query_THW[i, h, C:])
    query_GQW, out_GQC = query_THW.reshape((1, tokens * H, W)), out_THC[t : t + tokens].reshape((1, tokens * H, C))
    attend(words_SW, halves, query_GQW, (0, 0, 0, W, C), (start + t, H, np.float32(scale)), out_GQC, threads)


@compiled(parallel=True)
def mla_attention(q_latent_THC, q_rope_THR, words_SW, halves, start, scale, out_THC, threads):  # type: ignore[no-untyped-def]
    T, H, _ = q_latent_THC.shape
    step = max(1, PASS_QUERIES // H)
    passes = (T + step - 1) // step
    if threads == 1 or passes < PASSES_A_THREAD * threads:
        for n in range(passes):
            latent_pass(n, q_latent_THC, q_rope_THR, words_SW, halves, start, scale, out_THC, threads)
        return
    counter = np.zeros(1, np.int64)
    for _ in prange(threads):
        while True:
            n = passes - 1 - fetch_and_add(address_of(counter), 1)  # the longest first
            if n < 0:
                break
            latent_pass(n, q_latent_THC, q_rope_THR, words_SW, halves, start, scale, out_THC, 1)
    used(counter)


@compiled()
def gqa_attention(q_THd, words_SW, halves, kv_heads, start, scale, out_THd, threads):  # type: ignore[no-untyped-def]
    T, H, d = q_THd.shape
    heads = H // kv_heads
    geometry = (d, kv_heads * d, d, 2 * kv_heads * d, 0)
    step = max(1, PASS_QUERIES // H)
    for t in range(0, T, step):
        tokens = min(step, T - t)
        query_GQd = np.empty((kv_heads, tokens * heads, d), np.float32)
        out_GQd = np.empty((kv_heads, tokens * heads, d), np.float32)
        for g in range(kv_heads):
            for q in range(tokens * heads):
                query_GQd[g, q] = q_THd[t + q // heads, g * heads + q % heads]
        attend(words_SW, halves, query_GQd, geometry, (start + t, heads, np.float32(scale)), out_GQd, threads)
        for g in range(kv_heads):
            for q in range(tokens * heads):
                out_THd[t + q // heads, g * heads + q % heads] = out_GQd[g, q]
