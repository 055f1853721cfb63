"""Launches that several calls of the Triton kernels share: products of few rows, gated feed-forwards, splits joined.

Owns how a matrix is cut into programs. Shape suffixes as in `localr1.kernels.gpu`; Z splits, V their values.
"""

import torch
import triton
from torch import Tensor

from localr1.kernels.gpu import Gated, attention, few

TILE = 2048
"""Weights a step of a program: sixteen bytes for each of its 128 threads."""


def few_rows(
    x_TD: Tensor,
    w_OD: Tensor,
    scb_O: Tensor | None = None,
    bias_O: Tensor | None = None,
    onto_TO: Tensor | None = None,
) -> Tensor:
    """x W^T + bias + onto of few rows, [T, O], with int8 rows or, without their scales, float weights."""
    (T, D), O = x_TD.shape, w_OD.shape[0]  # noqa: E741
    out_TO = torch.empty(T, O, device=x_TD.device)
    rows = 1 if T == 1 else 2 if T == 2 else 4
    BO, BD = tile(O, D)
    few.linear[(triton.cdiv(T, rows), triton.cdiv(O, BO))](
        x_TD.contiguous(),
        w_OD,
        w_OD if scb_O is None else scb_O,
        w_OD if bias_O is None else bias_O,
        out_TO if onto_TO is None else onto_TO.contiguous(),
        out_TO,
        T,
        D,
        O,
        SCALED=scb_O is not None,
        BIASED=bias_O is not None,
        ONTO=onto_TO is not None,
        ROWS=rows,
        BO=BO,
        BD=BD,
        num_warps=4,
    )
    return out_TO


def few_gated(
    x_TD: Tensor,
    slab_XM: Tensor,
    scb_XS: Tensor,
    slot_E: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    shared: Gated | None,
    onto_TD: Tensor | None,
) -> Tensor:
    """`Kernels.routed_ffn` of few rows; where they chose none (K = 0), of the shared expert alone."""
    (T, D), K = x_TD.shape, expert_TK.shape[1]
    M = slab_XM.shape[1]
    weight_M, scb_S = shared or (slab_XM, scb_XS)
    F, N = M // (3 * D), 0 if shared is None else len(weight_M) // M
    middle_PF = torch.empty(T * (K + N), F, device=x_TD.device)
    out_TD = torch.empty(T, D, device=x_TD.device)
    BO, BD = tile(F, D)
    few.gate_up[(T * (K + N), triton.cdiv(F, BO))](
        x_TD,
        slab_XM,
        scb_XS,
        slot_E,
        expert_TK,
        weight_M,
        scb_S,
        middle_PF,
        T * K,
        max(K, 1),
        max(N, 1),
        D,
        F,
        BO=BO,
        BD=BD,
        num_warps=4,
    )
    BO, BD = tile(D, F)
    few.down[(T, triton.cdiv(D, BO))](
        middle_PF,
        slab_XM,
        scb_XS,
        slot_E,
        expert_TK,
        weight_TK,
        weight_M,
        scb_S,
        out_TD if onto_TD is None else onto_TD.contiguous(),
        out_TD,
        T * K,
        K,
        N,
        D,
        F,
        ONTO=onto_TD is not None,
        BO=BO,
        BD=BD,
        num_warps=4,
    )
    return out_TD


def token_by_token(x: Tensor) -> Tensor:
    """Rows that may lie apart, each in one piece."""
    return x if x[0].is_contiguous() else x.contiguous()


def joined(part_THZV: Tensor, lse_THZ: Tensor) -> Tensor:
    """The splits' results as one, [T, H, V]."""
    T, H, Z, V = part_THZV.shape
    out_THV = torch.empty(T, H, V, device=part_THZV.device)
    BV = min(128, block(V))
    attention.join[(T * H, triton.cdiv(V, BV))](part_THZV, lse_THZ, out_THV, V, Z=Z, BV=BV, num_warps=4)
    return out_THV


def tile(outputs: int, inputs: int) -> tuple[int, int]:
    """(BO, BD) of a matrix: fewer rows a program where there are few, so that no multiprocessor stands idle."""
    BO = 4 if outputs >= 1024 else 2
    return BO, min(TILE // BO, block(inputs))


def block(size: int) -> int:
    """The power of two that holds `size`; 16 is the least that the tensor cores take."""
    return max(16, int(triton.next_power_of_2(size)))
