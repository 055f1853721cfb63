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
    out_TO,
    T,
    D,
    O,  # noqa: E741
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    BO: tl.constexpr,
    BD: tl.constexpr,
):
    """out = x W^T + bias; program (i, j) makes BO outputs of ROWS tokens; those of the same weights are neighbours.

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
        tl.store(out_TO + t * O + o, tl.sum(sums[r], 1) * scale + bias, mask=(o < O) & (t < T))


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
def slot_of(slot_E, expert_TK, pair):  # type: ignore[no-untyped-def]
    """The slab's row of a pair's expert, or -1."""
    expert = tl.load(expert_TK + pair)
    return tl.load(slot_E + expert, mask=expert >= 0, other=-1)


@triton.jit
def gate_up(x_TD, slab_XM, scb_XS, slot_E, expert_TK, middle_PF, K, D, F, BO: tl.constexpr, BD: tl.constexpr):  # type: ignore[no-untyped-def]
    """middle = silu(gate x) * up x; program (p, j) makes BO values of pair p, and nothing for an absent expert.

    Pairs are the fast axis, so tokens that share an expert read its rows at about the same time.
    """
    pair = tl.program_id(0)
    slot = slot_of(slot_E, expert_TK, pair)
    if slot >= 0:
        f = tl.program_id(1) * BO + tl.arange(0, BO)
        gate_row = slab_XM + slot.to(tl.int64) * (3 * D * F) + f[:, None] * D
        up_row = gate_row + D * F
        gate = tl.zeros((BO, BD), tl.float32)
        up = tl.zeros((BO, BD), tl.float32)
        for start in range(0, D, BD):
            d = start + tl.arange(0, BD)
            inside = (f[:, None] < F) & (d[None, :] < D)
            x = tl.load(x_TD + (pair // K) * D + d, mask=d < D, other=0.0)[None, :]
            gate += x * tl.load(gate_row + d[None, :], mask=inside, other=0).to(tl.float32)
            up += x * tl.load(up_row + d[None, :], mask=inside, other=0).to(tl.float32)
        scb = scb_XS + slot.to(tl.int64) * (2 * F + D) + f
        g = tl.sum(gate, 1) * (tl.load(scb, mask=f < F, other=0.0) / 127.0)
        u = tl.sum(up, 1) * (tl.load(scb + F, mask=f < F, other=0.0) / 127.0)
        tl.store(middle_PF + pair * F + f, g / (1.0 + tl.exp(-g)) * u, mask=f < F)


@triton.jit
def down(middle_PF, slab_XM, scb_XS, slot_E, expert_TK, weight_TK, out_TD, K, D, F, BO: tl.constexpr, BD: tl.constexpr):  # type: ignore[no-untyped-def]
    """out = sum over k of weight * down(middle); program (t, j) makes BO values of token t."""
    token = tl.program_id(0)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    total = tl.zeros((BO, BD), tl.float32)
    for k in range(K):
        pair = token * K + k
        slot = slot_of(slot_E, expert_TK, pair)
        if slot >= 0:
            row = slab_XM + slot.to(tl.int64) * (3 * D * F) + 2 * D * F + o[:, None] * F
            part = tl.zeros((BO, BD), tl.float32)
            for start in range(0, F, BD):
                f = start + tl.arange(0, BD)
                m = tl.load(middle_PF + pair * F + f, mask=f < F, other=0.0)
                w = tl.load(row + f[None, :], mask=(o[:, None] < D) & (f[None, :] < F), other=0).to(tl.float32)
                part += m[None, :] * w
            scb = tl.load(scb_XS + slot.to(tl.int64) * (2 * F + D) + 2 * F + o, mask=o < D, other=0.0) / 127.0
            total += part * (scb * tl.load(weight_TK + pair))[:, None]
    tl.store(out_TD + token * D + o, tl.sum(total, 1), mask=o < D)
