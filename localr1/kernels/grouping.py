"""(token, expert) pairs in the order of their experts: which rows meet which weights.

Owns the routes' layout. A group is one feed-forward with the tokens that go through it; an expert that no token chose
is no group. A group's weights are [gate F*D | up F*D | down D*F] int8 at an address, its scales [gate F | up F | down
D] float32 at another. Room for routes is made before it is known how many there will be.
"""

import numpy as np

from localr1.kernels.arena import after, int64s_at, line_at
from localr1.kernels.jit import compiled

PAIRS, GROUPS, BUSIEST, FF_ROWS = 0, 1, 2, 3
"""Places in `count`: pairs, groups, pairs of the largest group, feed-forward rows of all groups."""


@compiled(inline=True)
def carve_routes(at, pairs, groups):  # type: ignore[no-untyped-def]
    """Routes in an arena, and the address behind them: (count, token_P, weight_P, first_G, weights_at_G, scb_at_G,
    ff_G, middle_P).

    Group g has the pairs first[g] .. first[g + 1]; pair p's middle row, of its group's width, starts at middle[p].
    """
    token_at = after(at, 4, 8)
    weight_at = after(token_at, pairs, 8)
    first_at = after(weight_at, pairs, 4)
    weights_at = after(first_at, groups + 1, 8)
    scb_at = after(weights_at, groups, 8)
    ff_at = after(scb_at, groups, 8)
    middle_at = after(ff_at, groups, 8)
    routes = (
        int64s_at(at, 4),
        int64s_at(token_at, pairs),
        line_at(weight_at, pairs),
        int64s_at(first_at, groups + 1),
        int64s_at(weights_at, groups),
        int64s_at(scb_at, groups),
        int64s_at(ff_at, groups),
        int64s_at(middle_at, pairs + 1),
    )
    return routes, after(middle_at, pairs + 1, 8)


@compiled(inline=True)
def add_group(routes, pairs, weights_at, scb_at, ff):  # type: ignore[no-untyped-def]
    """Close a group whose pairs end at `pairs`."""
    count, _, _, first_G, weights_at_G, scb_at_G, ff_G, middle_P = routes
    g = count[GROUPS]
    weights_at_G[g], scb_at_G[g], ff_G[g] = weights_at, scb_at, ff
    first_G[g + 1] = pairs
    for p in range(first_G[g], pairs):
        middle_P[p + 1] = middle_P[p] + ff
    count[PAIRS], count[GROUPS] = pairs, g + 1
    count[BUSIEST] = max(count[BUSIEST], pairs - first_G[g])
    count[FF_ROWS] += ff


@compiled()
def group_pairs(expert_TK, weight_TK, bank, shared, D, routes):  # type: ignore[no-untyped-def]
    """Fill `routes`. `bank` is (address of the experts, of their scales, experts, their F); `shared` is (address,
    address of its scales, F) of a feed-forward that all tokens go through, or has address 0."""
    T, K = expert_TK.shape
    experts_at, scb_at, E, F = bank
    count, token_P, weight_P, first_G, _, _, _, middle_P = routes
    count[:] = 0
    first_G[0] = middle_P[0] = 0
    start_E = np.zeros(E + 1, np.int64)
    for t in range(T):
        for k in range(K):
            if expert_TK[t, k] >= 0:
                start_E[expert_TK[t, k] + 1] += 1
    for e in range(E):
        if start_E[e + 1]:
            add_group(routes, start_E[e] + start_E[e + 1], experts_at + e * 3 * D * F, scb_at + e * (2 * F + D) * 4, F)
        start_E[e + 1] += start_E[e]
    end = start_E[E]
    for t in range(T):
        for k in range(K):
            e = expert_TK[t, k]
            if e >= 0:
                token_P[start_E[e]], weight_P[start_E[e]] = t, weight_TK[t, k]
                start_E[e] += 1
    if shared[0] and T:
        for t in range(T):
            token_P[end + t], weight_P[end + t] = t, 1
        add_group(routes, end + T, shared[0], shared[1], shared[2])
