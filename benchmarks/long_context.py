"""What a long context costs a layer of shape v2-lite: steps of one to four tokens at depth 0 and deep in the cache.

Whole layers (attention, then router, routed and shared experts) with random weights, every layer with its own weights
and cache so that both come from RAM. Depth 0, the deep step with a bfloat16 and with an int8 cache take turns, so a
machine that is busy with other things slows all alike. The final norm and the vocabulary head are left out: they cost
the same at every depth, so a whole model's ratio is a little lower.

    python -m benchmarks.long_context [--depth 16384] [--layers 4] [--rows 1,2,4] [--seconds 10] [--json FILE]

Columns: the quick tenth of the times of a layer at depth 0 and deep, and their ratio; the median of the ratios of
neighbouring samples; attention's own time deep in the cache less its time at depth 0.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from localr1.kernels import threads

threads.unify_openmp()

import numpy as np  # noqa: E402

from localr1.kernels import blocks, compilation, cpu, features  # noqa: E402

HIDDEN, HEADS, NOPE, ROPE, VALUE, LATENT = 2048, 16, 128, 64, 128, 512
EXPERTS, TOP_K, SHARED, EXPERT_FF = 64, 6, 2, 1408
LEAST_SAMPLES = 5


def matrix(rng: np.random.Generator, outputs: int, inputs: int) -> blocks.Matrix:
    return blocks.Matrix(rng.integers(-127, 128, (outputs, inputs), np.int8), np.full(outputs, 0.04, np.float32))


class Layer:
    """One layer, and a cache of either kind."""

    def __init__(self, rng: np.random.Generator, rows: int, scratch: blocks.Scratch) -> None:
        ones, unit = np.ones(HIDDEN, np.float32), np.ones(LATENT, np.float32)
        kv_b = rng.standard_normal((HEADS, NOPE + VALUE, LATENT), np.float32) / np.float32(LATENT**0.5)
        weights = blocks.MlaWeights(
            ones, matrix(rng, HEADS * (NOPE + ROPE), HIDDEN), None, None, matrix(rng, LATENT + ROPE, HIDDEN), unit,
            (kv_b.view(np.uint32) >> 16).astype(np.uint16), matrix(rng, HIDDEN, HEADS * VALUE),
        )  # fmt: skip
        self.attention = blocks.mla_block(weights, NOPE, ROPE, True, 1e-6, 1e-6, (NOPE + ROPE) ** -0.5, scratch)
        size = 3 * HIDDEN * EXPERT_FF
        routed = blocks.Routed(
            rng.integers(-127, 128, (EXPERTS, size), np.int8),
            np.full((EXPERTS, 2 * EXPERT_FF + HIDDEN), 0.04, np.float32),
            rng.standard_normal((EXPERTS, HIDDEN), np.float32), None, TOP_K, False, 1, 1, False, 1.0,
        )  # fmt: skip
        shared_scb = np.full((1, 2 * SHARED * EXPERT_FF + HIDDEN), 0.04, np.float32)
        shared = rng.integers(-127, 128, (1, SHARED * size), np.int8), shared_scb
        self.feed_forward = blocks.FeedForwardBlock(ones, 1e-6, routed, shared, scratch)
        numbers = rng.standard_normal((rows, LATENT + ROPE), np.float32)
        int8 = rng.integers(-127, 128, (rows, cpu.latent_row_bytes(LATENT, ROPE)), np.int8)
        bf16 = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        int8[:, LATENT : LATENT + 2 * ROPE] = bf16[:, LATENT:].copy().view(np.int8)
        int8[:, -4:] = np.full(1, 1 / 60, np.float32).view(np.int8)
        self.caches = {"bf16": bf16, "int8": int8}


def steps(layers: list[Layer], T: int, depth: int) -> dict[tuple[str, int], Callable[[], tuple[float, float]]]:
    """For each cache and depth, a function that runs all layers; seconds of attention and of the rest."""
    rng = np.random.default_rng(1)
    x_TD = rng.standard_normal((T, HIDDEN), np.float32)
    cos, sin = np.ones((T, ROPE), np.float32), np.zeros((T, ROPE), np.float32)

    def step(kind: str, start: int) -> tuple[float, float]:
        attention = rest = 0.0
        for layer in layers:
            x = x_TD.copy()
            begin = time.perf_counter()
            layer.attention(x, cos, sin, layer.caches[kind][: start + T])
            middle = time.perf_counter()
            layer.feed_forward(x_TD.copy())
            attention, rest = attention + middle - begin, rest + time.perf_counter() - middle
        return attention / len(layers), rest / len(layers)

    return {(kind, start): partial(step, kind, start) for kind in ("bf16", "int8") for start in (0, depth)}


def measure(layers: list[Layer], T: int, depth: int, seconds: float) -> list[dict[str, object]]:
    cases = steps(layers, T, depth)
    samples: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    for run in cases.values():
        run()
    begin = time.perf_counter()
    while len(samples["bf16", 0]) < LEAST_SAMPLES or time.perf_counter() - begin < seconds:
        for case, run in cases.items():
            samples[case].append(run())
    results: list[dict[str, object]] = []
    for kind in ("bf16", "int8"):
        at_0, deep = np.array(samples[kind, 0]), np.array(samples[kind, depth])
        quick_0, quick_deep = np.quantile(at_0.sum(1), 0.1), np.quantile(deep.sum(1), 0.1)
        neighbours = deep.sum(1) / at_0.sum(1)
        added = np.quantile(deep[:, 0], 0.1) - np.quantile(at_0[:, 0], 0.1)
        results.append({
            "cache": kind, "rows": T, "depth": depth, "samples": len(at_0),
            "layer_ms_at_0": quick_0 * 1e3, "layer_ms_deep": quick_deep * 1e3, "ratio": quick_deep / quick_0,
            "ratio_neighbours": float(np.median(neighbours)),
            "ratio_range": [float(q) for q in np.quantile(neighbours, (0.1, 0.9))],
            "attention_added_ms": added * 1e3,
            "gmac_per_s": T * HEADS * depth * (2 * LATENT + ROPE) / added / 1e9,
        })  # fmt: skip
        print(
            f"{kind} {T} rows: layer {quick_0 * 1e3:.2f} ms at 0, {quick_deep * 1e3:.2f} ms at {depth:,}, "
            f"{quick_deep / quick_0:.2f}x (neighbours {np.median(neighbours):.2f}x); attention adds "
            f"{added * 1e3:.2f} ms",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, default=16384)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", default="1,2,4")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each number of rows")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    used = threads.set_threads(options.threads)
    for stage in compilation.compile_all(("mla_block", "feed_forward_block")):
        print(stage.what, file=sys.stderr)
    rng, scratch = np.random.default_rng(0), blocks.Scratch()
    layers = [Layer(rng, options.depth + 8, scratch) for _ in range(options.layers)]
    print(f"{used} threads, {features.BITS}-bit vectors, {options.layers} layers")
    results = []
    for rows in map(int, options.rows.split(",")):
        results += measure(layers, rows, options.depth, options.seconds)
    if options.json:
        processor = platform.processor() or platform.machine()
        machine = {"processor": processor, "threads": used, "vector_bits": features.BITS}
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
