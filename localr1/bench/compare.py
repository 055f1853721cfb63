"""Two settings of one option, measured in turn in one run: `--compare KEY=A,B`.

Owns the parsing of such a request and the A/B. Every round runs both settings, in the order A B, then B A, and so on;
the ratio is taken round by round, so a machine whose speed drifts does not matter. Invariant: a verdict other than "no
difference" is given only where every round agrees on the side.
"""

import dataclasses
import time
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from localr1.bench.answers import Answers, answer, prompts
from localr1.bench.report import Figure, Row, Section
from localr1.bench.subject import Subject, fill_cache
from localr1.decode.generate import prefill
from localr1.decode.speculate import Speculation
from localr1.errors import UsageError
from localr1.events import LoadProgress, Progress
from localr1.options import BenchOptions, EngineOptions
from localr1.session import Engine

EXAMPLE = "for example --compare speculate=off,auto"


@dataclass(frozen=True)
class Comparison:
    """One option and its two values, as typed and as options."""

    key: str
    words: tuple[str, str]
    options: tuple[EngineOptions, EngineOptions]


def parse_comparison(text: str, base: EngineOptions) -> Comparison:
    """`speculate=off,auto`. Raises UsageError for an unknown option, a value it cannot have, or other than two."""
    key, _, values = text.partition("=")
    name = key.strip().lstrip("-").replace("-", "_")
    kinds = typing.get_type_hints(EngineOptions)
    if name not in kinds:
        raise UsageError(f"--compare {text}: there is no engine option {key!r}", f"it can be: {', '.join(kinds)}")
    words = tuple(value.strip() for value in values.split(","))
    if len(words) != 2 or not all(words) or words[0] == words[1]:
        raise UsageError(f"--compare {text}: two different values are compared", EXAMPLE)
    converted = [_convert(word, kinds[name], text) for word in words]
    limits = next(field.metadata["limits"] for field in dataclasses.fields(EngineOptions) if field.name == name)
    for value in converted:
        if isinstance(value, int) and not limits.get("min", value) <= value <= limits.get("max", value):
            raise UsageError(f"--compare {text}: {value} is out of range", f"{name} is {limits}")
    first, second = (replace(base, **{name: value}) for value in converted)
    return Comparison(name, (words[0], words[1]), (first, second))


def _convert(word: str, kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal:
        if word not in typing.get_args(kind):
            raise UsageError(
                f"--compare {text}: {word!r} is not possible", f"it can be: {', '.join(typing.get_args(kind))}"
            )
        return word
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if types.NoneType in kinds and word in ("none", "default"):
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


def compare(subject: Subject, options: BenchOptions, comparison: Comparison) -> Progress[Section]:
    """Measure both settings `options.repeats` times after a warm-up."""
    sides = []
    for wanted in comparison.options:
        engine = yield from subject.variant(wanted)
        sides.append(Side(engine, [], [], []))
    context = _context(subject, options)
    caches = []
    for side in sides:
        cache = side.engine.new_cache()
        subject.use_threads(side.engine)
        if context:
            yield from fill_cache(side.engine, cache, subject.tokens(context), subject.shape is not None)
        caches.append(cache)
    asked = prompts(subject, _answer_tokens(subject, options))
    for repeat in range(options.repeats + 1):
        yield LoadProgress(f"comparing {comparison.key}", repeat, options.repeats + 1)
        order = (0, 1) if repeat % 2 else (1, 0)
        for number in order:
            _round(subject, options, sides[number], caches[number], asked, keep=repeat > 0)
    return _section(comparison, sides, context, options)


def _context(subject: Subject, options: BenchOptions) -> int:
    """The deepest context asked for that fits."""
    from localr1.bench.speed import usable_depths

    return usable_depths(options, subject.engine.context_limit, subject.engine.name)[0][-1]


def _answer_tokens(subject: Subject, options: BenchOptions) -> int:
    return min(4 * options.decode_tokens, subject.engine.context_limit // 2)


def _round(
    subject: Subject, options: BenchOptions, side: Side, cache: Any, asked: Sequence[Sequence[int]], keep: bool
) -> None:
    from localr1.bench.speed import decode_along, visit

    subject.use_threads(side.engine)
    depth = _context(subject, options)
    tokens = subject.tokens(depth + max(options.prompt_tokens, options.decode_tokens))
    visit(cache, tokens, depth)
    start_s = time.perf_counter()
    for _ in prefill(side.engine.model, cache, tokens[: depth + options.prompt_tokens], Speculation()):
        pass
    prefilled_s = time.perf_counter()
    visit(cache, tokens, depth)
    decode_start_s = time.perf_counter()
    decode_along(side.engine.model, cache, tokens[depth : depth + options.decode_tokens])
    decode_s = time.perf_counter() - decode_start_s
    answers = answer(side.engine, asked, _answer_tokens(subject, options), stop=subject.shape is None)
    if keep:
        side.prefill.append(options.prompt_tokens / (prefilled_s - start_s))
        side.decode.append(options.decode_tokens / decode_s)
        side.answers.append(answers)


def _section(comparison: Comparison, sides: list[Side], context: int, options: BenchOptions) -> Section:
    a, b = sides
    rows = [
        _row(f"prefill {options.prompt_tokens} at {context:,}", a.prefill, b.prefill),
        _row(f"decode {options.decode_tokens} at {context:,}, no guessing", a.decode, b.decode),
        _row("answers", *([one.tokens_per_s for one in side.answers] for side in sides)),
    ]
    per_step = [Figure((side.answers[0].tokens_per_step,), "tokens", "more") for side in sides]
    rows.append(Row("tokens a step", (*per_step, "", "")))
    same = all(one.tokens == a.answers[0].tokens for side in sides for one in side.answers)
    notes = ["the answers are the same tokens" if same else _first_difference(a.answers[0], b.answers[0])]
    notes.append("ratio: B over A round by round; a side wins only where every round agrees")
    first, second = (f"{comparison.key}={word}" for word in comparison.words)
    columns = ("tokens/s", first, second, "B / A", "verdict")
    return Section(
        f"compare {comparison.key}={','.join(comparison.words)}",
        f"{first} against {second}",
        columns,
        tuple(rows),
        tuple(notes),
    )


def _row(label: str, a: Sequence[float], b: Sequence[float]) -> Row:
    ratio = paired_ratio(a, b)
    return Row(label, (Figure(tuple(a), "tokens/s", "more"), Figure(tuple(b), "tokens/s", "more"), ratio, judge(ratio)))


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Figure:
    """B over A, round by round."""
    return Figure(tuple(two / one for one, two in zip(a, b, strict=True)), "x")


def judge(ratio: Figure) -> str:
    """Which side is faster; only where all rounds agree, and there are enough of them to mean something."""
    if len(ratio.values) < 3:
        return "too few rounds to tell"
    if ratio.low > 1:
        return "B is faster"
    if ratio.high < 1:
        return "A is faster"
    return "too noisy to tell" if ratio.noisy else "no difference"


def _first_difference(a: Answers, b: Answers) -> str:
    pairs = zip(a.tokens, b.tokens, strict=False)
    at = next((number for number, (one, two) in enumerate(pairs) if one != two), min(len(a.tokens), len(b.tokens)))
    return f"the answers differ from token {at} of {len(a.tokens)} on"
