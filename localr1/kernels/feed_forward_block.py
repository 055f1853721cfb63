"""The feed-forward of one layer for a few tokens as one job: norm, router, routed and shared experts, residual.

Owns the phases of the job, which one team of threads goes through, and the layout of its frame and plan (see
`attention_block`). A dense layer is one with a shared feed-forward and no experts. The residual rows `x` are changed in
place; the experts that were chosen are written out, for whoever keeps count of them. At most `packing.FEW` tokens.
"""

from localr1.kernels.arena import after, doubles_at, indices_at, int64s_at, rows_at
from localr1.kernels.attention_block import ABSENT
from localr1.kernels.ffn import carve_buffers, pack_one, place_groups, run_groups
from localr1.kernels.grouping import carve_routes, group_pairs
from localr1.kernels.jit import address_of, compiled, floats_at, used
from localr1.kernels.norm import normed
from localr1.kernels.packing import packed_size
from localr1.kernels.routing import ROUTER_BLOCK, choose, route_block
from localr1.kernels.team import TEAM_NUMBERS, finish, launch, settle, take

(NORM, EXPERTS, EXPERTS_SCB, NUM_EXPERTS, EXPERT_FF, SHARED, SHARED_SCB, SHARED_FF) = range(8)
(ROUTER, ROUTER_BIAS, SIGMOID, NUM_GROUPS, KEEP_GROUPS, NORMALIZE, TOP_K, HIDDEN, FF_PLAN) = range(8, 17)
EPS, SCALE = 0, 1
"""Places in a plan's float64 numbers."""

(PLAN, FLOATS, X, TOKENS, EXPERT, WEIGHT, THREADS, TEAM, ARENA, FRAME) = range(10)
"""Places in a frame."""


@compiled()
def run_feed_forward(code, frame, team, x_TD, expert_TK, weight_TK, threads):  # type: ignore[no-untyped-def]
    """Complete a frame, in which the plan and the arena are told already, and run its job."""
    frame[X], frame[TOKENS] = address_of(x_TD), x_TD.shape[0]
    frame[EXPERT], frame[WEIGHT] = address_of(expert_TK), address_of(weight_TK)
    frame[THREADS], frame[TEAM] = threads, address_of(team)
    launch(code, frame, team, threads)
    used(x_TD)
    used(expert_TK)
    used(weight_TK)
    used(team)


@compiled()
def choose_and_group(plan, floats, normed_TD, logit_TE, chosen, routes, buffers):  # type: ignore[no-untyped-def]
    """From logits to routes of the chosen and the shared experts."""
    expert_TK, weight_TK = chosen
    T, D = normed_TD.shape
    bias_E = floats_at(plan[ROUTER_BIAS], plan[NUM_EXPERTS] if plan[ROUTER_BIAS] != ABSENT else 0)
    rule = (plan[SIGMOID], plan[NUM_GROUPS], plan[KEEP_GROUPS], plan[NORMALIZE])
    choose(logit_TE, bias_E, rule, floats[SCALE], expert_TK, weight_TK)
    bank = (plan[EXPERTS], plan[EXPERTS_SCB], plan[NUM_EXPERTS], plan[EXPERT_FF])
    shared = (plan[SHARED], plan[SHARED_SCB], plan[SHARED_FF])
    group_pairs(expert_TK, weight_TK, bank, shared, D, routes)
    place_groups(routes, T, D, buffers)
    if T == 1:
        pack_one(address_of(normed_TD), D, routes, buffers[0])
    used(normed_TD)


@compiled()
def feed_forward_job(frame_at):  # type: ignore[no-untyped-def]
    """A thread's share of x += feed_forward(norm(x)). With no arena, writes into the frame how large it must be."""
    frame = int64s_at(frame_at, FRAME)
    plan, floats = int64s_at(frame[PLAN], FF_PLAN), doubles_at(frame[FLOATS], 2)
    T, threads = frame[TOKENS], frame[THREADS]
    D, E, K = plan[HIDDEN], plan[NUM_EXPERTS], plan[TOP_K]
    shared = 1 if plan[SHARED] != ABSENT else 0
    pairs, groups = T * (K + shared), min(E, T * K) + shared
    widest = max(plan[EXPERT_FF], plan[SHARED_FF])
    middle = T * (K * plan[EXPERT_FF] + shared * plan[SHARED_FF])
    logit_at = after(frame[ARENA], T * D, 4)
    routes, buffers_at = carve_routes(after(logit_at, T * E, 4), pairs, groups)
    x_numbers, packed_numbers = packed_size(1, D) * (1 if T == 1 else pairs), packed_size(1, widest) * pairs
    buffers, end = carve_buffers(buffers_at, x_numbers, pairs, groups, middle, packed_numbers)
    if frame[ARENA] == 0:
        frame[ARENA] = end
        return
    normed_TD, logit_TE = rows_at(frame[ARENA], T, D), rows_at(logit_at, T, E)
    x_TD, team = rows_at(frame[X], T, D), int64s_at(frame[TEAM], TEAM_NUMBERS)
    chosen = (indices_at(frame[EXPERT], T, K), rows_at(frame[WEIGHT], T, K))

    if take(team, 0) == 0:
        weight_D = floats_at(plan[NORM], D)
        for t in range(T):
            normed(x_TD[t], weight_D, floats[EPS], normed_TD[t])
        finish(team, 0)
    settle(team, 0, 1)
    blocks = (E + ROUTER_BLOCK - 1) // ROUTER_BLOCK
    while True:
        task = take(team, 1)
        if task >= blocks:
            break
        route_block(task * ROUTER_BLOCK, normed_TD, floats_at(plan[ROUTER], E * D), logit_TE)
        finish(team, 1)
    settle(team, 1, blocks)
    if take(team, 2) == 0:
        choose_and_group(plan, floats, normed_TD, logit_TE, chosen, routes, buffers)
        finish(team, 2)
    settle(team, 2, 1)
    run_groups(normed_TD, routes, buffers, x_TD, True, threads, team, 3)
