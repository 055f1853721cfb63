"""The feed-forward of one layer for a few tokens as one job: norm, router, routed and shared experts, residual.

Owns the phases of the job, which one team of threads goes through, and the layout of its frame and plan (see
`attention_block`). A dense layer is one with a shared feed-forward and no experts. The residual rows `x` are changed in
place; the experts that were chosen are written out, for whoever keeps count of them. At most `packing.FEW` tokens.
"""

import numpy as np

from localr1.kernels.arena import after, doubles_at, indices_at, int64s_at, line_at, private_room, room_start, rows_at
from localr1.kernels.attention_block import ABSENT
from localr1.kernels.ffn import run_few
from localr1.kernels.grouping import carve_routes, group_pairs
from localr1.kernels.jit import address_of, compiled, floats_at, used
from localr1.kernels.norm import normed
from localr1.kernels.routing import ROUTER_BLOCK, choose, route_block
from localr1.kernels.team import come, crew_of, finish, launch, settle, take

(NORM, EXPERTS, EXPERTS_SCB, NUM_EXPERTS, EXPERT_FF, SHARED, SHARED_SCB, SHARED_FF) = range(8)
(ROUTER, ROUTER_BIAS, SIGMOID, NUM_GROUPS, KEEP_GROUPS, NORMALIZE, TOP_K, HIDDEN, FF_PLAN) = range(8, 17)
EPS, SCALE = 0, 1
"""Places in a plan's float64 numbers."""

(PLAN, FLOATS, X, TOKENS, EXPERT, THREADS, TEAM, ARENA, FRAME) = range(9)
"""Places in a frame."""


@compiled()
def run_feed_forward(code, frame, team, x_TD, expert_TK, threads):  # type: ignore[no-untyped-def]
    """Complete a frame, in which the plan and the arena are told already, and run its job."""
    frame[X], frame[TOKENS] = address_of(x_TD), x_TD.shape[0]
    frame[EXPERT], frame[THREADS], frame[TEAM] = address_of(expert_TK), threads, address_of(team)
    launch(code, frame, team, threads)
    used(x_TD)
    used(expert_TK)
    used(team)


@compiled()
def choose_and_group(plan, floats, logit_TE, expert_TK, weight_TK, routes):  # type: ignore[no-untyped-def]
    """From logits, which it changes, to the experts and the routes of those and the shared ones."""
    bias_E = floats_at(plan[ROUTER_BIAS], plan[NUM_EXPERTS] if plan[ROUTER_BIAS] != ABSENT else 0)
    rule = (plan[SIGMOID], plan[NUM_GROUPS], plan[KEEP_GROUPS], plan[NORMALIZE])
    choose(logit_TE, bias_E, rule, floats[SCALE], expert_TK, weight_TK)
    bank = (plan[EXPERTS], plan[EXPERTS_SCB], plan[NUM_EXPERTS], plan[EXPERT_FF])
    shared = (plan[SHARED], plan[SHARED_SCB], plan[SHARED_FF])
    group_pairs(expert_TK, weight_TK, bank, shared, plan[HIDDEN], routes)


@compiled()
def route(plan, normed_TD, logit_TE, crew, phase):  # type: ignore[no-untyped-def]
    """A thread's share of the router's logits."""
    E, D = plan[NUM_EXPERTS], plan[HIDDEN]
    blocks = (E + ROUTER_BLOCK - 1) // ROUTER_BLOCK
    done = 0
    task = take(crew, phase, blocks)
    while task < blocks:
        route_block(task * ROUTER_BLOCK, normed_TD, floats_at(plan[ROUTER], E * D), logit_TE)
        task, done = take(crew, phase, blocks), done + 1
    finish(crew, phase, done)
    settle(crew, phase, blocks)


@compiled()
def feed_forward_job(frame_at, me):  # type: ignore[no-untyped-def]
    """A thread's share of x += feed_forward(norm(x)). With no arena, writes into the frame how large it must be."""
    frame = int64s_at(frame_at, FRAME)
    plan, floats = int64s_at(frame[PLAN], FF_PLAN), doubles_at(frame[FLOATS], 2)
    T, D, E, K = frame[TOKENS], plan[HIDDEN], plan[NUM_EXPERTS], plan[TOP_K]
    shared = 1 if plan[SHARED] != ABSENT else 0
    pairs, groups = T * (K + shared), min(E, T * K) + shared
    middle_numbers = T * (K * plan[EXPERT_FF] + shared * plan[SHARED_FF])
    middle_at = after(frame[ARENA], T * E, 4)
    if frame[ARENA] == 0:
        frame[ARENA] = after(middle_at, middle_numbers, 4)
        return
    logit_TE, middle = rows_at(frame[ARENA], T, E), line_at(middle_at, middle_numbers)
    x_TD, crew = rows_at(frame[X], T, D), crew_of(frame[TEAM], me, frame[THREADS])
    normed_room, weight_D = private_room(4 * T * D), floats_at(plan[NORM], D)
    normed_TD = rows_at(room_start(normed_room), T, D)
    for t in range(T):
        normed(x_TD[t], weight_D, floats[EPS], normed_TD[t])
    route(plan, normed_TD, logit_TE, crew, 0)
    expert_TK, weight_TK = np.empty((T, K), np.int64), np.empty((T, K), np.float32)
    routes_room = np.empty(carve_routes(0, pairs, groups)[1], np.int8)
    routes, _ = carve_routes(address_of(routes_room), pairs, groups)
    choose_and_group(plan, floats, logit_TE.copy(), expert_TK, weight_TK, routes)
    if come(crew, 1) == 0:
        indices_at(frame[EXPERT], T, K)[:] = expert_TK
    run_few(normed_TD, routes, middle, x_TD, True, crew, 2)
    used(routes_room)
    used(normed_room)
