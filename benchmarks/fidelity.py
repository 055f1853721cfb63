"""What eight bits cost: the int8 store against the same checkpoint in float32, on real text.

    python -m benchmarks.fidelity CHECKPOINT_FOLDER [--tokens 2048] [--window 512] [--json FILE]

Prints, over every position of the text, the mean and the largest Kullback-Leibler divergence of the int8 model's
next-token distribution from the float32 model's, how often both have the same likeliest token, and both perplexities.
The whole int8 path is measured: int8 weights, int8 embedding, quantized activations and a bfloat16 cache.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from localr1.bench.fidelity import Speaker, divergence, in_windows
from localr1.bench.machine import machine
from localr1.bench.text import text_tokens
from localr1.chat.tokenizer import Tokenizer
from localr1.decode.cache import RowCache
from localr1.model import registry
from localr1.model.registry import Model
from localr1.placement.bank import CpuBank, FloatBank
from localr1.placement.linear import FloatWeights, StoreWeights
from localr1.session import convert
from localr1.weights.checkpoint import Checkpoint
from localr1.weights.store import Origin, Store


@contextmanager
def temporary_store(source: Path) -> Iterator[Store]:
    """The 8-bit store of a checkpoint, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as scratch:
        for _ in convert(source, Path(scratch) / "store", Origin(str(source), "benchmark")):
            pass
        yield Store(Path(scratch) / "store")


def open_both(source: Path, store: Store) -> tuple[Model, Model]:
    """The float32 model of a checkpoint, and its 8-bit store's."""
    config, float_weights = registry.read_config(source), FloatWeights(Checkpoint(source))
    moe = config.moe
    return (
        registry.build(config, float_weights, FloatBank(float_weights, moe.layers, moe.num_experts) if moe else None),
        registry.build(config, StoreWeights(store), CpuBank(store, moe.layers, moe.num_experts) if moe else None),
    )


def speaker(model: Model, dtype: torch.dtype, window: int) -> Speaker:
    """A model with a cache for one window."""
    config = model.config
    return Speaker(model, lambda: RowCache(config.cache_layers, config.cache_width, window, dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokens = text_tokens(Tokenizer.open(arguments.checkpoint), arguments.tokens)
    with temporary_store(arguments.checkpoint) as store:
        exact, rounded = open_both(arguments.checkpoint, store)
        speakers = (speaker(exact, torch.float32, arguments.window), speaker(rounded, torch.bfloat16, arguments.window))
        results = asdict(divergence(*speakers, in_windows(tokens, arguments.window)))
        results["weight_bytes"] = store.nbytes
        results["times_smaller_than_float32"] = 4 * store.parameters / store.nbytes
    for name, value in results.items():
        print(f"{name:28} {value:,.5g}" if isinstance(value, float) else f"{name:28} {value:,}")
    if arguments.json:
        record = {"checkpoint": arguments.checkpoint.name, "results": results, "machine": machine()}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
