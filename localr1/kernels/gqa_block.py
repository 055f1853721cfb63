"""Grouped-query attention of one layer for a few tokens as one job.

Owns its phases and its plan (see `attention_block`).
"""

import numpy as np

from localr1.kernels.arena import after, cube_at, doubles_at, int64s_at, private_room, room_start, rows_at
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
    carve_partial,
    norm_and_pack,
    project_out,
    rotate,
    take_product,
    told,
)
from localr1.kernels.cache_rows import store_numbers
from localr1.kernels.jit import compiled, copy_numbers, floats_at, used
from localr1.kernels.norm import normed
from localr1.kernels.packing import packed_in, packed_room
from localr1.kernels.team import crew_of, settle

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
        copy_numbers(q_TQ[t, h * d : (h + 1) * d], first_d)
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
        copy_numbers(k_TK[t, g * d : (g + 1) * d], first_d)
        if plan[HEAD_K_NORM] != ABSENT:
            normed(k_TK[t, g * d : (g + 1) * d], floats_at(plan[HEAD_K_NORM], d), floats[EPS], first_d)
        rotate(first_d, cos_TR[t], sin_TR[t], plan[INTERLEAVED], second_d)
        words = words_SW[start + t]
        store_numbers(second_d, words[g * d * kind : (g + 1) * d * kind], kind)
        store_numbers(v_TK[t, g * d : (g + 1) * d], words[(G + g) * d * kind : (G + g + 1) * d * kind], kind)


@compiled()
def project_in(plan, floats, packed, x_TD, q_TQ, k_TK, v_TK, crew):  # type: ignore[no-untyped-def]
    """Queries, keys and values from x, in phases 0 to 2."""
    norm_and_pack(x_TD, plan[NORM], floats[EPS], packed)
    tasks_q = take_product(plan, Q, plan[HIDDEN], packed, q_TQ, crew, 0)
    tasks_k = take_product(plan, K, plan[HIDDEN], packed, k_TK, crew, 1)
    tasks_v = take_product(plan, V, plan[HIDDEN], packed, v_TK, crew, 2)
    settle(crew, 0, tasks_q)
    settle(crew, 1, tasks_k)
    settle(crew, 2, tasks_v)


@compiled()
def merge_heads(partial, H, out_TO):  # type: ignore[no-untyped-def]
    """Every query's result from the runs'."""
    highest_NGP, total_NGP, sum_NGQV = partial
    T, heads = out_TO.shape[0], H // highest_NGP.shape[1]
    d = out_TO.shape[1] // H
    for t in range(T):
        for h in range(H):
            out_d = out_TO[t, h * d : (h + 1) * d]
            merge(h // heads, t * heads + h % heads, highest_NGP, total_NGP, sum_NGQV, out_d)


@compiled()
def gqa_job(frame_at, me):  # type: ignore[no-untyped-def]
    """As `mla_block.mla_job`, for grouped-query attention. Every thread writes the same new cache rows."""
    frame = int64s_at(frame_at, FRAME)
    plan, floats = int64s_at(frame[PLAN], GQA_PLAN), doubles_at(frame[FLOATS], 3)
    T, start, kind = frame[TOKENS], frame[START], frame[KIND]
    H, G, d = plan[HEADS], plan[KV_HEADS], plan[HEAD_SIZE]
    heads, W = H // G, 2 * G * d

    q_at = frame[ARENA]
    k_at = after(q_at, T * H * d, 4)
    v_at = after(k_at, T * G * d, 4)
    partial, end = carve_partial(after(v_at, T * G * d, 4), frame, G, T * heads, heads, d, W)
    if frame[ARENA] == 0:
        frame[ARENA] = end
        return
    q_TQ, k_TK, v_TK = rows_at(q_at, T, H * d), rows_at(k_at, T, G * d), rows_at(v_at, T, G * d)
    (x_TD, words_SW, rotation), crew = told(frame, plan[HIDDEN], d), crew_of(frame[TEAM], me, frame[THREADS])
    heads_room = private_room(2 * after(0, T * H * d, 4))
    query_GQd = cube_at(room_start(heads_room), G, T * heads, d)
    out_TO = rows_at(after(room_start(heads_room), T * H * d, 4), T, H * d)
    room = packed_room(T, max(plan[HIDDEN], H * d))
    packed = packed_in(room, T, max(plan[HIDDEN], H * d))

    project_in(plan, floats, packed, x_TD, q_TQ, k_TK, v_TK, crew)
    for h in range(H):
        place_query(h, plan, floats, q_TQ, rotation, query_GQd)
    for g in range(G):
        store_head(g, plan, floats, k_TK, v_TK, rotation, start, words_SW, kind)
    place = (start, heads, np.float32(floats[SCALE]))
    attend_runs(words_SW, kind, start + T, query_GQd, (d, G * d, d, W, 0), place, partial, crew, 3)
    merge_heads(partial, H, out_TO)
    project_out(plan, out_TO, x_TD, packed, crew, 4)
    used(room)
    used(heads_room)
