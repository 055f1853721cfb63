"""What guessing from the context gives where an answer repeats the question, and costs where it does not.

    python -m benchmarks.editing [--shape v2-lite] [--layers 8] [--rounds 3] [--threads N] [--json FILE]

A model of random weights in a catalog entry's shape says nothing that repeats its prompt, so its words are given: the
real decode loop runs, every forward is computed in full and its memory read, and only what the head found likeliest is
replaced by the next token of a script. So costs are real, and a guess is right as often as real lookup is on a real
text. Routes are those of the model's own random routers over the script's tokens, as uneven as `--skew` says.

The scripts are of Python's own documentation. Editing: the prompt holds a passage and the answer is that passage with
some words replaced, as the asking for American spelling, other names and plainer words would; prose: the prompt is one
passage, the answer another that has little in common with it. Tokens are words with their space, in pieces of at most
six letters, and single marks: about as many as a tokenizer of 100,000 entries makes of English.

Settings take turns of a few tokens, each in a conversation of its own, so that what slows the machine down slows all of
them; ratios are of the same round.
"""

import argparse
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localr1.bench.machine import machine
from localr1.bench.synthetic import find_shape, make_store, open_shape
from localr1.bench.text import real_text
from localr1.decode.cache import RowCache
from localr1.decode.generate import Finished, Token, generate
from localr1.decode.sampling import Sampler, Sampling
from localr1.decode.speculate import Speculation
from localr1.events import result_of
from localr1.options import EngineOptions
from localr1.session import Engine

PROMPT_TOKENS, ANSWER_TOKENS = 300, 200
TURN_TOKENS = 10
EDITS = {
    r"\bobjects?\b": "value",
    r"\bargument": "parameter",
    r"\breturns?\b": "gives",
    r"\bmust\b": "has to",
    r"\bSee also\b": "Compare",
    r"\bmethod\b": "function",
    r"\bNote that ": "",
    r"\bi\.e\.": "that is",
}
SETTINGS: dict[str, tuple[str, ...]] = {"editing": ("off", "3", "7", "auto"), "prose": ("off", "auto")}


def pieces(text: str) -> list[str]:
    """The text as about what a tokenizer makes of it."""
    return re.findall(r" ?[A-Za-z]{1,6}|[A-Za-z]{1,6}| ?\d{1,3}|\n+| +|.", text)


def scripts(vocab: int) -> dict[str, tuple[list[int], list[int]]]:
    """(prompt, answer) of both kinds; equal pieces get equal numbers, spread over the vocabulary."""
    text = re.sub(r"[ \n]+", " ", real_text())
    numbers: dict[str, int] = {}

    def encode(part: str) -> list[int]:
        return [numbers.setdefault(piece, 3 + 7919 * len(numbers) % (vocab - 3)) for piece in pieces(part)]

    third = len(text) // 3
    passage = text[third : third + 12 * PROMPT_TOKENS]
    edited = passage
    for old, new in EDITS.items():
        edited = re.sub(old, new, edited)
    ask = encode("Put this into plainer words, and change nothing else: ")
    original, answer = encode(passage)[:PROMPT_TOKENS], encode(edited)[:ANSWER_TOKENS]
    other = encode(text[2 * third : 2 * third + 12 * PROMPT_TOKENS])[:ANSWER_TOKENS]
    return {"editing": (ask + original, answer), "prose": (ask + original, other)}


class Scripted:
    """A model that does all its work and then says what the script says. What follows a wrong guess is never used."""

    def __init__(self, model: Any, script: Sequence[int]) -> None:
        self._model, self._script_T = model, torch.tensor([*script, 0])
        self.config, self.forward = model.config, model.forward

    def logits(self, hidden_TD: Tensor) -> Tensor:
        logits_TV = torch.zeros_like(self._model.logits(hidden_TD))
        logits_TV[:, self._first] = 1.0
        return logits_TV

    def begin(self, prompt_tokens: int) -> None:
        """What the prefill's logits are for."""
        self._first = int(self._script_T[prompt_tokens])

    def likeliest(self, token_T: Tensor, cache: RowCache) -> tuple[Tensor, Tensor, Tensor]:
        hidden_TD, _, logit_T = self._model.likeliest(token_T, cache)
        at = cache.length + 1
        told_T = torch.zeros_like(token_T)
        rest_T = self._script_T[at : at + len(token_T)]
        told_T[: len(rest_T)] = rest_T
        return hidden_TD, told_T, logit_T


class Answer:
    """One answer under way; its tokens must be the script's. `seconds` and `tokens` are of the decoding so far."""

    def __init__(
        self, engine: Engine, prompt: list[int], script: list[int], cache: RowCache, speculation: Speculation
    ) -> None:
        model: Any = Scripted(engine.model, [*prompt, *script])
        model.begin(len(prompt))
        sampler = Sampler(Sampling(temperature=0))
        self._script = script
        self._items = generate(
            model, cache, prompt, sampler, stop_ids=(), max_tokens=len(script), speculation=speculation
        )
        self._said = [next(item.id for item in self._items if isinstance(item, Token))]  # of the prefill's logits
        self.seconds = 0.0
        self.end: Finished | None = None

    @property
    def tokens(self) -> int:
        """Those that took a step to find."""
        return len(self._said) - 1

    def go_on(self, tokens: int) -> None:
        """Say so many more tokens."""
        start_s = time.perf_counter()
        for item in islice(self._items, tokens):
            if isinstance(item, Finished):
                self.end = item
            elif isinstance(item, Token):
                self._said.append(item.id)
        self.seconds += time.perf_counter() - start_s
        if self._said != self._script[: len(self._said)]:
            raise AssertionError("the loop did not say what the script says")


def take_turns(answers: Iterable[Answer]) -> None:
    """Go on with every answer, a few tokens each, to its end."""
    going = list(answers)
    while going:
        for answer in going:
            answer.go_on(TURN_TOKENS)
        going = [answer for answer in going if answer.end is None]


def engines(arguments: argparse.Namespace) -> Callable[[str], Engine]:
    """Engines of one synthetic model under different settings."""
    options = EngineOptions(threads=arguments.threads, vram="0", speculate="lookup")
    shape = find_shape(arguments.shape, arguments.layers, arguments.skew)
    context = 2 * (PROMPT_TOKENS + ANSWER_TOKENS)
    store = result_of(make_store(shape, options, context))

    def engine(setting: str) -> Engine:
        changed = replace(options, speculate="off") if setting == "off" else options
        changed = replace(changed, draft_tokens=int(setting)) if setting.isdigit() else changed
        opened: Engine = result_of(open_shape(shape, store, changed, context))
        return opened

    return engine


def measure(arguments: argparse.Namespace, kinds: Iterable[str]) -> dict[str, Any]:
    """Decode speeds and tokens a step by kind of text and setting, round by round."""
    opened, found = engines(arguments), {}
    for kind in kinds:
        models = {setting: opened(setting) for setting in SETTINGS[kind]}
        prompt, answer = scripts(next(iter(models.values())).config.vocab)[kind]
        kept = {setting: (model.new_cache(), model.new_speculation()) for setting, model in models.items()}
        speeds: dict[str, list[float]] = defaultdict(list)
        steps: dict[str, float] = {}
        for number in range(arguments.rounds + 1):
            answers = {setting: Answer(model, prompt, answer, *kept[setting]) for setting, model in models.items()}
            take_turns(answers.values())
            for setting, said in answers.items():
                assert said.end is not None, "an answer without an end"
                if number:
                    speeds[setting].append(said.tokens / said.seconds)
                    steps[setting] = 1 + said.end.counts.accepted / said.end.counts.steps
        ratios = {
            setting: [one / off for one, off in zip(values, speeds["off"], strict=True)]
            for setting, values in speeds.items()
        }
        found[kind] = {"tokens_per_s": speeds, "tokens_per_step": steps, "ratio_to_off": ratios}
        for setting, values in speeds.items():
            ratio = f"{statistics.median(ratios[setting]):.2f}x off"
            spread = f"({min(ratios[setting]):.2f} to {max(ratios[setting]):.2f})"
            speed, step = f"{statistics.median(values):7.1f} tokens/s", f"{steps[setting]:.2f} tokens a step"
            print(f"{kind:8} {setting:5} {speed}   {step}   {ratio} {spread}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="v2-lite")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--skew", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kind", choices=tuple(SETTINGS), action="append")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments, arguments.kind or SETTINGS)
    if arguments.json:
        before = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {"kinds": {}}
        what = {"shape": arguments.shape, "layers": arguments.layers, "skew": arguments.skew}
        record = {**what, "kinds": before["kinds"] | found, "machine": machine()}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
