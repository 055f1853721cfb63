"""Which placement policy fits how nano really routes: records conversations, then replays them at several budgets.

`python -m benchmarks.replay [--questions N] [--guesses N] [--json FILE]` asks nano held-out questions of every kind it
knows, several to a conversation, as a person would with the default settings (it guesses ahead with its MTP layer,
samples and thinks). How far it guesses decides what there is to win, and by default depends on the machine's pace;
`--guesses` fixes it. The routes of the first half of the conversations are the history, the second half judges. Prints
what `localr1 bench --replay` prints of a user's own routes, and, at a quarter of the experts resident, the most hits
that the policies' own rules allow one who knows the future (exact, some minutes). Rerun it when nano was trained anew.
"""

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from localr1.bench.machine import machine
from localr1.bench.optimum import rule_bound
from localr1.bench.replay import Comparison, compare
from localr1.events import TurnEnd, result_of
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from localr1.placement.replay import halves
from localr1.placement.routes import Routes
from localr1.session import Engine, load
from localr1.terminal.environment import Environment
from localr1.terminal.tables import show_table
from tools.nano.tasks import FAMILIES, Item, held_out_stream
from tools.nano.tokenizer import known_words

TURNS = 4
SEED = 7


def record(questions: int, guesses: int | None) -> tuple[Routes, int]:
    """The routes of conversations of four questions each, and the tokens that were generated."""
    speculate: Literal["auto", "off"] = "off" if guesses == 0 else "auto"
    engine: Engine = result_of(
        load("nano", EngineOptions(threads=1, speculate=speculate, draft_tokens=guesses or None))
    )
    assert engine.routing is not None
    asked, generated = _questions(engine, questions), 0
    for first in range(0, len(asked), TURNS):
        conversation = engine.converse(SamplingOptions(seed=first, max_tokens=256), ConversationOptions())
        for item in asked[first : first + TURNS]:
            if item.history:
                conversation.resume(item.history)
            for event in conversation.ask(item.question):
                generated += event.generated_tokens if isinstance(event, TurnEnd) else 0
    return engine.routing.history.recent(), generated


def _questions(engine: Engine, count: int) -> list[Item]:
    """Held-out questions, as many of every family, in a random order."""
    known = known_words(Tokenizer.from_file(str(engine.folder / "tokenizer.json")))
    streams = [held_out_stream(SEED, family, known) for family in FAMILIES]
    found = [next(stream) for _ in range(-(-count // len(FAMILIES))) for stream in streams]
    random.Random(SEED).shuffle(found)
    return found[:count]


def bounded(routes: Routes, comparison: Comparison) -> dict[str, dict[str, Any]]:
    """At a quarter resident: the best within the rules and the best policy, where an expert comes at once or late."""
    _, after = halves(routes)
    quarter = next(one for one in comparison.budgets if one.share == 0.25)
    found = {}
    for when, late, policies in (("at once", False, quarter.policies), ("late", True, quarter.late)):
        slots, moves = quarter.slots, comparison.moves_a_step
        best = rule_bound(after, comparison.layers * comparison.experts, [slots], moves, late=late)[slots]
        name = max(policies, key=lambda name: policies[name].rate)
        found[when] = {"best": best.rate, "moves_a_forward": best.moves_a_forward, "policy": name}
        found[when] |= {"reached": policies[name].rate, "share": policies[name].rate / best.rate}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--guesses", type=int, help="tokens guessed ahead, always (default: as many as pay)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["LOCALR1_HOME"] = home
        routes, generated = record(options.questions, options.guesses)
    comparison = result_of(compare(routes))
    bounds = bounded(routes, comparison)
    section = comparison.section()
    rows = [(row.label, *map(str, row.cells)) for row in section.rows]
    show_table(Environment.current(), section.title, section.columns, rows, section.notes)
    for when, one in bounds.items():
        print(f"at a quarter, within the rules, {when}: {one['best']:.1%}; {one['policy']} {one['reached']:.1%}")
    asked = {"questions": options.questions, "guesses": options.guesses, "generated_tokens": generated}
    found = {"machine": machine(), **asked, "rule_bound": bounds}
    if options.json:
        options.json.write_text(json.dumps({**found, **comparison.record()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
