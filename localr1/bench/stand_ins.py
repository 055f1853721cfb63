"""How long whole layers take here: small models of random weights, run for real, that stand in for layers of any size.

Owns the choice of stand-ins and their timing. What is measured is the very code that runs a model, so whatever a layer
costs beside reading its weights is in it. Takes some seconds and less than 600 MB of RAM.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from localr1.bench.synthetic import Shape, make_store, open_shape
from localr1.decode.generate import forward, step
from localr1.events import LoadProgress, Progress
from localr1.hub.shapes import SHAPES
from localr1.model.registry import expected_tensors, parse_config
from localr1.options import EngineOptions
from localr1.placement.hardware import LayerTime
from localr1.placement.shape import ModelShape, shape_of

PROMPT_TOKENS = 512
ROUNDS, MOST_ROUNDS = 2, 6
AGREE = 1.05
STEPS = 32
BEFORE = 2
VOCAB = 512


def _latent(layers: int, hidden: int, expert_ff: int, experts: int, latent: int, heads: int) -> dict[str, Any]:
    return {
        **SHAPES["moonlight"],
        "num_hidden_layers": layers,
        "first_k_dense_replace": 0,
        "hidden_size": hidden,
        "moe_intermediate_size": expert_ff,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": experts // 3,
        "kv_lora_rank": latent,
        "num_attention_heads": heads,
        "qk_nope_head_dim": latent // 4,
        "qk_rope_head_dim": latent // 8,
        "v_head_dim": latent // 4,
        "vocab_size": VOCAB,
    }


def _grouped(layers: int, hidden: int, ff: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        **SHAPES["smollm2-135m"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ff,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": VOCAB,
    }


STAND_INS: tuple[dict[str, Any], ...] = (
    _latent(4, hidden=192, expert_ff=64, experts=12, latent=64, heads=6),
    _latent(4, hidden=1024, expert_ff=704, experts=12, latent=256, heads=8),
    _latent(2, hidden=2048, expert_ff=1408, experts=18, latent=512, heads=16),
    _grouped(4, hidden=192, ff=512, heads=3, kv_heads=1),
    _grouped(8, hidden=768, ff=2048, heads=12, kv_heads=4),
    _grouped(2, hidden=3072, ff=8192, heads=24, kv_heads=8),
)


def measure_layers(options: EngineOptions) -> Progress[tuple[LayerTime, ...]]:
    """One time for each stand-in, smallest first within a kind, with the threads in force."""
    times = []
    for done, raw in enumerate(STAND_INS):
        yield LoadProgress("measuring layers", done, len(STAND_INS))
        times.append((yield from _measure(raw, options)))
    return tuple(times)


def _measure(raw: dict[str, Any], options: EngineOptions) -> Progress[LayerTime]:
    config = parse_config(raw)
    shape = shape_of(config, expected_tensors(config), mtp=False)
    stand_in, context = Shape("stand-in", config, config.num_layers, skew=0.0), PROMPT_TOKENS + STEPS
    options = replace(options, dtype="int8", kv="auto", speculate="off", vram="0", ram=None)
    store = yield from make_store(stand_in, options, context)
    engine = yield from open_shape(stand_in, store, options, context)
    tokens = [token % VOCAB for token in range(7, PROMPT_TOKENS + 7)]
    prefill_s: list[float] = []
    decode_s: list[float] = []
    while len(prefill_s) < ROUNDS or (len(prefill_s) < MOST_ROUNDS and not (_agree(prefill_s) and _agree(decode_s))):
        cache = engine.new_cache()  # decoding is timed at its beginning, as `bench` does first
        forward(engine.model, cache, tokens[:BEFORE])
        decode_s.append(median(_seconds(partial(step, engine.model, cache, token)) for token in tokens[:STEPS]))
        prefill_s.append(_seconds(partial(forward, engine.model, engine.new_cache(), tokens)))
    return _layer_time(shape, min(decode_s), min(prefill_s))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _agree(took: list[float]) -> bool:
    """Whether the two fastest rounds are so near each other that no other program had a part in them."""
    fastest, second = sorted(took)[:2]
    return second <= AGREE * fastest


def _layer_time(shape: ModelShape, decode_s: float, prefill_s: float) -> LayerTime:
    """A layer's share; the head and the embedding of so small a vocabulary are next to nothing."""
    read_bytes = shape.expert_layer_bytes or shape.dense_layer_bytes
    attention_flops = shape.heads * shape.score_width * PROMPT_TOKENS**2
    return LayerTime(
        "latent" if shape.latent else "grouped",
        read_bytes,
        decode_s / shape.layers,
        2.0 * PROMPT_TOKENS * read_bytes + attention_flops,
        prefill_s / shape.layers,
    )
