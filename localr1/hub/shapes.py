"""The sizes of the catalog's models, so that one can be planned for and benchmarked before it is downloaded.

Owns what their config.json says about shape, in its own spelling. Knows nothing of how it is read. Invariant: where a
model's config has been seen, a shape gives the same tensors; GigaChat's is pieced together from its size
(`NOT_VERIFIED`).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

NOT_VERIFIED = frozenset({"gigachat3.1-10b"})

_PLAIN = {"hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "rms_norm_eps": 1e-6}
_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _latent(
    model_type: str,
    layers: tuple[int, int],
    widths: tuple[int, int, int, int],
    experts: tuple[int, int, int],
    attention: tuple[int, int | None, int, int],
    scale: float,
    max_position: int,
    theta: float,
    **more: Any,
) -> dict[str, Any]:
    """`layers` (all, dense first), `widths` (hidden, dense ff, expert ff, vocab), `experts` (routed, shared, top-k),
    `attention` (heads, q rank, nope, value)."""
    return {
        **_PLAIN,
        "model_type": model_type,
        "num_hidden_layers": layers[0],
        "first_k_dense_replace": layers[1],
        "hidden_size": widths[0],
        "intermediate_size": widths[1],
        "moe_intermediate_size": widths[2],
        "vocab_size": widths[3],
        "n_routed_experts": experts[0],
        "n_shared_experts": experts[1],
        "num_experts_per_tok": experts[2],
        "num_attention_heads": attention[0],
        "q_lora_rank": attention[1],
        "kv_lora_rank": 512,
        "qk_nope_head_dim": attention[2],
        "qk_rope_head_dim": 64,
        "v_head_dim": attention[3],
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": scale,
        "max_position_embeddings": max_position,
        "rope_theta": theta,
        **more,
    }


def _dense(
    model_type: str,
    layers: int,
    widths: tuple[int, int, int],
    heads: tuple[int, int],
    theta: float,
    max_position: int = 131_072,
    **more: Any,
) -> dict[str, Any]:
    """`widths` (hidden, ff, vocab), `heads` (all, key-value)."""
    return {
        **_PLAIN,
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": widths[0],
        "intermediate_size": widths[1],
        "vocab_size": widths[2],
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": max_position,
        "rope_theta": theta,
        **more,
    }


_V2_LITE = _latent(
    "deepseek_v2",
    (27, 1),
    (2048, 10944, 1408, 102400),
    (64, 2, 6),
    (16, None, 128, 128),
    1.0,
    163_840,
    10000,
    topk_method="greedy",
    rope_scaling=_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
)
_V3 = _latent(
    "deepseek_v3",
    (61, 3),
    (7168, 18432, 2048, 129280),
    (256, 1, 8),
    (128, 1536, 128, 128),
    2.5,
    163_840,
    10000,
    n_group=8,
    topk_group=4,
    num_nextn_predict_layers=1,
    rope_scaling=_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
)

SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "smollm2-135m": _dense(
            "llama", 30, (576, 1536, 49152), (9, 3), 100000, 8192, tie_word_embeddings=True, rms_norm_eps=1e-5
        ),
        "glm-4.7-flash": _latent(
            "glm4_moe_lite",
            (47, 1),
            (2048, 10240, 1536, 154880),
            (64, 1, 4),
            (20, 768, 192, 256),
            1.8,
            202_752,
            1_000_000,
            rms_norm_eps=1e-5,
            num_nextn_predict_layers=1,
        ),
        "v2-lite": _V2_LITE,
        "coder-v2-lite": _V2_LITE,
        "moonlight": _latent(
            "deepseek_v3",
            (27, 1),
            (2048, 11264, 1408, 163840),
            (64, 2, 6),
            (16, None, 128, 128),
            2.446,
            8192,
            50000,
            rms_norm_eps=1e-5,
        ),
        "gigachat3.1-10b": _latent(
            "deepseek_v3",
            (26, 1),
            (1536, 8960, 1280, 128256),
            (64, 1, 4),
            (32, None, 128, 192),
            1.0,
            131_072,
            100000,
            num_nextn_predict_layers=1,
        ),
        **dict.fromkeys(("r1", "r1-0528", "v3", "v3-0324", "v3.1"), _V3),
        "r1-distill-qwen-1.5b": _dense("qwen2", 28, (1536, 8960, 151936), (12, 2), 10000),
        "r1-distill-qwen-7b": _dense("qwen2", 28, (3584, 18944, 152064), (28, 4), 10000),
        "r1-distill-qwen-14b": _dense("qwen2", 48, (5120, 13824, 152064), (40, 8), 10000),
        "r1-distill-qwen-32b": _dense("qwen2", 64, (5120, 27648, 152064), (40, 8), 10000),
        "r1-distill-llama-8b": _dense(
            "llama", 32, (4096, 14336, 128256), (32, 8), 500000, rope_scaling=_LLAMA3, rms_norm_eps=1e-5
        ),
        "r1-distill-llama-70b": _dense(
            "llama", 80, (8192, 28672, 128256), (64, 8), 500000, rope_scaling=_LLAMA3, rms_norm_eps=1e-5
        ),
        "r1-0528-qwen3-8b": _dense(
            "qwen3",
            36,
            (4096, 12288, 151936),
            (32, 8),
            1_000_000,
            head_dim=128,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 4.0,
                "attn_factor": 0.8782488562869419,
                "original_max_position_embeddings": 32768,
            },
        ),
    }
)
