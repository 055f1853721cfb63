"""The attention of one layer for a few tokens as one job: what latent and grouped-query attention have in common.

Owns the layout of what a job is told: a frame for the call and a plan for the layer, both arrays of int64 that hold
sizes and addresses, so that a call passes few arguments; and the job's first and last phases, which one team of threads
goes through (see `team`). The residual rows `x` are changed in place. At most `packing.FEW` tokens.

What takes less time than waiting for another thread to do it, every thread does for itself: norms, rotations, packing.
It reads only what no phase changes that may still have tasks to take; a thread that comes late may read what has been
changed since, and then finds no task to use it for.
"""

import numpy as np

from localr1.kernels.arena import after, block_at, cache_at, cube_at, private_room, room_start, rows_at
from localr1.kernels.attention import attend_part, padded_queries, padded_values, runs_of
from localr1.kernels.jit import address_of, compiled, floats_at, stay_out_of_line, used
from localr1.kernels.linear import take_rows
from localr1.kernels.norm import normed
from localr1.kernels.packing import pack
from localr1.kernels.team import finish, launch, settle, take

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
    LAST_ONLY,
    FRAME,
) = range(16)
"""Places in a frame. LAST_ONLY: the rows of x before the last one are not asked for, only what they are to the cache;
latent attention then leaves them as they are."""

ABSENT = 0
"""The address of a weight that a layer does not have."""

(HIDDEN, HEADS, INTERLEAVED, NORM, OUT, Q) = (0, 1, 2, 3, 4, 7)
"""Places in both plans; a matrix takes three: its weights, its scales, its bias."""

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
def norm_and_pack(x_TD, weight_at, eps, packed):  # type: ignore[no-untyped-def]
    """Pack the rows of x, normed if there is a weight, into rows and scales."""
    stay_out_of_line()
    T, D = x_TD.shape
    room = private_room(4 * T * D if weight_at != ABSENT else 0)
    normed_TD = x_TD
    if weight_at != ABSENT:
        normed_TD = rows_at(room_start(room), T, D)
        weight_D = floats_at(weight_at, D)
        for t in range(T):
            normed(x_TD[t], weight_D, eps, normed_TD[t])
    pack(address_of(normed_TD), D, np.arange(T), 0, T, packed[0], packed[1])
    used(room)


@compiled()
def rotate(x_R, cos_R, sin_R, interleaved, out_R):  # type: ignore[no-untyped-def]
    """Rotate pairs by an angle; they come out in the half layout. The table holds cos twice, and -sin then sin."""
    pairs = x_R.size // 2
    for p in range(pairs):
        first, second = (x_R[2 * p], x_R[2 * p + 1]) if interleaved else (x_R[p], x_R[pairs + p])
        out_R[p] = first * cos_R[p] - second * sin_R[pairs + p]
        out_R[pairs + p] = second * cos_R[pairs + p] + first * sin_R[pairs + p]


@compiled(inline=True)
def told(frame, hidden, rotary):  # type: ignore[no-untyped-def]
    """What a call is given: x, the cache, the rotations."""
    T = frame[TOKENS]
    x_TD, words_SW = rows_at(frame[X], T, hidden), cache_at(frame[CACHE], frame[CACHE_ROWS], frame[CACHE_WORDS])
    return x_TD, words_SW, (rows_at(frame[COS], T, rotary), rows_at(frame[SIN], T, rotary))


@compiled(inline=True)
def carve_partial(at, frame, G, queries, heads, value_size, W):  # type: ignore[no-untyped-def]
    """Room for each run's highest scores, sums and weighted values; the address behind it. A token has `heads` of the
    `queries` that read the same rows."""
    P, (rows, columns) = padded_queries(queries), padded_values(queries, value_size)
    runs, tokens = frame[THREADS], frame[TOKENS]
    if frame[ARENA]:
        runs = runs_of(frame[START] + tokens, W, tokens, heads, runs)
    total_at = after(at, runs * G * P, 4)
    sum_at = after(total_at, runs * G * P, 4)
    sums = block_at(sum_at, runs, G, rows, columns)
    partial = cube_at(at, runs, G, P), cube_at(total_at, runs, G, P), sums
    return partial, after(sum_at, runs * G * rows * columns, 4)


@compiled(inline=True)
def take_product(plan, at, inputs, packed, out, crew, phase):  # type: ignore[no-untyped-def]
    """A thread's share of out = packed rows times a matrix; how many tasks there are to `settle`."""
    return take_rows(matrix(plan, at), inputs, packed[0], packed[1], out, False, crew, phase)


@compiled()
def attend_runs(words_SW, kind, visible, query_GQk, geometry, place, partial, crew, phase):  # type: ignore[no-untyped-def]
    """A thread's share of the cache's runs."""
    runs = partial[0].shape[0]
    done = 0
    n = take(crew, phase, runs)
    while n < runs:
        attend_part(n, words_SW, kind, visible, query_GQk, geometry, place, partial)
        n, done = take(crew, phase, runs), done + 1
    finish(crew, phase, done)
    settle(crew, phase, runs)


@compiled()
def project_out(plan, out_TO, x_TD, packed, crew, phase):  # type: ignore[no-untyped-def]
    """x += out W_O + bias, in one phase."""
    norm_and_pack(out_TO, ABSENT, 0.0, packed)
    weights = matrix(plan, OUT)
    tasks = take_rows(weights, out_TO.shape[1], packed[0], packed[1], x_TD, True, crew, phase)
    settle(crew, phase, tasks)
