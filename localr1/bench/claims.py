"""`localr1 bench --claims`: the four ideas, each measured on this model and machine against a named baseline.

Owns the tables of the first and the third; `claim_cache` and `claim_experts` have the others. Sides of a comparison
take turns, and a ratio is taken round by round. What cannot be measured here is said, never left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from localr1.bench.answers import Answers, Asking, prompts
from localr1.bench.claim_cache import claim_cache
from localr1.bench.claim_experts import claim_experts
from localr1.bench.compare import judge, paired_ratio
from localr1.bench.fidelity import (
    Divergence,
    Speaker,
    compared_tokens,
    dequantized,
    divergence,
    float_source,
    in_windows,
    with_sixteen_bit_rows,
)
from localr1.bench.report import Cell, Figure, Row, Section
from localr1.bench.subject import Subject, fill_cache
from localr1.bench.turns import COLUMNS, byte_figure, decode_speed, speed_row, take_turns, times
from localr1.errors import NotFoundError, UsageError
from localr1.events import Progress
from localr1.options import BenchOptions

TEXT_TOKENS = 16
"""What decoding with 8 and with 32 bits goes on from."""


def claims(subject: Subject, options: BenchOptions) -> Progress[list[Section]]:
    """All four tables. Raises UsageError at once where the context is too short for them."""
    _check_room(subject, options)
    subject, on_gpu = yield from _on_processors(subject)
    bits = yield from claim_bits(subject, options)
    cache = yield from claim_cache(subject, options)
    guessing = yield from claim_guessing(subject, options)
    experts = yield from claim_experts(subject, options)
    sections = [bits, cache, guessing, *experts]
    if not on_gpu:
        return sections
    note = "measured on the processors alone; `--compare vram=0,8GiB` measures what the GPU gives"
    return [replace(section, notes=(*section.notes, note)) for section in sections]


def _check_room(subject: Subject, options: BenchOptions) -> None:
    limit = subject.engine.context_limit
    if TEXT_TOKENS + options.decode_tokens > limit:
        raise UsageError(
            f"{TEXT_TOKENS} tokens of text and {options.decode_tokens:,} decode tokens exceed the context of {limit:,}",
            "ask for fewer --decode-tokens, or raise --context",
        )
    prompts(subject, _answer_tokens(subject, options))


def _answer_tokens(subject: Subject, options: BenchOptions) -> int:
    return min(4 * options.decode_tokens, subject.engine.context_limit // 2)


def _on_processors(subject: Subject) -> Progress[tuple[Subject, bool]]:
    """The baselines are CPU code, so both sides run there; whether the model was on a GPU."""
    if subject.engine.on_gpu is None:
        return subject, False
    engine = yield from subject.variant(replace(subject.engine.options, vram="0"))
    return replace(subject, engine=engine), True


def claim_bits(subject: Subject, options: BenchOptions) -> Progress[Section]:
    """Bytes, speed and fidelity of the int8 rows of weights; the cache's have 16 bits on both sides."""
    engine = yield from with_sixteen_bit_rows(subject)
    ours, theirs = float(engine.weight_bytes), 4.0 * engine.parameters
    rows = [
        Row("weights", (byte_figure(ours), byte_figure(theirs), times(theirs / ours), "the same parameters in float32"))
    ]
    notes = ["scales, norms and other small tensors are counted; a small model has more of them"]
    try:
        same = dequantized(subject)
    except NotFoundError as error:
        return _bits(rows, [*notes, f"speed and fidelity against float32: not measured here, {error.message}"])
    depth, count = TEXT_TOKENS, options.decode_tokens
    tokens = subject.tokens(depth + count)
    sides = []
    for model in (engine.model, same):
        cache = engine.new_cache()
        yield from fill_cache(replace(engine, model=model), cache, tokens[:depth], False)
        sides.append(partial(decode_speed, model, cache, tokens, depth, count))
    speeds = yield from take_turns("decoding with 8 and 32 bits", sides, options.repeats)
    rows.append(speed_row("decode", speeds, "torch's float32 products of the same numbers"))
    text, plain = compared_tokens(subject, options), Speaker(engine.model, engine.new_cache)
    windows = in_windows(text)
    kernels = divergence(Speaker(same, engine.new_cache), plain, windows)
    rows += _fidelity_rows(kernels, "the same int8 numbers as float32: what the kernels add")
    try:
        exact = yield from float_source(subject)
        subject.use_threads(engine)
        rows += _fidelity_rows(divergence(Speaker(exact.model, exact.new_cache), plain, windows), "the float32 source")
    except NotFoundError as error:
        notes.append(f"against the unquantized model: not measured here, source not at hand ({error.message})")
    return _bits(rows, [*notes, f"fidelity on {len(text):,} tokens of Python's documentation"])


def _bits(rows: list[Row], notes: list[str]) -> Section:
    return Section("claim bits", "1. 8-bit instead of 32-bit numbers", COLUMNS, tuple(rows), tuple(notes))


def _fidelity_rows(found: Divergence, baseline: str) -> list[Row]:
    perplexity = Figure((found.perplexity,), "", "less"), Figure((found.reference_perplexity,), "")
    return [
        Row("perplexity", (*perplexity, times(found.reference_perplexity / found.perplexity), baseline)),
        Row("mean KL", (Figure((found.mean_kl,), "", "less"), "0", "", baseline)),
        Row("same likeliest token", (Figure((100 * found.top1_agreement,), "%", "more"), "100 %", "", baseline)),
    ]


def claim_guessing(subject: Subject, options: BenchOptions) -> Progress[Section]:
    """Answers with guessing off, at fixed depths and on auto: speed, tokens a step, and whether the tokens agree."""
    settings: dict[str, dict[str, object]] = {
        "off": {"speculate": "off", "draft_tokens": None},
        "auto": {"speculate": "auto", "draft_tokens": None},
        "always 1": {"speculate": "auto", "draft_tokens": 1},
        "always 3": {"speculate": "auto", "draft_tokens": 3},
    }
    most = _answer_tokens(subject, options)
    asked = prompts(subject, most)
    latest: dict[str, Answers] = {}
    calls = []
    for name, changes in settings.items():
        engine = yield from subject.variant(replace(subject.engine.options, **changes))  # type: ignore[arg-type]

        asking = Asking(engine, asked, most, stop=subject.shape is None)

        def one(name: str = name, asking: Asking = asking) -> float:
            latest[name] = asking()
            return latest[name].tokens_per_s

        calls.append(one)
    speeds = yield from take_turns("answering with and without guessing", calls, options.repeats)
    rows = [
        _guessing_row(name, values, speeds[0], latest[name], latest["off"])
        for name, values in zip(settings, speeds, strict=True)
    ]
    rows += _acceptance_rows(latest["always 3"])
    who = "its MTP layer" if subject.engine.mtp is not None else "the n-grams of the context"
    notes = [f"guesses come from {who}; the baseline is plain decoding of the same answers"]
    if subject.shape is not None:
        notes.append("random weights: how often a guess is right says nothing of the real model")
    columns = ("guessing", "answers", "tokens a step", "against off", "verdict", "tokens")
    return Section("claim guessing", "3. Multi-token prediction", columns, tuple(rows), tuple(notes))


def _guessing_row(name: str, speeds: Sequence[float], off: Sequence[float], said: Answers, plain: Answers) -> Row:
    ratio = paired_ratio(off, speeds)
    verdict = judge(ratio) if name != "off" else ""
    same = f"the same {len(said.tokens)}" if said.tokens == plain.tokens else "DIFFERENT"
    step = Figure((said.tokens_per_step,), "", "more")
    return Row(name, (Figure(tuple(speeds), "tokens/s", "more"), step, ratio, verdict, same))


def _acceptance_rows(said: Answers) -> list[Row]:
    rows = []
    for position in sorted(said.drafted_at):
        drafted, right = said.drafted_at[position], said.right_at[position]
        share = Figure((round(100 * right / drafted, 1),), "%", "more")
        cells: tuple[Cell, ...] = ("", share, "", "", f"{right} of {drafted}")
        rows.append(Row(f"guess {position + 1} right", cells))
    return rows
