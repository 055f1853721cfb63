"""The GPU kernels as torch operations: what runs where Triton does not, and the many-row products.

Owns the same contract as the Triton kernels, slower. Products are 16-bit on a GPU (bfloat16, or float16 before compute
capability 8.0) and float32 on the CPU; int8 weights are exact in both, and scales are applied to the results. The
routed feed-forward asks the device which experts were chosen, so here the host waits for it once a layer of those.
"""

import torch
from torch import Tensor
from torch.nn import functional

from localr1.kernels.gpu import Gated

STEP_WEIGHTS = 1 << 25
"""Weights widened to 16 bits at once (64 MiB)."""


class PlainKernels:
    """`Kernels` in torch operations; `why_plain` says why they are not Triton's, where somebody should know."""

    def __init__(self, why_plain: str = "") -> None:
        self.why_plain = why_plain

    def replayable(self, latent: bool) -> bool:
        return False

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return torch.rms_norm(x, weight_D.shape, weight_D, eps)

    def linear(
        self, x_TD: Tensor, q_OD: Tensor, scb_O: Tensor, bias_O: Tensor | None = None, onto_TO: Tensor | None = None
    ) -> Tensor:
        out_TO = linear(x_TD, q_OD, scb_O)
        if bias_O is not None:
            out_TO += bias_O
        return out_TO if onto_TO is None else out_TO.add_(onto_TO)

    def head_product(self, x_THN: Tensor, weight_HNO: Tensor) -> Tensor:
        return torch.matmul(x_THN.transpose(0, 1).to(weight_HNO.dtype), weight_HNO).float().transpose(0, 1)

    def latent_front(
        self,
        q_THk: Tensor,
        row_TW: Tensor,
        norm_C: Tensor,
        eps: float,
        cos_TR: Tensor,
        sin_TR: Tensor,
        interleaved: bool,
        cache_SW: Tensor,
        start: int | Tensor,
    ) -> Tensor:
        C, R = norm_C.shape[0], cos_TR.shape[1]
        both_THR = torch.cat((q_THk[..., -R:], row_TW[:, None, C:]), dim=1)
        turned_THR = turned(both_THR, cos_TR, sin_TR, interleaved)
        latent_TC = self.rms_norm(row_TW[:, :C], norm_C, eps)
        write(cache_SW, start, torch.cat((latent_TC, turned_THR[:, -1]), dim=1))
        return turned_THR[:, :-1].contiguous()

    def grouped_front(
        self,
        q_THd: Tensor,
        k_TGd: Tensor,
        v_TGd: Tensor,
        cos_Td: Tensor,
        sin_Td: Tensor,
        interleaved: bool,
        cache_SW: Tensor,
        start: int | Tensor,
    ) -> Tensor:
        H = q_THd.shape[1]
        turned_THd = turned(torch.cat((q_THd, k_TGd), dim=1), cos_Td, sin_Td, interleaved)
        write(cache_SW, start, torch.cat((turned_THd[:, H:], v_TGd), dim=1).flatten(1))
        return turned_THd[:, :H].contiguous()

    def route(
        self,
        x_TD: Tensor,
        weight_ED: Tensor,
        bias_E: Tensor | None,
        top_k: int,
        scale: float,
        softmax: bool,
        normalize: bool,
    ) -> tuple[Tensor, Tensor]:
        logit_TE = functional.linear(x_TD, weight_ED)
        score_TE = logit_TE.softmax(dim=-1) if softmax else logit_TE.sigmoid()
        value_TE = score_TE if bias_E is None else score_TE + bias_E
        expert_TK = value_TE.topk(top_k, dim=-1).indices
        weight_TK = score_TE.gather(-1, expert_TK)
        if normalize:
            weight_TK = weight_TK / (weight_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return expert_TK, weight_TK * scale

    def routed_ffn(
        self,
        x_TD: Tensor,
        slab_XM: Tensor,
        scb_XS: Tensor,
        slot_E: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        shared: Gated | None = None,
        onto_TD: Tensor | None = None,
    ) -> Tensor:
        out_TD = torch.zeros_like(x_TD) if shared is None else feed_forward(x_TD, *shared)
        if onto_TD is not None:
            out_TD += onto_TD
        slots = slot_E.tolist()
        for expert in set(expert_TK.flatten().tolist()):
            if expert >= 0 and slots[expert] >= 0:
                token, k = (expert_TK == expert).nonzero(as_tuple=True)
                part = feed_forward(x_TD[token], slab_XM[slots[expert]], scb_XS[slots[expert]])
                out_TD.index_add_(0, token, part * weight_TK[token, k][:, None])
        return out_TD

    def feed_forward(self, x_TD: Tensor, gated: Gated, onto_TD: Tensor | None = None) -> Tensor:
        out_TD = feed_forward(x_TD, *gated)
        return out_TD if onto_TD is None else out_TD.add_(onto_TD)

    def mla_attention(
        self, q_latent_THC: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, start: int | Tensor, scale: float
    ) -> Tensor:
        row_SW = seen_rows(cache_SW, start, len(q_latent_THC))
        q_THW = torch.cat((q_latent_THC, q_rope_THR), dim=-1)
        score_THS = q_THW @ row_SW.T * scale
        return masked_softmax(score_THS, start) @ row_SW[:, : q_latent_THC.shape[2]]

    def gqa_attention(
        self, q_THd: Tensor, cache_SW: Tensor, kv_heads: int, start: int | Tensor, scale: float
    ) -> Tensor:
        T, H, d = q_THd.shape
        key_SGd, value_SGd = seen_rows(cache_SW, start, T).view(len(cache_SW), 2, kv_heads, d).unbind(1)
        q_TGhd = q_THd.view(T, kv_heads, H // kv_heads, d)
        score_TGhS = torch.einsum("tghd,sgd->tghs", q_TGhd, key_SGd) * scale
        share_THS = masked_softmax(score_TGhS.flatten(1, 2), start)
        return torch.einsum("tghs,sgd->tghd", share_THS.view_as(score_TGhS), value_SGd).reshape(T, H, d)


def turned(x_THR: Tensor, cos_TR: Tensor, sin_TR: Tensor, interleaved: bool) -> Tensor:
    """Rotated by the tables of the tokens' positions; pairs come out in the half layout."""
    P = x_THR.shape[-1] // 2
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, P), slice(P, None))
    first_THP, second_THP = x_THR[..., first], x_THR[..., second]
    halves_THR = torch.cat((first_THP, second_THP), dim=-1)
    return halves_THR * cos_TR[:, None] + torch.cat((second_THP, first_THP), dim=-1) * sin_TR[:, None]


def write(cache_SW: Tensor, start: int | Tensor, row_TW: Tensor) -> None:
    """Write rows from `start` on."""
    at_T = start + torch.arange(len(row_TW), device=cache_SW.device)
    cache_SW.index_copy_(0, at_T, row_TW.to(cache_SW.dtype))


def seen_rows(cache_SW: Tensor, start: int | Tensor, tokens: int) -> Tensor:
    """The rows in float32; those that no token sees, which may hold anything, as zeros."""
    if not isinstance(start, Tensor):
        return cache_SW.float()
    unseen_S = torch.arange(len(cache_SW), device=cache_SW.device) >= start + tokens
    return cache_SW.float().masked_fill(unseen_S[:, None], 0.0)


def masked_softmax(score_THS: Tensor, start: int | Tensor) -> Tensor:
    """Softmax over what each token sees: rows 0 .. start + t."""
    T, _, S = score_THS.shape
    last_T = start + torch.arange(T, device=score_THS.device)
    unseen_TS = torch.arange(S, device=score_THS.device) > last_T[:, None]
    return score_THS.masked_fill(unseen_TS[:, None], float("-inf")).softmax(dim=-1)


def linear(x_TD: Tensor, q_OD: Tensor, scb_O: Tensor) -> Tensor:
    """x W^T with W = q * scb / 127, widening some output rows at a time."""
    dtype = product_dtype(x_TD.device)
    largest_T1 = None
    if dtype == torch.float16:  # whose range an activation may leave
        largest_T1 = x_TD.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
        x_TD = x_TD / largest_T1
    x_TD = x_TD.to(dtype)
    out_TO = torch.empty(x_TD.shape[0], q_OD.shape[0], device=x_TD.device)
    step = max(1, STEP_WEIGHTS // q_OD.shape[1])
    for first in range(0, len(q_OD), step):
        rows = slice(first, first + step)
        out_TO[:, rows] = functional.linear(x_TD, q_OD[rows].to(dtype))
    out_TO *= scb_O / 127.0
    return out_TO if largest_T1 is None else out_TO.mul_(largest_T1)


def feed_forward(x_TD: Tensor, weight_M: Tensor, scb_S: Tensor) -> Tensor:
    """down(silu(gate x) * up x) of one expert, as it lies in the slab."""
    D = x_TD.shape[1]
    F = weight_M.shape[0] // (3 * D)
    gate, up, down = torch.split(weight_M, F * D)
    middle_TF = functional.silu(linear(x_TD, gate.view(F, D), scb_S[:F]), inplace=True)
    middle_TF *= linear(x_TD, up.view(F, D), scb_S[F : 2 * F])
    return linear(middle_TF, down.view(D, F), scb_S[2 * F :])


def product_dtype(device: torch.device) -> torch.dtype:
    """What matrix products take: float32 on the CPU, bfloat16 where a GPU multiplies it, else float16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
