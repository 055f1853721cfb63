"""Latent attention (MLA) of one layer for a few tokens as one job: norm, projections, cache rows, attention, output.

Owns its phases and its plan (see `attention_block`). Queries are taken into the latent, so that the cache's rows are
attended to as they lie.
"""

import numpy as np

from localr1.kernels.arena import after, cube_at, doubles_at, int64s_at, private_room, room_start, rows_at
from localr1.kernels.attention import merge
from localr1.kernels.attention_block import (
    ARENA,
    EPS,
    FLOATS,
    FRAME,
    HEADS,
    HIDDEN,
    INTERLEAVED,
    KIND,
    LAST_ONLY,
    LATENT_EPS,
    NORM,
    PLAN,
    SCALE,
    START,
    TEAM,
    THREADS,
    TOKENS,
    Q,
    attend_runs,
    carve_partial,
    norm_and_pack,
    project_out,
    rotate,
    take_product,
    told,
)
from localr1.kernels.cache_rows import store_latent
from localr1.kernels.features import CHUNK, LANES
from localr1.kernels.jit import (
    address_of,
    clear,
    compiled,
    copy_numbers,
    floats_at,
    stay_out_of_line,
    used,
    widen,
    words_at,
)
from localr1.kernels.norm import normed
from localr1.kernels.packing import packed_in, packed_room
from localr1.kernels.team import crew_of, finish, settle, take
from localr1.kernels.up_projection_loops import (
    PANEL,
    RAISED,
    into_latent_one,
    into_latent_panel,
    out_of_latent_one,
    out_of_latent_some,
)

(NOPE, ROPE, VALUE, LATENT, Q_RANK, Q_NORM, Q_B, KV_A, KV_NORM, KV_B, KV_B_HALVES, MLA_PLAN) = (
    10, 11, 12, 13, 14, 15, 16, 19, 22, 23, 24, 25,
)  # fmt: skip
"""Places in the plan, after those of every attention; a matrix takes three."""

WIDENED = 4096
"""Numbers of `kv_b` that are widened at a time where they are not multiplied as they lie."""

ABSORBED_ROWS = 8
"""Rows of `kv_b` that are multiplied at a time, for all tokens, while as many more are asked for."""


@compiled()
def widen_row(words, halves, out):  # type: ignore[no-untyped-def]
    """Numbers of 16 (halves = 1) or 32 bits (2) as float32."""
    if halves == 2:
        copy_numbers(words.view(np.float32), out)
    else:
        for i in range(out.size):
            out[i] = widen(words[i])


@compiled()
def take_apart(x_C, apart_C):  # type: ignore[no-untyped-def]
    """Of each chunk the even numbers, then the odd ones (see `up_projection_loops`)."""
    for c in range(0, x_C.size, CHUNK):
        for i in range(LANES):
            apart_C[c + i], apart_C[c + LANES + i] = x_C[c + 2 * i], x_C[c + 2 * i + 1]


@compiled()
def put_together(apart_C, x_C):  # type: ignore[no-untyped-def]
    for c in range(0, x_C.size, CHUNK):
        for i in range(LANES):
            x_C[c + 2 * i], x_C[c + 2 * i + 1] = apart_C[c + i], apart_C[c + LANES + i]


@compiled(inline=True)
def ahead_of(row, rows, others, C):  # type: ignore[no-untyped-def]
    """Bytes from one of a head's `rows` rows to what is read ABSORBED_ROWS rows later: at the end it is the next
    head's, behind `others` rows of another kind."""
    further = ABSORBED_ROWS + (others if row + ABSORBED_ROWS >= rows else 0)
    return 2 * C * further


@compiled()
def absorb_as_they_lie(weights, N, V, C, q_TQ, first_q, query_QW, h, H):  # type: ignore[no-untyped-def]
    """Queries times N bfloat16 weight rows of whole chunks, at an address, between V others and V others."""
    T = q_TQ.shape[0]
    room = private_room(4 * T * C)
    latent_TC = rows_at(room_start(room), T, C)
    for t in range(T):
        clear(latent_TC[t])
    for n in range(0, N, ABSORBED_ROWS):
        rows, ahead = min(ABSORBED_ROWS, N - n), ahead_of(n, N, V, C)
        for t in range(T):
            query, c = address_of(q_TQ) + 4 * (t * q_TQ.shape[1] + first_q + n), 0
            while c < C:
                at, latent = weights + 2 * (n * C + c), address_of(latent_TC) + 4 * (t * C + c)
                if C - c >= PANEL * CHUNK:
                    into_latent_panel(at, 2 * C, rows, query, latent, ahead)
                    c += PANEL * CHUNK
                else:
                    into_latent_one(at, 2 * C, rows, query, latent, ahead)
                    c += CHUNK
    for t in range(T):
        put_together(latent_TC[t], query_QW[t * H + h, :C])
    used(room)


@compiled()
def raise_as_they_lie(weights, V, N, latent_TC, out_TO, first):  # type: ignore[no-untyped-def]
    """V bfloat16 weight rows of whole chunks, at an address between N others and N others, times latents."""
    T, C = latent_TC.shape
    room = private_room(4 * T * C)
    apart_TC = rows_at(room_start(room), T, C)
    for t in range(T):
        take_apart(latent_TC[t], apart_TC[t])
    v = 0
    while v < V:
        at, rows, ahead = weights + 2 * v * C, RAISED if V - v >= RAISED else 1, ahead_of(v, V, N, C)
        for t in range(T):
            latent = address_of(apart_TC) + 4 * t * C
            out = address_of(out_TO) + 4 * (t * out_TO.shape[1] + first + v)
            if rows == RAISED:
                out_of_latent_some(at, 2 * C, C // CHUNK, latent, out, ahead)
            else:
                out_of_latent_one(at, 2 * C, C // CHUNK, latent, out, ahead)
        v += rows
    used(room)


@compiled()
def absorb_head(h, plan, q_TQ, rotation, query_QW):  # type: ignore[no-untyped-def]
    """A head's queries in the latent: q_nope W_UK and the rotated q_pe, as rows of `query`."""
    stay_out_of_line()
    H, N, R, C = plan[HEADS], plan[NOPE], plan[ROPE], plan[LATENT]
    cos_TR, sin_TR = rotation
    T = q_TQ.shape[0]
    halves = plan[KV_B_HALVES]
    key_up = words_at(plan[KV_B] + 2 * halves * C * h * (N + plan[VALUE]), N * C * halves)
    for t in range(T):
        query_QW[t * H + h, :C] = 0
        rotate(
            q_TQ[t, h * (N + R) + N : (h + 1) * (N + R)],
            cos_TR[t],
            sin_TR[t],
            plan[INTERLEAVED],
            query_QW[t * H + h, C:],
        )
    if halves == 1 and C % CHUNK == 0:
        absorb_as_they_lie(address_of(key_up), N, plan[VALUE], C, q_TQ, h * (N + R), query_QW, h, H)
        return
    block = max(1, WIDENED // C)
    weights = np.empty(block * C, np.float32)
    for first in range(0, N, block):
        rows = min(block, N - first)
        widen_row(key_up[first * C * halves : (first + rows) * C * halves], halves, weights[: rows * C])
        for t in range(T):
            latent_C = query_QW[t * H + h, :C]
            for n in range(rows):
                q, at = q_TQ[t, h * (N + R) + first + n], n * C
                for c in range(C):
                    latent_C[c] += q * weights[at + c]


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
    room = private_room(4 * T * C)
    latent_TC = rows_at(room_start(room), T, C)
    highest_NGP, total_NGP, sum_NGQV = partial
    for t in range(T):
        merge(0, t * H + h, highest_NGP, total_NGP, sum_NGQV, latent_TC[t])
    if halves == 1 and C % CHUNK == 0:
        raise_as_they_lie(address_of(value_up), V, N, latent_TC, out_TO, h * V)
        used(room)
        return
    block = max(1, WIDENED // C)
    weights = np.empty(block * C, np.float32)
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
    used(room)


@compiled()
def project_in(plan, floats, packed, asked, x_TD, first_NQ, q_NQ, row_TW, crew):  # type: ignore[no-untyped-def]
    """Queries of the last N rows of x and new latents of all, in phases 0 to 2. `packed` has room for all rows, `asked`
    for N: the same room where N is all."""
    norm_and_pack(x_TD, plan[NORM], floats[EPS], packed)
    if len(first_NQ) < len(x_TD):
        norm_and_pack(x_TD[len(x_TD) - len(first_NQ) :], plan[NORM], floats[EPS], asked)
    tasks_q = take_product(plan, Q, plan[HIDDEN], asked, first_NQ, crew, 0)
    tasks_kv = take_product(plan, KV_A, plan[HIDDEN], packed, row_TW, crew, 1)
    settle(crew, 0, tasks_q)
    settle(crew, 1, tasks_kv)
    if plan[Q_RANK]:
        norm_and_pack(first_NQ, plan[Q_NORM], floats[LATENT_EPS], asked)
        settle(crew, 2, take_product(plan, Q_B, plan[Q_RANK], asked, q_NQ, crew, 2))


@compiled()
def take_heads(plan, floats, q_NQ, row_TW, rotation, query_QW, words_SW, start, kind, crew):  # type: ignore[no-untyped-def]
    """The cache's new rows, and every head's queries of the last N tokens in the latent: phase 3."""
    behind = len(row_TW) - len(q_NQ)
    asked = rotation[0][behind:], rotation[1][behind:]
    tasks, done = plan[HEADS] + 1, 0
    h = take(crew, 3, tasks)
    while h < tasks:
        if h == 0:
            store_latents(plan, floats, row_TW, rotation, start, words_SW, kind)
        else:
            absorb_head(h - 1, plan, q_NQ, asked, query_QW)
        h, done = take(crew, 3, tasks), done + 1
    finish(crew, 3, done)
    settle(crew, 3, tasks)


@compiled()
def mla_job(frame_at, me):  # type: ignore[no-untyped-def]
    """A thread's share of x += latent attention(norm(x)), for the last N of the T rows. With no arena, writes into the
    frame how large it must be."""
    frame = int64s_at(frame_at, FRAME)
    plan, floats = int64s_at(frame[PLAN], MLA_PLAN), doubles_at(frame[FLOATS], 3)
    T, start, kind = frame[TOKENS], frame[START], frame[KIND]
    H, C, R, rank = plan[HEADS], plan[LATENT], plan[ROPE], plan[Q_RANK]
    q_width, W, O = H * (plan[NOPE] + R), C + R, H * plan[VALUE]  # noqa: E741
    first_width, N = rank if rank else q_width, 1 if frame[LAST_ONLY] else T

    widest, first_at = max(plan[HIDDEN], rank, O), frame[ARENA]
    q_at = after(first_at, T * first_width, 4)
    row_at = after(q_at, T * q_width, 4)
    out_at = after(row_at, T * W, 4)
    query_at = after(out_at, T * O, 4)
    partial, end = carve_partial(after(query_at, T * H * W, 4), frame, 1, N * H, H, C, W)
    if frame[ARENA] == 0:
        frame[ARENA] = end
        return
    first_NQ, q_NQ = rows_at(first_at, N, first_width), rows_at(q_at, N, q_width)
    row_TW, out_NO, query_GQW = rows_at(row_at, T, W), rows_at(out_at, N, O), cube_at(query_at, 1, N * H, W)
    (x_TD, words_SW, rotation), crew = told(frame, plan[HIDDEN], R), crew_of(frame[TEAM], me, frame[THREADS])
    room, asked_room = packed_room(T, widest), packed_room(N if N < T else 0, widest)
    packed = packed_in(room, T, widest)
    asked = packed_in(asked_room, N, widest) if N < T else packed

    project_in(plan, floats, packed, asked, x_TD, first_NQ, q_NQ, row_TW, crew)
    queries_NQ = q_NQ if rank else first_NQ
    take_heads(plan, floats, queries_NQ, row_TW, rotation, query_GQW[0], words_SW, start, kind, crew)
    place = (start + T - N, H, np.float32(floats[SCALE]))
    attend_runs(words_SW, kind, start + T, query_GQW, (0, 0, 0, W, C), place, partial, crew, 4)
    done = 0
    h = take(crew, 5, H)
    while h < H:
        raise_head(h, plan, partial, out_NO)
        h, done = take(crew, 5, H), done + 1
    finish(crew, 5, done)
    settle(crew, 5, H)
    project_out(plan, out_NO, x_TD[T - N :], asked, crew, 6)
    used(room)
    used(asked_room)
