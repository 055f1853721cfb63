"""Triton kernels of many rows through the routed experts: int8 weights into the tensor cores' 16 bits on the way.

Owns the two grouped products and the sorting of (token, expert) pairs into blocks of one expert each, which happens on
the device: the host never learns who chose what. A block of rows whose expert is absent is skipped.

Shape suffixes as in `localr1.kernels.gpu`; P pairs, N padded rows, B blocks of BM rows. BN outputs, BK inputs a step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BM = 32


@triton.jit(do_not_specialize=["P"])
def gate_up(  # type: ignore[no-untyped-def]
    x_TD, slab_XM, scb_XS, slot_B, pair_N, middle_PF, P, K, D, F, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """middle = silu(gate x) * up x in x's own 16 bits; program (b, j) makes BN columns of block b."""
    slot = tl.load(slot_B + tl.program_id(0)).to(tl.int64)
    if slot >= 0:
        pair = tl.load(pair_N + tl.program_id(0) * BM + tl.arange(0, BM))
        f = tl.program_id(1) * BN + tl.arange(0, BN)
        gate = tl.zeros((BM, BN), tl.float32)
        up = tl.zeros((BM, BN), tl.float32)
        rows = x_TD + (pair // K)[:, None] * D
        columns = slab_XM + slot * (3 * D * F) + f[None, :] * D
        for start in range(0, D, BK):
            d = start + tl.arange(0, BK)
            x = tl.load(rows + d[None, :], mask=(pair[:, None] < P) & (d[None, :] < D), other=0.0)
            inside = (f[None, :] < F) & (d[:, None] < D)
            gate += tl.dot(x, tl.load(columns + d[:, None], mask=inside, other=0).to(x.dtype))
            up += tl.dot(x, tl.load(columns + D * F + d[:, None], mask=inside, other=0).to(x.dtype))
        scb = scb_XS + slot * (2 * F + D) + f
        g = gate * (tl.load(scb, mask=f < F, other=0.0) / 127.0)[None, :]
        u = up * (tl.load(scb + F, mask=f < F, other=0.0) / 127.0)[None, :]
        at = middle_PF + pair[:, None] * F + f[None, :]
        middle = tl.minimum(tl.maximum(g / (1.0 + tl.exp(-g)) * u, -65504.0), 65504.0)  # float16's range
        tl.store(at, middle.to(x_TD.dtype.element_ty), mask=(pair[:, None] < P) & (f[None, :] < F))


@triton.jit(do_not_specialize=["P"])
def down(  # type: ignore[no-untyped-def]
    middle_PF,
    slab_XM,
    scb_XS,
    slot_B,
    pair_N,
    weight_P,
    out_PD,
    P,
    D,
    F,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """out = weight * down(middle), float32, a row a pair; program (b, j) makes BN columns of block b."""
    slot = tl.load(slot_B + tl.program_id(0)).to(tl.int64)
    if slot >= 0:
        pair = tl.load(pair_N + tl.program_id(0) * BM + tl.arange(0, BM))
        o = tl.program_id(1) * BN + tl.arange(0, BN)
        total = tl.zeros((BM, BN), tl.float32)
        columns = slab_XM + slot * (3 * D * F) + 2 * D * F + o[None, :] * F
        for start in range(0, F, BK):
            f = start + tl.arange(0, BK)
            m = tl.load(
                middle_PF + pair[:, None] * F + f[None, :], mask=(pair[:, None] < P) & (f[None, :] < F), other=0.0
            )
            inside = (o[None, :] < D) & (f[:, None] < F)
            total += tl.dot(m, tl.load(columns + f[:, None], mask=inside, other=0).to(m.dtype))
        scb = tl.load(scb_XS + slot * (2 * F + D) + 2 * F + o, mask=o < D, other=0.0) / 127.0
        weight = tl.load(weight_P + pair, mask=pair < P, other=0.0)
        at = out_PD + pair.to(tl.int64)[:, None] * D + o[None, :]
        tl.store(at, total * scb[None, :] * weight[:, None], mask=(pair[:, None] < P) & (o[None, :] < D))


def blocks(slot_E: Tensor, expert_TK: Tensor) -> tuple[Tensor, Tensor]:
    """(slot_B, pair_N): pairs sorted by expert, every expert's padded to whole blocks with the number P.

    As many blocks as there may have to be, so that no length comes from the device; those not needed have slot -1.
    """
    P, E, device = expert_TK.numel(), slot_E.numel(), slot_E.device
    count = (P + BM - 1) // BM + min(E, P)
    slot_of = torch.cat((slot_E, slot_E.new_full((1,), -1)))
    expert_P = torch.where(expert_TK < 0, E, expert_TK).flatten()
    expert_P = torch.where(slot_of[expert_P] < 0, E, expert_P)
    sorted_P, order_P = expert_P.sort(stable=True)
    pairs_E = torch.zeros(E + 1, dtype=torch.int64, device=device).scatter_add_(0, expert_P, torch.ones_like(expert_P))
    blocks_E = (pairs_E[:E] + BM - 1) // BM
    end_E = blocks_E.cumsum(0)
    shift_E = torch.cat(((end_E - blocks_E) * BM, end_E[-1:] * BM)) - (pairs_E.cumsum(0) - pairs_E)
    absent = sorted_P == E
    place_P = torch.arange(P, device=device) + shift_E[sorted_P]
    pair_N = torch.full((count * BM + 1,), P, dtype=torch.int32, device=device)
    pair_N[torch.where(absent, count * BM, place_P)] = torch.where(absent, P, order_P).to(torch.int32)
    expert_B = torch.searchsorted(end_E, torch.arange(count, device=device), right=True)
    return slot_of[expert_B], pair_N[:-1]
