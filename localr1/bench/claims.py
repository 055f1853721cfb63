"""`localr1 bench --claims`: the four ideas, each measured on this model and machine against a named baseline.

Owns the tables of the first three; the experts' is `claim_experts`. Sides of a comparison take turns, and a ratio is
taken round by round. What cannot be measured here is said, never left out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import psutil
import torch

from localr1.bench.answers import Answers, answer, prompts
from localr1.bench.claim_experts import claim_experts
from localr1.bench.compare import judge, paired_ratio
from localr1.bench.expanded import cache_width, expanded_twin, unfused_twin
from localr1.bench.fidelity import Divergence, Speaker, compared_tokens, dequantized, divergence, float_source
from localr1.bench.floor import expanded_values
from localr1.bench.report import Cell, Figure, Row, Section
from localr1.bench.speed import decode_along, parse_depths, visit
from localr1.bench.subject import Subject, fill_cache
from localr1.decode.cache import RowCache
from localr1.errors import NotFoundError
from localr1.events import LoadProgress, Progress
from localr1.model.config import GqaConfig, MlaConfig
from localr1.model.registry import Model
from localr1.options import BenchOptions
from localr1.placement.linear import StoreWeights

COLUMNS = ("", "ours", "baseline", "better by", "the baseline is")
LARGEST_SHARE = 0.5
"""Of the free RAM, what a baseline may take."""


def claims(subject: Subject, options: BenchOptions) -> Progress[list[Section]]:
    """All four tables."""
    sections = [(yield from claim_bits(subject, options))]
    section = yield from claim_cache(subject, options)
    sections.append(section)
    section = yield from claim_guessing(subject, options)
    sections.append(section)
    more = yield from claim_experts(subject, options)
    return [*sections, *more]


def take_turns(what: str, calls: Sequence[Callable[[], float]], repeats: int) -> Progress[list[tuple[float, ...]]]:
    """Call each in turn, forwards and backwards, after a round that is dropped; what each returned, round by round."""
    found: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        yield LoadProgress(what, repeat, repeats + 1)
        order = list(range(len(calls)))
        for number in order if repeat % 2 else order[::-1]:
            value = calls[number]()
            if repeat:
                found[number].append(value)
    return [tuple(values) for values in found]


def decode_speed(model: Model, cache: RowCache, tokens: Sequence[int], depth: int, count: int) -> float:
    """Tokens a second of decoding `count` tokens along a text whose first `depth` are in the cache's rows."""
    visit(cache, tokens, depth)
    start_s = time.perf_counter()
    decode_along(model, cache, tokens[depth : depth + count])
    return count / (time.perf_counter() - start_s)


def claim_bits(subject: Subject, options: BenchOptions) -> Progress[Section]:
    """Bytes, speed and fidelity of the int8 rows."""
    engine = subject.engine
    ours, theirs = float(engine.weight_bytes), 4.0 * engine.parameters
    rows = [Row("weights", (_bytes(ours), _bytes(theirs), _x(theirs / ours), "the same parameters in float32"))]
    notes = ["scales, norms and other small tensors are counted; a small model has more of them"]
    try:
        same = dequantized(subject)
    except NotFoundError as error:
        return _bits(rows, [*notes, f"speed and fidelity against float32: not measured here, {error.message}"])
    depth, count = 16, options.decode_tokens
    tokens = subject.tokens(depth + count)
    sides = []
    for model in (engine.model, same):
        cache = engine.new_cache()
        yield from fill_cache(replace(engine, model=model), cache, tokens[:depth], False)
        sides.append(lambda model=model, cache=cache: decode_speed(model, cache, tokens, depth, count))
    speeds = yield from take_turns("decoding with 8 and 32 bits", sides, options.repeats)
    rows.append(speed_row("decode", speeds, "torch's float32 products of the same numbers"))
    text, plain = compared_tokens(subject, options), Speaker(engine.model, engine.new_cache)
    kernels = divergence(Speaker(same, engine.new_cache), plain, text)
    rows += _fidelity_rows(kernels, "the same int8 numbers as float32: what the kernels add")
    try:
        exact = yield from float_source(subject)
        subject.use_threads(engine)
        rows += _fidelity_rows(divergence(Speaker(exact.model, exact.new_cache), plain, text), "the float32 source")
    except NotFoundError as error:
        notes.append(f"against the unquantized model: not measured here, source not at hand ({error.message})")
    return _bits(rows, [*notes, f"fidelity on {len(text):,} tokens of text"])


def _bits(rows: list[Row], notes: list[str]) -> Section:
    return Section("claim bits", "1. 8-bit instead of 32-bit numbers", COLUMNS, tuple(rows), tuple(notes))


def _fidelity_rows(found: Divergence, baseline: str) -> list[Row]:
    perplexity = Figure((found.perplexity,), "", "less"), Figure((found.reference_perplexity,), "")
    return [
        Row("perplexity", (*perplexity, _x(found.reference_perplexity / found.perplexity), baseline)),
        Row("mean KL", (Figure((found.mean_kl,), "", "less"), "0", "", baseline)),
        Row("same likeliest token", (Figure((100 * found.top1_agreement,), "%", "more"), "100 %", "", baseline)),
    ]


def claim_cache(subject: Subject, options: BenchOptions) -> Progress[Section]:
    """Bytes a token, and decoding at depth with either cache really kept and read."""
    engine, title = subject.engine, "2. A compressed key-value cache"
    mla, ours = engine.config.attention, float(engine.new_cache().token_nbytes)
    if isinstance(mla, GqaConfig):
        theirs = ours * mla.num_heads / mla.num_kv_heads
        row = Row("bytes a token", (_bytes(ours), _bytes(theirs), _x(theirs / ours), "keys and values of all heads"))
        note = "grouped-query attention: there is no latent to compare"
        return Section("claim cache", title, COLUMNS, (row,), (note,))
    rows = []
    for kind, size in (("bf16", 2), ("float32", 4)):
        theirs = float(size * expanded_values(engine.config, mla))
        baseline = f"keys and values of all {mla.num_heads} heads in {kind}"
        rows.append(Row(f"bytes a token, {kind}", (_bytes(ours), _bytes(theirs), _x(theirs / ours), baseline)))
    notes = ["decoding: both with the attention in parts, so that only the cache differs"]
    baseline, padding = "all heads' keys and values kept expanded", _padding(engine.config.num_layers, mla)
    if padding > 1:
        notes.append(f"decoding reads {padding:.2f}x the expanded cache's bytes: values are padded to the keys' width")
    twin = expanded_twin(engine.model, engine.config, mla, StoreWeights(subject.store))
    wanted = [depth for depth in parse_depths(options.depths) if depth]
    for depth in wanted:
        try:
            _check_room(subject, mla, depth + options.decode_tokens)
        except NotFoundError as error:
            notes.append(f"decode at {depth:,}: not measured here, {error.message}")
            continue
        speeds = yield from _cache_speeds(subject, options, mla, twin, depth)
        rows.append(speed_row(f"decode at {depth:,}", speeds, baseline))
    rows.append((yield from _same_words(subject, mla, twin)))
    return Section("claim cache", title, COLUMNS, tuple(rows), tuple(notes))


def _padding(layers: int, mla: MlaConfig) -> float:
    needed = mla.num_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim)
    return cache_width(mla) / needed


def _check_room(subject: Subject, mla: MlaConfig, tokens: int) -> None:
    if tokens > subject.engine.context_limit:
        raise NotFoundError(f"the context holds {subject.engine.context_limit:,} tokens")
    needed = 2 * cache_width(mla) * subject.engine.config.num_layers * tokens
    free = psutil.virtual_memory().available
    if needed > LARGEST_SHARE * free:
        raise NotFoundError(f"the expanded cache needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def _cache_speeds(
    subject: Subject, options: BenchOptions, mla: MlaConfig, twin: Model, depth: int
) -> Progress[list[tuple[float, ...]]]:
    """Decode speeds of (latent, expanded), both at this depth of random rows: what a row holds costs nothing."""
    engine, count = subject.engine, options.decode_tokens
    tokens = subject.tokens(depth + count)
    sides = []
    layers = engine.config.num_layers
    for model, width in ((unfused_twin(engine.model), engine.config.cache_width), (twin, cache_width(mla))):
        cache = RowCache(layers, width, depth + count, torch.bfloat16)
        random_rows(cache, layers, width, tokens[:depth])
        sides.append(lambda model=model, cache=cache: decode_speed(model, cache, tokens, depth, count))
    return (yield from take_turns(f"decoding at {depth:,} with either cache", sides, options.repeats))


def random_rows(cache: RowCache, layers: int, width: int, tokens: Sequence[int]) -> None:
    """Fill a cache with small random rows."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(tokens), 256):
        part = tokens[start : start + 256]
        for layer in range(layers):
            cache.append(layer, 0.1 * torch.randn(len(part), width, generator=generator))
        cache.commit(part)


@torch.inference_mode()
def _same_words(subject: Subject, mla: MlaConfig, twin: Model) -> Progress[Row]:
    """How far the next-token distributions with either cache lie apart."""
    yield LoadProgress("comparing what either cache says")
    engine = subject.engine
    tokens = torch.tensor(subject.tokens(64))
    cache = RowCache(engine.config.num_layers, cache_width(mla), len(tokens), torch.bfloat16)
    p = torch.log_softmax(twin.logits(twin.forward(tokens, cache)), dim=-1)
    q = torch.log_softmax(engine.model.logits(engine.model.forward(tokens, engine.new_cache())), dim=-1)
    kl = max(float((p.exp() * (p - q)).sum(-1).mean()), 0.0)
    return Row("mean KL", (Figure((kl,), "", "less"), "0", "", "the expanded cache, bf16"))


def claim_guessing(subject: Subject, options: BenchOptions) -> Progress[Section]:
    """Answers with guessing off, at fixed depths and on auto: speed, tokens a step, and whether the tokens agree."""
    settings: dict[str, dict[str, object]] = {
        "off": {"speculate": "off", "draft_tokens": None},
        "auto": {"speculate": "auto", "draft_tokens": None},
        "always 1": {"speculate": "auto", "draft_tokens": 1},
        "always 3": {"speculate": "auto", "draft_tokens": 3},
    }
    most = min(4 * options.decode_tokens, subject.engine.context_limit // 2)
    asked = prompts(subject, most)
    latest: dict[str, Answers] = {}
    calls = []
    for name, changes in settings.items():
        engine = yield from subject.variant(replace(subject.engine.options, **changes))  # type: ignore[arg-type]

        def one(name: str = name, engine: object = engine) -> float:
            latest[name] = answer(engine, asked, most, stop=subject.shape is None)  # type: ignore[arg-type]
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


def speed_row(label: str, speeds: Sequence[Sequence[float]], baseline: str) -> Row:
    """Ours and the baseline's tokens a second, and the one over the other round by round."""
    ours, theirs = (Figure(tuple(values), "tokens/s", "more") for values in speeds)
    return Row(label, (ours, theirs, paired_ratio(theirs.values, ours.values), baseline))


def _bytes(count: float) -> Figure:
    return Figure((count,), "B", "less")


def _x(ratio: float) -> Figure:
    return Figure((ratio,), "x")
