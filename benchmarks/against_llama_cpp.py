"""Speed of a shape with random 8-bit weights against llama.cpp at Q8_0, in turn on the same machine.

    python -m benchmarks.against_llama_cpp LLAMA_BENCH GGUF [--layers 8] [--rounds 4] [--threads N] [--json FILE]

LLAMA_BENCH is the program `llama-bench`, built with its defaults for this processor (benchmarks/README.md says how).
GGUF is made where it is not there yet: random weights in V2-Lite's shape, all matrices Q8_0 but the router, as
llama.cpp's own quantizer leaves it. Both run the same layers, vocabulary, threads and numbers of tokens, with routes
of random routers without skew. A round measures localr1 in this process, then llama.cpp in its own, with its file
mapped and not (the quicker counts); ratios are taken round by round.
"""

import argparse
import json
import math
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localr1.bench.machine import machine
from localr1.bench.speed import SpeedBench
from localr1.bench.subject import Subject, open_synthetic
from localr1.bench.synthetic import Shape, find_shape
from localr1.events import result_of
from localr1.kernels.threads import set_threads
from localr1.model.config import MlaConfig, ModelConfig
from localr1.options import BenchOptions, EngineOptions

SHAPE = "v2-lite"
Q8_BLOCK, Q8_BLOCK_BYTES = 32, 34
"""Weights of a Q8_0 block, and its bytes: a float16 scale before them."""


def tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Names, shapes (rows before columns) and types in llama.cpp's layout of this architecture."""
    mla, moe = config.attention, config.moe
    assert isinstance(mla, MlaConfig) and moe is not None and mla.q_lora_rank is None
    hidden, heads, latent, rope = config.hidden, mla.num_heads, mla.kv_lora_rank, mla.qk_rope_head_dim
    yield "token_embd.weight", (config.vocab, hidden), "Q8_0"
    yield "output.weight", (config.vocab, hidden), "Q8_0"
    yield "output_norm.weight", (hidden,), "F32"
    for layer in range(config.num_layers):
        at = f"blk.{layer}."
        yield at + "attn_norm.weight", (hidden,), "F32"
        yield at + "ffn_norm.weight", (hidden,), "F32"
        yield at + "attn_kv_a_norm.weight", (latent,), "F32"
        yield at + "attn_q.weight", (heads * (mla.qk_nope_head_dim + rope), hidden), "Q8_0"
        yield at + "attn_kv_a_mqa.weight", (latent + rope, hidden), "Q8_0"
        yield at + "attn_k_b.weight", (heads, latent, mla.qk_nope_head_dim), "Q8_0"
        yield at + "attn_v_b.weight", (heads, mla.v_head_dim, latent), "Q8_0"
        yield at + "attn_output.weight", (hidden, heads * mla.v_head_dim), "Q8_0"
        if layer not in moe.layers:
            yield from _feed_forward(at, "", (), config.dense_ff, hidden)
            continue
        yield at + "ffn_gate_inp.weight", (moe.num_experts, hidden), "F32"
        yield from _feed_forward(at, "_exps", (moe.num_experts,), moe.expert_ff, hidden)
        yield from _feed_forward(at, "_shexp", (), moe.shared_ff, hidden)


def _feed_forward(
    at: str, kind: str, many: tuple[int, ...], ff: int, hidden: int
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield f"{at}ffn_gate{kind}.weight", (*many, ff, hidden), "Q8_0"
    yield f"{at}ffn_up{kind}.weight", (*many, ff, hidden), "Q8_0"
    yield f"{at}ffn_down{kind}.weight", (*many, hidden, ff), "Q8_0"


def write_gguf(path: Path, config: ModelConfig) -> None:
    """A model of random weights for llama.cpp. Complete or not there."""
    import gguf

    mla, moe = config.attention, config.moe
    assert isinstance(mla, MlaConfig) and moe is not None
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "deepseek2")
    writer.add_context_length(163_840)
    writer.add_block_count(config.num_layers)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.dense_ff)
    writer.add_head_count(mla.num_heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_leading_dense_block_count(min(moe.layers))
    writer.add_uint32("deepseek2.attention.q_lora_rank", 0)
    writer.add_kv_lora_rank(mla.kv_lora_rank)
    writer.add_key_length(mla.kv_lora_rank + mla.qk_rope_head_dim)
    writer.add_value_length(mla.kv_lora_rank)
    writer.add_key_length_mla(mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    writer.add_value_length_mla(mla.v_head_dim)
    writer.add_rope_dimension_count(mla.qk_rope_head_dim)
    writer.add_expert_feed_forward_length(moe.expert_ff)
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.top_k)
    writer.add_expert_shared_count(moe.shared_ff // moe.expert_ff)
    writer.add_expert_weights_scale(moe.scale)
    writer.add_expert_weights_norm(moe.normalize)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    wanted = list(tensors(config))
    for name, shape, kind in wanted:
        if kind == "Q8_0":
            stored = (*shape[:-1], shape[-1] // Q8_BLOCK * Q8_BLOCK_BYTES)
            type_ = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), type_)
        else:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.Generator(np.random.SFC64(0))
    for name, shape, kind in wanted:
        writer.write_tensor_data(_random(name, shape, kind, generator))
    writer.close()
    partial.rename(path)


def _random(name: str, shape: tuple[int, ...], kind: str, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    if kind == "F32":
        if "norm" in name:
            return np.ones(shape, np.float32)
        return generator.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
    blocks = math.prod(shape) // Q8_BLOCK
    raw = np.frombuffer(bytearray(generator.bytes(blocks * Q8_BLOCK_BYTES)), np.uint8).reshape(blocks, Q8_BLOCK_BYTES)
    # Uniform int8 has a deviation of 73.6: outputs as large as inputs.
    raw[:, :2] = np.array([1 / (73.6 * shape[-1] ** 0.5)], np.float16).view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


def measure_ours(subject: Subject, options: BenchOptions) -> dict[str, float]:
    """Medians of the rounds after a warm-up."""
    bench = SpeedBench(subject, options)
    bench.least_s = 0.0  # the turns are what sees time pass
    result_of(bench.run())
    (found,) = bench.samples.values()
    token_s, read_bytes_per_s = statistics.median(found.token_s), statistics.median(found.read_bytes_per_s)
    needed = bench.sizes.active_bytes
    return {
        "decode": 1 / token_s,
        "prefill": options.prompt_tokens / statistics.median(found.prefill_s),
        "decode_of_floor": needed / read_bytes_per_s / token_s,
        "read_gb_per_s": read_bytes_per_s / 1e9,
    }


def measure_llama(program: Path, model: Path, threads: int, options: BenchOptions) -> dict[str, float]:
    """llama-bench's own figures, which follow a warm-up of its own: the quicker of a mapped and a read file."""
    command = [program, "-m", model, "-t", threads, "-p", options.prompt_tokens, "-n", options.decode_tokens]
    command += ["-r", 1, "-lm", "mmap,none", "-o", "json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"llama-bench failed ({done.returncode}):\n{done.stderr[-2000:]}")
    runs = json.loads(done.stdout)
    return {
        "decode": max(run["avg_ts"] for run in runs if run["n_gen"]),
        "prefill": max(run["avg_ts"] for run in runs if run["n_prompt"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_bench", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shape: Shape = find_shape(SHAPE, arguments.layers, 0.0)
    if not arguments.gguf.exists():
        write_gguf(arguments.gguf, shape.config)
    options = BenchOptions(depths="0", repeats=1)
    threads = set_threads(arguments.threads)
    torch.set_num_threads(threads)
    subject = result_of(open_synthetic(shape, EngineOptions(threads=threads), 1024))
    rounds = [
        (measure_ours(subject, options), measure_llama(arguments.llama_bench, arguments.gguf, threads, options))
        for _ in range(arguments.rounds)
    ]
    results: dict[str, list[float]] = {
        f"localr1_{name}": [ours[name] for ours, _ in rounds] for name in rounds[0][0]
    } | {f"llama_cpp_{name}": [theirs[name] for _, theirs in rounds] for name in rounds[0][1]}
    for what in ("decode", "prefill"):
        results[f"{what}_ratio"] = [ours[what] / theirs[what] for ours, theirs in rounds]
    for name, values in results.items():
        print(f"{name:28} median {statistics.median(values):8.2f}   {min(values):8.2f} to {max(values):8.2f}")
    if arguments.json:
        sizes = {"localr1_bytes": subject.store.nbytes, "llama_cpp_bytes": arguments.gguf.stat().st_size}
        record = {"shape": shape.label, "threads": threads, **sizes, "results": results, "machine": machine()}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
