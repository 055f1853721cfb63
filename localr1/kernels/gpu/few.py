"""Triton kernels of one to a few rows, where reading each weight once is all that matters; the small matrices of heads
and routed experts are read once a token, of which others find them in the cache.

Owns the matrix-vector loops. A program takes a few output rows and walks their whole length with all its warps, so
small matrices still give every multiprocessor work, sums need no atomics, and the same input gives the same bits.
Weights are widened in registers; activations and sums are float32.

Shape suffixes as in `localr1.kernels.gpu`; P pairs of a token and an expert. BO output rows and BD inputs a step.
"""

import triton
import triton.language as tl


@triton.jit
def linear(  # type: ignore[no-untyped-def]
    x_TD,
    q_OD,
    scb_O,
    bias_O,
    onto_TO,
    out_TO,
    T,
    D,
    O,  # noqa: E741
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    ONTO: tl.constexpr,
    ROWS: tl.constexpr,
    BO: tl.constexpr,
    BD: tl.constexpr,
):
    """out = x W^T + bias + onto; program (i, j) makes BO outputs of ROWS tokens; those of one weight are neighbours.

    Weights are int8 rows, or floats where they are not `SCALED`.
    """
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    first = tl.program_id(0) * ROWS
    row = q_OD + o.to(tl.int64)[:, None] * D
    scale = tl.load(scb_O + o, mask=o < O, other=0.0) / 127.0 if SCALED else 1.0
    bias = tl.load(bias_O + o, mask=o < O, other=0.0) if BIASED else 0.0
    sums = (tl.zeros((BO, BD), tl.float32),) * ROWS
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        w = tl.load(row + d[None, :], mask=(o[:, None] < O) & (d[None, :] < D), other=0).to(tl.float32)
        more = ()
        for r in tl.static_range(ROWS):
            x = tl.load(x_TD + tl.minimum(first + r, T - 1) * D + d, mask=d < D, other=0.0)
            more = more + (sums[r] + x[None, :] * w,)  # type: ignore[assignment]  # noqa: RUF005
        sums = more
    for r in tl.static_range(ROWS):
        t = first + r + 0 * o
        inside = (o < O) & (t < T)
        onto = tl.load(onto_TO + t * O + o, mask=inside, other=0.0) if ONTO else 0.0
        tl.store(out_TO + t * O + o, tl.sum(sums[r], 1) * scale + bias + onto, mask=inside)


@triton.jit
def product(  # type: ignore[no-untyped-def]
    x_THN,
    weight_HNO,
    out_THO,
    x_t,
    x_h,
    weight_h,
    weight_n,
    weight_o,
    H,
    N,
    O,  # noqa: E741
    BN: tl.constexpr,
    BO: tl.constexpr,
):
    """out = x W, a matrix a head; program (t, h, j) makes BO values of head h of token t. Lower case: steps in memory,
    of which x's last one is 1."""
    head = tl.program_id(1)
    o = tl.program_id(2) * BO + tl.arange(0, BO)
    x = x_THN + tl.program_id(0).to(tl.int64) * x_t + head * x_h
    weight = weight_HNO + head.to(tl.int64) * weight_h + o[None, :] * weight_o
    total = tl.zeros((BN, BO), tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        w = tl.load(weight + n[:, None] * weight_n, mask=(n[:, None] < N) & (o[None, :] < O), other=0.0)
        total += tl.load(x + n, mask=n < N, other=0.0)[:, None] * w.to(tl.float32)
    tl.store(out_THO + (tl.program_id(0) * H + head) * O + o, tl.sum(total, 0), mask=o < O)


@triton.jit
def slot_of(slot_E, expert_TK, pair, routed):  # type: ignore[no-untyped-def]
    """The slab's row of a routed pair's expert, or -1."""
    expert = tl.load(expert_TK + pair, mask=routed, other=-1).to(tl.int64)
    return tl.load(slot_E + expert, mask=expert >= 0, other=-1).to(tl.int64)


@triton.jit(do_not_specialize=["pairs"])
def gate_up(  # type: ignore[no-untyped-def]
    x_TD,
    slab_XM,
    scb_XS,
    slot_E,
    expert_TK,
    shared_M,
    shared_S,
    middle_PF,
    pairs,
    K,
    N,
    D,
    F,
    BO: tl.constexpr,
    BD: tl.constexpr,
):
    """middle = silu(gate x) * up x; program (p, j) makes BO values of pair p, and nothing for an absent expert.

    The first `pairs` are routed, K a token; N a token follow, which are the parts, F wide each, of the shared expert.
    Pairs are the fast axis, so tokens that share an expert read its rows at about the same time.
    """
    pair = tl.program_id(0)
    routed = pair < pairs
    slot = slot_of(slot_E, expert_TK, pair, routed)
    if (slot >= 0) | (pair >= pairs):
        token = tl.where(routed, pair // K, (pair - pairs) // N)
        width = tl.where(routed, F, N * F)
        first = tl.where(routed, 0, (pair - pairs) % N) * F
        f = tl.program_id(1) * BO + tl.arange(0, BO)
        gate_row = tl.where(routed, slab_XM + slot * (3 * D * F), shared_M) + (first + f)[:, None] * D
        up_row = gate_row + D * width
        gate = tl.zeros((BO, BD), tl.float32)
        up = tl.zeros((BO, BD), tl.float32)
        for start in range(0, D, BD):
            d = start + tl.arange(0, BD)
            inside = (f[:, None] < F) & (d[None, :] < D)
            x = tl.load(x_TD + token * D + d, mask=d < D, other=0.0)[None, :]
            gate += x * tl.load(gate_row + d[None, :], mask=inside, other=0).to(tl.float32)
            up += x * tl.load(up_row + d[None, :], mask=inside, other=0).to(tl.float32)
        scb = tl.where(routed, scb_XS + slot * (2 * F + D), shared_S) + first + f
        g = tl.sum(gate, 1) * (tl.load(scb, mask=f < F, other=0.0) / 127.0)
        u = tl.sum(up, 1) * (tl.load(scb + width, mask=f < F, other=0.0) / 127.0)
        tl.store(middle_PF + pair * F + f, g / (1.0 + tl.exp(-g)) * u, mask=f < F)


@triton.jit(do_not_specialize=["pairs"])
def down(  # type: ignore[no-untyped-def]
    middle_PF,
    slab_XM,
    scb_XS,
    slot_E,
    expert_TK,
    weight_TK,
    shared_M,
    shared_S,
    onto_TD,
    out_TD,
    pairs,
    K,
    N,
    D,
    F,
    ONTO: tl.constexpr,
    BO: tl.constexpr,
    BD: tl.constexpr,
):
    """out = onto + sum over a token's pairs of weight * down(middle), the shared expert's of weight 1; program (t, j)
    makes BO values of token t."""
    token = tl.program_id(0)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    total = tl.zeros((BO, BD), tl.float32)
    for k in range(K + N):
        routed = k < K
        pair = tl.where(routed, token * K + k, pairs + token * N + k - K)
        slot = slot_of(slot_E, expert_TK, pair, routed)
        if (slot >= 0) | (k >= K):
            width = tl.where(routed, F, N * F)
            matrix = tl.where(routed, slab_XM + slot * (3 * D * F), shared_M + (k - K) * F) + 2 * D * width
            row = matrix + o[:, None] * width
            part = tl.zeros((BO, BD), tl.float32)
            for start in range(0, F, BD):
                f = start + tl.arange(0, BD)
                m = tl.load(middle_PF + pair * F + f, mask=f < F, other=0.0)
                w = tl.load(row + f[None, :], mask=(o[:, None] < D) & (f[None, :] < F), other=0).to(tl.float32)
                part += m[None, :] * w
            scale = tl.where(routed, scb_XS + slot * (2 * F + D), shared_S) + 2 * width
            scb = tl.load(scale + o, mask=o < D, other=0.0) / 127.0
            total += part * (scb * tl.load(weight_TK + pair, mask=routed, other=1.0))[:, None]
    onto = tl.load(onto_TD + token * D + o, mask=o < D, other=0.0) if ONTO else 0.0
    tl.store(out_TD + token * D + o, tl.sum(total, 1) + onto, mask=o < D)
