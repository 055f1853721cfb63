"""Causal attention over a cache: the plain computation, and the grouped-query layer of the dense families.

Owns what a query may see: with `start` committed tokens, new token t sees rows 0 to start + t. Few rows go through the
device's kernels, more through blocked matrix products whose memory is bounded by `BLOCK_SCORES` and `STRETCH_ROWS`,
whatever the context.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from localr1.model.config import GqaConfig, ModelConfig
from localr1.model.decoder import Norm
from localr1.model.linear import Cache, Position, TensorSpec, Weights
from localr1.model.rope import Rotation

BLOCK_SCORES = 1 << 22
"""Attention scores held at once, in float32 values (16 MiB)."""

STRETCH_ROWS, GPU_STRETCH_ROWS = 4096, 8192
"""Cache rows of which keys and values are held at once. A GPU is given more, since every stretch is launched anew; what
is best there was not measured."""

Rows = Callable[[slice], tuple[Tensor, Tensor]]
"""Float32 keys [G, S, k] and values [G, S, v] of a stretch of the cache."""

KERNEL_ROWS = 8
"""Steps of at most this many tokens use the kernels, which read the cache once a token."""


def stretch_rows(cached: int, device: torch.device) -> int:
    """Rows of a cache that are taken at a time."""
    return min(cached, STRETCH_ROWS if device.type == "cpu" else GPU_STRETCH_ROWS)


def causal_attention(q_GTk: Tensor, rows: Rows, start: int, scale: float, shared: int = 1) -> Tensor:
    """softmax(scale q k^T) v with the causal mask, [G, T', v].

    Each of the T' query rows is one of `shared` heads that read the same keys, token by token: row r belongs to token
    r // shared. Works through stretches of the cache, and of each through blocks of the tokens that see some of it.
    """
    tokens = q_GTk.shape[1] // shared
    cached = start + tokens
    stretch = stretch_rows(cached, q_GTk.device)
    block = max(1, BLOCK_SCORES // (q_GTk.shape[0] * shared * stretch))
    k_GSk, v_GSv = rows(slice(0, stretch))
    if stretch == cached:
        parts = [
            torch.bmm(score_GTS.softmax(dim=-1), v_GSv[:, : score_GTS.shape[2]])
            for _, score_GTS in score_blocks(q_GTk, k_GSk, start, scale, shared, block)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    out_GTv = q_GTk.new_zeros(*q_GTk.shape[:2], v_GSv.shape[2])
    top_GT1 = q_GTk.new_full((*q_GTk.shape[:2], 1), float("-inf"))
    total_GT1 = torch.zeros_like(top_GT1)
    for begin in range(0, cached, stretch):
        if begin:
            del k_GSk, v_GSv  # not held beside the next ones
            k_GSk, v_GSv = rows(slice(begin, min(begin + stretch, cached)))
        for these, score_GTS in score_blocks(q_GTk, k_GSk, start - begin, scale, shared, block):
            before_GT1 = top_GT1[:, these]
            now_GT1 = torch.maximum(before_GT1, score_GTS.amax(-1, keepdim=True))
            shrink_GT1, share_GTS = (before_GT1 - now_GT1).exp_(), score_GTS.sub_(now_GT1).exp_()
            top_GT1[:, these] = now_GT1
            total_GT1[:, these] = total_GT1[:, these] * shrink_GT1 + share_GTS.sum(-1, keepdim=True)
            out_GTv[:, these].mul_(shrink_GT1).baddbmm_(share_GTS, v_GSv[:, : score_GTS.shape[2]])
    return out_GTv.div_(total_GT1)


def score_blocks(
    q_GTk: Tensor, k_GSk: Tensor, own: int, scale: float, shared: int, block: int
) -> Iterator[tuple[slice, Tensor]]:
    """scale q k^T [G, T', S'] of blocks of tokens that see any of the keys, and which query rows they are; without the
    keys behind a token, and at most up to the last one's. The first token's own key is `own`, the next one's the next;
    that may be before these keys, or behind them.
    """
    tokens = q_GTk.shape[1] // shared
    for first in range(max(0, -own) // block * block, tokens, block):
        last = min(first + block, tokens)
        these, seen = slice(first * shared, last * shared), min(own + last, k_GSk.shape[1])
        score_GTS = torch.bmm(q_GTk[:, these], k_GSk[:, :seen].transpose(1, 2)).mul_(scale)
        unhidden = min(max(0, own + first), seen)
        future_TS = torch.ones(last - first, seen - unhidden, dtype=torch.bool, device=q_GTk.device)
        future_TS = future_TS.triu(own + first - unhidden + 1).repeat_interleave(shared, 0)
        score_GTS[:, :, unhidden:].masked_fill_(future_TS, float("-inf"))
        yield these, score_GTS


class GroupedQueryAttention:
    """Grouped-query attention of one layer; a cache row is the rotated keys, then the values."""

    def __init__(self, config: ModelConfig, gqa: GqaConfig, weights: Weights, layer: int, kernel_rows: int) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.gqa = gqa
        self.layout = config.rope.layout
        self.layer = layer
        self.kernel_rows = kernel_rows
        self.ops = weights.ops
        self.scale = gqa.head_dim**-0.5
        self.qkv_proj = weights.linears([f"{prefix}.{name}" for name in ("q_proj", "k_proj", "v_proj")])
        self.o_proj = weights.linear(f"{prefix}.o_proj")
        self.q_norm = Norm(weights, f"{prefix}.q_norm.weight", config.norm_eps) if gqa.qk_norm else None
        self.k_norm = Norm(weights, f"{prefix}.k_norm.weight", config.norm_eps) if gqa.qk_norm else None

    def __call__(self, x_TD: Tensor, rotation: Rotation, cache: Cache, onto_TD: Tensor) -> Tensor:
        rows, start = x_TD.shape[0], cache.length
        q_THd, k_TGd, v_TGd = (part.view(rows, -1, self.gqa.head_dim) for part in self.qkv_proj(x_TD))
        if self.q_norm is not None and self.k_norm is not None:
            q_THd, k_TGd = self.q_norm(q_THd), self.k_norm(k_TGd)
        q_THd, cache_SW = self.ops.grouped_front(q_THd, k_TGd, v_TGd, rotation, self.layout, cache, self.layer)
        if rows <= self.kernel_rows:
            out_THd = self.ops.gqa_attention(q_THd, cache_SW, self.gqa.num_kv_heads, start, self.scale)
        else:
            out_THd = self._blocked(q_THd, cache_SW, start)
        return self.o_proj(out_THd.flatten(1), onto_TD)

    def _blocked(self, q_THd: Tensor, cache_SW: Tensor, start: Position) -> Tensor:
        groups, per_group = self.gqa.num_kv_heads, self.gqa.num_heads // self.gqa.num_kv_heads

        def rows(stretch: slice) -> tuple[Tensor, Tensor]:
            rows_SW = cache_SW[stretch].float()
            k_GSd, v_GSd = rows_SW.view(len(rows_SW), 2, groups, -1).permute(1, 2, 0, 3)
            return k_GSd, v_GSd

        q_GTd = q_THd.view(len(q_THd), groups, per_group, -1).transpose(0, 1).flatten(1, 2)
        out_GTd = causal_attention(q_GTd, rows, int(start), self.scale, shared=per_group)
        return out_GTd.view(groups, len(q_THd), per_group, -1).transpose(0, 1).flatten(1, 2)


def gqa_tensors(config: ModelConfig, gqa: GqaConfig, layer: int) -> dict[str, TensorSpec]:
    """The attention tensors of one layer."""
    prefix = f"model.layers.{layer}.self_attn"
    q_width, kv_width = gqa.num_heads * gqa.head_dim, gqa.num_kv_heads * gqa.head_dim
    specs: dict[str, TensorSpec] = {}
    for name, width in (("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)):
        specs[f"{prefix}.{name}.weight"] = TensorSpec((width, config.hidden), "int8")
        if gqa.qkv_bias:
            specs[f"{prefix}.{name}.bias"] = TensorSpec((width,), "float")
    specs[f"{prefix}.o_proj.weight"] = TensorSpec((config.hidden, q_width), "int8")
    if gqa.o_bias:
        specs[f"{prefix}.o_proj.bias"] = TensorSpec((config.hidden,), "float")
    if gqa.qk_norm:
        for name in ("q_norm", "k_norm"):
            specs[f"{prefix}.{name}.weight"] = TensorSpec((gqa.head_dim,), "float")
    return specs
