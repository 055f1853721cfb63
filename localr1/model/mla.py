"""Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values live in one shared latent a token.

Owns the two ways to compute it, which give the same numbers. Absorbed: the up-projections move to the query and to the
output, so attention runs in the latent itself and a cache row is read once for all heads. Expanded: keys and values of
all cached tokens are formed from their latents, which costs more per cached token but less per query row. Steps of few
tokens are absorbed and go through the device's kernels; of others the cheapest way is taken: either one by matrix
products, or absorbed through the kernels where those multiply faster (`Ops.latent_rate`), as is so deep in a context. A
cache row is [kv_a_layernorm(c) | rotated k_pe].
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from localr1.model.attention import causal_attention, stretch_rows
from localr1.model.config import MlaConfig, ModelConfig, YarnScaling
from localr1.model.decoder import Norm
from localr1.model.latent_rows import unpack_latents
from localr1.model.linear import Cache, Position, TensorSpec, Weights
from localr1.model.rope import Rotation

LATENT_NORM_EPS = 1e-6
"""Of `q_a_layernorm` and `kv_a_layernorm`, whatever `rms_norm_eps` says: the reference builds them with its default."""

EXPANDED_VALUES, GPU_EXPANDED_VALUES = 1 << 21, 1 << 23
"""Expanded keys and values held at once, in float32 values (8 MiB), or those of one head in a stretch of the cache. 16
MiB were not faster, and 64 MiB slower. A GPU is given 32 MiB, since every few heads are launched anew; what is best
there was not measured."""

ABSORBED_VALUES = 1 << 21
"""Queries taken into the latent at once, in float32 values (8 MiB)."""


class LatentAttention:
    """MLA of one layer."""

    def __init__(self, config: ModelConfig, mla: MlaConfig, weights: Weights, layer: int, kernel_rows: int) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.mla = mla
        self.layout = config.rope.layout
        self.layer = layer
        self.kernel_rows = kernel_rows
        self.ops = weights.ops
        self.scale = softmax_scale(config, mla)
        if mla.q_lora_rank is None:
            first, self.q_a_norm, self.q_b_proj = "q_proj", None, None
        else:
            first = "q_a_proj"
            self.q_a_norm = Norm(weights, f"{prefix}.q_a_layernorm.weight", LATENT_NORM_EPS)
            self.q_b_proj = weights.linear(f"{prefix}.q_b_proj")
        self.front_proj = weights.linears([f"{prefix}.{first}", f"{prefix}.kv_a_proj_with_mqa"])
        self.kv_a_norm = Norm(weights, f"{prefix}.kv_a_layernorm.weight", LATENT_NORM_EPS)
        kv_b_HOC = weights.tensor(f"{prefix}.kv_b_proj.weight").view(mla.num_heads, -1, mla.kv_lora_rank)
        self.key_up_HNC = kv_b_HOC[:, : mla.qk_nope_head_dim]
        self.value_up_HVC = kv_b_HOC[:, mla.qk_nope_head_dim :]
        self.o_proj = weights.linear(f"{prefix}.o_proj")

    def __call__(self, x_TD: Tensor, rotation: Rotation, cache: Cache, onto_TD: Tensor) -> Tensor:
        q, row_TW = self.front_proj(x_TD)
        if self.q_a_norm is not None and self.q_b_proj is not None:
            q = self.q_b_proj(self.q_a_norm(q))
        q_THk, norm, start = q.view(len(q), self.mla.num_heads, -1), self.kv_a_norm, cache.length
        q_pe_THR, cache_SW = self.ops.latent_front(
            q_THk, row_TW, norm.weight, norm.eps, rotation, self.layout, cache, self.layer
        )
        attend = self._by_kernel if len(x_TD) <= self.kernel_rows else self._cheapest(len(x_TD), cache_SW)
        out_THV = attend(q_THk[..., : self.mla.qk_nope_head_dim], q_pe_THR, cache_SW, start)
        return self.o_proj(out_THV.flatten(1), onto_TD)

    def _floats(self, cache_SW: Tensor) -> Tensor:
        """Rows as the cache keeps them in float32."""
        if cache_SW.dtype != torch.int8:
            return cache_SW.float()
        return unpack_latents(cache_SW, self.mla.kv_lora_rank, self.mla.kv_lora_rank + self.mla.qk_rope_head_dim)

    def _cheapest(self, rows: int, cache_SW: Tensor) -> Callable[[Tensor, Tensor, Tensor, Position], Tensor]:
        """The way of fewest multiplications a head. Absorbed: C (N + V) a row, and 2 C + R for each row and token seen,
        which the kernel does at its own rate. Expanded: C (N + V) a cached token, and N + R + V a row and token seen.
        """
        mla, cached = self.mla, len(cache_SW)
        pairs = rows * (cached - rows / 2)  # a row sees half of the rows, and all tokens before them
        up = mla.kv_lora_rank * (mla.qk_nope_head_dim + mla.v_head_dim)
        in_latent = pairs * (2 * mla.kv_lora_rank + mla.qk_rope_head_dim)
        rate = self.ops.latent_rate(cache_SW) if self.kernel_rows else 0.0
        costs = {
            self._expanded: cached * up + pairs * (mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim),
            self._absorbed: rows * up + in_latent,
            self._by_kernel: rows * up + in_latent / rate if rate else math.inf,
        }
        return min(costs, key=costs.__getitem__)

    def _by_kernel(self, q_nope_THN: Tensor, q_pe_THR: Tensor, cache_SW: Tensor, start: Position) -> Tensor:
        """score = (q_nope W_UK) . c + q_pe . k_pe; out = (softmax c) W_UV (DeepSeek-V2, section 2.1.3)."""
        step = max(self.kernel_rows, ABSORBED_VALUES // (self.mla.num_heads * self.mla.kv_lora_rank))
        parts: list[Tensor] = []
        for first in range(0, len(q_nope_THN), step):
            block = slice(first, first + step)
            q_latent_THC = self._into_latent(q_nope_THN[block]).contiguous()
            at = start + first if first else start
            latent_THC = self.ops.mla_attention(q_latent_THC, q_pe_THR[block], cache_SW, at, self.scale)
            parts.append(self._out_of_latent(latent_THC))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _absorbed(self, q_nope_THN: Tensor, q_pe_THR: Tensor, cache_SW: Tensor, start: Position) -> Tensor:
        """The same by matrix products."""
        heads, rank = self.mla.num_heads, self.mla.kv_lora_rank

        def rows(stretch: slice) -> tuple[Tensor, Tensor]:
            rows_1SW = self._floats(cache_SW[stretch])[None]
            return rows_1SW, rows_1SW[..., :rank]

        q_1TW = torch.cat((self._into_latent(q_nope_THN), q_pe_THR), dim=-1).flatten(0, 1)[None]
        out_1TC = causal_attention(q_1TW, rows, int(start), self.scale, shared=heads)
        return self._out_of_latent(out_1TC.view(-1, heads, rank))

    def _into_latent(self, q_nope_THN: Tensor) -> Tensor:
        return self.ops.head_product(q_nope_THN, self.key_up_HNC)

    def _out_of_latent(self, latent_THC: Tensor) -> Tensor:
        return self.ops.head_product(latent_THC, self.value_up_HVC.transpose(1, 2))

    def _expanded(self, q_nope_THN: Tensor, q_pe_THR: Tensor, cache_SW: Tensor, start: Position) -> Tensor:
        """Keys and values of as many heads at a time as `EXPANDED_VALUES` allows."""
        mla, q_HTk = self.mla, torch.cat((q_nope_THN, q_pe_THR), dim=-1).transpose(0, 1)
        width = mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim
        values = EXPANDED_VALUES if cache_SW.device.type == "cpu" else GPU_EXPANDED_VALUES
        heads = max(1, values // (stretch_rows(len(cache_SW), cache_SW.device) * width))
        parts: list[Tensor] = []
        for first in range(0, mla.num_heads, heads):
            block = slice(first, first + heads)
            rows = partial(self._expanded_rows, cache_SW, block)
            parts.append(causal_attention(q_HTk[block], rows, int(start), self.scale))
        return torch.cat(parts).transpose(0, 1)

    def _expanded_rows(self, cache_SW: Tensor, heads: slice, stretch: slice) -> tuple[Tensor, Tensor]:
        """Keys and values of some heads, formed from a stretch of the cache."""
        latent_SC, k_pe_SR = self._floats(cache_SW[stretch]).tensor_split([self.mla.kv_lora_rank], dim=1)
        k_nope_HSN = self.ops.product(latent_SC, self.key_up_HNC[heads].transpose(1, 2))
        v_HSV = self.ops.product(latent_SC, self.value_up_HVC[heads].transpose(1, 2))
        return torch.cat((k_nope_HSN, k_pe_SR.expand(len(k_nope_HSN), -1, -1)), dim=-1), v_HSV


def softmax_scale(config: ModelConfig, mla: MlaConfig) -> float:
    """(N + R)^-0.5, times YaRN's mscale squared where the config gives `mscale_all_dim`."""
    growth = config.rope.scaling.score_factor if isinstance(config.rope.scaling, YarnScaling) else 1.0
    return float((mla.qk_nope_head_dim + mla.qk_rope_head_dim) ** -0.5) * growth


def mla_tensors(config: ModelConfig, mla: MlaConfig, layer: int) -> dict[str, TensorSpec]:
    """The attention tensors of one layer; `kv_b_proj` stays in floating point for the absorbed products."""
    prefix = f"model.layers.{layer}.self_attn"
    q_width = mla.num_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    kv_a_width = mla.kv_lora_rank + mla.qk_rope_head_dim
    matrices = {
        "kv_a_proj_with_mqa": (kv_a_width, config.hidden),
        "o_proj": (config.hidden, mla.num_heads * mla.v_head_dim),
    }
    norms = {"kv_a_layernorm": mla.kv_lora_rank}
    if mla.q_lora_rank is None:
        matrices["q_proj"] = (q_width, config.hidden)
    else:
        matrices |= {"q_a_proj": (mla.q_lora_rank, config.hidden), "q_b_proj": (q_width, mla.q_lora_rank)}
        norms["q_a_layernorm"] = mla.q_lora_rank
    specs = {f"{prefix}.{name}.weight": TensorSpec(shape, "int8") for name, shape in matrices.items()}
    specs |= {f"{prefix}.{name}.weight": TensorSpec((width,), "float") for name, width in norms.items()}
    kv_b_shape = (mla.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank)
    specs[f"{prefix}.kv_b_proj.weight"] = TensorSpec(kv_b_shape, "float")
    if mla.bias:
        for name in ("kv_a_proj_with_mqa", "o_proj") + (() if mla.q_lora_rank is None else ("q_a_proj",)):
            specs[f"{prefix}.{name}.bias"] = TensorSpec(matrices[name][:1], "float")
    return specs
