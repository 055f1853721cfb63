"""What 8-bit cache rows change of what a latent-attention model says, beside what bfloat16 arithmetic changes.

    python -m benchmarks.cache_rows [--each 25] [--answers 0] [--threads N] [--json FILE]

The model is nano, over held-out questions of all kinds with their worked-out answers, each by itself, then joined to
long windows. The 8-bit store's own numbers in float32 are the reference of the kernels with either cache. Beside them
stand transformers in bfloat16, as such models are usually run, judged against transformers in float32 with the same
rounded weights: so of that, too, only the arithmetic counts. With `--answers` so many questions of a kind are answered
with either cache, always by the likeliest token: how many answers are right, and how many come out the same with all
thoughts.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from localr1 import session
from localr1.bench.fidelity import Divergence, Speaker, dequantized, divergence
from localr1.bench.machine import machine
from localr1.bench.subject import Subject, open_model
from localr1.decode.cache import RowCache
from localr1.events import AnswerText, ReasoningText, result_of
from localr1.model.registry import Model
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from tools.nano.chain import STORE, export, load_store
from tools.nano.evaluate import MAX_TOKENS, questions, scores
from tools.nano.tasks import Item
from tools.nano.tokenizer import render_prompt, render_reply

KINDS: tuple[Literal["bf16", "int8"], ...] = ("bf16", "int8")
ARITHMETIC = "transformers in bfloat16"
LONG_TOKENS = 2000


class _Theirs:
    """transformers' model where ours is expected; it keeps no cache between windows."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM, logging

        logging.set_verbosity_error()
        rounded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
        )
        self._model = rounded.to(dtype).eval()

    def forward(self, token_T: Tensor, cache: object) -> Tensor:
        hidden: Tensor = self._model.model(input_ids=token_T[None], use_cache=False).last_hidden_state[0]
        return hidden

    def logits(self, hidden_TD: Tensor) -> Tensor:
        logits: Tensor = self._model.lm_head(hidden_TD).float()
        return logits


def transformers_speaker(folder: Path, dtype: torch.dtype) -> Speaker:
    """A checkpoint whose weights are rounded to bfloat16, computing in `dtype`."""
    return Speaker(cast(Model, _Theirs(folder, dtype)), lambda: cast(RowCache, None))


def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(STORE / "tokenizer.json"))


def held_out(each: int) -> list[Item]:
    """So many questions of every kind that nano was never trained on."""
    return questions(_tokenizer(), each)


def worked_out(items: Sequence[Item]) -> list[list[int]]:
    """Questions with their thoughts and answers, as tokens."""
    texts = [render_prompt(item) + render_reply(item) for item in items]
    return [encoded.ids for encoded in _tokenizer().encode_batch(texts, add_special_tokens=False)]


def joined(windows: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """The same as if one long conversation followed another."""
    together = [token for window in windows for token in window]
    return [together[first : first + size] for first in range(0, len(together), size)]


def divergences(windows: Sequence[Sequence[int]], threads: int | None) -> dict[str, Divergence]:
    """Of nano with either cache, and of bfloat16 arithmetic, each from float32."""
    subject: Subject = result_of(open_model("nano", EngineOptions(threads=threads, vram="0")))
    config, longest = subject.engine.config, max(map(len, windows))
    exact_cache = partial(RowCache, config.cache_layers, config.cache_width, longest, torch.float32)
    exact, found = Speaker(dequantized(subject), exact_cache), {}
    for kv in KINDS:
        engine = result_of(subject.variant(EngineOptions(threads=threads, vram="0", kv=kv)))
        found[f"{kv} rows"] = divergence(exact, Speaker(engine.model, engine.new_cache), windows)
    with tempfile.TemporaryDirectory() as scratch:
        export(load_store(STORE), Path(scratch))
        theirs = [transformers_speaker(Path(scratch), dtype) for dtype in (torch.float32, torch.bfloat16)]
        found[ARITHMETIC] = divergence(theirs[0], theirs[1], windows)
    return found


def replies(items: Sequence[Item], kv: Literal["bf16", "int8"], threads: int | None) -> list[tuple[str, str]]:
    """(thoughts, answer) of each item, greedily."""
    engine = result_of(session.load("nano", EngineOptions(threads=threads, vram="0", kv=kv)))
    said = []
    for item in items:
        conversation = engine.converse(
            SamplingOptions(temperature=0.0, max_tokens=MAX_TOKENS), ConversationOptions(system=item.system or None)
        )
        conversation.resume(item.history)
        events = list(conversation.ask(item.question))
        thoughts, answer = (
            "".join(event.text for event in events if isinstance(event, kind)) for kind in (ReasoningText, AnswerText)
        )
        said.append((thoughts, answer))
    return said


def answers(each: int, threads: int | None) -> dict[str, Any]:
    items = held_out(each)
    both = {kv: replies(items, kv, threads) for kv in KINDS}
    right = {f"right with {kv} rows": scores(items, [answer for _, answer in both[kv]])["overall"] for kv in KINDS}
    same = sum(one == other for one, other in zip(*both.values(), strict=True))
    return {"questions": len(items), **right, "same thoughts and answer": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=25, help="questions of a kind to compare distributions on")
    parser.add_argument("--answers", type=int, default=0, help="questions of a kind to answer")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    windows, results = worked_out(held_out(arguments.each)), {}
    for what, parts in (("one question each", windows), ("one after another", joined(windows, LONG_TOKENS))):
        found = divergences(parts, arguments.threads)
        print(f"{what}: {len(parts)} windows of up to {max(map(len, parts)):,} tokens")
        for name, one in found.items():
            print(
                f"  {name:24} mean KL {one.mean_kl:.2e}, largest {one.max_kl:.2f}; same likeliest token "
                f"{100 * one.top1_agreement:.2f} %, where it is sure {100 * one.top1_agreement_where_sure:.2f} %"
            )
        results[what] = {name: asdict(one) for name, one in found.items()}
    said = answers(arguments.answers, arguments.threads) if arguments.answers else {}
    for name, value in said.items():
        print(f"{name:26} {value:,}")
    if arguments.json:
        record = {"model": "nano", "divergences": results, "answers": said, "machine": machine()}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
