"""Grouped-query attention of one layer for a few tokens as one job.

Owns its phases and its plan (see `attention_block`).
"""

import numpy as np

from localr1.kernels.arena import after, doubles_at, int64s_at, rows_at
from localr1.kernels.attention import merge
from localr1.kernels.attention_block import (
    ABSENT,
    ARENA,
    EPS,
    FLOATS,
    FRAME,
    HEADS,
    HIDDEN,
    INTERLEAVED,
    KIND,
    NORM,
    PLAN,
    SCALE,
    START,
    TEAM,
    THREADS,
    TOKENS,
    Q,
    attend_runs,
    carve_attention,
    carve_front,
    pack_once,
    project_out,
    rotate,
    take_product,
)
from localr1.kernels.cache_rows import store_numbers
from localr1.kernels.jit import compiled, floats_at
from localr1.kernels.norm import normed
from localr1.kernels.team import TEAM_NUMBERS, finish, settle, take

(KV_HEADS, HEAD_SIZE, HEAD_Q_NORM, HEAD_K_NORM, K, V, GQA_PLAN) = (10, 11, 12, 13, 14, 17, 20)
"""Places in the plan, after those of every attention; a matrix takes three."""


@compiled()
def place_query(h, plan, floats, q_TQ, rotation, query_GQd):  # type: ignore[no-untyped-def]
    """A head's queries, normed where the layer norms heads, and rotated, as rows of its group's `query`."""
    H, G, d = plan[HEADS], plan[KV_HEADS], plan[HEAD_SIZE]
    heads = H // G
    cos_TR, sin_TR = rotation
    first_d = np.empty(d, np.float32)
    for t in range(q_TQ.shape[0]):
        first_d[:] = q_TQ[t, h * d : (h + 1) * d]
        if plan[HEAD_Q_NORM] != ABSENT:
            normed(q_TQ[t, h * d : (h + 1) * d], floats_at(plan[HEAD_Q_NORM], d), floats[EPS], first_d)
        rotate(first_d, cos_TR[t], sin_TR[t], plan[INTERLEAVED], query_GQd[h // heads, t * heads + h % heads])


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
def project_in(plan, floats, packed, x_TD, q_TQ, k_TK, v_TK, threads, team):  # type: ignore[no-untyped-def]
    """Queries, keys and values from x, in phases 0 to 3."""
    pack_once(x_TD, plan[NORM], floats[EPS], packed, team, 0)
    tasks_q = take_product(plan, Q, plan[HIDDEN], packed, q_TQ, threads, team, 1)
    tasks_k = take_product(plan, K, plan[HIDDEN], packed, k_TK, threads, team, 2)
    tasks_v = take_product(plan, V, plan[HIDDEN], packed, v_TK, threads, team, 3)
    settle(team, 1, tasks_q)
    settle(team, 2, tasks_k)
    settle(team, 3, tasks_v)


@compiled()
def merge_heads(partial, H, out_TO, team, phase):  # type: ignore[no-untyped-def]
    """Every query's result from the runs', by one thread."""
    highest_NGP, total_NGP, sum_NGQV = partial
    T, heads = out_TO.shape[0], H // highest_NGP.shape[1]
    d = out_TO.shape[1] // H
    if take(team, phase) == 0:
        for t in range(T):
            for h in range(H):
                out_d = out_TO[t, h * d : (h + 1) * d]
                merge(h // heads, t * heads + h % heads, highest_NGP, total_NGP, sum_NGQV, out_d)
        finish(team, phase)
    settle(team, phase, 1)


@compiled()
def gqa_job(frame_at):  # type: ignore[no-untyped-def]
    """As `mla_block.mla_job`, for grouped-query attention."""
    frame = int64s_at(frame_at, FRAME)
    plan, floats = int64s_at(frame[PLAN], GQA_PLAN), doubles_at(frame[FLOATS], 3)
    T, threads, start, kind = frame[TOKENS], frame[THREADS], frame[START], frame[KIND]
    H, G, d = plan[HEADS], plan[KV_HEADS], plan[HEAD_SIZE]
    heads, W = H // G, 2 * G * d

    packed, x_TD, words_SW, rotation, q_at = carve_front(frame, plan[HIDDEN], max(plan[HIDDEN], H * d), d)
    k_at = after(q_at, T * H * d, 4)
    v_at = after(k_at, T * G * d, 4)
    out_at = after(v_at, T * G * d, 4)
    query_GQd, partial, end = carve_attention(after(out_at, T * H * d, 4), frame, G, T * heads, d, d, W)
    if frame[ARENA] == 0:
        frame[ARENA] = end
        return
    q_TQ, k_TK, v_TK = rows_at(q_at, T, H * d), rows_at(k_at, T, G * d), rows_at(v_at, T, G * d)
    out_TO, team = rows_at(out_at, T, H * d), int64s_at(frame[TEAM], TEAM_NUMBERS)

    project_in(plan, floats, packed, x_TD, q_TQ, k_TK, v_TK, threads, team)
    while True:
        h = take(team, 4)
        if h >= H + G:
            break
        if h < H:
            place_query(h, plan, floats, q_TQ, rotation, query_GQd)
        else:
            store_head(h - H, plan, floats, k_TK, v_TK, rotation, start, words_SW, kind)
        finish(team, 4)
    settle(team, 4, H + G)
    place = (start, heads, np.float32(floats[SCALE]))
    attend_runs(words_SW, kind, start + T, query_GQd, (d, G * d, d, W, 0), place, partial, team, 5)
    merge_heads(partial, H, out_TO, team, 6)
    project_out(plan, out_TO, x_TD, packed, threads, team, 7)
