"""The loop on tiny models of both kinds: the reference's tokens, and a cache that equals what was emitted."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.decode import generate as loop
from localr1.decode.cache import RowCache
from localr1.decode.generate import Finished, Token, generate
from localr1.decode.sampling import Sampler, Sampling
from localr1.errors import LocalR1Error
from localr1.events import PrefillProgress
from tests import tiny

GREEDY = Sampling(temperature=0)
PROMPT = tiny.tokens(19, seed=3).tolist()
FAMILIES = ("llama", "deepseek_v3")
MODELS = {name: tiny.make(name) for name in FAMILIES}


def new_cache(model: Any, capacity: int = 64) -> RowCache:
    return RowCache(model.config.cache_layers, model.config.cache_width, capacity, torch.float32)


def run(model: Any, cache: RowCache, prompt: list[int], **settings: Any) -> tuple[list[int], Finished]:
    items = list(generate(model, cache, prompt, Sampler(GREEDY), **{"stop_ids": (), "max_tokens": 20, **settings}))
    assert isinstance(items[-1], Finished)
    return [item.id for item in items if isinstance(item, Token)], items[-1]


def reference_tokens(family: str, count: int) -> list[int]:
    tokens = torch.tensor(PROMPT)
    for _ in range(count):
        tokens = torch.cat((tokens, tiny.reference_logits(MODELS[family], tokens)[-1:].argmax(-1)))
    return tokens[len(PROMPT) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_greedy_tokens_are_the_references(family: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PREFILL_CHUNK_TOKENS", chunk)
    model = tiny.build_float(MODELS[family])
    tokens, finished = run(model, new_cache(model), PROMPT)
    assert tokens == reference_tokens(family, 20)
    assert (finished.reason, finished.generated_tokens, finished.cached_tokens) == ("max_tokens", 20, 0)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_greedy_decoding_draws_nothing_of_logits_that_are_no_numbers(number: float) -> None:
    model = tiny.build_float(MODELS["llama"])
    likeliest, steps = model.likeliest, []

    def broken(token_T: torch.Tensor, cache: RowCache) -> Any:
        hidden_TD, best_T, logit_T = likeliest(token_T, cache)
        steps.append(len(token_T))
        return hidden_TD, best_T, logit_T if len(steps) < 3 else torch.full_like(logit_T, number)

    model.likeliest = broken  # type: ignore[method-assign]
    said = []
    with pytest.raises(LocalR1Error, match="out of range"):
        for item in generate(model, new_cache(model), PROMPT, Sampler(GREEDY), stop_ids=(), max_tokens=20):
            said += [item.id] if isinstance(item, Token) else []
    assert said == reference_tokens("llama", 3)


def test_prefill_progress_ends_at_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PREFILL_CHUNK_TOKENS", 8)
    model = tiny.build_float(MODELS["llama"])
    items = generate(model, new_cache(model), PROMPT, Sampler(GREEDY), stop_ids=(), max_tokens=1)
    progress = [item for item in items if isinstance(item, PrefillProgress)]
    assert [(one.done_tokens, one.total_tokens) for one in progress] == [(8, 19), (16, 19), (19, 19)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_is_not_run_again_and_changes_nothing(family: str) -> None:
    model = tiny.build_float(MODELS[family])
    cache = new_cache(model)
    run(model, cache, PROMPT, max_tokens=5)
    second = [*PROMPT[:12], 7, 8, 9]
    tokens, finished = run(model, cache, second)
    assert finished.cached_tokens == 12
    assert tokens == run(model, new_cache(model), second)[0]


def test_the_end_token_ends_and_is_not_emitted() -> None:
    model = tiny.build_float(MODELS["llama"])
    wanted = reference_tokens("llama", 20)
    tokens, finished = run(model, new_cache(model), PROMPT, stop_ids=(wanted[4],))
    assert tokens == wanted[: wanted.index(wanted[4])] and finished.reason == "end"


def test_the_context_is_filled_to_the_last_token_and_no_further() -> None:
    model = tiny.build_float(MODELS["llama"])
    tokens, finished = run(model, new_cache(model, len(PROMPT) + 3), PROMPT)
    assert len(tokens) == 3 and finished.reason == "context"


@settings(max_examples=20, deadline=None)
@given(leave_after=st.integers(0, 12), family=st.sampled_from(FAMILIES))
def test_wherever_the_consumer_leaves_the_cache_is_a_prefix_of_what_was_said(leave_after: int, family: str) -> None:
    model = tiny.build_float(MODELS[family])
    cache = new_cache(model)
    items: Iterator[Any] = generate(model, cache, PROMPT, Sampler(GREEDY), stop_ids=(), max_tokens=20)
    said = list(PROMPT)
    for _ in range(leave_after):
        item = next(items)
        if isinstance(item, Token):
            said.append(item.id)
    items.close()
    held = list(cache.tokens)
    assert held == said[: len(held)] and len(held) >= len(said) - 1 - (len(PROMPT) if leave_after == 0 else 0)
    again, _ = run(model, cache, PROMPT)
    assert again == run(model, new_cache(model), PROMPT)[0]


def test_stopping_ends_the_turn_as_interrupted() -> None:
    model = tiny.build_float(MODELS["llama"])
    seen: list[Any] = []

    def three_tokens_seen() -> bool:
        return sum(isinstance(item, Token) for item in seen) == 3

    items = generate(
        model,
        new_cache(model),
        PROMPT,
        Sampler(GREEDY),
        stop_ids=(),
        max_tokens=20,
        should_stop=three_tokens_seen,
    )
    for item in items:
        seen.append(item)  # noqa: PERF402  (the predicate reads it as it grows)
    assert seen[-1].reason == "interrupted" and seen[-1].generated_tokens == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1])
def test_stopping_between_two_layers_leaves_the_cache_as_it_was(family: str, layer: int) -> None:
    model = tiny.build_float(MODELS[family])
    cache = new_cache(model)
    run(model, cache, PROMPT[:9], max_tokens=1)
    held, asked = list(cache.tokens), iter(range(100))

    def at_that_layer() -> bool:
        return next(asked) >= layer

    tokens, finished = run(model, cache, PROMPT, should_stop=at_that_layer)
    assert (tokens, finished.reason) == ([], "interrupted")
    assert list(cache.tokens) == held == PROMPT[:9]
    assert run(model, cache, PROMPT)[0] == reference_tokens(family, 20)
