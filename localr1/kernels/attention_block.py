"""The attention of one layer for a few tokens as one job: norm, projections, cache rows, attention, output.

Owns the phases of a job, which one team of threads goes through (see `team`), and the layout of what it is told: a
frame for the call and a plan for the layer, both arrays of int64 that hold sizes and addresses, so that a call passes
few arguments. The residual rows `x` are changed in place. At most `packing.FEW` tokens.
"""

import numpy as np

from localr1.kernels.arena import after, block_at, cache_at, cube_at, doubles_at, int16s_at, int64s_at, rows_at
from localr1.kernels.attention import attend_part, merge, padded_queries, padded_values, runs_of
from localr1.kernels.cache_rows import store_latent, store_numbers
from localr1.kernels.jit import address_of, compiled, floats_at, stay_out_of_line, used, widen, words_at
from localr1.kernels.linear import take_rows
from localr1.kernels.norm import normed
from localr1.kernels.packing import pack, packed_size
from localr1.kernels.team import TEAM_NUMBERS, finish, launch, settle, take

(
    PLAN,
    FLOATS,
    X,
    TOKENS,
    COS,
    SIN,
    CACHE,
    CACHE_ROWS,
    CACHE_WORDS,
    KIND,
    START,
    THREADS,
    TEAM,
    ARENA,
    FRAME,
) = range(15)
"""Places in a frame."""

ABSENT = 0
"""The address of a weight that a layer does not have."""

(HIDDEN, HEADS, INTERLEAVED, NORM, OUT, Q) = (0, 1, 2, 3, 4, 7)
"""Places in both plans; a matrix takes three: its weights, its scales, its bias."""

(NOPE, ROPE, VALUE, LATENT, Q_RANK, Q_NORM, Q_B, KV_A, KV_NORM, KV_B, KV_B_HALVES, MLA_PLAN) = (
    10, 11, 12, 13, 14, 15, 16, 19, 22, 23, 24, 25,
)  # fmt: skip
(KV_HEADS, HEAD_SIZE, HEAD_Q_NORM, HEAD_K_NORM, K, V, GQA_PLAN) = (10, 11, 12, 13, 14, 17, 20)

WIDENED = 4096
"""Numbers of `kv_b` that are widened at a time."""

EPS, LATENT_EPS, SCALE = 0, 1, 2
"""Places in a plan's float64 numbers."""


@compiled()
def run_attention(code, frame, team, x_TD, cos_TR, sin_TR, words_SW, kind, start, threads):  # type: ignore[no-untyped-def]
    """Complete a frame, in which the plan and the arena are told already, and run its job."""
    frame[X], frame[TOKENS] = address_of(x_TD), x_TD.shape[0]
    frame[COS], frame[SIN] = address_of(cos_TR), address_of(sin_TR)
    frame[CACHE], frame[CACHE_ROWS], frame[CACHE_WORDS] = address_of(words_SW), words_SW.shape[0], words_SW.shape[1]
    frame[KIND], frame[START], frame[THREADS], frame[TEAM] = kind, start, threads, address_of(team)
    launch(code, frame, team, threads)
    used(x_TD)
    used(cos_TR)
    used(sin_TR)
    used(words_SW)
    used(team)


@compiled(inline=True)
def matrix(plan, at):  # type: ignore[no-untyped-def]
    return plan[at], plan[at + 1], plan[at + 2]


@compiled()
def norm_and_pack(x_TD, weight_at, eps, packed, scale_T):  # type: ignore[no-untyped-def]
    """Pack the rows of x, normed if there is a weight."""
    stay_out_of_line()
    T, D = x_TD.shape
    normed_TD = x_TD
    if weight_at != ABSENT:
        normed_TD = np.empty((T, D), np.float32)
        weight_D = floats_at(weight_at, D)
        for t in range(T):
            normed(x_TD[t], weight_D, eps, normed_TD[t])
    pack(address_of(normed_TD), D, np.arange(T), 0, T, packed, scale_T)
    used(normed_TD)


@compiled()
def rotate(x_R, cos_R, sin_R, interleaved, out_R):  # type: ignore[no-untyped-def]
    """Rotate pairs by an angle; they come out in the half layout. The table holds cos twice, and -sin then sin."""
    pairs = x_R.size // 2
    for p in range(pairs):
        first, second = (x_R[2 * p], x_R[2 * p + 1]) if interleaved else (x_R[p], x_R[pairs + p])
        out_R[p] = first * cos_R[p] - second * sin_R[pairs + p]
        out_R[pairs + p] = second * cos_R[pairs + p] + first * sin_R[pairs + p]


@compiled()
def widen_row(words, halves, out):  # type: ignore[no-untyped-def]
    """Numbers of 16 (halves = 1) or 32 bits (2) as float32."""
    if halves == 2:
        out[:] = words.view(np.float32)
    else:
        for i in range(out.size):
            out[i] = widen(words[i])


@compiled()
def absorb_head(h, plan, floats, q_TQ, rotation, query_kP):  # type: ignore[no-untyped-def]
    """A head's queries in the latent: q_nope W_UK and the rotated q_pe, scaled, as columns of `query`."""
    stay_out_of_line()
    H, N, R, C = plan[HEADS], plan[NOPE], plan[ROPE], plan[LATENT]
    cos_TR, sin_TR = rotation
    T = q_TQ.shape[0]
    scale = np.float32(floats[SCALE])
    halves = plan[KV_B_HALVES]
    key_up = words_at(plan[KV_B] + 2 * halves * C * h * (N + plan[VALUE]), N * C * halves)
    latent_TC, rope_R = np.zeros((T, C), np.float32), np.empty(R, np.float32)
    block = max(1, WIDENED // C)
    weights = np.empty(block * C, np.float32)
    for first in range(0, N, block):
        rows = min(block, N - first)
        widen_row(key_up[first * C * halves : (first + rows) * C * halves], halves, weights[: rows * C])
        for t in range(T):
            latent_C = latent_TC[t]
            for n in range(rows):
                q, at = q_TQ[t, h * (N + R) + first + n], n * C
                for c in range(C):
                    latent_C[c] += q * weights[at + c]
    for t in range(T):
        for c in range(C):
            query_kP[c, t * H + h] = latent_TC[t, c] * scale
        rotate(
            q_TQ[t, h * (N + R) + N : (h + 1) * (N + R)],
            cos_TR[t],
            sin_TR[t],
            plan[INTERLEAVED],
            rope_R,
        )
        for r in range(R):
            query_kP[C + r, t * H + h] = rope_R[r] * scale


@compiled()
def store_latents(plan, floats, row_TW, rotation, start, words_SW, kind):  # type: ignore[no-untyped-def]
    """The new tokens' cache rows: normed latent and rotated key."""
    stay_out_of_line()
    R, C = plan[ROPE], plan[LATENT]
    cos_TR, sin_TR = rotation
    weight_C = floats_at(plan[KV_NORM], C)
    new_W = np.empty(C + R, np.float32)
    for t in range(row_TW.shape[0]):
        normed(row_TW[t, :C], weight_C, floats[LATENT_EPS], new_W[:C])
        rotate(row_TW[t, C:], cos_TR[t], sin_TR[t], plan[INTERLEAVED], new_W[C:])
        store_latent(new_W, C, words_SW[start + t], kind)


@compiled()
def raise_head(h, plan, partial, out_TO):  # type: ignore[no-untyped-def]
    """A head's attended latents, merged from the runs, times W_UV."""
    stay_out_of_line()
    H, N, V, C = plan[HEADS], plan[NOPE], plan[VALUE], plan[LATENT]
    T = out_TO.shape[0]
    halves = plan[KV_B_HALVES]
    value_up = words_at(plan[KV_B] + 2 * halves * C * (h * (N + V) + N), V * C * halves)
    latent_TC = np.empty((T, C), np.float32)
    block = max(1, WIDENED // C)
    weights = np.empty(block * C, np.float32)
    highest_NGP, total_NGP, sum_NGQV = partial
    for t in range(T):
        merge(0, t * H + h, highest_NGP, total_NGP, sum_NGQV, latent_TC[t])
    for first in range(0, V, block):
        rows = min(block, V - first)
        widen_row(value_up[first * C * halves : (first + rows) * C * halves], halves, weights[: rows * C])
        for t in range(T):
            latent_C = latent_TC[t]
            for v in range(rows):
                total, at = np.float32(0.0), v * C
                for c in range(C):
                    total += latent_C[c] * weights[at + c]
                out_TO[t, h * V + first + v] = total


@compiled()
def attend_runs(words_SW, kind, visible, query_GkP, geometry, place, partial, team, phase):  # type: ignore[no-untyped-def]
    """A thread's share of the cache's runs."""
    runs = partial[0].shape[0]
    while True:
        n = take(team, phase)
        if n >= runs:
            break
        attend_part(n, words_SW, kind, visible, query_GkP, geometry, place, partial)
        finish(team, phase)
    settle(team, phase, runs)


@compiled()
def project_out(plan, out_TO, x_TD, packed, scale_T, threads, team, phase):  # type: ignore[no-untyped-def]
    """x += out W_O + bias, in two phases."""
    if take(team, phase) == 0:
        norm_and_pack(out_TO, ABSENT, 0.0, packed, scale_T)
        finish(team, phase)
    settle(team, phase, 1)
    tasks = take_rows(matrix(plan, OUT), out_TO.shape[1], packed, scale_T, x_TD, True, threads, team, phase + 1)
    settle(team, phase + 1, tasks)


@compiled(inline=True)
def carve_partial(at, runs, G, P, queries, V):  # type: ignore[no-untyped-def]
    """Room for each run's highest scores, sums and weighted values; and the address behind it."""
    rows, columns = padded_values(queries, V)
    highest_at = at
    total_at = after(highest_at, runs * G * P, 4)
    sum_at = after(total_at, runs * G * P, 4)
    partial = (
        cube_at(highest_at, runs, G, P),
        cube_at(total_at, runs, G, P),
        block_at(sum_at, runs, G, rows, columns),
    )
    return partial, after(sum_at, runs * G * rows * columns, 4)


@compiled()
def mla_job(frame_at):  # type: ignore[no-untyped-def]
    """A thread's share of x += latent attention(norm(x)). With no arena, writes into the frame how large it must be."""
    frame = int64s_at(frame_at, FRAME)
    plan, floats = int64s_at(frame[PLAN], MLA_PLAN), doubles_at(frame[FLOATS], 3)
    T, threads, start = frame[TOKENS], frame[THREADS], frame[START]
    D, H, C, R, rank = plan[HIDDEN], plan[HEADS], plan[LATENT], plan[ROPE], plan[Q_RANK]
    q_width, W, O = H * (plan[NOPE] + R), C + R, H * plan[VALUE]  # noqa: E741
    first_width, P = rank if rank else q_width, padded_queries(T * H)
    widest = max(D, rank, O)

    packed_at = frame[ARENA]
    scale_at = after(packed_at, packed_size(T, widest), 2)
    first_at = after(scale_at, T, 8)
    q_at = after(first_at, T * first_width, 4)
    row_at = after(q_at, T * q_width, 4)
    query_at = after(row_at, T * W, 4)
    out_at = after(query_at, W * P, 4)
    partial_at = after(out_at, T * O, 4)
    runs = runs_of(start + T, W, P, threads)
    partial, end = carve_partial(partial_at, runs if frame[ARENA] else threads, 1, P, T * H, C)
    if frame[ARENA] == 0:
        frame[ARENA] = end
        return
    packed, scale_T = int16s_at(packed_at, packed_size(T, widest)), doubles_at(scale_at, T)
    first_TQ, q_TQ, row_TW = rows_at(first_at, T, first_width), rows_at(q_at, T, q_width), rows_at(row_at, T, W)
    query_GkP, out_TO = cube_at(query_at, 1, W, P), rows_at(out_at, T, O)
    x_TD, words_SW = rows_at(frame[X], T, D), cache_at(frame[CACHE], frame[CACHE_ROWS], frame[CACHE_WORDS])
    rotation = (rows_at(frame[COS], T, R), rows_at(frame[SIN], T, R))
    team = int64s_at(frame[TEAM], TEAM_NUMBERS)

    if take(team, 0) == 0:
        norm_and_pack(x_TD, plan[NORM], floats[EPS], packed, scale_T)
        query_GkP[:] = 0
        finish(team, 0)
    settle(team, 0, 1)
    tasks_q = take_rows(matrix(plan, Q), D, packed, scale_T, first_TQ, False, threads, team, 1)
    tasks_kv = take_rows(matrix(plan, KV_A), D, packed, scale_T, row_TW, False, threads, team, 2)
    settle(team, 1, tasks_q)
    settle(team, 2, tasks_kv)
    if rank:
        if take(team, 3) == 0:
            norm_and_pack(first_TQ, plan[Q_NORM], floats[LATENT_EPS], packed, scale_T)
            finish(team, 3)
        settle(team, 3, 1)
        tasks_q = take_rows(matrix(plan, Q_B), rank, packed, scale_T, q_TQ, False, threads, team, 4)
        settle(team, 4, tasks_q)
    queries_TQ = q_TQ if rank else first_TQ
    while True:
        h = take(team, 5)
        if h > H:
            break
        if h == 0:
            store_latents(plan, floats, row_TW, rotation, start, words_SW, frame[KIND])
        else:
            absorb_head(h - 1, plan, floats, queries_TQ, rotation, query_GkP[0])
        finish(team, 5)
    settle(team, 5, H + 1)
    attend_runs(words_SW, frame[KIND], start + T, query_GkP, (0, 0, 0, W, C), (start, H), partial, team, 6)
    while True:
        h = take(team, 7)
        if h >= H:
            break
        raise_head(h, plan, partial, out_TO)
        finish(team, 7)
    settle(team, 7, H)
    project_out(plan, out_TO, x_TD, packed, scale_T, threads, team, 8)


@compiled()
def place_query(h, plan, floats, q_TQ, rotation, query_GkP):  # type: ignore[no-untyped-def]
    """A head's queries, normed where the layer norms heads, rotated and scaled, as columns of its group's `query`."""
    H, G, d = plan[HEADS], plan[KV_HEADS], plan[HEAD_SIZE]
    heads = H // G
    cos_TR, sin_TR = rotation
    scale = np.float32(floats[SCALE])
    first_d, second_d = np.empty(d, np.float32), np.empty(d, np.float32)
    for t in range(q_TQ.shape[0]):
        first_d[:] = q_TQ[t, h * d : (h + 1) * d]
        if plan[HEAD_Q_NORM] != ABSENT:
            normed(q_TQ[t, h * d : (h + 1) * d], floats_at(plan[HEAD_Q_NORM], d), floats[EPS], first_d)
        rotate(first_d, cos_TR[t], sin_TR[t], plan[INTERLEAVED], second_d)
        for i in range(d):
            query_GkP[h // heads, i, t * heads + h % heads] = second_d[i] * scale


@compiled()
def store_head(g, plan, floats, k_TK, v_TK, rotation, start, words_SW, kind):  # type: ignore[no-untyped-def]
    """The new tokens' key and value of one group, into their cache rows."""
    G, d = plan[KV_HEADS], plan[HEAD_SIZE]
    cos_TR, sin_TR = rotation
    first_d, second_d = np.empty(d, np.float32), np.empty(d, np.float32)
    for t in range(k_TK.shape[0]):
        first_d[:] = k_TK[t, g * d : (g + 1) * d]
        if plan[HEAD_K_NORM] != ABSENT:
            normed(k_TK[t, g * d : (g + 1) * d], floats_at(plan[HEAD_K_NORM], d), floats[EPS], first_d)
        rotate(first_d, cos_TR[t], sin_TR[t], plan[INTERLEAVED], second_d)
        words = words_SW[start + t]
        store_numbers(second_d, words[g * d * kind : (g + 1) * d * kind], kind)
        store_numbers(v_TK[t, g * d : (g + 1) * d], words[(G + g) * d * kind : (G + g + 1) * d * kind], kind)


@compiled()
def gqa_job(frame_at):  # type: ignore[no-untyped-def]
    """As `mla_job`, for grouped-query attention."""
    frame = int64s_at(frame_at, FRAME)
    plan, floats = int64s_at(frame[PLAN], GQA_PLAN), doubles_at(frame[FLOATS], 3)
    T, threads, start, kind = frame[TOKENS], frame[THREADS], frame[START], frame[KIND]
    D, H, G, d = plan[HIDDEN], plan[HEADS], plan[KV_HEADS], plan[HEAD_SIZE]
    heads = H // G
    W, P, widest = 2 * G * d, padded_queries(T * heads), max(D, H * d)

    packed_at = frame[ARENA]
    scale_at = after(packed_at, packed_size(T, widest), 2)
    q_at = after(scale_at, T, 8)
    k_at = after(q_at, T * H * d, 4)
    v_at = after(k_at, T * G * d, 4)
    query_at = after(v_at, T * G * d, 4)
    out_at = after(query_at, G * d * P, 4)
    partial_at = after(out_at, T * H * d, 4)
    runs = runs_of(start + T, W, P, threads)
    partial, end = carve_partial(partial_at, runs if frame[ARENA] else threads, G, P, T * heads, d)
    if frame[ARENA] == 0:
        frame[ARENA] = end
        return
    packed, scale_T = int16s_at(packed_at, packed_size(T, widest)), doubles_at(scale_at, T)
    q_TQ, k_TK, v_TK = rows_at(q_at, T, H * d), rows_at(k_at, T, G * d), rows_at(v_at, T, G * d)
    query_GkP, out_TO = cube_at(query_at, G, d, P), rows_at(out_at, T, H * d)
    x_TD, words_SW = rows_at(frame[X], T, D), cache_at(frame[CACHE], frame[CACHE_ROWS], frame[CACHE_WORDS])
    rotation = (rows_at(frame[COS], T, d), rows_at(frame[SIN], T, d))
    team = int64s_at(frame[TEAM], TEAM_NUMBERS)

    if take(team, 0) == 0:
        norm_and_pack(x_TD, plan[NORM], floats[EPS], packed, scale_T)
        query_GkP[:] = 0
        finish(team, 0)
    settle(team, 0, 1)
    tasks_q = take_rows(matrix(plan, Q), D, packed, scale_T, q_TQ, False, threads, team, 1)
    tasks_k = take_rows(matrix(plan, K), D, packed, scale_T, k_TK, False, threads, team, 2)
    tasks_v = take_rows(matrix(plan, V), D, packed, scale_T, v_TK, False, threads, team, 3)
    settle(team, 1, tasks_q)
    settle(team, 2, tasks_k)
    settle(team, 3, tasks_v)
    while True:
        h = take(team, 4)
        if h >= H + G:
            break
        if h < H:
            place_query(h, plan, floats, q_TQ, rotation, query_GkP)
        else:
            store_head(h - H, plan, floats, k_TK, v_TK, rotation, start, words_SW, kind)
        finish(team, 4)
    settle(team, 4, H + G)
    attend_runs(words_SW, kind, start + T, query_GkP, (d, G * d, d, W, 0), (start, heads), partial, team, 5)
    if take(team, 6) == 0:
        highest_NGP, total_NGP, sum_NGQV = partial
        for t in range(T):
            for h in range(H):
                out_d = out_TO[t, h * d : (h + 1) * d]
                merge(h // heads, t * heads + h % heads, highest_NGP, total_NGP, sum_NGQV, out_d)
        finish(team, 6)
    settle(team, 6, 1)
    project_out(plan, out_TO, x_TD, packed, scale_T, threads, team, 7)
