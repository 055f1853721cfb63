"""Gated feed-forwards of grouped tokens in one call, with integer products.

Owns the four phases of a call, each shared out over the threads: pack each group's token rows; gate, up and SiLU for
blocks of feed-forward rows; pack the middle again; down, where a thread owns a block of output columns over all groups,
so that no two threads add to the same number and the result does not depend on timing. Each group's weights are read
once.

Memory of a call: (T * K) * (2 D + 6 F) bytes and, a thread, about 16 * SUM_STRIDE * (rows of the busiest expert).
"""

import numpy as np

from localr1.kernels.arena import (
    LINE_BYTES,
    after,
    doubles_at,
    indices_at,
    int16s_at,
    int64s_at,
    line_at,
    line_start,
    rows_at,
)
from localr1.kernels.grouping import BUSIEST, FF_ROWS, GROUPS, PAIRS, carve_routes, group_pairs
from localr1.kernels.jit import address_of, compiled, exp, floats_at, stay_out_of_line, used
from localr1.kernels.matmul import SUM_STRIDE, make_scratch, multiply, sums_size, task_rows
from localr1.kernels.packing import pack, pack_few, packed_size
from localr1.kernels.team import TEAM_NUMBERS, finish, launch, settle, take

SMALL_WORK = 1 << 18
"""Weights times rows below which waking the other threads costs more than it saves."""

PHASES = 4
PACK, GATE_AND_UP, PACK_MIDDLE, DOWN = range(PHASES)


@compiled(inline=True)
def carve_buffers(at, x_numbers, pairs, groups, middle_numbers, packed_numbers):  # type: ignore[no-untyped-def]
    """Packed rows in an arena, and the address behind them: (packed x, each group's start in it, scales), the middle,
    and the same of the middle."""
    x_at = at
    x_start_at = after(x_at, x_numbers, 2)
    x_scale_at = after(x_start_at, groups + 1, 8)
    middle_at = after(x_scale_at, pairs, 8)
    packed_at = after(middle_at, middle_numbers, 4)
    start_at = after(packed_at, packed_numbers, 2)
    scale_at = after(start_at, groups + 1, 8)
    x = (int16s_at(x_at, x_numbers), int64s_at(x_start_at, groups + 1), doubles_at(x_scale_at, pairs))
    middle = (int16s_at(packed_at, packed_numbers), int64s_at(start_at, groups + 1), doubles_at(scale_at, pairs))
    return (x, line_at(middle_at, middle_numbers), middle), after(scale_at, pairs, 8)


@compiled()
def place_groups(routes, tokens, D, buffers):  # type: ignore[no-untyped-def]
    """Say where each group's packed rows begin."""
    count, _, _, first_G, _, _, ff_G, _ = routes
    (_, x_start, _), _, (_, middle_start, _) = buffers
    x_start[0] = middle_start[0] = 0
    for g in range(count[GROUPS]):
        n = first_G[g + 1] - first_G[g]
        x_start[g + 1] = 0 if tokens == 1 else x_start[g] + packed_size(n, D)
        middle_start[g + 1] = middle_start[g] + packed_size(n, ff_G[g])


@compiled()
def pack_one(x_at, D, routes, x):  # type: ignore[no-untyped-def]
    """Pack the only token's row, for all groups."""
    packed, _, scale_P = x
    scale_P[: routes[0][PAIRS]] = pack_few(x_at, D, packed, 0, 1)


@compiled()
def pack_groups(x_TD, routes, x, team, phase):  # type: ignore[no-untyped-def]
    stay_out_of_line()
    count, token_P, _, first_G, _, _, _, _ = routes
    packed, start_G, scale_P = x
    groups, D = count[GROUPS], x_TD.shape[1]
    while True:
        g = take(team, phase)
        if g >= groups:
            break
        first, n = first_G[g], first_G[g + 1] - first_G[g]
        place = packed[start_G[g] : start_G[g] + packed_size(n, D)]
        pack(address_of(x_TD), D, token_P, first, n, place, scale_P)
        finish(team, phase)
    settle(team, phase, groups)
    used(x_TD)


@compiled()
def gate_and_up(routes, D, buffers, threads, team, phase):  # type: ignore[no-untyped-def]
    stay_out_of_line()
    count, _, _, first_G, weights_at_G, scb_at_G, ff_G, middle_P = routes
    (packed, start_G, scale_P), middle, _ = buffers
    most = count[BUSIEST]
    block = task_rows(most, count[FF_ROWS], threads)
    gate, up = np.empty(sums_size(most), np.float32), np.empty(sums_size(most), np.float32)
    scratch = make_scratch(most)
    g, tasks = 0, 0  # tasks of the groups before g; a thread's task numbers only grow
    task = take(team, phase)
    while g < count[GROUPS]:
        F = ff_G[g]
        blocks = (F + block - 1) // block
        if task >= tasks + blocks:
            g, tasks = g + 1, tasks + blocks
            continue
        f = (task - tasks) * block
        rows = min(block, F - f)
        first, n = first_G[g], first_G[g + 1] - first_G[g]
        x = packed[start_G[g] :]
        multiply(weights_at_G[g] + f * D, rows, D, x, n, gate, scratch)
        multiply(weights_at_G[g] + (F + f) * D, rows, D, x, n, up, scratch)
        scb = floats_at(scb_at_G[g], 2 * F)
        gate_scb, up_scb = scb[f : f + rows], scb[F + f : F + f + rows]
        for i in range(n):
            scale = scale_P[first + i] / 127.0
            a, b = gate[i * SUM_STRIDE : i * SUM_STRIDE + rows], up[i * SUM_STRIDE : i * SUM_STRIDE + rows]
            out = middle[middle_P[first + i] + f : middle_P[first + i] + f + rows]
            for r in range(rows):
                gated = np.float32(a[r] * (scale * gate_scb[r]))
                out[r] = gated / (np.float32(1.0) + exp(-gated)) * np.float32(b[r] * (scale * up_scb[r]))
        finish(team, phase)
        task = take(team, phase)
    settle(team, phase, tasks)


@compiled()
def pack_middle(routes, buffers, team, phase):  # type: ignore[no-untyped-def]
    stay_out_of_line()
    count, _, _, first_G, _, _, ff_G, middle_P = routes
    _, middle, (packed, start_G, scale_P) = buffers
    groups = count[GROUPS]
    tokens = np.arange(count[BUSIEST])
    while True:
        g = take(team, phase)
        if g >= groups:
            break
        first, n, F = first_G[g], first_G[g + 1] - first_G[g], ff_G[g]
        place = packed[start_G[g] : start_G[g] + packed_size(n, F)]
        pack(address_of(middle) + 4 * middle_P[first], F, tokens, 0, n, place, scale_P[first : first + n])
        finish(team, phase)
    settle(team, phase, groups)
    used(middle)


@compiled()
def down(routes, buffers, out_TD, keep, threads, team, phase):  # type: ignore[no-untyped-def]
    stay_out_of_line()
    count, token_P, weight_P, first_G, weights_at_G, scb_at_G, ff_G, _ = routes
    _, _, (packed, start_G, scale_P) = buffers
    D = out_TD.shape[1]
    most = count[BUSIEST]
    block = task_rows(most, D, threads)
    sums = np.empty(sums_size(most), np.float32)
    scratch = make_scratch(most)
    while True:
        d = take(team, phase) * block
        if d >= D:
            break
        rows = min(block, D - d)
        if not keep:
            out_TD[:, d : d + rows] = 0
        for g in range(count[GROUPS]):
            first, n, F = first_G[g], first_G[g + 1] - first_G[g], ff_G[g]
            multiply(weights_at_G[g] + (2 * D + d) * F, rows, F, packed[start_G[g] :], n, sums, scratch)
            scb = floats_at(scb_at_G[g] + 4 * (2 * F + d), rows)
            for i in range(n):
                scale = weight_P[first + i] * scale_P[first + i] / 127.0
                out, mine = out_TD[token_P[first + i], d : d + rows], sums[i * SUM_STRIDE : i * SUM_STRIDE + rows]
                for r in range(rows):
                    out[r] += np.float32(mine[r] * (scale * scb[r]))
        finish(team, phase)
    settle(team, phase, (D + block - 1) // block)


@compiled()
def run_groups(x_TD, routes, buffers, out_TD, keep, threads, team, phase):  # type: ignore[no-untyped-def]
    """A thread's share of all four phases, numbered from `phase`; a single token is packed already."""
    if x_TD.shape[0] > 1:
        pack_groups(x_TD, routes, buffers[0], team, phase + PACK)
    gate_and_up(routes, x_TD.shape[1], buffers, threads, team, phase + GATE_AND_UP)
    pack_middle(routes, buffers, team, phase + PACK_MIDDLE)
    down(routes, buffers, out_TD, keep, threads, team, phase + DOWN)


(X, OUT, TOKENS, HIDDEN, MOST_PAIRS, MOST_GROUPS, X_NUMBERS, MIDDLE_NUMBERS, PACKED_NUMBERS, THREADS, TEAM, ARENA) = (
    range(12)
)
FRAME = 12
"""Places in the frame of `routed_ffn_job`."""


@compiled(inline=True)
def carve(frame):  # type: ignore[no-untyped-def]
    """The routes and buffers of a frame, and the address behind them."""
    routes, behind = carve_routes(frame[ARENA], frame[MOST_PAIRS], frame[MOST_GROUPS])
    buffers, end = carve_buffers(
        behind,
        frame[X_NUMBERS],
        frame[MOST_PAIRS],
        frame[MOST_GROUPS],
        frame[MIDDLE_NUMBERS],
        frame[PACKED_NUMBERS],
    )
    return routes, buffers, end


@compiled()
def routed_ffn_job(frame_at):  # type: ignore[no-untyped-def]
    """A thread's share of a call whose routes are known."""
    frame = int64s_at(frame_at, FRAME)
    routes, buffers, _ = carve(frame)
    x_TD, out_TD = rows_at(frame[X], frame[TOKENS], frame[HIDDEN]), rows_at(frame[OUT], frame[TOKENS], frame[HIDDEN])
    run_groups(x_TD, routes, buffers, out_TD, False, frame[THREADS], int64s_at(frame[TEAM], TEAM_NUMBERS), 0)


@compiled()
def routed_ffn(code, x_TD, experts_E3M, scb_ES, expert_TK, weight_TK, out_TD, threads):  # type: ignore[no-untyped-def]
    T, D = x_TD.shape
    E, K = experts_E3M.shape[0], expert_TK.shape[1]
    F = experts_E3M.shape[1] // (3 * D)
    bank = (address_of(experts_E3M), address_of(scb_ES), E, F)
    expert, weight = indices_at(address_of(expert_TK), T, K), rows_at(address_of(weight_TK), T, K)
    pairs, groups = expert_TK.size, min(E, expert_TK.size)
    routes_room = np.empty(carve_routes(0, pairs, groups)[1], np.int8)
    routes, _ = carve_routes(address_of(routes_room), pairs, groups)
    group_pairs(expert, weight, bank, (0, 0, 0), D, routes)
    count, first_G = routes[0], routes[3]
    if count[PAIRS] == 0:
        out_TD[:] = 0
        return
    frame, team = np.zeros(FRAME, np.int64), np.empty(TEAM_NUMBERS, np.int64)
    frame[X], frame[OUT], frame[TOKENS], frame[HIDDEN] = address_of(x_TD), address_of(out_TD), T, D
    frame[MOST_PAIRS], frame[MOST_GROUPS], frame[MIDDLE_NUMBERS] = pairs, groups, count[PAIRS] * F
    for g in range(count[GROUPS]):
        frame[X_NUMBERS] += packed_size(first_G[g + 1] - first_G[g], D)
        frame[PACKED_NUMBERS] += packed_size(first_G[g + 1] - first_G[g], F)
    frame[THREADS] = 1 if count[PAIRS] * F * D < SMALL_WORK else threads
    arena = np.empty(carve(frame)[2] + LINE_BYTES, np.int8)
    frame[ARENA], frame[TEAM] = line_start(address_of(arena)), address_of(team)
    routes, buffers, _ = carve(frame)
    group_pairs(expert, weight, bank, (0, 0, 0), D, routes)
    place_groups(routes, T, D, buffers)
    if T == 1:
        pack_one(address_of(x_TD), D, routes, buffers[0])
    launch(code, frame, team, frame[THREADS])
    used(routes_room)
    used(arena)
    used(x_TD)
    used(experts_E3M)
    used(scb_ES)
    used(expert_TK)
    used(weight_TK)
    used(out_TD)
