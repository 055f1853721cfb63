"""Guessing never changes what is said: not greedy, not sampled, not wherever it stops."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from localr1.decode.cache import RowCache
from localr1.decode.depth import DEEPEST, AutoDepth, FixedDepth
from localr1.decode.draft import LookupDrafter, MtpDrafter
from localr1.decode.generate import Finished, Token, decode, generate, verify
from localr1.decode.sampling import Sampler, Sampling, probabilities
from localr1.decode.speculate import Speculation
from localr1.events import result_of
from localr1.kernels.features import BYTE_PRODUCTS
from localr1.kernels.packing import FEW
from localr1.model import registry
from localr1.model.attention import KERNEL_ROWS
from localr1.options import EngineOptions
from localr1.session import Engine, load
from tests import tiny

FAMILIES = ("deepseek_v3", "glm4_moe_lite")
CAPACITY = 80


def build(family: str) -> tuple[Any, Any]:
    model = tiny.with_mtp(family)
    weights, experts = tiny.FloatWeights(model.state), tiny.FloatExperts(model.state)
    main = registry.build(model.config, weights, experts, kernel_rows=0)
    return main, registry.build_mtp(model.config, weights, experts, main, kernel_rows=0)


MODELS = {family: build(family) for family in FAMILIES}


def new_cache(family: str, layers: int = 3, first_layer: int = 0) -> RowCache:
    return RowCache(layers, MODELS[family][0].config.cache_width, CAPACITY, torch.float32, first_layer)


def mtp_drafter(family: str) -> MtpDrafter:
    return MtpDrafter(MODELS[family][1], new_cache(family, 1, tiny.MTP_LAYER))


class OracleDrafter(LookupDrafter):
    """Knows the answer, but errs where told to: so acceptance is what the test wants."""

    def __init__(self, answer: Sequence[int], prompt_tokens: int, wrong: set[int]) -> None:
        super().__init__()
        self._answer, self._prompt_tokens, self._wrong = answer, prompt_tokens, wrong

    def kind(self, token: int) -> int | None:
        return 0

    def draft(self, token: int, count: int) -> list[int]:
        at = len(self._tokens) + 1 - self._prompt_tokens
        right = self._answer[at : at + count]
        return [(token + 1) % 96 if at + i in self._wrong else token for i, token in enumerate(right)]


def run(family: str, prompt: list[int], speculation: Speculation | None, **changes: Any) -> tuple[list[int], Finished]:
    cache = changes.pop("cache", None) or new_cache(family)
    sampler = Sampler(changes.pop("sampling", Sampling(temperature=0)))
    arguments = {"stop_ids": (), "max_tokens": 24, "speculation": speculation, **changes}
    items = list(generate(MODELS[family][0], cache, prompt, sampler, **arguments))
    assert isinstance(items[-1], Finished)
    return [item.id for item in items if isinstance(item, Token)], items[-1]


def drafter_of(kind: str, family: str, prompt: list[int], wrong: set[int]) -> Any:
    if kind == "mtp":
        return mtp_drafter(family)
    if kind == "lookup":
        return LookupDrafter()
    return OracleDrafter(run(family, prompt, None, max_tokens=60)[0], len(prompt), wrong)


@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    kind=st.sampled_from(["mtp", "lookup", "oracle"]),
    prompt=st.lists(st.integers(0, 95), min_size=1, max_size=20),
    depth=st.integers(1, 5),
    wrong=st.sets(st.integers(0, 30)),
    max_tokens=st.integers(1, 24),
    stop_at=st.integers(0, 30),
    sampled=st.booleans(),
)
def test_the_tokens_are_those_of_plain_decoding(
    family: str,
    kind: str,
    prompt: list[int],
    depth: int,
    wrong: set[int],
    max_tokens: int,
    stop_at: int,
    sampled: bool,
) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=3) if sampled else Sampling(temperature=0)
    plain, _ = run(family, prompt, None, sampling=sampling)
    stop_ids = (plain[stop_at],) if stop_at < len(plain) else ()
    wanted, wanted_end = run(family, prompt, None, sampling=sampling, max_tokens=max_tokens, stop_ids=stop_ids)
    speculation = Speculation(drafter_of(kind, family, prompt, wrong), FixedDepth(depth))
    cache = new_cache(family)
    found, end = run(
        family, prompt, speculation, cache=cache, sampling=sampling, max_tokens=max_tokens, stop_ids=stop_ids
    )
    assert (found, end.reason) == (wanted, wanted_end.reason)
    said = prompt + found
    assert list(cache.tokens) == said[: cache.length] and cache.length >= len(said) - 1


@settings(max_examples=8, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    kind=st.sampled_from(["mtp", "lookup"]),
    leave_after=st.integers(1, 12),
    shared=st.integers(0, 25),
    depth=st.integers(1, 4),
)
def test_a_consumer_that_leaves_and_a_next_turn_change_nothing(
    family: str, kind: str, leave_after: int, shared: int, depth: int
) -> None:
    prompt = tiny.tokens(15, seed=4).tolist()
    speculation = Speculation(drafter_of(kind, family, prompt, set()), FixedDepth(depth))
    cache = new_cache(family)
    items: Iterator[Any] = generate(
        MODELS[family][0], cache, prompt, Sampler(Sampling(temperature=0)), stop_ids=(), speculation=speculation
    )
    said = list(prompt)
    said += [item.id for item in itertools.islice(items, leave_after) if isinstance(item, Token)]
    items.close()  # type: ignore[attr-defined]
    assert list(cache.tokens) == said[: cache.length]
    second = [*said[:shared], 5, 6, 7]
    assert run(family, second, speculation, cache=cache)[0] == run(family, second, None)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_mtp_cache_has_no_holes_and_drafts_as_if_it_had_seen_all_at_once(family: str, depth: int) -> None:
    prompt = tiny.tokens(12, seed=6).tolist()
    drafter = mtp_drafter(family)
    cache = new_cache(family)
    tokens, _ = run(family, prompt, Speculation(drafter, FixedDepth(depth)), cache=cache, max_tokens=9)
    turn = [*prompt, *tokens[:4], 3, 4]
    more, _ = run(family, turn, Speculation(drafter, FixedDepth(depth)), cache=cache, max_tokens=5)
    fresh = mtp_drafter(family)
    said = [*turn, *more]
    hidden_TD = MODELS[family][0].forward(torch.tensor(said), new_cache(family))
    fresh.observe(said[: cache.length], hidden_TD[: cache.length])
    if fresh.behind:
        fresh.catch_up()
    assert drafter.draft(said[cache.length], 4) == fresh.draft(said[cache.length], 4)


@pytest.mark.parametrize("kind", ["off", "mtp", "oracle"])
def test_a_forward_is_foretold_with_its_tokens_and_the_state_before_them(kind: str) -> None:
    """Over two turns, with guesses right and wrong; the state is that of the last token that was committed."""
    family, prompt = FAMILIES[0], tiny.tokens(7, seed=2).tolist()
    told: list[tuple[list[int], Tensor]] = []
    run_tokens: list[tuple[int, list[int]]] = []
    model = MODELS[family][0]

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def likeliest(self, token_T: Tensor, cache: RowCache) -> Any:
            run_tokens.append((cache.length, token_T.tolist()))
            return model.likeliest(token_T, cache)

    drafter = None if kind == "off" else drafter_of(kind, family, prompt, {2, 5, 6})
    depth = FixedDepth(0 if drafter is None else 2)
    speculation = Speculation(drafter, depth, lambda tokens, hidden_D: told.append((list(tokens), hidden_D.clone())))
    cache, sampler = new_cache(family), Sampler(Sampling(temperature=0))
    items = list(
        generate(Watched(), cache, prompt, sampler, stop_ids=(), max_tokens=12, speculation=speculation)  # type: ignore[arg-type]
    )
    said = prompt + [item.id for item in items if isinstance(item, Token)]
    hidden_TD = model.forward(torch.tensor(said), new_cache(family))
    assert [tokens for tokens, _ in told] == [tokens for _, tokens in run_tokens] and len(told) > 3
    for (_, before_D), (length, _) in zip(told, run_tokens, strict=True):
        assert torch.allclose(before_D, hidden_TD[length - 1], atol=1e-4)


@pytest.fixture(scope="module", params=["int8", "bf16"])
def nano(request: pytest.FixtureRequest) -> Engine:
    """The built-in model, with either cache: int8 rows and, where the processor has them, the kernels of few rows."""
    return result_of(load("nano", EngineOptions(threads=2, kv=request.param)))


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["mtp", "lookup"]),
    prompt=st.lists(st.integers(3, 767), min_size=1, max_size=40),
    times=st.integers(1, 8),
    depth=st.integers(1, DEEPEST),
    max_tokens=st.integers(1, 40),
    temperature=st.sampled_from([0.0, 0.8]),
)
def test_eight_bit_weights_say_the_same_too(
    nano: Engine, kind: str, prompt: list[int], times: int, depth: int, max_tokens: int, temperature: float
) -> None:
    prompt = prompt * times

    def said(speculation: Speculation | None) -> list[int]:
        sampler = Sampler(Sampling(temperature, seed=5))
        found = generate(
            nano.model, nano.new_cache(), prompt, sampler, stop_ids=(), max_tokens=max_tokens, speculation=speculation
        )
        return [item.id for item in found if isinstance(item, Token)]

    options = replace(nano.options, speculate=kind, draft_tokens=depth)
    speculation = replace(nano, options=options).new_speculation()
    assert said(speculation) == said(None)
    assert speculation.counts.drafted > 0 or kind == "lookup" or max_tokens <= 2


def test_steps_with_guesses_go_through_the_kernels_of_a_single_token() -> None:
    """Nine rows are another computation, which rounds otherwise: nano said other words for one prompt in twelve."""
    (drafting,) = (field for field in fields(EngineOptions) if field.name == "draft_tokens")
    assert drafting.metadata["limits"]["max"] == DEEPEST == FEW - 1 == KERNEL_ROWS - 1


@pytest.mark.skipif(not BYTE_PRODUCTS, reason="products of words add up in another order for one token")
@pytest.mark.parametrize("before", [1, 10, 63, 64, 65, 200, 300])
def test_a_token_gets_to_the_last_bit_what_it_would_get_alone(nano: Engine, before: int) -> None:
    """Rows of the cache that come with a step, behind a token, must not show in what it gets from those before."""
    token_T = torch.randint(3, 767, (before + FEW,), generator=torch.Generator().manual_seed(before))
    prompt_T, next_T = token_T[:before], token_T[before:]

    def after_prompt() -> RowCache:
        cache = nano.new_cache()
        nano.model.forward(prompt_T, cache)
        cache.commit(prompt_T.tolist())
        return cache

    with torch.inference_mode():
        cache, alone = after_prompt(), []
        for token_1 in next_T.split(1):
            alone.append(nano.model.forward(token_1, cache)[0])
            cache.commit(token_1.tolist())
        for count in range(2, FEW + 1):
            together = nano.model.forward(next_T[:count], after_prompt())
            assert torch.equal(together, torch.stack(alone[:count]))


class Recorded:
    """A model whose logits depend on the last two tokens in a fixed random way, over a tiny vocabulary."""

    VOCAB = 4

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.table = 1.5 * torch.randn(self.VOCAB, self.VOCAB, self.VOCAB, generator=generator)
        self.previous = 0

    def forward(self, token_T: Tensor, cache: RowCache) -> Tensor:
        before = torch.tensor([cache.tokens[-1] if cache.tokens else 0])
        return torch.stack((torch.cat((before, token_T[:-1])), token_T), dim=1)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        return self.table[hidden_TD[:, 0], hidden_TD[:, 1]]

    def step(self, token_T: Tensor, cache: RowCache) -> tuple[Tensor, Tensor]:
        hidden_TD = self.forward(token_T, cache)
        return hidden_TD, self.logits(hidden_TD)


class Guesser(LookupDrafter):
    def kind(self, token: int) -> int | None:
        return 0

    def draft(self, token: int, count: int) -> list[int]:
        return [(token + 1) % Recorded.VOCAB] * count


def believing(
    model: Any, cache: RowCache, tokens: Sequence[int], greedy: bool
) -> tuple[Tensor, Sequence[Tensor | int]]:
    """A verification that takes every guess as right, as a careless speculation would."""
    hidden_TD, rows = verify(model, cache, tokens, greedy)
    certain = [torch.zeros(Recorded.VOCAB).index_fill_(0, torch.tensor(guess), 100.0) for guess in tokens[1:]]
    return hidden_TD, [*certain, rows[-1]]


def chi_square(sampling: Sampling, draws: int) -> float:
    """Of the first three tokens together, over all that can happen; divided by the degrees of freedom."""
    model: Any = Recorded()
    sampler = Sampler(sampling)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(draws):
        cache = RowCache(1, 1, 16, torch.float32)
        cache.commit([1])
        speculation = Speculation(Guesser(), FixedDepth(2))
        counts[tuple(decode(model, cache, sampler, model.table[0, 1], 3, speculation))] += 1
    p1 = probabilities(model.table[0, 1], sampling)
    statistic, cells = 0.0, 0
    for a, b, c in itertools.product(range(4), repeat=3):
        p2, p3 = probabilities(model.table[1, a], sampling), probabilities(model.table[a, b], sampling)
        expected = draws * float(p1[a] * p2[b] * p3[c])
        if expected == 0 and counts[a, b, c]:
            return math.inf
        if expected:
            statistic += (counts[a, b, c] - expected) ** 2 / expected
            cells += 1
    return statistic / (cells - 1)


@pytest.mark.parametrize("sampling", [Sampling(1.0, 1.0, seed=11), Sampling(0.7, 0.9, top_k=3, min_p=0.05, seed=12)])
def test_the_joint_distribution_is_that_of_plain_decoding(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chi_square(sampling, 8_000) < 1.6
    monkeypatch.setattr("localr1.decode.generate.verify", believing)
    assert chi_square(sampling, 4_000) > 3


def simulate(policy: Any, right: float, row_s: float, steps: int, draft_s: float = 0.1) -> tuple[float, float]:
    """Tokens a second of a policy, and of the best fixed depth, where rows beyond the first cost `row_s` each."""
    generator = torch.Generator().manual_seed(0)
    tokens = seconds = 0.0
    for _ in range(steps):
        depth = policy.choose(0)
        hits = 0
        while hits < depth and float(torch.rand(1, generator=generator)) < right:
            hits += 1
        step_s = 1 + depth * row_s
        policy.learn(0, depth, hits, step_s + depth * draft_s)
        tokens += 1 + hits
        seconds += step_s + depth * draft_s
    best = max(
        sum(right**i for i in range(depth + 1)) / (1 + depth * (row_s + draft_s)) for depth in range(DEEPEST + 1)
    )
    return tokens / seconds, best


@pytest.mark.parametrize(
    ("right", "row_s"), [(0.9, 0.05), (0.8, 0.3), (0.5, 0.1), (0.3, 0.6), (0.05, 0.05), (0.0, 1.0)]
)
def test_auto_comes_close_to_the_best_depth(right: float, row_s: float) -> None:
    reached, best = simulate(AutoDepth(DEEPEST), right, row_s, 3000)
    assert reached > 0.95 * best


def test_auto_comes_back_when_luck_turns() -> None:
    policy = AutoDepth(DEEPEST)
    simulate(policy, 0.0, 1.0, 500)
    assert policy.choose(0) == 0 or policy.choose(0) == 0
    reached, best = simulate(policy, 0.95, 0.05, 3000)
    assert reached > 0.8 * best


def test_lookup_proposes_what_followed_and_nothing_new() -> None:
    drafter = LookupDrafter()
    drafter.observe([1, 2, 3, 4, 5, 9, 2, 3], torch.zeros(8, 1))
    assert drafter.kind(4) == 1 and drafter.draft(4, 3) == [5, 9, 2]
    assert drafter.kind(7) is None
    drafter.observe([4, 5, 9, 2], torch.zeros(4, 1))
    assert drafter.kind(3) == 2, "2 3 4 5 9 2 3: more than 4 tokens agree"
    drafter.keep(3)
    drafter.observe([8], torch.zeros(1, 1))
    assert drafter.kind(4) is None


class Cycle:
    """Allows a third of the tokens, another third after each one; forgets nothing that it is told."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed(self) -> np.ndarray:
        return np.arange(90) % 3 == len(self.taken) % 3

    def take(self, token: int) -> None:
        self.taken.append(token)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_holds_for_every_row_that_is_verified(family: str, temperature: float) -> None:
    prompt, said = [5, 6, 7, 5, 6], []
    for drafter in (None, mtp_drafter(family), LookupDrafter()):
        sampler, cycle = Sampler(Sampling(temperature, seed=3)), Cycle()
        sampler.constraint = cycle
        speculation = Speculation(drafter, FixedDepth(3)) if drafter else None
        items = list(
            generate(
                MODELS[family][0],
                new_cache(family),
                prompt,
                sampler,
                stop_ids=(),
                max_tokens=24,
                speculation=speculation,
            )
        )
        tokens = [item.id for item in items if isinstance(item, Token)]
        assert tokens == cycle.taken and len(tokens) == 24
        assert all(token < 90 and token % 3 == at % 3 for at, token in enumerate(tokens))
        said.append(tokens)
    assert said[0] == said[1] == said[2]
