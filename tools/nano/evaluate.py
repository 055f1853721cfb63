"""Measures the built-in model on held-out questions: `python -m tools.nano.evaluate`.

By default the shipped 8-bit store runs through the package itself, a conversation at a time. `--checkpoint` runs
a training checkpoint instead, in batches, once in float32 and once with its weights rounded to 8 bits row by row.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor

from tools.nano.export import load_checkpoint
from tools.nano.generate import greedy
from tools.nano.model import Nano
from tools.nano.tasks import FAMILIES, Item, held_out_stream
from tools.nano.tokenizer import EOS, known_words, render_prompt

REPOSITORY = Path(__file__).parents[2]
SEED = 2026
MAX_TOKENS = 400  # of one reply
Scores = dict[str, float]


def questions(tokenizer: Tokenizer, each: int) -> list[Item]:
    """`each` different held-out items of every family."""
    known, out = known_words(tokenizer), []
    for family in FAMILIES:
        seen: set[tuple[object, str]] = set()
        for item in held_out_stream(SEED, family, known):
            if (item.history, item.question) not in seen:
                seen.add((item.history, item.question))
                out.append(item)
            if len(seen) == each:
                break
    return out


def scores(items: list[Item], answers: list[str]) -> Scores:
    right, total = Counter[str](), Counter[str]()
    for item, answer in zip(items, answers, strict=True):
        right[item.family] += answer.strip() == item.answer
        total[item.family] += 1
    out = {family: right[family] / total[family] for family in FAMILIES if total[family]}
    return {**out, "overall": sum(right.values()) / sum(total.values())}


def rounded_to_8_bits(model: Nano) -> None:
    """Replaces every matrix by absmax int8 rows and back, in place; norms, router and bias stay as they are."""
    for name, p in model.named_parameters():
        if p.dim() >= 2 and not name.endswith("gate.weight"):
            scale = p.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
            p.copy_((p / scale).round() * scale)


def batched_replies(model: Nano, tokenizer: Tokenizer, items: list[Item], batch: int = 100) -> list[list[int]]:
    order = sorted(range(len(items)), key=lambda i: (len(items[i].thought), i))
    replies: list[list[int]] = [[] for _ in items]
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        prompts = [tokenizer.encode(render_prompt(items[i]), add_special_tokens=False).ids for i in part]
        for i, reply in zip(part, greedy(model, tokenizer, prompts, MAX_TOKENS), strict=True):
            replies[i] = reply
    return replies


class Routing:
    """How concentrated the routed calls are: the share that goes to the most used quarter of a layer's experts."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.total: Tensor | None = None
        self.within: list[float] = []

    @staticmethod
    def _top_quarter(counts: Tensor) -> float:
        """counts [layers, E] -> the mean over layers."""
        top = counts.sort(-1, descending=True).values[:, : counts.shape[1] // 4]
        return float((top.sum(-1) / counts.sum(-1)).mean())

    def add(self, chosen: list[Tensor]) -> None:
        """One conversation's choices, a tensor [tokens, K] for every MoE layer."""
        counts = torch.stack([torch.bincount(c.reshape(-1), minlength=self.experts) for c in chosen]).double()
        self.total = counts if self.total is None else self.total + counts
        self.within.append(self._top_quarter(counts))

    def summary(self) -> Scores:
        assert self.total is not None
        return {
            "routed_to_top_quarter": self._top_quarter(self.total),
            "routed_to_top_quarter_within_conversation": sum(self.within) / len(self.within),
        }


@torch.inference_mode()
def drafts_and_routing(
    model: Nano, tokenizer: Tokenizer, items: list[Item], replies: list[list[int]], every: int
) -> tuple[float, Scores]:
    """Over its own greedy replies: how often the MTP layer names the token after next, and where tokens are routed."""
    eos = tokenizer.token_to_id(EOS)
    agreed = drafted = 0
    routing = Routing(model.c.n_routed_experts)
    for item, reply in islice(zip(items, replies, strict=True), 0, None, every):
        prompt = tokenizer.encode(render_prompt(item), add_special_tokens=False).ids
        tokens = torch.tensor([[*prompt, *reply, eos]])
        _, y = model(tokens)
        assert y is not None
        guesses = model.lm_head(y[0]).argmax(-1)[len(prompt) - 1 : -1]  # row i, with token i + 1, names token i + 2
        wanted = tokens[0, len(prompt) + 1 :]
        agreed += int((guesses == wanted).sum())
        drafted += len(wanted)
        chosen = [moe.chosen for moe in model.moe_layers()[:-1]]
        routing.add([c for c in chosen if c is not None])
    return agreed / max(1, drafted), routing.summary()


def evaluate_checkpoint(path: Path, each: int, averaged: bool, weights: tuple[str, ...]) -> dict[str, object]:
    tokenizer = Tokenizer.from_file(str(path.parent / "tokenizer.json"))
    items = questions(tokenizer, each)
    report: dict[str, object] = {"questions_per_family": each}
    for name in weights:
        model = load_checkpoint(path, averaged)
        if name == "int8":
            rounded_to_8_bits(model)
        replies = batched_replies(model, tokenizer, items)
        answers = [tokenizer.decode(reply).split("</think>")[-1] for reply in replies]
        acceptance, routing = drafts_and_routing(model, tokenizer, items, replies, every=4)
        report[name] = {"exact": scores(items, answers), "mtp_acceptance": acceptance, **routing}
    return report


def store_answers(folder: Path, items: list[Item], threads: int) -> Iterator[tuple[str, int, int]]:
    """(answer, drafted tokens, accepted tokens) of each item, from the package's own session.

    One token is drafted at a time, so accepted / drafted is the acceptance of the second token.
    """
    from localr1 import session
    from localr1.events import AnswerText, TurnEnd
    from localr1.options import ConversationOptions, EngineOptions, SamplingOptions

    loading = session.load(str(folder), EngineOptions(speculate="mtp", draft_tokens=1, threads=threads))
    try:
        while True:
            next(loading)
    except StopIteration as loaded:
        engine = loaded.value
    for item in items:
        options = ConversationOptions(system=item.system or None)
        conversation = engine.converse(SamplingOptions(temperature=0.0, max_tokens=MAX_TOKENS), options)
        for question, answer in item.history:
            conversation.transcript.add_user(question)
            conversation.transcript.add_assistant(answer)
        said, drafted, accepted = "", 0, 0
        for event in conversation.ask(item.question):
            if isinstance(event, AnswerText):
                said += event.text
            elif isinstance(event, TurnEnd):
                drafted, accepted = event.drafted_tokens, event.accepted_tokens
        yield said, drafted, accepted


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def show(report: dict[str, object], console: Console) -> None:
    columns = [name for name in report if isinstance(report[name], dict)]
    table = Table("family", *columns, title=f"{report['questions_per_family']} held-out questions a family, exact, %")
    for family in (*FAMILIES, "overall"):
        table.add_row(family, *(f"{100 * report[name]['exact'][family]:.1f}" for name in columns))  # type: ignore[index]
    for key in ("mtp_acceptance", "routed_to_top_quarter", "routed_to_top_quarter_within_conversation"):
        table.add_row(key.replace("_", " "), *(_percent(report[name].get(key)) for name in columns))  # type: ignore[attr-defined]
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="a training checkpoint in place of the shipped store")
    parser.add_argument("--last", action="store_true", help="the checkpoint's last weights in place of their average")
    parser.add_argument("--store", type=Path, default=REPOSITORY / "localr1" / "nano")
    parser.add_argument("--each", type=int, default=200, help="questions per family")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default="float32,int8", help="how a checkpoint's weights are held")
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.checkpoint:
        report = evaluate_checkpoint(args.checkpoint, args.each, not args.last, tuple(args.weights.split(",")))
    else:
        items = questions(Tokenizer.from_file(str(args.store / "tokenizer.json")), args.each)
        rows = list(store_answers(args.store, items, args.threads))
        drafted, accepted = sum(row[1] for row in rows), sum(row[2] for row in rows)
        exact = scores(items, [row[0] for row in rows])
        report = {
            "questions_per_family": args.each,
            "store": {"exact": exact, "mtp_acceptance": accepted / max(1, drafted)},
        }
    show(report, Console())
    if args.json:
        earlier = json.loads(args.json.read_text()) if args.json.exists() else {}
        same = earlier.get("questions_per_family") == args.each
        args.json.write_text(json.dumps({**earlier, **report} if same else report, indent=2) + "\n")


if __name__ == "__main__":
    main()
