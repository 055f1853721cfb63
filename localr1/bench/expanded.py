"""Latent attention with the cache it would have without compression: keys and values of every head, kept expanded.

Owns the baseline that `--claims` runs against. Same weights, same projections, same numbers; what differs is that a
token's keys and values are formed once and kept, so the cache is `expanded_values` wide and is read in full every
step by the grouped-query kernel. Values are padded to the keys' width where they are narrower, since that kernel knows
one head size; `streamed_values` says what is really read.
"""

from dataclasses import replace

import torch
from torch import Tensor

from localr1.model.config import MlaConfig, ModelConfig
from localr1.model.decoder import Decoder, Norm
from localr1.model.linear import Cache, Weights
from localr1.model.mla import LATENT_NORM_EPS, softmax_scale
from localr1.model.registry import Model
from localr1.model.rope import Rotation, rotate

KERNEL_ROWS = 8
"""Tokens that go through the attention kernel at a time."""


class ExpandedAttention:
    """One layer; a cache row is [keys of all heads | values of all heads], each head `head_size` wide."""

    def __init__(self, config: ModelConfig, mla: MlaConfig, weights: Weights, layer: int) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.mla = mla
        self.layer = layer
        self.layout = config.rope.layout
        self.head_size = head_size(mla)
        # The kernel is the grouped-query one; the scale is the latent attention's.
        self.scale = softmax_scale(config, mla)
        self.attend = weights.ops.gqa_attention
        compressed = mla.q_lora_rank is not None
        self.q_proj = weights.linear(f"{prefix}.{'q_a_proj' if compressed else 'q_proj'}")
        self.q_b_proj = weights.linear(f"{prefix}.q_b_proj") if compressed else None
        self.q_norm = Norm(weights, f"{prefix}.q_a_layernorm.weight", LATENT_NORM_EPS) if compressed else None
        self.kv_a_proj = weights.linear(f"{prefix}.kv_a_proj_with_mqa")
        self.kv_norm = Norm(weights, f"{prefix}.kv_a_layernorm.weight", LATENT_NORM_EPS)
        self.kv_b_OC = weights.tensor(f"{prefix}.kv_b_proj.weight").float()
        self.o_proj = weights.linear(f"{prefix}.o_proj")

    def __call__(self, x_TD: Tensor, rotation: Rotation, cache: Cache, onto_TD: Tensor) -> Tensor:
        mla, rows = self.mla, x_TD.shape[0]
        nope, rank = mla.qk_nope_head_dim, mla.kv_lora_rank
        q = self.q_proj(x_TD)
        if self.q_norm is not None and self.q_b_proj is not None:
            q = self.q_b_proj(self.q_norm(q))
        q_THk = q.view(rows, mla.num_heads, -1)
        row_TW = self.kv_a_proj(x_TD)
        rotated = rotate(torch.cat((q_THk[..., nope:], row_TW[:, None, rank:]), dim=1), rotation, self.layout)
        kv_THO = (self.kv_norm(row_TW[:, :rank]) @ self.kv_b_OC.T).view(rows, mla.num_heads, -1)
        key_THd = torch.cat((kv_THO[..., :nope], rotated[:, -1:].expand(-1, mla.num_heads, -1)), dim=-1)
        q_THd = self._padded(torch.cat((q_THk[..., :nope], rotated[:, :-1]), dim=-1))
        start = int(cache.length)
        kept = torch.cat((self._padded(key_THd), self._padded(kv_THO[..., nope:])), dim=1)
        cache_SW = cache.append(self.layer, kept.flatten(1))
        parts = [
            self.attend(
                q_THd[first : first + KERNEL_ROWS].contiguous(),
                cache_SW[: start + min(first + KERNEL_ROWS, rows)],
                mla.num_heads,
                start + first,
                self.scale,
            )
            for first in range(0, rows, KERNEL_ROWS)
        ]
        return self.o_proj(torch.cat(parts)[..., : mla.v_head_dim].flatten(1), onto_TD)

    def _padded(self, x_THd: Tensor) -> Tensor:
        return torch.nn.functional.pad(x_THd, (0, self.head_size - x_THd.shape[-1]))


def head_size(mla: MlaConfig) -> int:
    """Width of a head's keys and of its values as they are kept here."""
    return max(mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim)


def cache_width(mla: MlaConfig) -> int:
    """Numbers a token and layer in this cache, padding included."""
    return 2 * mla.num_heads * head_size(mla)


def unfused_twin(model: Model) -> Decoder:
    """The same model with its attention in parts, as the expanded one runs: only the cache then differs."""
    assert isinstance(model, Decoder), "a model of another kind needs its own twin"
    return model.with_layers([replace(layer, fused=layer.fused._replace(attention=None)) for layer in model.layers])


def expanded_twin(model: Model, config: ModelConfig, mla: MlaConfig, weights: Weights) -> Decoder:
    """The same model with expanded attention; its cache rows are `cache_width` wide."""
    assert isinstance(model, Decoder), "a model of another kind needs its own twin"
    layers = [
        replace(
            layer,
            attention=ExpandedAttention(config, mla, weights, number),
            fused=layer.fused._replace(attention=None),
        )
        for number, layer in enumerate(model.layers)
    ]
    return model.with_layers(layers)
