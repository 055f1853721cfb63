"""Settings of one option, measured in turn in one run: `--compare KEY=A,B`.

Owns the parsing of such a request and the A/B. Every round runs all settings, in the order A B, then B A, and so on;
the ratio is taken round by round, so a machine whose speed drifts does not matter. All are loaded at once; of a GPU's
memory each has an equal part, where the settings do not say otherwise. Invariant: a verdict other than "no difference"
is given only where every round agrees on the side.
"""

import dataclasses
import time
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from localr1.bench.answers import Answers, Asking, prompts
from localr1.bench.report import Cell, Figure, Row, Section
from localr1.bench.subject import Subject, fill_cache
from localr1.decode.generate import prefill
from localr1.decode.speculate import Speculation
from localr1.errors import UsageError
from localr1.events import LoadProgress, Progress
from localr1.options import BenchOptions, EngineOptions
from localr1.quantities import bytes_text
from localr1.session import Engine
from localr1.session.shares import shared_out

EXAMPLE = "for example --compare speculate=off,auto"


@dataclass(frozen=True)
class Comparison:
    """One option and its values, as typed and as options; the first is what the others are compared with."""

    key: str
    words: tuple[str, ...]
    options: tuple[EngineOptions, ...]


def parse_comparison(text: str, base: EngineOptions) -> Comparison:
    """`speculate=off,auto`. Raises UsageError for an unknown option, a value it cannot have, or only one."""
    key, _, values = text.partition("=")
    name = key.strip().lstrip("-").replace("-", "_")
    kinds = typing.get_type_hints(EngineOptions)
    if name not in kinds:
        raise UsageError(f"--compare {text}: there is no engine option {key!r}", f"it can be: {', '.join(kinds)}")
    words = tuple(value.strip() for value in values.split(","))
    if len(words) < 2 or not all(words) or len(set(words)) < len(words):
        raise UsageError(f"--compare {text}: two or more different values are compared", EXAMPLE)
    converted = [_convert(word, kinds[name], text) for word in words]
    if len(set(converted)) < len(converted):
        raise UsageError(f"--compare {text}: two of these mean the same", EXAMPLE)
    limits = next(field.metadata["limits"] for field in dataclasses.fields(EngineOptions) if field.name == name)
    for value in converted:
        if isinstance(value, int) and not limits.get("min", value) <= value <= limits.get("max", value):
            raise UsageError(f"--compare {text}: {value} is out of range", f"{name} {_bounds(limits)}")
    return Comparison(name, words, tuple(replace(base, **{name: value}) for value in converted))


def _bounds(limits: dict[str, int]) -> str:
    """As a user says it: an option has a least value, a largest, or both."""
    words = {"min": "is at least {}", "max": "is at most {}"}
    return " and ".join(words[end].format(limits[end]) for end in words if end in limits)


def _convert(word: str, kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal:
        if word not in typing.get_args(kind):
            raise UsageError(
                f"--compare {text}: {word!r} is not possible", f"it can be: {', '.join(typing.get_args(kind))}"
            )
        return word
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if types.NoneType in kinds and word in ("none", "default", "auto"):
        return None
    literal = next((one for one in kinds if typing.get_origin(one) is Literal), None)
    if literal is not None:
        return _convert(word, literal, text)
    if int in kinds:
        if not word.isdecimal():
            raise UsageError(f"--compare {text}: {word!r} is no number", EXAMPLE)
        return int(word)
    return word


@dataclass
class Side:
    """One setting's repeats."""

    engine: Engine
    prefill: list[float]
    decode: list[float]
    answers: list[Answers]

    def keep(self, prefill: float, decode: float, answers: Answers) -> None:
        self.prefill.append(prefill)
        self.decode.append(decode)
        self.answers.append(answers)

    def speeds(self) -> tuple[list[float], list[float], list[float]]:
        """Tokens a second of prefill, of plain decoding and of answers, round by round."""
        return self.prefill, self.decode, [one.tokens_per_s for one in self.answers]


def compare(subject: Subject, options: BenchOptions, comparison: Comparison) -> Progress[Section]:
    """Measure all settings `options.repeats` times after a warm-up; the subject's own engine makes way for them."""
    if subject.engine.on_gpu is not None:
        subject.engine.on_gpu.make_way()
    settings, part_bytes = shared_out(comparison.options)
    sides = []
    for wanted in settings:
        engine = yield from subject.variant(wanted)
        sides.append(Side(engine, [], [], []))
    limit = min(side.engine.context_limit for side in sides)
    context, answer_tokens = _context(subject, options, limit), min(4 * options.decode_tokens, limit // 2)
    caches = []
    for side in sides:
        cache = side.engine.new_cache()
        subject.use_threads(side.engine)
        if context:
            yield from fill_cache(side.engine, cache, subject.tokens(context), subject.shape is not None)
        caches.append(cache)
    asked, stop = prompts(subject, answer_tokens), subject.shape is None
    askings = [
        Asking(side.engine, asked, answer_tokens, stop, cache) for side, cache in zip(sides, caches, strict=True)
    ]
    for repeat in range(options.repeats + 1):
        yield LoadProgress(f"comparing {comparison.key}", repeat, options.repeats + 1)
        order = list(range(len(sides)))
        for number in order if repeat % 2 else order[::-1]:
            side = sides[number]
            subject.use_threads(side.engine)
            speeds = _speeds(subject, options, side, caches[number], context)
            answers = askings[number]()
            if repeat:
                side.keep(*speeds, answers)
    return _section(comparison, sides, context, options, part_bytes)


def _context(subject: Subject, options: BenchOptions, limit: int) -> int:
    """The deepest context asked for that fits all sides. Raises UsageError where none does."""
    from localr1.bench.speed import usable_depths

    return usable_depths(options, limit, subject.engine.name)[0][-1]


def _speeds(subject: Subject, options: BenchOptions, side: Side, cache: Any, depth: int) -> tuple[float, float]:
    """Tokens a second of prefill and of plain decoding."""
    from localr1.bench.speed import decode_along, visit

    tokens = subject.tokens(depth + max(options.prompt_tokens, options.decode_tokens))
    visit(cache, tokens, depth)
    start_s = time.perf_counter()
    for _ in prefill(side.engine.model, cache, tokens[: depth + options.prompt_tokens], Speculation()):
        pass
    prefilled_s = time.perf_counter()
    visit(cache, tokens, depth)
    token_s = decode_along(side.engine.model, cache, tokens[depth : depth + options.decode_tokens])
    return options.prompt_tokens / (prefilled_s - start_s), 1 / token_s


def _section(
    comparison: Comparison, sides: list[Side], context: int, options: BenchOptions, part_bytes: int
) -> Section:
    first = sides[0]
    names = (f"prefill {options.prompt_tokens}", f"decode {options.decode_tokens}", "answers")
    base = comparison.words[0]
    rows, notes = [], []
    for word, side in zip(comparison.words, sides, strict=True):
        cells: list[Cell] = []
        verdicts = []
        for name, ours, theirs in zip(names, side.speeds(), first.speeds(), strict=True):
            ratio = paired_ratio(theirs, ours)
            cells += [Figure(tuple(ours), "tokens/s", "more"), ratio]
            verdicts.append(f"{name.split()[0]}: {judge(ratio)}")
        per_step = Figure((side.answers[0].tokens_per_step,), "", "more")
        rows.append(Row(word, (*cells, per_step, "" if side is first else "; ".join(verdicts))))
        same = all(one.tokens == first.answers[0].tokens for one in side.answers)
        words = "the answers are the same tokens" if same else _first_difference(first.answers[0], side.answers[0])
        notes += [] if side is first else [f"{word} and {base}: {words}"]
    notes.append(f"prefill and decode at a context of {context:,} tokens, without guessing; answers with it")
    notes.append(f"ratios over {base} round by round; a verdict only where every round agrees")
    if part_bytes:
        part = f"{bytes_text(part_bytes)} of GPU memory, an equal part"
        notes.append(f"each may use {part}, since all are loaded at once")
    columns = [comparison.key]
    for name in names:
        columns += [name, f"{name.split()[0]} / {base}"]
    title = f"{comparison.key}: {' against '.join(comparison.words)}, in turn"
    return Section(
        f"compare {comparison.key}", title, (*columns, "tokens a step", "verdict"), tuple(rows), tuple(notes)
    )


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Figure:
    """B over A, round by round."""
    return Figure(tuple(two / one for one, two in zip(a, b, strict=True)), "x")


def judge(ratio: Figure) -> str:
    """Whether it is faster than 1; only where all rounds agree, and there are enough of them to mean something."""
    if len(ratio.values) < 3:
        return "too few rounds to tell"
    if min(ratio.values) > 1:
        return "faster"
    if max(ratio.values) < 1:
        return "slower"
    return "too noisy to tell" if ratio.noisy else "no difference"


def _first_difference(a: Answers, b: Answers) -> str:
    pairs = zip(a.tokens, b.tokens, strict=False)
    at = next((number for number, (one, two) in enumerate(pairs) if one != two), min(len(a.tokens), len(b.tokens)))
    return f"the answers differ from token {at} of {len(a.tokens)} on"
