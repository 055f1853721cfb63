"""What an MTP layer's residual begins with, for a few tokens as one job: lookup, two norms, product.

Owns the phases of the job and the layout of its frame and plan (see `attention_block`). The rows that come out are
eh_proj [enorm(embedding of a token) | hnorm(hidden state before it)] (DeepSeek-V3 report, section 2.2). At most
`packing.FEW` tokens.
"""

import numpy as np
from numba import types

from localr1.kernels.arena import after, doubles_at, int16s_at, int64s_at, rows_at
from localr1.kernels.jit import address_of, compiled, floats_at, used, viewing
from localr1.kernels.linear import take_rows
from localr1.kernels.norm import normed
from localr1.kernels.packing import pack, packed_size
from localr1.kernels.team import come, crew_of, finish, launch, settle

(HIDDEN, EMBEDDING, EMBEDDING_SCB, EMBEDDING_NORM, HIDDEN_NORM, PROJ, FRONT_PLAN) = (0, 1, 2, 3, 4, 5, 8)
"""Places in a plan; the projection takes three."""
EPS = 0
"""Place in a plan's float64 numbers."""

(PLAN, FLOATS, TOKEN, STATE, OUT, TOKENS, THREADS, TEAM, ARENA, FRAME) = range(10)
"""Places in a frame."""

bytes_at = viewing(types.int8, writable=False)


@compiled()
def run_mtp_front(code, frame, team, token_T, hidden_TD, x_TD, threads):  # type: ignore[no-untyped-def]
    """Complete a frame, in which the plan and the arena are told already, and run its job."""
    frame[TOKEN], frame[STATE], frame[OUT] = address_of(token_T), address_of(hidden_TD), address_of(x_TD)
    frame[TOKENS], frame[THREADS], frame[TEAM] = token_T.size, threads, address_of(team)
    launch(code, frame, team, threads)
    used(token_T)
    used(hidden_TD)
    used(x_TD)
    used(team)


@compiled()
def join(plan, eps, token_T, hidden_TD, joined_TI):  # type: ignore[no-untyped-def]
    """The normed embedding of each token beside the normed state of the one before it."""
    T, D = hidden_TD.shape
    embedding_norm, hidden_norm = floats_at(plan[EMBEDDING_NORM], D), floats_at(plan[HIDDEN_NORM], D)
    for t in range(T):
        row, scale = bytes_at(plan[EMBEDDING] + token_T[t] * D, D), floats_at(plan[EMBEDDING_SCB] + 4 * token_T[t], 1)
        embedded = joined_TI[t, :D]
        for d in range(D):
            embedded[d] = row[d] * (scale[0] / np.float32(127.0))
        normed(embedded, embedding_norm, eps, embedded)
        normed(hidden_TD[t], hidden_norm, eps, joined_TI[t, D:])


@compiled()
def mtp_front_job(frame_at, me):  # type: ignore[no-untyped-def]
    """A thread's share. With no arena, writes into the frame how large it must be."""
    frame = int64s_at(frame_at, FRAME)
    plan, floats = int64s_at(frame[PLAN], FRONT_PLAN), doubles_at(frame[FLOATS], 1)
    T, D = frame[TOKENS], plan[HIDDEN]
    packed_at = after(frame[ARENA], T * 2 * D, 4)
    scale_at = after(packed_at, packed_size(T, 2 * D), 2)
    if frame[ARENA] == 0:
        frame[ARENA] = after(scale_at, T, 8)
        return
    joined_TI, crew = rows_at(frame[ARENA], T, 2 * D), crew_of(frame[TEAM], me, frame[THREADS])
    packed, scale_T = int16s_at(packed_at, packed_size(T, 2 * D)), doubles_at(scale_at, T)
    if come(crew, 0) == 0:
        join(plan, floats[EPS], int64s_at(frame[TOKEN], T), rows_at(frame[STATE], T, D), joined_TI)
        pack(frame[ARENA], 2 * D, np.arange(T), 0, T, packed, scale_T)
        finish(crew, 0, 1)
    settle(crew, 0, 1)
    proj, out_TD = (plan[PROJ], plan[PROJ + 1], plan[PROJ + 2]), rows_at(frame[OUT], T, D)
    tasks = take_rows(proj, 2 * D, packed, scale_T, out_TD, False, crew, 1)
    settle(crew, 1, tasks)
