"""The DeepSeek family: latent attention, a few dense layers, then mixtures of experts, and MTP layers after the last.

Owns what their config fields mean, which layers are sparse and which tensors they have. The maths is in `mla`, `moe`
and `decoder`.
"""

from collections.abc import Mapping
from typing import Any, Final

from localr1.errors import UnsupportedError
from localr1.model.config import (
    MlaConfig,
    ModelConfig,
    MoeConfig,
    RopeLayout,
    Scoring,
    TopKMethod,
    read_common,
    read_rope,
)
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
from localr1.model.mla import LatentAttention, mla_tensors
from localr1.model.moe import build_moe, moe_tensors

LEFT_OUT: Final[Mapping[str, Mapping[str, Any]]] = {
    "deepseek_v3": {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5},
    "glm4_moe_lite": {"routed_scaling_factor": 1.8},
}
"""What routing is where a config does not say it, as transformers has it. Groups that are null are none."""


def read_deepseek_v2(fields: Fields) -> ModelConfig:
    """DeepSeek-V2 and its Lite and Coder versions: softmax scores, greedy choice, perhaps within groups."""
    fields.one_of("scoring_func", ("softmax",), "softmax")
    fields.one_of("norm_topk_prob", (False,), False)
    method = fields.one_of("topk_method", ("greedy", "group_limited_greedy"), "greedy")
    return _read_deepseek(fields, "softmax", method, normalize=False)


def read_deepseek_v3(fields: Fields) -> ModelConfig:
    """DeepSeek-V3, R1, Moonlight, GigaChat, GLM-4.7-Flash: sigmoid scores, bias-corrected choice."""
    fields = Fields({**LEFT_OUT[fields.value("model_type")], **fields.raw}, fields.where)
    fields.one_of("scoring_func", ("sigmoid",), "sigmoid")
    fields.one_of("topk_method", ("noaux_tc",), "noaux_tc")
    return _read_deepseek(fields, "sigmoid", "noaux_tc", normalize=fields.boolean("norm_topk_prob", True))


def _read_deepseek(fields: Fields, scoring: Scoring, method: TopKMethod, *, normalize: bool) -> ModelConfig:
    mla = MlaConfig(
        num_heads=fields.integer("num_attention_heads"),
        q_lora_rank=fields.optional_integer("q_lora_rank"),
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=fields.integer("qk_nope_head_dim"),
        qk_rope_head_dim=fields.integer("qk_rope_head_dim"),
        v_head_dim=fields.integer("v_head_dim"),
        bias=fields.boolean("attention_bias", False),
    )
    layout: RopeLayout = "interleaved" if fields.boolean("rope_interleave", True) else "half"
    rope = read_rope(fields, mla.qk_rope_head_dim, layout)
    return read_common(fields, rope, mla, _read_moe(fields, scoring, method, normalize))


def _read_moe(fields: Fields, scoring: Scoring, method: TopKMethod, normalize: bool) -> MoeConfig:
    grouped = method != "greedy"
    moe = MoeConfig(
        num_experts=fields.integer("n_routed_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        expert_ff=fields.integer("moe_intermediate_size"),
        shared_ff=fields.integer("n_shared_experts", 0, least=0) * fields.integer("moe_intermediate_size"),
        layers=_sparse_layers(fields),
        scoring=scoring,
        topk_method=method,
        num_groups=fields.integer("n_group", 1) if grouped else 1,
        top_k_groups=fields.integer("topk_group", 1) if grouped else 1,
        normalize=normalize,
        scale=fields.number("routed_scaling_factor", 1.0),
    )
    _check_groups(fields, moe)
    return moe


def _sparse_layers(fields: Fields) -> tuple[int, ...]:
    """From `mlp_layer_types` (dense or sparse, one a layer), or all layers from `first_k_dense_replace` on."""
    count = fields.integer("num_hidden_layers")
    types = fields.each_of("mlp_layer_types", ("dense", "sparse"))
    if not types:
        fields.one_of("moe_layer_freq", (1,), 1)
        return tuple(range(fields.integer("first_k_dense_replace", least=0), count))
    if len(types) != count:
        raise fields.ill_typed("mlp_layer_types", list(types), f"{count} values, one a layer")
    return tuple(layer for layer, kind in enumerate(types) if kind == "sparse")


def _check_groups(fields: Fields, moe: MoeConfig) -> None:
    group_size, rest = divmod(moe.num_experts, moe.num_groups)
    smallest = 2 if moe.scoring == "sigmoid" and moe.num_groups > 1 else 1
    fits = rest == 0 and group_size >= smallest and moe.top_k_groups <= moe.num_groups
    if not fits or moe.top_k > moe.top_k_groups * group_size:
        raise UnsupportedError(
            f"{fields.where} asks for {moe.top_k} of {moe.num_experts} experts from {moe.top_k_groups} of "
            f"{moe.num_groups} groups, which cannot be chosen",
            "Report this checkpoint.",
        )


def deepseek_tensors(config: ModelConfig, mtp: bool) -> dict[str, TensorSpec]:
    """Every tensor of the checkpoint; with `mtp`, those of its MTP layers too."""
    specs = outer_tensors(config)
    for layer in range(config.num_layers):
        specs |= _layer_tensors(config, layer)
    if mtp:
        for layer in range(config.num_layers, config.num_layers + config.num_mtp_layers):
            specs |= _layer_tensors(config, layer) | _mtp_tensors(config, layer)
    return specs


def _layer_tensors(config: ModelConfig, layer: int) -> dict[str, TensorSpec]:
    specs = layer_norm_tensors(config, layer) | mla_tensors(config, _mla(config), layer)
    if is_sparse(config, layer):
        return specs | moe_tensors(config, layer)
    return specs | feed_forward_tensors(f"model.layers.{layer}.mlp", config.hidden, config.dense_ff)


def _mtp_tensors(config: ModelConfig, layer: int) -> dict[str, TensorSpec]:
    """What an MTP layer has beyond a decoder layer, apart from its copies of the embedding and the head."""
    prefix, hidden = f"model.layers.{layer}", config.hidden
    norms = {f"{prefix}.{name}.weight": TensorSpec((hidden,), "float") for name in ("enorm", "hnorm")}
    norms[f"{prefix}.shared_head.norm.weight"] = TensorSpec((hidden,), "float")
    return norms | {f"{prefix}.eh_proj.weight": TensorSpec((hidden, 2 * hidden), "float")}


def is_sparse(config: ModelConfig, layer: int) -> bool:
    """Whether the layer has experts; MTP layers, which come after the last, do."""
    return config.moe is not None and (layer in config.moe.layers or layer >= config.num_layers)


def build_deepseek(config: ModelConfig, weights: Weights, experts: ExpertBank | None, kernel_rows: int) -> Decoder:
    """The main model, without its MTP layers."""

    def layer(index: int) -> Layer:
        return build_deepseek_layer(config, weights, experts, index, kernel_rows)

    return build_decoder(config, weights, layer)


def build_deepseek_layer(
    config: ModelConfig, weights: Weights, experts: ExpertBank | None, layer: int, kernel_rows: int
) -> Layer:
    """One decoder layer, of the main model or of an MTP layer."""
    attention = LatentAttention(config, _mla(config), weights, layer, kernel_rows)
    fused = weights.fused.layer(config, layer, experts) if kernel_rows else Fused()
    if not is_sparse(config, layer):
        return build_layer(config, weights, layer, attention, weights.feed_forward(f"model.layers.{layer}.mlp"), fused)
    assert experts is not None, "a model with sparse layers needs an expert bank"
    return build_layer(config, weights, layer, attention, build_moe(config, weights, experts, layer), fused)


def _mla(config: ModelConfig) -> MlaConfig:
    assert isinstance(config.attention, MlaConfig), "a DeepSeek model without latent attention"
    return config.attention
