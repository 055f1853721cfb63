"""Tiny random checkpoints of every architecture, and float32 stand-ins for what a model is built from.

Owns the random weights: real transformers classes filled so that attention scores have a standard deviation of about 1,
that every eps matters (small embeddings, small latents) and that routing is far from uniform. A tiny model is the same
numbers three times: transformers' module, a state dict with the names on disk, and a folder.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from localr1.model.config import ModelConfig
from localr1.model.linear import FusedParts
from localr1.model.registry import Model, build, parse_config
from localr1.placement.linear import added, one_by_one
from localr1.placement.ops import CpuOps, as_numpy

MLA = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
DENSE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MTP_LAYER = 3
"""Index of the MTP layer of `with_mtp`'s models."""
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": DENSE,
    "qwen2": DENSE,
    "qwen3": DENSE | {"head_dim": 8},
    "deepseek_v2": MLA | {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "deepseek_v3": MLA | {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "num_mtp_layers": 0},
    "glm4_moe_lite": MLA | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8},
}


@dataclass(frozen=True)
class Tiny:
    """One model: transformers' module, config.json as it writes it, and tensors by their names on disk."""

    reference: Any
    raw: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def config(self) -> ModelConfig:
        return parse_config(self.raw)


def make(model_type: str, seed: int = 0, router_bias: float = 0.0, **overrides: Any) -> Tiny:
    """A random model; `router_bias` is the mean of the correction bias (its deviation is 0.3)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {"rope_parameters": dict(PLAIN_ROPE)} | DEFAULTS[model_type] | overrides
    config = AutoConfig.for_model(model_type, **values)
    reference = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(reference.state_dict().items()):
            _fill(name, tensor, config, router_bias, generator)
    raw = json.loads(config.to_json_string(use_diff=False))
    return Tiny(reference, raw, _names_on_disk(reference.state_dict(), config.tie_word_embeddings))


def _fill(name: str, tensor: Tensor, config: Any, router_bias: float, generator: torch.Generator) -> None:
    noise = torch.randn(tensor.shape, generator=generator)
    if name.endswith("e_score_correction_bias"):
        tensor.copy_(router_bias + 0.3 * noise)
    elif name.endswith("bias"):
        tensor.copy_(0.3 * noise)
    elif tensor.dim() == 1:
        tensor.copy_(1 + 0.2 * noise)
    elif "embed_tokens" in name:
        tensor.copy_(0.01 * noise if not config.tie_word_embeddings else 0.05 * noise)
    else:
        tensor.copy_(noise / tensor.shape[-1] ** 0.5)
    if "q_a_proj" in name:
        tensor.mul_(0.003)
    if "kv_a_proj_with_mqa" in name:
        tensor[: config.kv_lora_rank].mul_(0.003)


def _names_on_disk(state: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """Split the fused experts of transformers 5 into one set of matrices an expert, as checkpoints have them."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            prefix = name.removesuffix(".gate_up_proj")
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                split[f"{prefix}.{expert}.gate_proj.weight"] = gate.clone()
                split[f"{prefix}.{expert}.up_proj.weight"] = up.clone()
        elif name.endswith("experts.down_proj"):
            prefix = name.removesuffix(".down_proj")
            split |= {f"{prefix}.{expert}.down_proj.weight": one.clone() for expert, one in enumerate(tensor)}
        elif not (tied and name == "lm_head.weight"):
            split[name] = tensor.clone()
    return split


def with_mtp(model_type: str) -> Tiny:
    """A tiny model whose fourth layer became the MTP layer, with what joins it drawn at random."""
    deep = make(model_type, num_hidden_layers=MTP_LAYER + 1, **_dense_first(model_type, MTP_LAYER + 1))
    main = make(model_type, **_dense_first(model_type, MTP_LAYER))
    generator = torch.Generator().manual_seed(5)
    prefix = f"model.layers.{MTP_LAYER}"
    hidden = main.config.hidden
    extra = {name: tensor for name, tensor in deep.state.items() if name.startswith(prefix + ".")}
    for name in ("enorm", "hnorm", "shared_head.norm"):
        extra[f"{prefix}.{name}.weight"] = 1 + 0.2 * torch.randn(hidden, generator=generator)
    extra[f"{prefix}.eh_proj.weight"] = torch.randn(hidden, 2 * hidden, generator=generator) / hidden**0.5
    raw = dict(main.raw)
    raw.pop("num_mtp_layers", None)
    raw["num_nextn_predict_layers"] = 1
    return Tiny(main.reference, raw, main.state | extra)


def _dense_first(model_type: str, layers: int) -> dict[str, Any]:
    return {"mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1)} if model_type == "glm4_moe_lite" else {}


def save(tiny: Tiny, folder: Path, dtype: torch.dtype = torch.float32, shards: int = 1) -> Path:
    """Write config.json and the tensors, in one file or in shards with an index; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny.raw))
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tiny.state.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = sorted(tensors)[shard::shards]
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


class FloatWeights:
    """`Weights` straight from a state dict, in float32."""

    ops, fused = CpuOps(), FusedParts()

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def tensor(self, name: str) -> Tensor:
        return self.state[name].float()

    def linear(self, prefix: str):
        weight, bias = self.tensor(f"{prefix}.weight"), self.state.get(f"{prefix}.bias")
        return lambda x_TD, onto_TO=None: added(F.linear(x_TD, weight, bias), onto_TO)

    def linears(self, prefixes):
        return one_by_one([self.linear(prefix) for prefix in prefixes])

    def feed_forward(self, prefix: str):
        gate, up, down = (self.linear(f"{prefix}.{name}_proj") for name in ("gate", "up", "down"))
        return lambda x_TD, onto_TD=None: down(F.silu(gate(x_TD)) * up(x_TD), onto_TD)

    def embedding(self, prefix: str):
        weight = self.tensor(f"{prefix}.weight")
        return lambda token_T: weight[token_T]


class FloatExperts:
    """`ExpertBank` straight from a state dict: one expert, one token at a time."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.weights = FloatWeights(state)

    def run(self, layer: int, hidden_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, beside=None, onto_TD=None):
        out_TD = torch.zeros_like(hidden_TD)
        for expert in expert_TK.unique().tolist():
            token, slot = (expert_TK == expert).nonzero(as_tuple=True)
            feed_forward = self.weights.feed_forward(f"model.layers.{layer}.mlp.experts.{expert}")
            out_TD.index_add_(0, token, feed_forward(hidden_TD[token]) * weight_TK[token, slot, None])
        return added(out_TD, None if beside is None else beside(hidden_TD), onto_TD)


@dataclass
class FloatCache:
    """`Cache` of one growing tensor a layer; the test commits by raising `length`."""

    width: int
    dtype: torch.dtype = torch.float32
    length: int = 0
    layers: dict[int, Tensor] = field(default_factory=dict)

    def rows(self, layers: range, new: int):
        rows_LSW = torch.stack([self.room(layer, new) for layer in layers])
        self.layers |= zip(layers, rows_LSW, strict=True)
        return as_numpy(rows_LSW)

    def room(self, layer: int, new: int) -> Tensor:
        kept = self.layers.get(layer, torch.empty(0, self.width, dtype=self.dtype))[: self.length]
        self.layers[layer] = torch.cat((kept, torch.full((new, self.width), float("nan"), dtype=self.dtype)))
        return self.layers[layer]

    def append(self, layer: int, row_TW: Tensor) -> Tensor:
        rows_SW = self.room(layer, len(row_TW))
        rows_SW[self.length :] = row_TW
        return rows_SW


def build_float(tiny: Tiny, kernel_rows: int = 0, **changes: Any) -> Model:
    """Our model on the tiny model's float32 weights; `changes` replace fields of its config."""
    config = replace(tiny.config, **changes)
    return build(config, FloatWeights(tiny.state), FloatExperts(tiny.state), kernel_rows=kernel_rows)


def run_steps(model: Model, token_T: Tensor, steps: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits of all tokens, fed in steps of the given sizes (the last size repeats until the end)."""
    cache, parts, sizes = FloatCache(model.config.cache_width, dtype), [], iter(steps)
    size = steps[0]
    with torch.inference_mode():
        while cache.length < len(token_T):
            size = next(sizes, size)
            chunk_T = token_T[cache.length : cache.length + size]
            parts.append(model.logits(model.forward(chunk_T, cache)))
            cache.length += len(chunk_T)
    return torch.cat(parts)


def reference_logits(tiny: Tiny, token_T: Tensor) -> Tensor:
    """transformers' logits of all tokens in one forward, [T, vocab]."""
    with torch.inference_mode():
        return tiny.reference(input_ids=token_T[None], use_cache=False).logits[0]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference over the largest absolute value; infinite where either is not finite."""
    relative = (ours - theirs).abs().max() / theirs.abs().max()
    return float(relative) if torch.isfinite(relative) else float("inf")


def tokens(count: int = 24, vocab: int = 96, seed: int = 1) -> Tensor:
    """Random token ids."""
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed))
