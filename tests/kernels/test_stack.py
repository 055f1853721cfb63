"""Layers in one call give what they give one by one."""

import numba
import numpy as np
import pytest

from localr1.kernels import blocks
from tests.kernels.test_blocks import matrix, rotations
from tests.kernels.test_cpu import rows, weights

if not blocks.MOST_ROWS:
    pytest.skip("no integer vector path on this processor", allow_module_level=True)

from localr1.kernels.stacked import Stack

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
    start_x, caches = rows(rng, T, D), [rows(rng, S, 2 * G * d) for _ in layers]
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        x, kept, chosen = start_x.copy(), [cache.copy() for cache in caches], []
        for (attention, feed), cache in zip(layers, kept, strict=True):
            attention(x, cos, sin, cache)
            chosen.append(feed(x))
        for _ in range(30):
            got, mine = start_x.copy(), [cache.copy() for cache in caches]
            experts = stack(got, cos, sin, mine)
            assert np.array_equal(got, x)
            assert all(np.array_equal(*pair) for pair in zip(mine, kept, strict=True))
            assert all(np.array_equal(*pair) for pair in zip(experts[1:], chosen[1:], strict=True))
    finally:
        numba.set_num_threads(before)
    assert experts.shape == (5, T, K) and not np.array_equal(x, start_x)


def test_a_stack_refuses_what_does_not_fit():
    rng, scratch = np.random.default_rng(0), blocks.Scratch()
    stack, (cos, sin) = Stack(make_layers(rng, scratch, 2, F=16), scratch), rotations(rng, 1, d)
    caches = [rows(rng, 4, 2 * G * d) for _ in range(2)]
    with pytest.raises(ValueError, match="gqa_block"):
        stack(rows(rng, 1, D), cos, sin, [caches[0], caches[1][:, 1:]])
    with pytest.raises(ValueError, match="rows"):
        stack(rows(rng, blocks.MOST_ROWS + 1, D), cos, sin, caches)
