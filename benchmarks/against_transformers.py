"""Decode speed of the int8 store against transformers in float32: same checkpoint, threads and text, taken in turn.

    python -m benchmarks.against_transformers CHECKPOINT_FOLDER [--rounds 7] [--threads N] [--json FILE]

Each round decodes `--tokens` tokens after the same prompt with either, greedily and without an end; the ratio is
taken round by round, so that a machine whose speed drifts does not matter. Speculation is off: it is a separate
claim.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from benchmarks.fidelity import temporary_store
from localr1.bench.machine import machine
from localr1.bench.text import real_text
from localr1.chat.tokenizer import Tokenizer
from localr1.decode.cache import RowCache
from localr1.decode.generate import step
from localr1.kernels import compilation
from localr1.kernels.threads import set_threads
from localr1.model import registry
from localr1.placement.bank import CpuBank
from localr1.placement.linear import StoreWeights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(set_threads(arguments.threads))
    for _ in compilation.compile_all():
        pass
    tokenizer = Tokenizer.open(arguments.checkpoint)
    prompt = tokenizer.encode_text(real_text()[: 12 * arguments.prompt_tokens])[: arguments.prompt_tokens]
    with temporary_store(arguments.checkpoint) as store:
        config = registry.read_config(store.folder)
        bank = CpuBank(store, config.moe.layers, config.moe.num_experts) if config.moe else None
        ours = registry.build(config, StoreWeights(store), bank)
        theirs = _transformers(arguments.checkpoint)
        tokens = arguments.tokens
        rounds = [
            (_decode_ours(ours, prompt, tokens), _decode_theirs(theirs, prompt, tokens))
            for _ in range(arguments.rounds + 1)
        ][1:]
    results = {
        "localr1_int8_tokens_per_s": [arguments.tokens / one for one, _ in rounds],
        "transformers_float32_tokens_per_s": [arguments.tokens / other for _, other in rounds],
        "ratio": [other / one for one, other in rounds],
    }
    for name, values in results.items():
        print(f"{name:36} median {statistics.median(values):8.2f}   {min(values):8.2f} to {max(values):8.2f}")
    if arguments.json:
        record = {
            "checkpoint": arguments.checkpoint.name,
            "threads": torch.get_num_threads(),
            "tokens": arguments.tokens,
            "results": results,
            "machine": machine(),
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def _transformers(folder: Path):  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _decode_ours(model: registry.Model, prompt: list[int], tokens: int) -> float:
    """Seconds of `tokens` greedy steps."""
    config = model.config
    cache = RowCache(config.cache_layers, config.cache_width, len(prompt) + tokens, torch.bfloat16)
    with torch.inference_mode():
        hidden_TD = model.forward(torch.tensor(prompt), cache)
        cache.commit(prompt)
        logits_V = model.logits(hidden_TD[-1:])[0]
    start_s = time.perf_counter()
    for _ in range(tokens):
        logits_V = step(model, cache, int(logits_V.argmax()))
    return time.perf_counter() - start_s


def _decode_theirs(model, prompt: list[int], tokens: int) -> float:  # type: ignore[no-untyped-def]
    """Seconds of `tokens` greedy steps with transformers' own cache, without the cost of its `generate`."""
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([prompt]), use_cache=True)
        start_s = time.perf_counter()
        for _ in range(tokens):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
