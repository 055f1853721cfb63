"""The second claim: a compressed cache, against keys and values of all heads, and its rows in 8 bits against 16.

Owns that table. Where latent and expanded cache are compared in speed, neither side's attention is fused with what is
around it, so only the cache and its kernel differ; where 8 and 16 bits are, both run as they are shipped.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import psutil
import torch

from localr1.bench.expanded import cache_width, expanded_twin, unfused_twin
from localr1.bench.fidelity import Speaker, compared_tokens, divergence, in_windows, with_sixteen_bit_rows
from localr1.bench.floor import expanded_values
from localr1.bench.report import Figure, Row, Section
from localr1.bench.speed import parse_depths
from localr1.bench.subject import Subject, random_rows
from localr1.bench.turns import COLUMNS, byte_figure, decode_speed, speed_row, take_turns, times
from localr1.decode.cache import RowCache
from localr1.errors import NotFoundError
from localr1.events import LoadProgress, Progress
from localr1.model.config import GqaConfig, MlaConfig
from localr1.model.registry import Model
from localr1.options import BenchOptions
from localr1.placement.linear import StoreWeights

LARGEST_SHARE = 0.5
"""Of the free RAM, what a baseline may take."""


def claim_cache(subject: Subject, options: BenchOptions) -> Progress[Section]:
    """Bytes a token, and decoding at depth with either cache really kept and read."""
    mla, title = subject.engine.config.attention, "2. A compressed key-value cache"
    if isinstance(mla, GqaConfig):
        ours = float(subject.engine.new_cache().token_nbytes)
        row = _bytes_row("bytes a token", ours, ours * mla.num_heads / mla.num_kv_heads, "keys and values of all heads")
        note = "grouped-query attention: there is no latent to compare"
        return Section("claim cache", title, COLUMNS, (row,), (note,))
    engine = yield from with_sixteen_bit_rows(subject)
    subject = replace(subject, engine=engine)
    depths, notes = _depths(subject, options, mla)
    rows = yield from _against_expanded(subject, options, mla, depths)
    rows += yield from _against_sixteen_bits(subject, options, depths)
    notes.append("both unfused: neither attention shares a call with what is around it, so the caches alone differ")
    padding = cache_width(mla) * engine.config.num_layers / expanded_values(engine.config, mla)
    if padding > 1:
        notes.append(f"decoding reads {padding:.2f}x the expanded cache's bytes: values are padded to the keys' width")
    return Section("claim cache", title, COLUMNS, tuple(rows), tuple(notes))


def _bytes_row(label: str, ours: float, theirs: float, baseline: str) -> Row:
    return Row(label, (byte_figure(ours), byte_figure(theirs), times(theirs / ours), baseline))


def _depths(subject: Subject, options: BenchOptions, mla: MlaConfig) -> tuple[list[int], list[str]]:
    """The contexts to decode at, and why others are left out."""
    fitting, notes = [], []
    for depth in filter(None, parse_depths(options.depths)):
        try:
            _check_room(subject, mla, depth + options.decode_tokens)
            fitting.append(depth)
        except NotFoundError as error:
            notes.append(f"decode at {depth:,}: not measured here, {error.message}")
    return fitting, notes


def _against_expanded(
    subject: Subject, options: BenchOptions, mla: MlaConfig, depths: Sequence[int]
) -> Progress[list[Row]]:
    """The latent against keys and values of all heads."""
    engine, rows = subject.engine, []
    ours = float(engine.new_cache().token_nbytes)
    for kind, size in (("bf16", 2), ("float32", 4)):
        baseline = f"keys and values of all {mla.num_heads} heads in {kind}"
        rows.append(_bytes_row(f"bytes a token, {kind}", ours, size * expanded_values(engine.config, mla), baseline))
    twin = expanded_twin(engine.model, engine.config, mla, StoreWeights(subject.store))
    baseline = "keys and values of all heads in bf16, both unfused"
    for depth in depths:
        speeds = yield from _cache_speeds(subject, options, mla, twin, depth)
        rows.append(speed_row(f"decode at {depth:,}", speeds, baseline))
    rows.append((yield from _same_words(subject, mla, twin)))
    return rows


def _against_sixteen_bits(subject: Subject, options: BenchOptions, depths: Sequence[int]) -> Progress[list[Row]]:
    """`--kv int8` against `--kv bf16`, both as shipped: bytes, speed at depth and fidelity."""
    plain, count = subject.engine, options.decode_tokens
    eight = yield from subject.variant(replace(plain.options, kv="int8"))
    ours, theirs = (float(engine.new_cache().token_nbytes) for engine in (eight, plain))
    baseline = "the same latents in bf16"
    rows = [_bytes_row("bytes a token, int8 rows", ours, theirs, baseline)]
    for depth in depths:
        tokens, sides = subject.tokens(depth + count), []
        for engine in (eight, plain):
            cache = engine.new_cache()
            random_rows(cache, engine.config.num_layers, engine.config.cache_width, tokens[:depth])
            sides.append(partial(decode_speed, engine.model, cache, tokens, depth, count))
        what = f"decoding at {depth:,} with rows of 8 and 16 bits"
        speeds = yield from take_turns(what, sides, options.repeats)
        rows.append(speed_row(f"decode at {depth:,}, int8 rows", speeds, baseline))
    yield LoadProgress("comparing what rows of 8 and 16 bits say")
    sixteen = Speaker(plain.model, plain.new_cache)
    windows = in_windows(compared_tokens(subject, options))
    found = divergence(sixteen, Speaker(eight.model, eight.new_cache), windows)
    agreement = Figure((100 * found.top1_agreement,), "%", "more")
    return [
        *rows,
        Row("mean KL, int8 rows", (Figure((found.mean_kl,), "", "less"), "0", "", baseline)),
        Row("same likeliest token, int8 rows", (agreement, "100 %", "", baseline)),
    ]


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
        sides.append(partial(decode_speed, model, cache, tokens, depth, count))
    return (yield from take_turns(f"decoding at {depth:,} with either cache", sides, options.repeats))


@torch.inference_mode()
def _same_words(subject: Subject, mla: MlaConfig, twin: Model) -> Progress[Row]:
    """How far the next-token distributions with either cache lie apart."""
    yield LoadProgress("comparing what either cache says")
    engine = subject.engine
    tokens = torch.tensor(subject.tokens(min(64, engine.context_limit)))
    cache = RowCache(engine.config.num_layers, cache_width(mla), len(tokens), torch.bfloat16)
    p = torch.log_softmax(twin.logits(twin.forward(tokens, cache)), dim=-1)
    q = torch.log_softmax(engine.model.logits(engine.model.forward(tokens, engine.new_cache())), dim=-1)
    kl = max(float((p.exp() * (p - q)).sum(-1).mean()), 0.0)
    return Row("mean KL", (Figure((kl,), "", "less"), "0", "", "the expanded cache, bf16"))
