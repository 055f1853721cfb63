"""The Triton kernel of a router's choice: a token's experts and their weights from its logits, in one launch.

Owns the scores and the choosing, without groups of experts; as in `kernels.routing`, a score that is not a number is
never chosen, and where too few are left the expert is -1, of weight 0.

Shape suffixes as in `localr1.kernels.gpu`.
"""

import triton
import triton.language as tl


@triton.jit
def choose(  # type: ignore[no-untyped-def]
    logit_TE,
    bias_E,
    expert_TK,
    weight_TK,
    E,
    K,
    scale,
    SOFTMAX: tl.constexpr,
    BIASED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
):
    """Program t chooses for token t: the K largest scores (plus bias), the largest first, the first of equals."""
    token = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BE)
    j = tl.arange(0, BK)
    logit = tl.load(logit_TE + token * E + e, mask=e < E, other=float("-inf"))
    if SOFTMAX:
        share = tl.exp(logit - tl.max(logit, 0))
        score = share / tl.sum(share, 0)
    else:
        score = 1.0 / (1.0 + tl.exp(-logit))
    value = score
    if BIASED:
        value += tl.load(bias_E + e, mask=e < E, other=0.0)
    value = tl.where((e < E) & (value == value), value, float("-inf"))
    chosen = tl.full((BK,), -1, tl.int32)
    weight = tl.zeros((BK,), tl.float32)
    for k in range(K):
        best = tl.max(value, 0)
        at = tl.min(tl.where(value == best, e, BE), 0)
        at = tl.where(best > float("-inf"), at, -1)
        chosen = tl.where(j == k, at, chosen)
        weight = tl.where(j == k, tl.sum(tl.where(e == at, score, 0.0), 0), weight)
        value = tl.where(e == at, float("-inf"), value)
    if NORMALIZE:
        weight = weight / (tl.sum(weight, 0) + 1e-20)
    tl.store(expert_TK + token * K + j, chosen.to(tl.int64), mask=j < K)
    tl.store(weight_TK + token * K + j, weight * scale, mask=j < K)
