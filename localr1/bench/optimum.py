"""The most hits that the policies' own rules allow one who knows the future: so many moves a forward, so many slots.

Owns the exact optimum, as a flow of least cost. A slot is a unit that flows through time: it lies in a pool, or holds
an expert and earns a hit whenever a decoding forward uses that one. Taking an expert in before a forward goes through a
gate, which lets as many through as a policy may move; giving it back is free. Beginning with any residents is allowed.

Slots are added one after another, each along the cheapest path in what the others leave, where it may lead others round
(successive shortest paths; Bellman-Ford, swept forwards and backwards in time), so every number of slots up to the most
asked for is answered on the way. Costs are whole numbers: the result is exact. Time grows with the product of
forwards, experts and slots: seconds for a small model's recorded routes, too long for a large one's.

Letters: N forwards, E experts of all layers. Before forward n come the pool P[n] and the gate G[n]; expert e enters
forward n by I[n, e] and leaves it by O[n, e].
"""

from collections.abc import Iterable, Sequence

import numpy as np

from localr1.kernels.jit import compiled
from localr1.placement.replay import DECODE_TOKENS, Hits
from localr1.placement.routes import Forward

FAR = 1 << 28
HOLD, KEEP, GIVE, TAKE = range(4)
"""Flows of an expert: I[n] -> O[n], O[n-1] -> I[n], O[n-1] -> P[n], G[n] -> I[n] (late: O[n])."""


def rule_bound(
    forwards: Sequence[Forward], numbers: int, slots: Iterable[int], moves: int, *, late: bool = False
) -> dict[int, Hits]:
    """For each number of slots, the most hits with at most `moves` moves after each forward.

    With `late` what is taken in is of no use to the next forward, though it occupies its slot, as in `replay`.
    """
    count, wanted = len(forwards), set(slots)
    worth_NE = np.zeros((count, numbers), np.int32)
    for at, forward in enumerate(forwards):
        if forward.tokens <= DECODE_TOKENS:
            worth_NE[at, forward.distinct] = 1
    flow_NEA, (pool_N, gate_N) = np.zeros((count + 1, numbers, 4), np.int8), np.zeros((2, count), np.int32)
    accesses, hits, found = int(worth_NE.sum()), 0, {}
    for number in range(1, max(wanted, default=0) + 1):
        hits += int(add_slot(worth_NE, flow_NEA, pool_N, gate_N, moves, late))
        if number in wanted:
            found[number] = Hits(hits, accesses, int(gate_N[1:].sum()), count)
    return found


@compiled()
def add_slot(worth, flow, pool, gate, moves, late):  # type: ignore[no-untyped-def]
    """Lead one more slot from the first pool to the last; the hits it adds."""
    N, E = worth.shape
    P, G = np.full(N + 1, FAR, np.int32), np.full(N, FAR, np.int32)
    I, O = np.full((N, E), FAR, np.int32), np.full((N, E), FAR, np.int32)  # noqa: E741
    from_P, from_G = np.zeros(N + 1, np.int32), np.zeros(N, np.int32)
    from_I, from_O = np.zeros((N, E), np.int8), np.zeros((N, E), np.int8)
    P[0], from_P[0] = 0, -9
    changed = True
    while changed:
        changed = False
        for turn in range(2 * N):
            n = turn if turn < N else 2 * N - 1 - turn
            after_start = late and n > 0
            if (n == 0 or gate[n] < moves) and P[n] < G[n]:
                G[n], from_G[n], changed = P[n], -1, True
            for e in range(E):
                entry = O[n, e] if after_start else I[n, e]
                if flow[n, e, TAKE] > 0 and entry < G[n]:
                    G[n], from_G[n], changed = entry, e, True
            if gate[n] > 0 and G[n] < P[n]:
                P[n], from_P[n], changed = G[n], -2, True
            for e in range(E):
                if not after_start and G[n] < I[n, e]:
                    I[n, e], from_I[n, e], changed = G[n], 1, True
                if after_start and G[n] < O[n, e]:
                    O[n, e], from_O[n, e], changed = G[n], 4, True
                if flow[n, e, HOLD] == 0 and I[n, e] - worth[n, e] < O[n, e]:
                    O[n, e], from_O[n, e], changed = I[n, e] - worth[n, e], 1, True
                if flow[n, e, HOLD] > 0 and O[n, e] + worth[n, e] < I[n, e]:
                    I[n, e], from_I[n, e], changed = O[n, e] + worth[n, e], 3, True
                if O[n, e] < P[n + 1]:
                    P[n + 1], from_P[n + 1], changed = O[n, e], e, True
                if flow[n + 1, e, GIVE] > 0 and P[n + 1] < O[n, e]:
                    O[n, e], from_O[n, e], changed = P[n + 1], 2, True
                if n + 1 < N:
                    if O[n, e] < I[n + 1, e]:
                        I[n + 1, e], from_I[n + 1, e], changed = O[n, e], 2, True
                    if flow[n + 1, e, KEEP] > 0 and I[n + 1, e] < O[n, e]:
                        O[n, e], from_O[n, e], changed = I[n + 1, e], 3, True
            if P[n] < P[n + 1]:
                P[n + 1], from_P[n + 1], changed = P[n], -1, True
            if pool[n] > 0 and P[n + 1] < P[n]:
                P[n], from_P[n], changed = P[n + 1], -3, True
    lead(flow, pool, gate, from_P, from_G, from_I, from_O, late)
    return -P[N]


@compiled()
def lead(flow, pool, gate, from_P, from_G, from_I, from_O, late):  # type: ignore[no-untyped-def]
    """Walk back from the last pool to the first; what was gone along flows more, what was gone against flows less."""
    n, e, kind = len(pool), 0, 0  # kinds: 0 pool, 1 gate, 2 entry, 3 exit
    while not (kind == 0 and from_P[n] == -9):
        if kind == 0:
            came = from_P[n]
            if came >= 0:
                flow[n, came, GIVE] += 1
                n, e, kind = n - 1, came, 3
            elif came == -1:
                n -= 1
                pool[n] += 1
            elif came == -2:
                gate[n] -= 1
                kind = 1
            else:
                pool[n] -= 1
                n += 1
        elif kind == 1:
            came = from_G[n]
            if came == -1:
                gate[n] += 1
                kind = 0
            else:
                flow[n, came, TAKE] -= 1
                e, kind = came, 3 if late and n > 0 else 2
        elif kind == 2:
            came = from_I[n, e]
            if came == 1:
                flow[n, e, TAKE] += 1
                kind = 1
            elif came == 2:
                flow[n, e, KEEP] += 1
                n, kind = n - 1, 3
            else:
                flow[n, e, HOLD] -= 1
                kind = 3
        else:
            came = from_O[n, e]
            if came == 1:
                flow[n, e, HOLD] += 1
                kind = 2
            elif came == 2:
                n, kind = n + 1, 0
                flow[n, e, GIVE] -= 1
            elif came == 3:
                n, kind = n + 1, 2
                flow[n, e, KEEP] -= 1
            else:
                flow[n, e, TAKE] += 1
                kind = 1
