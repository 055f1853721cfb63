"""What guessing ahead gives: nano's conversations with speculation off, at fixed depths and on auto, in turn.

    python -m benchmarks.speculation [--model NAME] [--rounds 30] [--threads N] [--json FILE]

Every round asks each setting the same questions, greedily; the answers must be the same tokens. Settings take turns
conversation by conversation, so that what slows the machine down slows all of them. Prints decode tokens/s, tokens a
step and each setting's speed over `off` round by round, and auto's over the best fixed depth.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from localr1.bench.machine import machine
from localr1.events import AnswerText, ReasoningText, TurnEnd, result_of
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from localr1.session import Engine, load

QUESTIONS = (
    ("What is 4817 + 2956?", "and times 3?"),
    ("Multiply 476 by 38",),
    ("how many e's are in independence?", "Spell it backwards."),
    ("Sort 512, 48, 907, 233, 16",),
    ("What day is 45 days after Friday?",),
    ("Divide 8431 by 7",),
    ("Who are you?", "What is the capital of France?"),
)
SETTINGS = ("off", "1", "2", "3", "4", "5", "6", "7", "auto")


def engines(model: str, threads: int | None) -> dict[str, Engine]:
    """One engine a setting, all of the same mapped weights."""
    opened = {}
    for setting in SETTINGS:
        options = EngineOptions(threads=threads, speculate="off" if setting == "off" else "auto")
        if setting.isdigit():
            options = replace(options, draft_tokens=int(setting))
        opened[setting] = result_of(load(model, options))
    return opened


def ask(engine: Engine, questions: Sequence[str]) -> tuple[str, list[TurnEnd]]:
    """All that was said in one conversation, and the turns' statistics."""
    said, ends = [], []
    conversation = engine.converse(SamplingOptions(temperature=0, max_tokens=400), ConversationOptions())
    for question in questions:
        for event in conversation.ask(question):
            if isinstance(event, AnswerText | ReasoningText):
                said.append(event.text)
            elif isinstance(event, TurnEnd):
                ends.append(event)
    return "".join(said), ends


def ask_all(opened: dict[str, Engine]) -> tuple[dict[str, list[TurnEnd]], bool]:
    """Every setting's turns of all conversations, and whether all settings said the same."""
    ends: dict[str, list[TurnEnd]] = {setting: [] for setting in opened}
    same = True
    for questions in QUESTIONS:
        said = set()
        for setting, engine in opened.items():
            text, turns = ask(engine, questions)
            said.add(text)
            ends[setting] += turns
        same = same and len(said) == 1
    return ends, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, float] = {}
    opened = engines(arguments.model, arguments.threads)
    same = True
    for number in range(arguments.rounds + 1):
        ends, same_now = ask_all(opened)
        same = same and same_now
        for setting, turns in ends.items() if number else ():
            speeds[setting].append(sum(end.generated_tokens for end in turns) / sum(end.decode_s for end in turns))
            steps[setting] = 1 + sum(end.accepted_tokens for end in turns) / sum(end.steps for end in turns)
    ratios = {
        setting: [one / off for one, off in zip(speeds[setting], speeds["off"], strict=True)] for setting in SETTINGS
    }
    print(f"the same text from every setting: {'yes' if same else 'NO'}")
    for setting in SETTINGS:
        print(
            f"{setting:5} {statistics.median(speeds[setting]):8.1f} tokens/s   {steps[setting]:.2f} tokens a step   "
            f"{statistics.median(ratios[setting]):.2f}x off ({min(ratios[setting]):.2f} to {max(ratios[setting]):.2f})"
        )
    best = max((setting for setting in SETTINGS if setting.isdigit()), key=lambda one: statistics.median(ratios[one]))
    of_best = [one / other for one, other in zip(speeds["auto"], speeds[best], strict=True)]
    print(f"auto is {statistics.median(of_best):.2f}x depth {best} ({min(of_best):.2f} to {max(of_best):.2f})")
    if arguments.json:
        record = {
            "model": arguments.model,
            "same_text": same,
            "tokens_per_s": speeds,
            "tokens_per_step": steps,
            "ratio_to_off": ratios,
            "machine": machine(),
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
