"""What a model is: frozen records, read from config.json once.

Owns the records and the parts of their reading that architectures share (RoPE, quantization, token ids). Accepts both
spellings: the hub's (`rope_scaling`, `rope_theta`, `num_nextn_predict_layers`) and the one transformers 5 writes
(`rope_parameters`, `num_mtp_layers`). Knows no tensor. A record that exists describes a model this program can run.
"""

import math
from dataclasses import dataclass
from typing import Literal

from localr1.errors import UnsupportedError
from localr1.model.fields import Fields

RopeLayout = Literal["interleaved", "half"]
Scoring = Literal["sigmoid", "softmax"]
TopKMethod = Literal["noaux_tc", "greedy", "group_limited_greedy"]


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): slow frequencies are interpolated by `factor`, fast ones kept, a ramp between."""

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    cos_sin_factor: float
    score_factor: float
    """What MLA multiplies its softmax scale by (mscale squared); grouped-query attention has no such rule."""


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's rule: wavelengths beyond the original context divided by `factor`, a blend below it."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding over `dim` values of a head; the layout says which two values make a pair."""

    dim: int
    theta: float
    layout: RopeLayout
    scaling: YarnScaling | Llama3Scaling | None


UP_PROJECTIONS = ".kv_b_proj.weight"
"""How the name of latent attention's up-projections ends: the one large tensor of a layer that stays in float, in the
16 bits that most checkpoints have it in (one of float16 or float32 leaves it in 32)."""


@dataclass(frozen=True)
class MlaConfig:
    """Multi-head latent attention (DeepSeek-V2, section 2.1); `q_lora_rank` None means uncompressed queries."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    bias: bool


@dataclass(frozen=True)
class GqaConfig:
    """Grouped-query attention, with what varies between the dense families."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool


@dataclass(frozen=True)
class MoeConfig:
    """Routed and shared experts, and which layers have them."""

    num_experts: int
    top_k: int
    expert_ff: int
    shared_ff: int
    """Width of the shared experts together; 0 where there are none."""
    layers: tuple[int, ...]
    scoring: Scoring
    topk_method: TopKMethod
    num_groups: int
    top_k_groups: int
    normalize: bool
    scale: float


@dataclass(frozen=True)
class ModelConfig:
    """One model, whatever its architecture."""

    model_type: str
    num_layers: int
    hidden: int
    dense_ff: int
    vocab: int
    norm_eps: float
    tied: bool
    rope: RopeConfig
    attention: MlaConfig | GqaConfig
    moe: MoeConfig | None
    num_mtp_layers: int
    max_position: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    weight_block_size: tuple[int, int] | None
    """Rows and columns that share one scale in an FP8 checkpoint; None where weights are in 16 or 32 bits."""

    @property
    def cache_width(self) -> int:
        """Values a token and layer: latent and rotary key for MLA, keys and values for grouped-query."""
        if isinstance(self.attention, MlaConfig):
            return self.attention.kv_lora_rank + self.attention.qk_rope_head_dim
        return 2 * self.attention.num_kv_heads * self.attention.head_dim

    @property
    def cache_layers(self) -> int:
        """Layers that keep a cache; an MTP layer keeps its own, apart from these."""
        return self.num_layers


def read_common(
    fields: Fields, rope: RopeConfig, attention: MlaConfig | GqaConfig, moe: MoeConfig | None = None
) -> ModelConfig:
    """The fields every architecture spells alike, joined with the parts its reader made."""
    fields.one_of("hidden_act", ("silu",), "silu")
    bos = fields.integers("bos_token_id")
    mtp_key = "num_mtp_layers" if "num_mtp_layers" in fields.raw else "num_nextn_predict_layers"
    return ModelConfig(
        model_type=str(fields.value("model_type")),
        num_layers=fields.integer("num_hidden_layers"),
        hidden=fields.integer("hidden_size"),
        dense_ff=fields.integer("intermediate_size"),
        vocab=fields.integer("vocab_size"),
        norm_eps=fields.number("rms_norm_eps"),
        tied=fields.boolean("tie_word_embeddings", False),
        rope=rope,
        attention=attention,
        moe=moe,
        num_mtp_layers=fields.integer(mtp_key, 0, least=0),
        max_position=fields.integer("max_position_embeddings"),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=fields.integers("eos_token_id"),
        weight_block_size=_read_block_size(fields),
    )


def read_rope(fields: Fields, dim: int, layout: RopeLayout) -> RopeConfig:
    """RoPE from `rope_parameters`, or from `rope_scaling` and `rope_theta`; from both where they say the same."""
    if dim % 2:
        raise fields.ill_typed("the rotary width", dim, "an even number")
    records = [fields.record(key) for key in ("rope_parameters", "rope_scaling")]
    given = [record for record in records if record is not None and record.raw] or [Fields({}, fields.where)]
    found = [_read_rope(fields, inner, dim, layout) for inner in given]
    if found[0] != found[-1]:
        raise UnsupportedError(
            f"{fields.where} has rope_parameters = {given[0].raw!r} and rope_scaling = {given[-1].raw!r}, which differ",
            "Remove the one that does not count; rope_theta may stand in the other, or beside it.",
        )
    return found[0]


def _read_rope(fields: Fields, inner: Fields, dim: int, layout: RopeLayout) -> RopeConfig:
    for scope in (fields, inner):
        scope.one_of("partial_rotary_factor", (1, 1.0), 1.0)
    type_key = "type" if inner.value("rope_type", None) is None else "rope_type"
    kind = inner.one_of(type_key, ("default", "yarn", "llama3"), "default")
    theta = inner.number("rope_theta", fields.value("rope_theta", 10000.0), above=1.0)
    scaling: YarnScaling | Llama3Scaling | None = None
    if kind == "yarn":
        scaling = _read_yarn(inner)
    elif kind == "llama3":
        low = inner.number("low_freq_factor")
        scaling = Llama3Scaling(
            factor=inner.number("factor"),
            low_freq_factor=low,
            high_freq_factor=inner.number("high_freq_factor", above=low),
            original_max_position=inner.integer("original_max_position_embeddings"),
        )
    if scaling is not None:
        # Where it stands beside the others, transformers takes it from there.
        fields.one_of(
            "original_max_position_embeddings", (scaling.original_max_position,), scaling.original_max_position
        )
    return RopeConfig(dim, theta, layout, scaling)


def _read_yarn(inner: Fields) -> YarnScaling:
    inner.one_of("truncate", (True,), True)
    factor = inner.number("factor")
    mscale, all_dim = (inner.number(key) if inner.value(key, 0) else 0.0 for key in ("mscale", "mscale_all_dim"))
    if mscale and all_dim:
        derived = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    else:
        derived = yarn_mscale(factor, 1.0)
    # `attention_factor` replaces the derived value; `attn_factor` (R1-0528-Qwen3-8B) multiplies it, there to exactly 1.
    cos_sin_factor = inner.number("attention_factor", derived) * inner.number("attn_factor", 1.0)
    return YarnScaling(
        factor=factor,
        original_max_position=inner.integer("original_max_position_embeddings"),
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        cos_sin_factor=cos_sin_factor,
        score_factor=yarn_mscale(factor, all_dim) ** 2 if all_dim else 1.0,
    )


def yarn_mscale(factor: float, weight: float) -> float:
    """0.1 * weight * ln(factor) + 1, the growth of attention scores under YaRN; 1 without extension."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _read_block_size(fields: Fields) -> tuple[int, int] | None:
    quantization = fields.record("quantization_config")
    if quantization is None:
        return None
    quantization.one_of("quant_method", ("fp8",), "")  # bitsandbytes' first configs do not name it
    quantization.one_of("fmt", ("e4m3",), "e4m3")
    size = quantization.value("weight_block_size", None)
    if size is None:  # one scale a tensor
        raise quantization.unsupported("weight_block_size", None, ([128, 128],))
    if not (isinstance(size, list) and len(size) == 2 and all(type(one) is int and one > 0 for one in size)):
        raise quantization.ill_typed("weight_block_size", size, "two whole numbers above 0")
    return size[0], size[1]
