"""The one decode loop: prefill, sample, emit.

Owns the order of things and the cache's length; knows no text. The invariant: the cache always holds rows for a
prefix of prompt + emitted tokens, whatever stopped the loop, so the next turn can start from it.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localr1.decode.cache import RowCache, Stopped, never
from localr1.decode.sampling import Sampler
from localr1.decode.speculate import Counts, Speculation
from localr1.events import PrefillProgress, StopReason
from localr1.model.registry import Model

PREFILL_CHUNK_TOKENS = 512


@dataclass(frozen=True)
class Token:
    """One emitted token; the end-of-sequence token is not emitted."""

    id: int


@dataclass(frozen=True)
class Finished:
    """Why and after how much work the loop ended."""

    reason: StopReason
    cached_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float
    counts: Counts


@torch.inference_mode()
def forward(model: Model, cache: RowCache, tokens: Sequence[int]) -> Tensor:
    """Run tokens and commit them; their hidden states [T, D]. Raises Stopped, with nothing committed."""
    hidden_TD = model.forward(torch.tensor(tokens), cache)
    cache.commit(tokens)
    return hidden_TD


@torch.inference_mode()
def logits(model: Model, hidden_TD: Tensor) -> Tensor:
    """The logits [V] after the last of some tokens."""
    return model.logits(hidden_TD[-1:])[0]


def prefill(
    model: Model, cache: RowCache, prompt: Sequence[int], speculation: Speculation
) -> Iterator[PrefillProgress | Tensor]:
    """Run what the cache lacks of `prompt`, in chunks; the last item is the logits [V] after it."""
    total = len(prompt) - cache.length
    done = 0
    hidden_TD = None
    while done < total:
        chunk = prompt[cache.length : cache.length + PREFILL_CHUNK_TOKENS]
        hidden_TD = forward(model, cache, chunk)
        speculation.observe(chunk, hidden_TD)
        done += len(chunk)
        yield PrefillProgress(done, total)
    assert hidden_TD is not None, "keep_prefix leaves at least one token"
    yield logits(model, hidden_TD)


@torch.inference_mode()
def step(model: Model, cache: RowCache, token: int) -> Tensor:
    """One token further; the logits [V] after it."""
    _, logits_TV = model.step(torch.tensor([token]), cache)
    cache.commit([token])
    return logits_TV[0]


@torch.inference_mode()
def verify(
    model: Model, cache: RowCache, tokens: Sequence[int], greedy: bool = False
) -> tuple[Tensor, Sequence[Tensor | int]]:
    """Hidden states [T, D] of tokens that are not committed yet, and the logits [V] after each; where the decoding is
    `greedy`, the likeliest token after each instead, or its logit where that is no finite number, for the sampler to
    refuse."""
    if greedy:
        hidden_TD, token_T, logit_T = model.likeliest(torch.tensor(tokens), cache)
        found = zip(token_T.tolist(), logit_T.tolist(), strict=True)
        return hidden_TD, [token if math.isfinite(logit) else torch.tensor([logit]) for token, logit in found]
    hidden_TD, logits_TV = model.step(torch.tensor(tokens), cache)
    return hidden_TD, logits_TV.unbind()


def decode(
    model: Model,
    cache: RowCache,
    sampler: Sampler,
    logits_V: Tensor,
    remaining_tokens: int,
    speculation: Speculation,
) -> Iterator[int]:
    """The tokens after `logits_V`, up to `remaining_tokens`; each is committed when the next one is asked for.

    Guesses are verified by sampling from every row in turn as plain decoding would, and going on while the sample is
    the guess: so the tokens, and the draws of a seed, are those of plain decoding, whatever was guessed (for guesses
    that are not random this accepts as often as speculative sampling, arXiv 2211.17192).
    """
    token = sampler(logits_V)
    while remaining_tokens > 0:
        yield token
        remaining_tokens -= 1
        if remaining_tokens == 0:
            return
        start_s, before = time.perf_counter(), cache.length
        guesses = speculation.guess(token, remaining_tokens - 1)
        drafted_s = time.perf_counter()
        tokens = [token, *guesses]
        hidden_TD, rows = verify(model, cache, tokens, sampler.greedy)
        verified_s = time.perf_counter()
        accepted = 0
        try:
            for row, guess in zip(rows, [*guesses, None], strict=True):
                cache.commit(tokens[accepted : accepted + 1])
                token = row if isinstance(row, int) else sampler(row)
                if token != guess:
                    break
                accepted += 1
                yield token
                remaining_tokens -= 1
        finally:
            done = cache.length - before
            all_right = done == len(tokens)
            speculation.observe(tokens[:done], hidden_TD if all_right else hidden_TD[:done])
        speculation.learn(len(guesses), accepted, drafted_s - start_s, verified_s - drafted_s)


def generate(
    model: Model,
    cache: RowCache,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    stop_ids: Collection[int],
    max_tokens: int | None = None,
    speculation: Speculation | None = None,
    should_stop: Callable[[], bool] = never,
) -> Iterator[PrefillProgress | Token | Finished]:
    """Continue `prompt`, reusing what the cache holds of it. The last item is Finished.

    `prompt` holds at least one token and leaves room in the cache. `should_stop` is asked between layers and
    between tokens. `speculation` belongs to this cache and sees all that is done to it.
    """
    speculation = speculation or Speculation()
    before = speculation.counts
    cached_tokens = keep_prefix(cache, prompt, speculation)
    limit = min(max_tokens or cache.capacity, cache.capacity - len(prompt))
    generated = 0
    start_s, decode_start_s = time.perf_counter(), 0.0
    reason: StopReason = "max_tokens" if limit == max_tokens else "context"
    cache.should_stop = should_stop
    try:
        for item in prefill(model, cache, prompt, speculation):
            if isinstance(item, Tensor):
                logits_V = item
            else:
                yield item
        decode_start_s = time.perf_counter()
        for token in decode(model, cache, sampler, logits_V, limit, speculation):
            if token in stop_ids:
                reason = "end"
                break
            generated += 1
            yield Token(token)
            if should_stop():
                reason = "interrupted"
                break
    except Stopped:
        reason = "interrupted"
    finally:
        cache.should_stop = never
    end_s = time.perf_counter()
    yield Finished(
        reason,
        cached_tokens,
        generated,
        (decode_start_s or end_s) - start_s,
        end_s - (decode_start_s or end_s),
        speculation.counts - before,
    )


def keep_prefix(cache: RowCache, prompt: Sequence[int], speculation: Speculation) -> int:
    """Cut the cache, and the drafter's, to what they share with `prompt`; how many tokens stay."""
    kept = cache.keep_prefix(prompt)
    if speculation.needs_hidden and kept:
        cache.truncate(kept - 1)
    speculation.keep(cache.length)
    return cache.length
