"""What eight bits cost: the int8 store against the same checkpoint in float32, on real text.

    python -m benchmarks.fidelity CHECKPOINT_FOLDER [--tokens 2048] [--window 512] [--json FILE]

Prints, over every position of the text, the mean and the largest Kullback-Leibler divergence of the int8 model's
next-token distribution from the float32 model's, how often both have the same likeliest token, and both perplexities.
The whole int8 path is measured: int8 weights, int8 embedding, quantized activations and a bfloat16 cache.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from localr1.bench.machine import machine
from localr1.bench.text import real_text
from localr1.chat.tokenizer import Tokenizer
from localr1.decode.cache import RowCache
from localr1.model import registry
from localr1.model.registry import Model
from localr1.placement.bank import CpuBank, FloatBank
from localr1.placement.linear import FloatWeights, StoreWeights
from localr1.session import convert
from localr1.weights.checkpoint import Checkpoint
from localr1.weights.store import Origin, Store

NEAR_TIE = 0.1
"""Two tokens whose log-probabilities differ by less are as good as equal: a factor of 1.1."""


@torch.inference_mode()
def window_log_probs(model: Model, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Log-probabilities [T, V] of the next token after each token of a window that starts afresh."""
    cache = RowCache(model.config.cache_layers, model.config.cache_width, len(tokens), dtype)
    return torch.log_softmax(model.logits(model.forward(tokens, cache)), dim=-1)


def compare(exact: Model, rounded: Model, tokens: Tensor, window: int) -> dict[str, float]:
    divergence, same, margin, exact_loss, rounded_loss = [], [], [], [], []
    for part in tokens.split(window):
        p = window_log_probs(exact, part, torch.float32)
        q = window_log_probs(rounded, part, torch.bfloat16)
        divergence.append((p.exp() * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
        likeliest = p.topk(2, dim=-1).values
        margin.append(likeliest[:, 0] - likeliest[:, 1])
        exact_loss.append(-p[:-1].gather(-1, part[1:, None])[:, 0])
        rounded_loss.append(-q[:-1].gather(-1, part[1:, None])[:, 0])
    kl, agrees, margins = torch.cat(divergence), torch.cat(same), torch.cat(margin)
    return {
        "tokens": len(tokens),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "top1_agreement": float(agrees.float().mean()),
        "top1_agreement_where_float32_is_sure": float(agrees[margins > NEAR_TIE].float().mean()),
        "share_of_near_ties": float((margins <= NEAR_TIE).float().mean()),
        "perplexity_float32": math.exp(float(torch.cat(exact_loss).mean())),
        "perplexity_int8": math.exp(float(torch.cat(rounded_loss).mean())),
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    text = real_text()[: 12 * arguments.tokens]
    tokens = torch.tensor(Tokenizer.open(arguments.checkpoint).encode_text(text)[: arguments.tokens])
    with temporary_store(arguments.checkpoint) as store:
        exact, rounded = open_both(arguments.checkpoint, store)
        results = compare(exact, rounded, tokens, arguments.window)
        results["weight_bytes"] = store.nbytes
        results["times_smaller_than_float32"] = 4 * store.parameters / store.nbytes
    for name, value in results.items():
        print(f"{name:28} {value:,.5g}" if isinstance(value, float) else f"{name:28} {value:,}")
    if arguments.json:
        record = {"checkpoint": arguments.checkpoint.name, "results": results, "machine": machine()}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
