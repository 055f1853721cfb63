"""int8-weight linear with integer products.

Owns the split of the output rows over threads: each takes the next rows until none is left.
"""

import numpy as np

from localr1.kernels.arena import (
    LINE_BYTES,
    doubles_at,
    int16s_at,
    int64s_at,
    line_at,
    line_start,
    private_room,
    room_start,
    rows_at,
)
from localr1.kernels.jit import address_of, compiled, floats_at, stay_out_of_line, used
from localr1.kernels.matmul import make_scratch, multiply, sums_size, task_rows, tasks_at_once
from localr1.kernels.packing import pack, packed_size
from localr1.kernels.team import TEAM_NUMBERS, crew_of, finish, launch, settle, take_several, threads_of

SMALL_WORK = 1 << 18
"""Weights times rows below which waking the other threads costs more than it saves."""


@compiled()
def take_rows(matrix, K, packed, scale_T, out_TO, keep, crew, phase):  # type: ignore[no-untyped-def]
    """One thread's share of out = x W^T + bias, or of adding that to `out` (keep).

    Returns how many tasks the phase has; the caller waits for them. `matrix` is (address of the weights, of the scales,
    of the bias or 0); all are as long as out's rows.
    """
    stay_out_of_line()
    T, rows_in_all = out_TO.shape
    weights_at, scb_at, bias_at = matrix
    each, at_once = task_rows(T, rows_in_all, threads_of(crew)), tasks_at_once(T)
    block = each * at_once
    sums_room = private_room(4 * sums_size(T, block))
    sums = line_at(room_start(sums_room), sums_size(T, block))
    scratch = make_scratch(T)
    tasks, done = (rows_in_all + each - 1) // each, 0
    task, taken = take_several(crew, phase, tasks, at_once)
    while taken:
        first = task * each
        rows = min(taken * each, rows_in_all - first)
        multiply(weights_at + first * K, rows, K, packed, T, sums, block, scratch)
        scb = floats_at(scb_at + 4 * first, rows)
        for t in range(T):
            scale = scale_T[t] / 127.0
            out, mine = out_TO[t, first : first + rows], sums[t * block : t * block + rows]
            if keep:
                for r in range(rows):
                    out[r] += np.float32(mine[r] * (scale * scb[r]))
            else:
                for r in range(rows):
                    out[r] = np.float32(mine[r] * (scale * scb[r]))
            if bias_at:
                bias = floats_at(bias_at + 4 * first, rows)
                for r in range(rows):
                    out[r] += bias[r]
        done += taken
        task, taken = take_several(crew, phase, tasks, at_once)
    finish(crew, phase, done)
    used(sums_room)
    return tasks


(WEIGHTS, SCB, OUTPUTS, INPUTS, TOKENS, PACKED, SCALE, OUT, THREADS, TEAM) = range(10)
FRAME = 10
"""Places in the frame of `linear_job`."""


@compiled()
def linear_job(frame_at, me):  # type: ignore[no-untyped-def]
    """A thread's share of a call whose rows are packed."""
    frame = int64s_at(frame_at, FRAME)
    T, K = frame[TOKENS], frame[INPUTS]
    packed, scale_T = int16s_at(frame[PACKED], packed_size(T, K)), doubles_at(frame[SCALE], T)
    out_TO, crew = rows_at(frame[OUT], T, frame[OUTPUTS]), crew_of(frame[TEAM], me, frame[THREADS])
    tasks = take_rows((frame[WEIGHTS], frame[SCB], 0), K, packed, scale_T, out_TO, False, crew, 0)
    settle(crew, 0, tasks)


@compiled()
def linear(code, x_TD, q_OD, scb_O, out_TO, threads):  # type: ignore[no-untyped-def]
    T, D = x_TD.shape
    if T == 0 or q_OD.shape[0] == 0:
        return
    size, scale_T = packed_size(T, D), np.empty(T, np.float64)
    room = np.empty(size + LINE_BYTES // 2, np.int16)
    packed = int16s_at(line_start(address_of(room)), size)
    frame, team = np.empty(FRAME, np.int64), np.empty(TEAM_NUMBERS, np.int64)
    pack(address_of(x_TD), D, np.arange(T), 0, T, packed, scale_T)
    frame[WEIGHTS], frame[SCB], frame[OUTPUTS], frame[INPUTS] = address_of(q_OD), address_of(scb_O), q_OD.shape[0], D
    frame[TOKENS], frame[PACKED], frame[SCALE], frame[OUT] = (
        T,
        address_of(packed),
        address_of(scale_T),
        address_of(out_TO),
    )
    frame[THREADS], frame[TEAM] = 1 if q_OD.size * T < SMALL_WORK else threads, address_of(team)
    launch(code, frame, team, frame[THREADS])
    used(x_TD)
    used(q_OD)
    used(scb_O)
    used(room)
    used(scale_T)
    used(out_TO)
