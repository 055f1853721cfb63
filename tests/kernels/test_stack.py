"""Layers in one call give what they give one by one."""

import numba
import numpy as np
import pytest

from localr1.kernels import blocks
from tests.kernels.test_blocks import cache_of, matrix, rotations
from tests.kernels.test_cpu import rows, weights

if not blocks.MOST_ROWS:
    pytest.skip("no integer vector path on this processor", allow_module_level=True)

from localr1.kernels import stacked
from localr1.kernels.drafting import MOST_GUESSES, Draft
from localr1.kernels.mtp_block import MtpFront
from localr1.kernels.stacked import Stack
from localr1.kernels.vocabulary_head import HeadBlock

EPS, D, H, G, d, E, K = 1e-6, 128, 4, 2, 32, 6, 2


def feed_forward(rng, scratch, sparse, F):
    routed, shared = None, None
    if sparse:
        experts = weights(rng, E, 3 * D * F), np.full((E, 2 * F + D), 0.05, np.float32)
        routed = blocks.Routed(*experts, rows(rng, E, D), None, K, False, 1, 1, True, 1.0)
    else:
        shared = weights(rng, 1, 3 * D * F), np.full((1, 2 * F + D), 0.05, np.float32)
    return blocks.FeedForwardBlock(np.ones(D, np.float32), EPS, routed, shared, scratch)


def make_layers(rng, scratch, count, F):
    layers = []
    for layer in range(count):
        given = blocks.GqaWeights(
            np.ones(D, np.float32),
            matrix(rng, H * d, D),
            matrix(rng, G * d, D),
            matrix(rng, G * d, D),
            None,
            None,
            matrix(rng, D, H * d),
        )
        attention = blocks.gqa_block(given, H, G, False, EPS, d**-0.5, scratch)
        layers.append((attention, feed_forward(rng, scratch, layer > 0, F)))
    return layers


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("T", [1, 3])
def test_a_stack_is_its_layers_one_by_one(T, threads):
    rng, scratch, S = np.random.default_rng(T), blocks.Scratch(), 20
    layers = make_layers(rng, scratch, 5, F=3000)  # large enough for several threads
    stack, (cos, sin) = Stack(layers, scratch), rotations(rng, T, d)
    start_x, caches = rows(rng, T, D), rows(rng, len(layers), S, 2 * G * d)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        x, kept, chosen = start_x.copy(), caches.copy(), []
        for (attention, feed), cache in zip(layers, kept, strict=True):
            attention(x, cos, sin, cache)
            chosen.append(feed(x))
        for _ in range(30):
            got, mine = start_x.copy(), caches.copy()
            experts = stack(got, cos, sin, mine)
            assert np.array_equal(got, x)
            assert np.array_equal(mine, kept)
            assert all(np.array_equal(*pair) for pair in zip(experts[1:], chosen[1:], strict=True))
    finally:
        numba.set_num_threads(before)
    assert experts.shape == (5, T, K) and not np.array_equal(x, start_x)


def test_a_stack_refuses_what_does_not_fit():
    rng, scratch = np.random.default_rng(0), blocks.Scratch()
    stack, (cos, sin) = Stack(make_layers(rng, scratch, 2, F=16), scratch), rotations(rng, 1, d)
    caches = rows(rng, 2, 4, 2 * G * d)
    with pytest.raises(ValueError, match="gqa_block"):
        stack(rows(rng, 1, D), cos, sin, caches[:, :, 1:])
    with pytest.raises(ValueError, match="rows"):
        stack(rows(rng, blocks.MOST_ROWS + 1, D), cos, sin, caches)


def test_a_stack_may_have_no_experts():
    rng, scratch = np.random.default_rng(0), blocks.Scratch()
    (attention, feed), (cos, sin) = make_layers(rng, scratch, 1, F=16)[0], rotations(rng, 2, d)
    start_x, cache = rows(rng, 2, D), rows(rng, 1, 4, 2 * G * d)
    x, kept = start_x.copy(), cache.copy()
    attention(x, cos, sin, kept[0])
    feed(x)
    assert Stack([(attention, feed)], scratch)(start_x, cos, sin, cache).shape == (1, 2, 0)
    assert np.array_equal(start_x, x) and np.array_equal(cache, kept)


LATENT_HEADS, NOPE, ROPE, LATENT = 8, 16, 8, 64


def latent_attention(rng, scratch):
    heads = LATENT_HEADS
    given = blocks.MlaWeights(
        np.ones(D, np.float32),
        matrix(rng, heads * (NOPE + ROPE), D),
        None,
        None,
        matrix(rng, LATENT + ROPE, D),
        np.ones(LATENT, np.float32),
        rows(rng, heads, 2 * NOPE, LATENT) / np.float32(np.sqrt(LATENT)),
        matrix(rng, D, heads * NOPE),
    )
    return blocks.mla_block(given, NOPE, ROPE, True, EPS, EPS, (NOPE + ROPE) ** -0.5, scratch)


def make_draft(rng, scratch, V, carries_normed, latent=False):
    """A draft and its parts."""
    ones = np.ones(D, np.float32)
    front = MtpFront(matrix(rng, V, D), ones, ones, matrix(rng, D, 2 * D), EPS, scratch)
    attention = latent_attention(rng, scratch) if latent else make_layers(rng, scratch, 1, F=16)[0][0]
    feed = feed_forward(rng, scratch, True, F=16)
    head = HeadBlock(np.linspace(0.5, 1.5, D, dtype=np.float32), EPS, matrix(rng, V, D), scratch)
    return Draft(front, (attention, feed), head, scratch, carries_normed), (front, attention, feed, head)


@pytest.mark.parametrize("latent", ["", "bf16", "int8"])
@pytest.mark.parametrize("carries_normed", [False, True])
@pytest.mark.parametrize("count", [1, 2, MOST_GUESSES])
@pytest.mark.parametrize("T", [1, 3, blocks.MOST_ROWS])
def test_a_draft_is_its_parts_one_by_one(T, count, carries_normed, latent, monkeypatch):
    S = 950 if latent else 20  # just enough for a token's heads to cut the cache into runs
    monkeypatch.setattr(blocks, "SMALL_WORK", 1)
    monkeypatch.setattr(stacked, "SMALL_WORK", 1)
    rng, scratch, V = np.random.default_rng(T), blocks.Scratch(), 50
    draft, (front, attention, feed, head) = make_draft(rng, scratch, V, carries_normed, bool(latent))
    cos, sin = rotations(rng, T + count - 1, ROPE if latent else d)
    hidden, cache = rows(rng, T, D), rows(rng, 1, S + count - 1, 2 * G * d)[0]
    if latent:
        cache = cache_of(rng, latent, S + count - 1, LATENT, LATENT + ROPE)
    tokens, kept, chosen, guesses = list(range(7, 7 + T)), cache.copy(), [], []
    pairs, states, done = tokens, hidden, 0
    for end in range(S, S + count):
        x = front(pairs, states)
        attention(x, cos[done : done + len(pairs)], sin[done : done + len(pairs)], kept[:end])
        done += len(pairs)
        last, normed = x[-1:].copy(), np.empty((1, D), np.float32)
        chosen.append(feed(last)[0])
        best, top = np.empty(1, np.int64), np.empty(1, np.float32)
        head.likeliest(last, normed, best, top)
        pairs, states = best.tolist(), normed if carries_normed else last
        guesses += pairs
    for _ in range(2):
        mine = cache.copy()
        got = draft(tokens, hidden, cos, sin, mine, count)
        assert got.tokens == guesses and np.array_equal(mine, kept)
        assert np.array_equal(got.expert_NK, chosen) and np.array_equal(got.carried_1D, states)
    assert count < MOST_GUESSES or len(set(guesses)) > 2


def test_drafts_of_changing_sizes_do_not_disturb_each_other():
    rng, scratch, S, V = np.random.default_rng(0), blocks.Scratch(), 30, 50
    draft, _ = make_draft(rng, scratch, V, False)
    cos, sin = rotations(rng, 12, d)
    hidden, cache = rows(rng, 4, D), rows(rng, 1, S, 2 * G * d)[0]

    def guesses(T, count):
        new = T + count - 1
        return draft(list(range(T)), hidden[:T], cos[:new], sin[:new], cache[: 10 + new].copy(), count).tokens

    first = {(T, count): guesses(T, count) for T in (1, 2, 4) for count in (1, 3, 8)}
    assert all(guesses(*sizes) == first[sizes] for sizes in reversed(first))
    assert all(first[T, 8][:3] == first[T, 3] and first[T, 3][:1] == first[T, 1] for T in (1, 2, 4))


def test_a_draft_refuses_what_does_not_fit():
    rng, scratch, V = np.random.default_rng(0), blocks.Scratch(), 50
    draft, _ = make_draft(rng, scratch, V, False)
    cos, sin = rotations(rng, 1, d)
    hidden, cache = rows(rng, 1, D), rows(rng, 1, 4, 2 * G * d)[0]
    with pytest.raises(ValueError, match="tokens"):
        draft([V], hidden, cos, sin, cache, 1)
    with pytest.raises(ValueError, match="guesses"):
        draft([0], hidden, cos, sin, cache, MOST_GUESSES + 1)
    with pytest.raises(ValueError, match="gqa_block"):
        draft([0], hidden, cos, sin, cache, 2)
