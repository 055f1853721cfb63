"""The dense families: grouped-query attention and one feed-forward a layer.

Owns what their config fields mean and which tensors they have. The maths is in `attention` and `decoder`.
"""

from dataclasses import replace

from localr1.model.attention import GroupedQueryAttention, gqa_tensors
from localr1.model.config import GqaConfig, ModelConfig, read_common, read_rope
from localr1.model.decoder import (
    Decoder,
    Layer,
    build_decoder,
    build_layer,
    feed_forward_tensors,
    layer_norm_tensors,
    outer_tensors,
)
from localr1.model.fields import Fields
from localr1.model.linear import ExpertBank, Fused, TensorSpec, Weights


def read_llama(fields: Fields) -> ModelConfig:
    """Llama 2 and 3 and what is shaped like them; `attention_bias` puts biases on all four projections."""
    fields.one_of("mlp_bias", (False,), False)
    bias = fields.boolean("attention_bias", False)
    return _read_dense(fields, qkv_bias=bias, o_bias=bias, qk_norm=False)


def read_qwen2(fields: Fields) -> ModelConfig:
    """Qwen2 and the R1 distills of it: biases on queries, keys and values."""
    _refuse_sliding_window(fields)
    return _read_dense(fields, qkv_bias=True, o_bias=False, qk_norm=False)


def read_qwen3(fields: Fields) -> ModelConfig:
    """Qwen3 and R1-0528-Qwen3-8B: norms over each head of queries and keys, an explicit `head_dim`."""
    _refuse_sliding_window(fields)
    bias = fields.boolean("attention_bias", False)
    return _read_dense(fields, qkv_bias=bias, o_bias=bias, qk_norm=True)


def _refuse_sliding_window(fields: Fields) -> None:
    """Every layer must see the whole context; `sliding_window` alone is a default that nothing uses."""
    fields.one_of("use_sliding_window", (False,), False)
    fields.each_of("layer_types", ("full_attention",))


def _read_dense(fields: Fields, *, qkv_bias: bool, o_bias: bool, qk_norm: bool) -> ModelConfig:
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.ill_typed("num_key_value_heads", num_kv_heads, f"a divisor of {num_heads} attention heads")
    head_dim = fields.integer("head_dim", fields.integer("hidden_size") // num_heads)
    gqa = GqaConfig(num_heads, num_kv_heads, head_dim, qkv_bias=qkv_bias, o_bias=o_bias, qk_norm=qk_norm)
    return replace(read_common(fields, read_rope(fields, head_dim, "half"), gqa), num_mtp_layers=0)


def dense_tensors(config: ModelConfig, mtp: bool) -> dict[str, TensorSpec]:
    """Every tensor of the checkpoint; dense families have no MTP layers."""
    del mtp
    specs = outer_tensors(config)
    for layer in range(config.num_layers):
        specs |= layer_norm_tensors(config, layer)
        specs |= gqa_tensors(config, _gqa(config), layer)
        specs |= feed_forward_tensors(f"model.layers.{layer}.mlp", config.hidden, config.dense_ff)
    return specs


def build_dense(config: ModelConfig, weights: Weights, experts: ExpertBank | None, kernel_rows: int) -> Decoder:
    """The model; `experts` is not asked."""
    del experts

    def layer(index: int) -> Layer:
        attention = GroupedQueryAttention(config, _gqa(config), weights, index, kernel_rows)
        fused = weights.fused.layer(config, index, None) if kernel_rows else Fused()
        return build_layer(config, weights, index, attention, weights.feed_forward(f"model.layers.{index}.mlp"), fused)

    return build_decoder(config, weights, layer)


def _gqa(config: ModelConfig) -> GqaConfig:
    assert isinstance(config.attention, GqaConfig), "a dense model without grouped-query attention"
    return config.attention
