"""Gated feed-forwards of grouped tokens in one call, with integer products.

Owns the four phases of a call, shared out over the threads: pack each group's token rows; gate, up and SiLU for
blocks of feed-forward rows; pack the middle again; down, where a thread owns a block of output columns over all groups,
so that no two threads add to the same number and the result does not depend on timing. Each group's weights are read
once. Few tokens' rows every thread packs for itself: that takes less time than waiting for others to do it.

Memory of a call: (T * K) * (2 D + 6 F) bytes and, a thread, about 16 * ROW_BLOCK * (rows of the busiest expert); of
few tokens, (T * K) * 4 F bytes and, a thread, (T * K) * 2 (D + F).
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
    private_room,
    room_start,
    rows_at,
)
from localr1.kernels.grouping import BUSIEST, FF_ROWS, GROUPS, PAIRS, carve_routes, group_pairs
from localr1.kernels.jit import address_of, compiled, exp, floats_at, stay_out_of_line, used
from localr1.kernels.matmul import make_scratch, multiply, sums_size, task_rows, tasks_at_once
from localr1.kernels.packing import FEW, few_size, pack, pack_few, packed_size
from localr1.kernels.team import TEAM_NUMBERS, crew_of, finish, launch, settle, take, take_several, threads_of

SMALL_WORK = 1 << 18
"""Weights times rows below which waking the other threads costs more than it saves."""

PACK, GATE_AND_UP, PACK_MIDDLE, DOWN = range(4)


@compiled(inline=True)
def carve_packed(at, numbers, pairs, groups):  # type: ignore[no-untyped-def]
    """Rows packed group by group in an arena, and the address behind them: (packed, each group's start, scales)."""
    start_at = after(at, numbers, 2)
    scale_at = after(start_at, groups + 1, 8)
    packed = (int16s_at(at, numbers), int64s_at(start_at, groups + 1), doubles_at(scale_at, pairs))
    return packed, after(scale_at, pairs, 8)


@compiled()
def place_groups(routes, D, x_start, middle_start):  # type: ignore[no-untyped-def]
    """Say where each group's packed rows begin; those of D numbers, and the middle's."""
    count, _, _, first_G, _, _, ff_G, _ = routes
    x_start[0] = middle_start[0] = 0
    for g in range(count[GROUPS]):
        n = first_G[g + 1] - first_G[g]
        x_start[g + 1] = x_start[g] + packed_size(n, D)
        middle_start[g + 1] = middle_start[g] + packed_size(n, ff_G[g])


@compiled()
def pack_group(g, x_at, D, routes, x):  # type: ignore[no-untyped-def]
    """Pack a group's rows, of the tokens' at an address."""
    stay_out_of_line()
    token_P, first_G = routes[1], routes[3]
    packed, start_G, scale_P = x
    first, n = first_G[g], first_G[g + 1] - first_G[g]
    pack(x_at, D, token_P, first, n, packed[start_G[g] : start_G[g] + packed_size(n, D)], scale_P)


@compiled()
def pack_middle_group(g, middle, routes, packed_middle, row_n):  # type: ignore[no-untyped-def]
    """Pack a group's middle rows; `row` counts the rows of the largest group."""
    stay_out_of_line()
    _, _, _, first_G, _, _, ff_G, middle_P = routes
    packed, start_G, scale_P = packed_middle
    first, n, F = first_G[g], first_G[g + 1] - first_G[g], ff_G[g]
    place = packed[start_G[g] : start_G[g] + packed_size(n, F)]
    pack(address_of(middle) + 4 * middle_P[first], F, row_n, 0, n, place, scale_P[first : first + n])
    used(middle)


@compiled()
def pack_groups(x_at, D, routes, x, crew, phase):  # type: ignore[no-untyped-def]
    stay_out_of_line()
    groups = routes[0][GROUPS]
    done = 0
    g = take(crew, phase, groups)
    while g < groups:
        pack_group(g, x_at, D, routes, x)
        g, done = take(crew, phase, groups), done + 1
    finish(crew, phase, done)
    settle(crew, phase, groups)


@compiled()
def gate_and_up_rows(g, f, rows, block, routes, D, x, middle, gate, up, scratch):  # type: ignore[no-untyped-def]
    """Of group g, the feed-forward rows f .. f + rows of the middle."""
    _, _, _, first_G, weights_at_G, scb_at_G, ff_G, middle_P = routes
    packed, start_G, scale_P = x
    F, first, n = ff_G[g], first_G[g], first_G[g + 1] - first_G[g]
    multiply(weights_at_G[g] + f * D, rows, D, packed[start_G[g] :], n, gate, block, scratch)
    multiply(weights_at_G[g] + (F + f) * D, rows, D, packed[start_G[g] :], n, up, block, scratch)
    scb = floats_at(scb_at_G[g], 2 * F)
    gate_scb, up_scb = scb[f : f + rows], scb[F + f : F + f + rows]
    for i in range(n):
        scale = scale_P[first + i] / 127.0
        a, b = gate[i * block : i * block + rows], up[i * block : i * block + rows]
        out = middle[middle_P[first + i] + f : middle_P[first + i] + f + rows]
        for r in range(rows):
            gated = np.float32(a[r] * (scale * gate_scb[r]))
            out[r] = gated / (np.float32(1.0) + exp(-gated)) * np.float32(b[r] * (scale * up_scb[r]))


@compiled()
def gate_and_up(routes, D, x, middle, crew, phase):  # type: ignore[no-untyped-def]
    """A task is a run of the feed-forward rows of all groups, one group's after another's."""
    stay_out_of_line()
    count, ff_G = routes[0], routes[6]
    most = count[BUSIEST]
    each, at_once = task_rows(most, count[FF_ROWS], threads_of(crew)), tasks_at_once(most)
    block = each * at_once
    gate_room, up_room = private_room(4 * sums_size(most, block)), private_room(4 * sums_size(most, block))
    gate = line_at(room_start(gate_room), sums_size(most, block))
    up = line_at(room_start(up_room), sums_size(most, block))
    scratch = make_scratch(most)
    tasks, done = (count[FF_ROWS] + each - 1) // each, 0
    task, taken = take_several(crew, phase, tasks, at_once)
    while taken:
        g, f, left = 0, task * each, min(taken * each, count[FF_ROWS] - task * each)
        while left > 0:
            if f >= ff_G[g]:
                g, f = g + 1, f - ff_G[g]
                continue
            rows = min(left, ff_G[g] - f)
            gate_and_up_rows(g, f, rows, block, routes, D, x, middle, gate, up, scratch)
            f, left = f + rows, left - rows
        done += taken
        task, taken = take_several(crew, phase, tasks, at_once)
    finish(crew, phase, done)
    settle(crew, phase, tasks)
    used(gate_room)
    used(up_room)


@compiled()
def pack_middle(middle, routes, packed_middle, crew, phase):  # type: ignore[no-untyped-def]
    stay_out_of_line()
    groups, row_n = routes[0][GROUPS], np.arange(routes[0][BUSIEST])
    done = 0
    g = take(crew, phase, groups)
    while g < groups:
        pack_middle_group(g, middle, routes, packed_middle, row_n)
        g, done = take(crew, phase, groups), done + 1
    finish(crew, phase, done)
    settle(crew, phase, groups)


@compiled()
def down(routes, packed_middle, out_TD, keep, crew, phase):  # type: ignore[no-untyped-def]
    stay_out_of_line()
    count, token_P, weight_P, first_G, weights_at_G, scb_at_G, ff_G, _ = routes
    packed, start_G, scale_P = packed_middle
    D = out_TD.shape[1]
    most = count[BUSIEST]
    each, at_once = task_rows(most, D, threads_of(crew)), tasks_at_once(most)
    block = each * at_once
    sums_room = private_room(4 * sums_size(most, block))
    sums = line_at(room_start(sums_room), sums_size(most, block))
    scratch = make_scratch(most)
    tasks, done = (D + each - 1) // each, 0
    task, taken = take_several(crew, phase, tasks, at_once)
    while taken:
        d = task * each
        rows = min(taken * each, D - d)
        if not keep:
            out_TD[:, d : d + rows] = 0
        for g in range(count[GROUPS]):
            first, n, F = first_G[g], first_G[g + 1] - first_G[g], ff_G[g]
            multiply(weights_at_G[g] + (2 * D + d) * F, rows, F, packed[start_G[g] :], n, sums, block, scratch)
            scb = floats_at(scb_at_G[g] + 4 * (2 * F + d), rows)
            for i in range(n):
                scale = weight_P[first + i] * scale_P[first + i] / 127.0
                out, mine = out_TD[token_P[first + i], d : d + rows], sums[i * block : i * block + rows]
                for r in range(rows):
                    out[r] += np.float32(mine[r] * (scale * scb[r]))
        done += taken
        task, taken = take_several(crew, phase, tasks, at_once)
    finish(crew, phase, done)
    settle(crew, phase, tasks)
    used(sums_room)


@compiled()
def run_few(x_TD, routes, middle, out_TD, keep, crew, phase):  # type: ignore[no-untyped-def]
    """A thread's share of a call of few tokens, in two phases from `phase` on; it packs rows for itself."""
    (T, D), count = x_TD.shape, routes[0]
    pairs, groups = count[PAIRS], count[GROUPS]
    alone = T == 1 and count[BUSIEST] <= 1  # one row for all groups
    x_start, middle_start = np.zeros(groups + 1, np.int64), np.empty(groups + 1, np.int64)
    place_groups(routes, D, x_start, middle_start)
    if alone:
        x_start[:] = 0
    x_numbers, middle_numbers = few_size(D, 1) if alone else x_start[groups], middle_start[groups]
    x_room, middle_room = private_room(2 * x_numbers), private_room(2 * middle_numbers)
    x = (int16s_at(room_start(x_room), x_numbers), x_start, np.empty(pairs, np.float64))
    packed_middle = (int16s_at(room_start(middle_room), middle_numbers), middle_start, np.empty(pairs, np.float64))
    if alone:
        x[2][:] = pack_few(address_of(x_TD), D, x[0], 0, 1)
    else:
        for g in range(groups):
            pack_group(g, address_of(x_TD), D, routes, x)
    gate_and_up(routes, D, x, middle, crew, phase)
    row_n = np.arange(count[BUSIEST])
    for g in range(groups):
        pack_middle_group(g, middle, routes, packed_middle, row_n)
    down(routes, packed_middle, out_TD, keep, crew, phase + 1)
    used(x_TD)
    used(x_room)
    used(middle_room)


(X, OUT, TOKENS, HIDDEN, MOST_PAIRS, MOST_GROUPS, X_NUMBERS, MIDDLE_NUMBERS, PACKED_NUMBERS, THREADS, TEAM, ARENA) = (
    range(12)
)
FRAME = 12
"""Places in the frame of `routed_ffn_job`."""


@compiled(inline=True)
def carve(frame):  # type: ignore[no-untyped-def]
    """The routes of a frame, its packed rows, the middle, that packed, and the address behind them.

    The packed middle takes the place of the packed rows, which nobody reads once there is a middle.
    """
    pairs, groups = frame[MOST_PAIRS], frame[MOST_GROUPS]
    routes, x_at = carve_routes(frame[ARENA], pairs, groups)
    x, middle_at = carve_packed(x_at, max(frame[X_NUMBERS], frame[PACKED_NUMBERS]), pairs, groups)
    start_at = after(middle_at, frame[MIDDLE_NUMBERS], 4)
    (_, start_G, scale_P), end = carve_packed(start_at, 0, pairs, groups)
    return routes, x, line_at(middle_at, frame[MIDDLE_NUMBERS]), (x[0], start_G, scale_P), end


@compiled()
def routed_ffn_job(frame_at, me):  # type: ignore[no-untyped-def]
    """A thread's share of a call whose routes are known."""
    frame = int64s_at(frame_at, FRAME)
    routes, x, middle, packed_middle, _ = carve(frame)
    T, D, crew = frame[TOKENS], frame[HIDDEN], crew_of(frame[TEAM], me, frame[THREADS])
    out_TD = rows_at(frame[OUT], T, D)
    if T <= FEW:
        run_few(rows_at(frame[X], T, D), routes, middle, out_TD, False, crew, 0)
        return
    pack_groups(frame[X], D, routes, x, crew, PACK)
    gate_and_up(routes, D, x, middle, crew, GATE_AND_UP)
    pack_middle(middle, routes, packed_middle, crew, PACK_MIDDLE)
    down(routes, packed_middle, out_TD, False, crew, DOWN)


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
    for g in range(count[GROUPS] if T > FEW else 0):
        frame[X_NUMBERS] += packed_size(first_G[g + 1] - first_G[g], D)
        frame[PACKED_NUMBERS] += packed_size(first_G[g + 1] - first_G[g], F)
    frame[THREADS] = 1 if count[PAIRS] * F * D < SMALL_WORK else threads
    arena = np.empty(carve(frame)[4] + LINE_BYTES, np.int8)
    frame[ARENA], frame[TEAM] = line_start(address_of(arena)), address_of(team)
    routes, x, _, packed_middle, _ = carve(frame)
    group_pairs(expert, weight, bank, (0, 0, 0), D, routes)
    place_groups(routes, D, x[1], packed_middle[1])
    launch(code, frame, team, frame[THREADS])
    used(routes_room)
    used(arena)
    used(x_TD)
    used(experts_E3M)
    used(scb_ES)
    used(expert_TK)
    used(weight_TK)
    used(out_TD)
