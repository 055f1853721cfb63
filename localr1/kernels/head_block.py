"""The end of a forward for a few tokens as one job: norm, vocabulary head, and the likeliest token of each row.

Owns the phases of the job, which one team of threads goes through, and the layout of its frame and plan (see
`attention_block`). The logits are written where the caller wants them, or into the arena where only the likeliest
token is asked for. At most `packing.FEW` tokens.
"""

import numpy as np

from localr1.kernels.arena import after, doubles_at, indices_at, int64s_at, line_at, private_room, room_start, rows_at
from localr1.kernels.attention_block import matrix
from localr1.kernels.jit import address_of, compiled, floats_at, stay_out_of_line, used
from localr1.kernels.linear import take_rows
from localr1.kernels.norm import normed
from localr1.kernels.packing import pack, packed_in, packed_room
from localr1.kernels.team import come, crew_of, finish, launch, settle, take

HIDDEN, VOCAB, NORM, HEAD, HEAD_PLAN = 0, 1, 2, 3, 6
"""Places in a plan; the head's matrix takes three: its weights, its scales, its bias."""

EPS = 0
"""Place in a plan's float64 numbers."""

(PLAN, FLOATS, X, TOKENS, NORMED, LOGITS, BEST, TOP, THREADS, TEAM, ARENA, FRAME) = range(12)
"""Places in a frame. LOGITS is 0 where they are not wanted, BEST where the likeliest tokens are not."""

STRETCH = 2048
"""Logits among which a task looks for the highest."""

LOWEST = np.float32(-np.inf)


@compiled()
def run_head(code, frame, team, x_TD, normed_TD, logits_TV, best_T, top_T, threads):  # type: ignore[no-untyped-def]
    """Complete a frame, in which the plan and the arena are told already, and run its job. What is empty of `logits`
    and `best` is not wanted."""
    frame[X], frame[TOKENS], frame[NORMED] = address_of(x_TD), x_TD.shape[0], address_of(normed_TD)
    frame[LOGITS] = address_of(logits_TV) if logits_TV.size else 0
    frame[BEST], frame[TOP] = address_of(best_T) if best_T.size else 0, address_of(top_T)
    frame[THREADS], frame[TEAM] = threads, address_of(team)
    launch(code, frame, team, threads)
    used(x_TD)
    used(normed_TD)
    used(logits_TV)
    used(best_T)
    used(top_T)
    used(team)


@compiled()
def find_highest(logits, best, top):  # type: ignore[no-untyped-def]
    """Where the first of the highest logits is, and what it is; the first of all where none is a number above minus
    infinity."""
    stay_out_of_line()
    highest = LOWEST
    for v in range(logits.size):
        highest = max(highest, logits[v])
    place = 0
    while place < logits.size and logits[place] != highest:
        place += 1
    best[0], top[0] = place % logits.size, highest


@compiled()
def head_job(frame_at, me):  # type: ignore[no-untyped-def]
    """A thread's share of logits = head(norm(x)) and their maxima. With no arena, writes into the frame how large it
    must be."""
    frame = int64s_at(frame_at, FRAME)
    plan, floats = int64s_at(frame[PLAN], HEAD_PLAN), doubles_at(frame[FLOATS], 1)
    T, D, V = frame[TOKENS], plan[HIDDEN], plan[VOCAB]
    stretches = (V + STRETCH - 1) // STRETCH
    best_at = frame[ARENA]
    top_at = after(best_at, T * stretches, 8)
    logits_at = after(top_at, T * stretches, 4)
    if frame[ARENA] == 0:
        frame[ARENA] = after(logits_at, T * V, 4)
        return
    crew = crew_of(frame[TEAM], me, frame[THREADS])
    logits_TV = rows_at(frame[LOGITS] if frame[LOGITS] else logits_at, T, V)
    normed_room = private_room(4 * T * D)
    x_TD, normed_TD = rows_at(frame[X], T, D), rows_at(room_start(normed_room), T, D)
    room = packed_room(T, D)
    packed, scale_T = packed_in(room, T, D)

    for t in range(T):
        normed(x_TD[t], floats_at(plan[NORM], D), floats[EPS], normed_TD[t])
    if come(crew, 0) == 0:
        rows_at(frame[NORMED], T, D)[:] = normed_TD
    pack(address_of(normed_TD), D, np.arange(T), 0, T, packed, scale_T)
    tasks = take_rows(matrix(plan, HEAD), D, packed, scale_T, logits_TV, False, crew, 1)
    settle(crew, 1, tasks)
    if frame[BEST]:
        best_TN, top_TN = indices_at(best_at, T, stretches), rows_at(top_at, T, stretches)
        take_highest(logits_TV, best_TN, top_TN, crew, 2)
        if come(crew, 3) == 0:
            merge_highest(best_TN, top_TN, int64s_at(frame[BEST], T), line_at(frame[TOP], T))
    used(normed_room)
    used(room)


@compiled()
def take_highest(logits_TV, best_TN, top_TN, crew, phase):  # type: ignore[no-untyped-def]
    """A thread's share of the highest logit of every row's stretches."""
    T, V = logits_TV.shape
    stretches = best_TN.shape[1]
    tasks, done = T * stretches, 0
    task = take(crew, phase, tasks)
    while task < tasks:
        t, n = task // stretches, task % stretches
        find_highest(logits_TV[t, n * STRETCH : min(V, (n + 1) * STRETCH)], best_TN[t, n:], top_TN[t, n:])
        best_TN[t, n] += n * STRETCH
        task, done = take(crew, phase, tasks), done + 1
    finish(crew, phase, done)
    settle(crew, phase, tasks)


@compiled()
def merge_highest(best_TN, top_TN, best_T, top_T):  # type: ignore[no-untyped-def]
    """The first of the highest of all stretches."""
    for t in range(best_T.size):
        best_T[t], top_T[t] = best_TN[t, 0], top_TN[t, 0]
        for n in range(1, best_TN.shape[1]):
            if top_TN[t, n] > top_T[t]:
                best_T[t], top_T[t] = best_TN[t, n], top_TN[t, n]
