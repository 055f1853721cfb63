"""What a model weighs and does for a token, by part: all that a plan needs to know of it.

Owns the sums over a model's tensors. Knows no weights and imports no torch, so a model can be planned for before it is
here. Invariant: `always_bytes + embedding_bytes + expert_bytes * expert_count` are the bytes of all tensors counted,
int8 rows with their scales and float tensors as float32, which is what they become in memory, but `UP_PROJECTIONS`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from localr1.model.config import UP_PROJECTIONS, MlaConfig, ModelConfig

Device = Literal["gpu", "cpu"]
KvType = Literal["bf16", "int8", "float32"]
"""How a cache keeps its rows."""
KvOption = KvType | Literal["auto"]
Dtype = Literal["int8", "float32"]
"""What a model's matrices are run in."""
EXPERT = re.compile(r"\.mlp\.experts\.\d+\.")
LAYER = re.compile(r"model\.layers\.(\d+)\.")
FLOAT_BYTES, HALF_BYTES = 4, 2
SCALE_BYTES = 4


class Spec(Protocol):
    """A tensor's shape and whether it is kept as int8 rows or in float (`model.linear.TensorSpec`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def storage(self) -> Literal["int8", "float"]: ...


def kv_type(asked: KvOption, latent: bool, device: Device) -> KvType:
    """The rows of a cache. By default latents are int8 on the CPU: half the bytes, and half the work with VNNI."""
    if asked != "auto":
        return asked
    return "int8" if latent and device == "cpu" else "bf16"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model; an MTP layer's share is in them where it was counted in."""

    layers: int
    hidden: int
    vocab: int
    max_position: int
    expert_layers: tuple[int, ...]
    """Numbers of the layers with routed experts, the MTP layer's last."""
    experts: int
    """Routed experts a layer; 0 in a dense model."""
    top_k: int
    expert_bytes: int
    always_bytes: int
    """What every token reads: attention, norms, routers, dense and shared feed-forwards, the head, the MTP layer."""
    shared_bytes: int
    """Of these, the shared experts, which run beside the routed ones."""
    head_bytes: int
    """Of these, the head; 0 where it is the embedding."""
    mtp_bytes: int
    """Of these, the MTP layer without its experts."""
    embedding_bytes: int
    """The embedding, of which a token reads one row; the head too in a tied model."""
    tied: bool
    heads: int
    score_width: int
    """Multiplications a head, query and cached token, for scores and values together."""
    latent: bool
    cache_values: int
    """Numbers that one token keeps in the cache of one layer."""
    cache_scales: int
    """Of a row in 8 bits: how many float32 scales go with it."""
    cache_float_values: int
    """Of a row in 8 bits: how many of its numbers stay in 16 bits (MLA's rotary key)."""
    cache_layers: int
    dense_layer_bytes: int
    """Of a layer without experts, what a token reads of it; 0 where there is none."""
    number_bytes: int = 1
    """Of each number of a matrix."""

    @property
    def expert_count(self) -> int:
        return self.experts * len(self.expert_layers)

    @property
    def weight_bytes(self) -> int:
        return self.always_bytes + self.embedding_bytes + self.expert_count * self.expert_bytes

    @property
    def main_expert_layers(self) -> int:
        """Layers with experts that every forward of the main model runs."""
        return sum(1 for layer in self.expert_layers if layer < self.layers)

    @property
    def dense_layers(self) -> int:
        return self.layers - self.main_expert_layers

    @property
    def expert_layer_bytes(self) -> int:
        """Of a layer with experts, what a token reads of it, its chosen experts included."""
        if not self.main_expert_layers:
            return 0
        dense_bytes = self.dense_layers * self.dense_layer_bytes
        both = self.always_bytes - self.mtp_bytes - self.head_bytes - dense_bytes
        return both // self.main_expert_layers + self.top_k * self.expert_bytes

    @property
    def last_bytes(self) -> int:
        """What the head reads."""
        return self.embedding_bytes if self.tied else self.head_bytes

    @property
    def routed_bytes(self) -> int:
        """Experts' bytes that one token of the main model reads."""
        return self.top_k * self.main_expert_layers * self.expert_bytes

    @property
    def active_bytes(self) -> int:
        """All that one token of the main model reads."""
        return self.always_bytes - self.mtp_bytes - self.head_bytes + self.last_bytes + self.routed_bytes

    def cache_bytes(self, tokens: int, kv: KvType) -> int:
        """The cache of a conversation of `tokens`."""
        if kv == "int8":
            row = self.cache_values + self.cache_float_values + FLOAT_BYTES * self.cache_scales
        else:
            row = self.cache_values * (2 if kv == "bf16" else 4)
        return tokens * self.cache_layers * row


def shape_of(config: ModelConfig, tensors: Mapping[str, Spec], mtp: bool, dtype: Dtype = "int8") -> ModelShape:
    """The shape of a model with these tensors (`registry.expected_tensors(config, mtp)`)."""
    parts = dict.fromkeys(("expert", "shared", "head", "mtp", "embedding", "always"), 0)
    for name, spec in tensors.items():
        parts[_part_of(name, config)] += bytes_of(name, spec, dtype)
        if _is_mtp(name, config) and not EXPERT.search(name):
            parts["mtp"] += bytes_of(name, spec, dtype)
    moe = config.moe
    extra = range(config.num_layers, config.num_layers + config.num_mtp_layers) if mtp else range(0)
    expert_layers = (*moe.layers, *extra) if moe else ()
    expert_count = len(expert_layers) * moe.num_experts if moe else 0
    score_width, cache_scales, cache_float_values = _attention(config)
    return ModelShape(
        layers=config.num_layers,
        hidden=config.hidden,
        vocab=config.vocab,
        max_position=config.max_position,
        expert_layers=expert_layers,
        experts=moe.num_experts if moe else 0,
        top_k=moe.top_k if moe else 0,
        expert_bytes=parts["expert"] // expert_count if expert_count else 0,
        always_bytes=parts["always"] + parts["shared"] + parts["head"],
        shared_bytes=parts["shared"],
        head_bytes=parts["head"],
        mtp_bytes=parts["mtp"],
        embedding_bytes=parts["embedding"],
        tied=config.tied,
        heads=config.attention.num_heads,
        score_width=score_width,
        latent=isinstance(config.attention, MlaConfig),
        cache_scales=cache_scales,
        cache_float_values=cache_float_values,
        cache_values=config.cache_width,
        cache_layers=config.num_layers + len(extra),
        dense_layer_bytes=_dense_layer_bytes(config, tensors, dtype),
        number_bytes=1 if dtype == "int8" else FLOAT_BYTES,
    )


def _attention(config: ModelConfig) -> tuple[int, int, int]:
    """`score_width`, `cache_scales` and `cache_float_values`."""
    attention = config.attention
    if isinstance(attention, MlaConfig):
        width = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
        return width, 1, attention.qk_rope_head_dim
    return 2 * attention.head_dim, 2 * attention.num_kv_heads, 0


def _dense_layer_bytes(config: ModelConfig, tensors: Mapping[str, Spec], dtype: Dtype) -> int:
    sparse = config.moe.layers if config.moe else ()
    layer = next((layer for layer in range(config.num_layers) if layer not in sparse), None)
    prefix = f"model.layers.{layer}."
    return sum(bytes_of(name, spec, dtype) for name, spec in tensors.items() if name.startswith(prefix))


def _part_of(name: str, config: ModelConfig) -> str:
    if EXPERT.search(name):
        return "expert"
    if ".shared_experts." in name:
        return "shared"
    if name.startswith("model.embed_tokens."):
        return "embedding"
    return "head" if name.startswith("lm_head.") else "always"


def _is_mtp(name: str, config: ModelConfig) -> bool:
    layer = LAYER.match(name)
    return layer is not None and int(layer[1]) >= config.num_layers


def bytes_of(name: str, spec: Spec, dtype: Dtype = "int8") -> int:
    """Of a tensor in memory."""
    if dtype == "float32":
        return FLOAT_BYTES * math.prod(spec.shape)
    if spec.storage == "int8":
        return math.prod(spec.shape) + SCALE_BYTES * spec.shape[0]
    return (HALF_BYTES if name.endswith(UP_PROJECTIONS) else FLOAT_BYTES) * math.prod(spec.shape)
