"""The kernels in Triton: block sizes, grids and buffers.

Owns which way a call goes: steps of at most FEW rows through the kernels of few rows (`launches`), more through the
tensor cores in 16 bits. The loops are in the modules beside it.
"""

import torch
import triton
from torch import Tensor
from torch.nn import functional

from localr1.kernels.gpu import Gated, attention, choice, few, front, many, norm, plain
from localr1.kernels.gpu.launches import block, few_gated, few_rows, joined, token_by_token

FEW = 8
WIDENED_ROWS = 256
"""From so many rows on, a feed-forward that all tokens go through is widened and left to torch's products. That moves
five bytes a weight, where `many` reads it once for every 32 rows and multiplies in small blocks; not measured."""


class FusedKernels:
    """`Kernels` in Triton.

    `dtype` is what many-row products take. `splits`, a power of two, is in how many parts a context is attended to at
    the same time. Without `tensor_cores` that Triton uses (Turing), latent attention does not fit a block's shared
    memory and many-row products would be slow, so both are left to torch.
    """

    def __init__(self, dtype: torch.dtype = torch.bfloat16, tensor_cores: bool = True, splits: int = 64) -> None:
        self.dtype = dtype
        self.tensor_cores = tensor_cores
        self.splits = splits
        self._plain = plain.PlainKernels()

    def replayable(self, latent: bool) -> bool:
        return self.tensor_cores or not latent

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        D = weight_D.shape[0]
        if x.dim() != 2 or x.stride(1) != 1:
            x = x.contiguous()
        out = torch.empty(x.shape, device=x.device)
        rows = x.numel() // D
        stride = x.stride(0) if x.dim() == 2 else D
        norm.rms_norm[(rows,)](x, weight_D, out, stride, D, eps, BD=triton.next_power_of_2(D), num_warps=4)
        return out

    def linear(
        self, x_TD: Tensor, q_OD: Tensor, scb_O: Tensor, bias_O: Tensor | None = None, onto_TO: Tensor | None = None
    ) -> Tensor:
        if x_TD.shape[0] > FEW:
            return self._plain.linear(x_TD, q_OD, scb_O, bias_O, onto_TO)
        return few_rows(x_TD, q_OD, scb_O, bias_O, onto_TO)

    def head_product(self, x_THN: Tensor, weight_HNO: Tensor) -> Tensor:
        (T, H, N), O = x_THN.shape, weight_HNO.shape[2]  # noqa: E741
        if T > FEW:
            return self._plain.head_product(x_THN, weight_HNO)
        x_THN = x_THN if x_THN.stride(2) == 1 else x_THN.contiguous()
        out_THO = torch.empty(T, H, O, device=x_THN.device)
        BN, BO = (min(512, block(N)), 4) if weight_HNO.stride(1) == 1 else (min(256, block(N)), 16)
        strides = (x_THN.stride(0), x_THN.stride(1), *weight_HNO.stride())
        grid = (T, H, triton.cdiv(O, BO))
        few.product[grid](x_THN, weight_HNO, out_THO, *strides, H, N, O, BN=BN, BO=BO, num_warps=4)
        return out_THO

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
        (T, H, k), C, R = q_THk.shape, norm_C.shape[0], cos_TR.shape[1]
        q_THk, row_TW = token_by_token(q_THk), token_by_token(row_TW)
        q_THR = torch.empty(T, H, R, device=q_THk.device)
        held = isinstance(start, Tensor)
        front.latent[(T, H + 2)](
            q_THk,
            row_TW,
            norm_C,
            cos_TR,
            sin_TR,
            q_THR,
            cache_SW,
            start if held else cache_SW,
            0 if held else start,
            q_THk.stride(0),
            row_TW.stride(0),
            H,
            k,
            C,
            R,
            eps,
            INTERLEAVED=interleaved,
            ON_DEVICE=held,
            BC=triton.next_power_of_2(C),
            BP=triton.next_power_of_2(R // 2),
            num_warps=4,
        )
        return q_THR

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
        (T, H, d), G = q_THd.shape, k_TGd.shape[1]
        q_THd, k_TGd, v_TGd = token_by_token(q_THd), token_by_token(k_TGd), token_by_token(v_TGd)
        to_THd = torch.empty(T, H, d, device=q_THd.device)
        held = isinstance(start, Tensor)
        front.grouped[(T, H + G)](
            q_THd,
            k_TGd,
            v_TGd,
            cos_Td,
            sin_Td,
            to_THd,
            cache_SW,
            start if held else cache_SW,
            0 if held else start,
            q_THd.stride(0),
            k_TGd.stride(0),
            v_TGd.stride(0),
            H,
            G,
            d,
            INTERLEAVED=interleaved,
            ON_DEVICE=held,
            BP=triton.next_power_of_2(d // 2),
            BV=triton.next_power_of_2(d),
            num_warps=1,
        )
        return to_THd

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
        T, E = x_TD.shape[0], weight_ED.shape[0]
        logit_TE = functional.linear(x_TD, weight_ED) if T > FEW else few_rows(x_TD, weight_ED)
        expert_TK = torch.empty(T, top_k, dtype=torch.int64, device=x_TD.device)
        weight_TK = torch.empty(T, top_k, device=x_TD.device)
        choice.choose[(T,)](
            logit_TE,
            logit_TE if bias_E is None else bias_E,
            expert_TK,
            weight_TK,
            E,
            top_k,
            scale,
            SOFTMAX=softmax,
            BIASED=bias_E is not None,
            NORMALIZE=normalize,
            BE=triton.next_power_of_2(E),
            BK=triton.next_power_of_2(top_k),
            num_warps=1,
        )
        return expert_TK, weight_TK

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
        routed = slab_XM, scb_XS, slot_E, expert_TK.contiguous(), weight_TK.contiguous()
        x_TD = x_TD.contiguous()
        if x_TD.shape[0] <= FEW:
            return few_gated(x_TD, *routed, shared, onto_TD)
        out_TD = (self._routed_many if self.tensor_cores else self._plain.routed_ffn)(x_TD, *routed)
        if shared is not None:
            out_TD += self.feed_forward(x_TD, shared)
        return out_TD if onto_TD is None else out_TD.add_(onto_TD)

    def _routed_many(
        self, x_TD: Tensor, slab_XM: Tensor, scb_XS: Tensor, slot_E: Tensor, expert_TK: Tensor, weight_TK: Tensor
    ) -> Tensor:
        (T, D), K, F = x_TD.shape, expert_TK.shape[1], slab_XM.shape[1] // (3 * x_TD.shape[1])
        P = T * K
        slot_B, pair_N = many.blocks(slot_E, expert_TK)
        middle_PF = torch.empty(P, F, device=x_TD.device, dtype=self.dtype)
        out_PD = torch.zeros(P, D, device=x_TD.device)
        sizes = {"BM": many.BM, "BN": 64, "BK": 64, "num_warps": 4, "num_stages": 2}
        many.gate_up[(len(slot_B), triton.cdiv(F, 64))](
            x_TD.clamp(-65504.0, 65504.0).to(self.dtype),
            slab_XM,
            scb_XS,
            slot_B,
            pair_N,
            middle_PF,
            P,
            K,
            D,
            F,
            **sizes,
        )
        many.down[(len(slot_B), triton.cdiv(D, 64))](
            middle_PF, slab_XM, scb_XS, slot_B, pair_N, weight_TK, out_PD, P, D, F, **sizes
        )
        return out_PD.view(T, K, D).sum(1)

    def feed_forward(self, x_TD: Tensor, gated: Gated, onto_TD: Tensor | None = None) -> Tensor:
        T, device = x_TD.shape[0], x_TD.device
        if T >= WIDENED_ROWS or (T > FEW and not self.tensor_cores):
            return self._plain.feed_forward(x_TD, gated, onto_TD)
        only = gated.weight_M[None], gated.scb_S[None]
        if T <= FEW:
            nobody_T0 = x_TD[:, :0]
            return few_gated(x_TD.contiguous(), *only, nobody_T0, nobody_T0, nobody_T0, gated, onto_TD)
        expert_T1 = torch.zeros(T, 1, dtype=torch.int64, device=device)
        slot_E = torch.zeros(1, dtype=torch.int32, device=device)
        out_TD = self._routed_many(x_TD.contiguous(), *only, slot_E, expert_T1, torch.ones(T, 1, device=device))
        return out_TD if onto_TD is None else out_TD.add_(onto_TD)

    def mla_attention(
        self, q_latent_THC: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, start: int | Tensor, scale: float
    ) -> Tensor:
        if not self.tensor_cores:
            return self._plain.mla_attention(q_latent_THC, q_rope_THR, cache_SW, start, scale)
        (T, H, C), R = q_latent_THC.shape, q_rope_THR.shape[2]
        part_THZC = torch.empty(T, H, self.splits, C, device=q_latent_THC.device)
        lse_THZ = torch.empty(T, H, self.splits, device=q_latent_THC.device)
        held = isinstance(start, Tensor)
        BH = 16 if H <= 16 else 32
        attention.mla[(self.splits, triton.cdiv(H, BH), T)](
            q_latent_THC.contiguous(),
            q_rope_THR.contiguous(),
            cache_SW,
            start if held else cache_SW,
            part_THZC,
            lse_THZ,
            0 if held else start,
            H,
            C,
            R,
            scale,
            BH=BH,
            BC=block(C),
            BR=block(R),
            BS=16 if BH == 32 else 32,
            ON_DEVICE=held,
            num_warps=8,
            num_stages=1,
        )
        return joined(part_THZC, lse_THZ)

    def gqa_attention(
        self, q_THd: Tensor, cache_SW: Tensor, kv_heads: int, start: int | Tensor, scale: float
    ) -> Tensor:
        T, H, d = q_THd.shape
        part_THZd = torch.empty(T, H, self.splits, d, device=q_THd.device)
        lse_THZ = torch.empty(T, H, self.splits, device=q_THd.device)
        held = isinstance(start, Tensor)
        attention.gqa[(self.splits, kv_heads, T)](
            q_THd.contiguous(),
            cache_SW,
            start if held else cache_SW,
            part_THZd,
            lse_THZ,
            0 if held else start,
            H,
            kv_heads,
            d,
            scale,
            BH=block(H // kv_heads),
            BV=block(d),
            BS=32,
            ON_DEVICE=held,
            num_warps=4,
            num_stages=1,
        )
        return joined(part_THZd, lse_THZ)
