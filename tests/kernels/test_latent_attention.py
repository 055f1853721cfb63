"""Latent attention in fixed point against the specification in float64, at the edges of what it can hold."""

import numba
import numpy as np
import pytest

from localr1.kernels import cpu, features, reference
from tests.kernels.latent_rows import latent_bytes, numbers_of
from tests.kernels.test_cpu import FIXED_TOLERANCE, bfloat16, row_error, rows

BYTE_TOLERANCE = 3e-2 if features.BYTE_PRODUCTS else FIXED_TOLERANCE  # queries and softmax weights of 8 bits


def cache_of(kind, numbers, C):
    return np.stack([latent_bytes(row, C) for row in numbers]) if kind == "int8" else bfloat16(numbers)


def both(q, C, cache, start, scale=0.2):
    """What the kernel gives, and what the specification does."""
    latent, rotary = q[..., :C].copy(), q[..., C:].copy()
    got, want = np.full(latent.shape, np.nan, np.float32), np.empty(latent.shape)
    cpu.mla_attention(latent, rotary, cache, start, scale, got)
    with np.errstate(invalid="ignore"):
        reference.mla_attention(latent, rotary, numbers_of(cache, C).astype(np.float32), start, scale, want)
    return got, want


def tolerance_of(cache):
    return BYTE_TOLERANCE if cache.dtype == np.int8 else FIXED_TOLERANCE


def check(q, C, cache, start, scale=0.2, times=1):
    got, want = both(q, C, cache, start, scale)
    assert row_error(got, want) < times * tolerance_of(cache)


@pytest.fixture(params=["bf16", "int8"])
def kind(request):
    return request.param


@pytest.mark.parametrize("depth", [1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1000])
def test_depths(kind, depth):
    rng = np.random.default_rng(depth)
    check(rows(rng, 1, 16, 576), 512, cache_of(kind, rows(rng, depth, 576), 512), depth - 1, 24**-1)


@pytest.mark.parametrize(
    ("T", "H", "C", "R", "start"),
    [
        (1, 1, 1, 2, 0),
        (1, 3, 33, 6, 40),
        (2, 20, 48, 16, 70),
        (3, 7, 130, 10, 129),
        (4, 16, 96, 32, 3),
        (8, 40, 31, 2, 5),
        (70, 16, 33, 6, 20),  # more queries than one pass takes
    ],
)
def test_shapes(kind, T, H, C, R, start):
    rng = np.random.default_rng(T + C)
    check(rows(rng, T, H, C + R), C, cache_of(kind, rows(rng, start + T, C + R), C), start)


@pytest.mark.parametrize("latents", [1e-12, 1e12])
def test_scales(kind, latents):
    """Queries as small as latents are large, and the other way round."""
    rng = np.random.default_rng(1)
    numbers, q = rows(rng, 90, 80), rows(rng, 2, 4, 80)
    numbers[:, :64] *= np.float32(latents)
    q[..., :64] /= np.float32(latents)
    check(q, 64, cache_of(kind, numbers, 64), 88)


def test_rows_of_very_different_size(kind):
    rng = np.random.default_rng(2)
    numbers = rows(rng, 100, 80)
    numbers[:, 64:] *= 100  # rotary keys
    numbers[::3, :64] *= np.float32(1e-4)
    numbers[::7] = 0
    q = rows(rng, 1, 4, 80)
    q[..., 64:] /= 100
    check(q, 64, cache_of(kind, numbers, 64), 99)


def test_numbers_below_what_fixed_point_holds_count_as_zero(kind):
    rng = np.random.default_rng(3)
    numbers = rows(rng, 40, 80) * np.float32(1e-38)
    got, _ = both(rows(rng, 1, 4, 80), 64, cache_of(kind, numbers, 64), 39)
    assert np.abs(got).max() < 1e-36


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_that_would_overflow(kind, sign):
    """Every number as large as the largest, queries too, and all weights alike."""
    numbers = np.full((200, 576), 3.0, np.float32)
    numbers[100:] *= sign
    cache = cache_of(kind, numbers, 512)
    for q in (np.full((1, 5, 576), 2.0, np.float32), rows(np.random.default_rng(4), 1, 5, 576)):
        got, want = both(q, 512, cache, 199, 1e-4)
        assert np.abs(got - want).max() < tolerance_of(cache) * 3.0


def test_one_large_number_in_a_row(kind):
    """A row's numbers are as exact as its largest allows."""
    rng = np.random.default_rng(5)
    numbers, q = rows(rng, 70, 144), rows(rng, 1, 4, 144)
    numbers[:, 5] *= 30
    check(q, 128, cache_of(kind, numbers, 128), 69, 0.02, 4)


def test_many_small_weights_beside_a_large_one_are_not_lost(kind):
    """126 rows whose weights are too small to round to a unit each, and together are a fifth of the large one."""
    numbers, q = np.zeros((127, 80), np.float32), np.zeros((1, 3, 80), np.float32)
    numbers[0, 64], q[..., 64] = 1.0, np.log(630.0)
    numbers[0, :64], numbers[1:, :64] = 3.0, -2.0
    got, want = both(q, 64, cache_of(kind, numbers, 64), 126, 1.0)
    assert np.abs(want - 2.167).max() < 1e-2
    assert np.abs(got - want).max() < 1e-2


def test_queries_that_bytes_hold_lose_nothing(kind):
    """What is left is the rounding of the weights."""
    rng = np.random.default_rng(9)
    numbers = rng.integers(-127, 128, (300, 144)).astype(np.float32)
    q = rng.integers(-127, 128, (1, 6, 144)).astype(np.float32)
    numbers[:, 5], q[..., ::64] = 127, -127
    got, want = both(q, 128, cache_of(kind, numbers, 128), 299, 1 / 127**2 / 12)
    assert row_error(got, want) < (8e-3 if tolerance_of(cache_of(kind, numbers, 128)) == BYTE_TOLERANCE else 5e-4)


def test_a_token_gets_the_same_by_itself_and_among_others(kind):
    if not features.BITS:
        pytest.skip("float32 attention adds in an order that depends on the number of queries")
    rng = np.random.default_rng(10)
    cache, q = cache_of(kind, rows(rng, 1000, 144), 128), rows(rng, 5, 16, 144)
    together, _ = both(q, 128, cache, 995)
    for t in range(5):
        alone, _ = both(q[t : t + 1], 128, cache[: 996 + t], 995 + t)
        assert row_error(alone, together[t : t + 1]) < 1e-5


def test_a_broken_row_spoils_only_queries_that_see_it(kind, request):
    if kind == "int8" and not features.BITS:
        reason = "float32 attention multiplies values that a query does not see by a weight of 0"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    rng = np.random.default_rng(6)
    numbers, q = rows(rng, 66, 80), rows(rng, 3, 2, 80)
    whole = cache_of(kind, numbers, 64)
    good, _ = both(q, 64, whole, 63)
    broken = whole.copy()
    broken[64, -4:] = np.full(1, np.nan, np.float32).view(np.int8) if kind == "int8" else 0x7FC0
    got, _ = both(q, 64, broken, 63)
    assert np.array_equal(got[0], good[0])
    assert np.isnan(got[1:]).all()


def test_a_broken_query_spoils_no_other(kind):
    rng = np.random.default_rng(7)
    cache, q = cache_of(kind, rows(rng, 50, 80), 64), rows(rng, 1, 6, 80)
    good, _ = both(q, 64, cache, 49)
    for bad in (np.nan, np.inf):
        q[0, 2, 11] = bad
        got, _ = both(q, 64, cache, 49)
        assert np.isnan(got[0, 2]).all()
        assert np.array_equal(np.delete(got, 2, 1), np.delete(good, 2, 1))


def test_runs_of_two_threads_are_merged(kind):
    rng = np.random.default_rng(8)
    numbers, q = rows(rng, 3000, 144), rows(rng, 1, 16, 144)
    before = numba.get_num_threads()
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            check(q, 128, cache_of(kind, numbers, 128), 2999)
    finally:
        numba.set_num_threads(before)
