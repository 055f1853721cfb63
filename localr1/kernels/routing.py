"""Which experts a token goes through, and how they weigh.

Owns the router's product and the choice, as `localr1.model.moe` specifies them: scores are sigmoids or a softmax of the
logits; a bias moves choices, never weights; the best groups of experts may be chosen first. A score that is not a
number is never chosen; where too few are left, the expert is -1.
"""

import numpy as np

from localr1.kernels.jit import compiled, exp, stay_out_of_line

NEGATIVE_INFINITY = np.float32(-np.inf)

ROUTER_BLOCK = 8
"""Experts of a task."""


@compiled()
def route_block(first, x_TD, router_ED, logit_TE):  # type: ignore[no-untyped-def]
    """The logits of ROUTER_BLOCK experts from `first` on; `router` is flat."""
    stay_out_of_line()
    T, D = x_TD.shape
    for e in range(first, min(first + ROUTER_BLOCK, logit_TE.shape[1])):
        row_D = router_ED[e * D : (e + 1) * D]
        for t in range(T):
            x_D = x_TD[t]
            total = np.float32(0.0)
            for d in range(D):
                total += x_D[d] * row_D[d]
            logit_TE[t, e] = total


@compiled()
def scores(logit_E, sigmoid):  # type: ignore[no-untyped-def]
    """Logits to scores, in place."""
    if sigmoid:
        for e in range(logit_E.size):
            logit_E[e] = np.float32(1.0) / (np.float32(1.0) + exp(-logit_E[e]))
        return
    top = NEGATIVE_INFINITY
    for e in range(logit_E.size):
        top = max(top, logit_E[e])
    total = np.float32(0.0)
    for e in range(logit_E.size):
        logit_E[e] = exp(logit_E[e] - top)
        total += logit_E[e]
    for e in range(logit_E.size):
        logit_E[e] /= total


@compiled()
def best_of(value, free):  # type: ignore[no-untyped-def]
    """The place of the largest value that is still free, which it no longer is; -1 if none is left."""
    best, top = -1, NEGATIVE_INFINITY
    for i in range(value.size):
        if free[i] and value[i] > top:
            best, top = i, value[i]
    if best >= 0:
        free[best] = False
    return best


@compiled()
def keep_best_groups(choice_E, groups, keep, pairwise):  # type: ignore[no-untyped-def]
    """Which experts are in the `keep` best groups; a group's worth is its best value, or the sum of its best two."""
    size = choice_E.size // groups
    worth_J, free_J = np.empty(groups, np.float32), np.ones(groups, np.bool_)
    for j in range(groups):
        first, second = NEGATIVE_INFINITY, NEGATIVE_INFINITY
        for e in range(j * size, (j + 1) * size):
            if choice_E[e] > first:
                first, second = choice_E[e], first
            elif choice_E[e] > second:
                second = choice_E[e]
        worth_J[j] = first + second if pairwise else first
    free_E = np.zeros(choice_E.size, np.bool_)
    for _ in range(keep):
        j = best_of(worth_J, free_J)
        if j >= 0:
            free_E[j * size : (j + 1) * size] = True
    return free_E


@compiled()
def choose(logit_TE, bias_E, rule, scale, expert_TK, weight_TK):  # type: ignore[no-untyped-def]
    """Logits to experts and weights. `rule` is (sigmoid, groups, groups to keep, whether weights are made to add up to
    1); `bias` is empty where there is none."""
    stay_out_of_line()
    sigmoid, groups, keep, normalize = rule
    T, E = logit_TE.shape
    K = expert_TK.shape[1]
    choice_E = np.empty(E, np.float32)
    for t in range(T):
        score_E = logit_TE[t]
        scores(score_E, sigmoid)
        for e in range(E):
            choice_E[e] = score_E[e] + bias_E[e] if bias_E.size else score_E[e]
        free_E = keep_best_groups(choice_E, groups, keep, sigmoid) if groups > 1 else np.ones(E, np.bool_)
        total = np.float32(0.0)
        for k in range(K):
            e = best_of(choice_E, free_E)
            expert_TK[t, k] = e
            weight_TK[t, k] = score_E[e] if e >= 0 else np.float32(0.0)
            total += weight_TK[t, k]
        factor = np.float32(scale / (total + 1e-20)) if normalize else np.float32(scale)
        for k in range(K):
            weight_TK[t, k] *= factor
