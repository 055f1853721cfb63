"""Every CPU kernel against the specification in float64."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.kernels import cpu, reference
from localr1.kernels.features import CHUNK

TOLERANCE = 2e-4  # of the result row's norm: activations of 15 bits
FIXED_TOLERANCE = 5e-4  # rows, queries and softmax weights of 13 to 15 bits


def rows(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def weights(rng, *shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


def bfloat16(x):
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def row_error(got, want, norm=None):
    """The largest error of a row, as a share of that row's norm (or of the one given)."""
    got, want = got.reshape(-1, got.shape[-1]).astype(np.float64), want.reshape(-1, want.shape[-1])
    norm = np.linalg.norm(want, axis=1) if norm is None else norm
    return float(np.max(np.linalg.norm(got - want, axis=1) / np.maximum(norm, 1e-30), initial=0.0))


def check_linear(x, q, scb, tolerance=TOLERANCE):
    got = np.full((x.shape[0], q.shape[0]), np.nan, np.float32)
    want = np.empty(got.shape)
    cpu.linear(x, q, scb, got)
    reference.linear(x, q, scb, want)
    expected = np.linalg.norm(x.astype(np.float64), axis=1) * np.linalg.norm(reference.dequantize(q, scb))
    assert row_error(got, want, expected / np.sqrt(x.shape[1])) < tolerance  # so that a row of one output may cancel


def check_ffn(x, experts, scb, expert, weight):
    got = np.full(x.shape, np.nan, np.float32)
    want = np.empty(x.shape)
    cpu.routed_ffn(x, experts, scb, expert, weight, got)
    reference.routed_ffn(x, experts, scb, expert, weight, want)
    assert row_error(got, want) < 2 * TOLERANCE


def make_ffn(rng, T, D, F, E, K):
    scb = rng.uniform(0.5, 2.0, (E, 2 * F + D)).astype(np.float32) / np.sqrt(D).astype(np.float32)
    expert = np.stack([rng.permutation(E)[:K] for _ in range(T)]) if T else np.empty((0, K), np.int64)
    return rows(rng, T, D), weights(rng, E, 3 * D * F), scb, expert.astype(np.int64), rng.random((T, K), np.float32)


LINEAR_SHAPES = [
    (0, 8, 4),
    (1, 1, 1),
    (1, 576, 192),
    (1, 257, 33),
    (2, 100, 77),
    (3, 1001, 65),
    (4, 64, 64),
    (5, 31, 129),
]
LINEAR_SHAPES += [
    (7, 333, 50),
    (8, 1000, 40),
    (9, 95, 61),
    (17, 130, 47),
    (63, 555, 29),
    (300, 257, 65),
    (1, 1000, 701),
]


@pytest.mark.parametrize(("T", "D", "O"), LINEAR_SHAPES)
def test_linear_equals_the_reference(T, D, O):  # noqa: E741
    rng = np.random.default_rng(T * 1000 + D)
    check_linear(rows(rng, T, D), weights(rng, O, D), rng.uniform(0.01, 3, O).astype(np.float32))


@given(T=st.integers(1, 40), D=st.integers(1, 200), O=st.integers(1, 70), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_linear_of_any_shape(T, D, O, seed):  # noqa: E741
    rng = np.random.default_rng(seed)
    check_linear(rows(rng, T, D), weights(rng, O, D), rng.uniform(0.01, 3, O).astype(np.float32))


@pytest.mark.parametrize("T", [1, 3, 8, 20, 70])
def test_linear_of_long_rows_that_would_overflow_an_int32_sum(T):
    D = 60_001  # every product has the same sign and the largest magnitude
    x = np.ones((T, D), np.float32)
    check_linear(x, np.full((5, D), 127, np.int8), np.ones(5, np.float32))
    check_linear(-x, np.full((5, D), 127, np.int8), np.ones(5, np.float32))


@pytest.mark.parametrize("T", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("vectors", [255, 511, 1023])  # one less than sums are kept apart for
def test_linear_of_the_longest_int32_sums(T, vectors):
    D = vectors * CHUNK
    check_linear(np.ones((T, D), np.float32), np.full((9, D), -128, np.int8), np.ones(9, np.float32))


@pytest.mark.parametrize("T", [1, 2, 5, 8])
@pytest.mark.parametrize("D", [64, 63, 128, 191])
def test_linear_of_numbers_at_the_ends_of_their_ranges(T, D):
    rng = np.random.default_rng(D)
    x = rng.choice(np.array([-1, -0.9961, -0.5, -0.0039, 0, 0.0039, 0.9961, 1], np.float32), (T, D))
    q = rng.choice(np.array([-128, -127, -1, 0, 1, 127], np.int8), (33, D))
    check_linear(x, q, np.ones(33, np.float32))


@pytest.mark.parametrize("T", [1, 2, 8, 33])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-6, 1e6, 1e30])
def test_linear_at_extreme_scales(T, scale):
    rng = np.random.default_rng(5)
    x = rows(rng, T, 77) * np.float32(scale)
    check_linear(x, weights(rng, 19, 77), np.full(19, 1.0, np.float32))


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("D", "outputs"), [(1537, 5), (4096, 35), (8192, 7), (9001, 3), (20_000, 33)])
def test_linear_of_long_rows(T, D, outputs):
    """Rows whose activations do not fit into the first-level cache together; numbers of rows that are no multiple."""
    rng = np.random.default_rng(D + T)
    check_linear(rows(rng, T, D), weights(rng, outputs, D), rng.uniform(0.5, 2.0, outputs).astype(np.float32))


@pytest.mark.parametrize("T", [1, 2, 4, 7, 8, 9])
@pytest.mark.parametrize("outputs", [4001, 9000])
def test_linear_of_many_rows(T, outputs):
    """Tasks as long as they may be, and the last one shorter."""
    rng = np.random.default_rng(outputs + T)
    check_linear(rows(rng, T, 96), weights(rng, outputs, 96), rng.uniform(0.5, 2.0, outputs).astype(np.float32))


@pytest.mark.parametrize("T", [1, 3, 8, 40])
def test_routed_ffn_of_long_tasks(T):
    """Groups of few tokens beside one of many, and more rows than a task may have."""
    x, experts, scb, expert, weight = make_ffn(np.random.default_rng(T), T, 1100, 1301, 5, 2)
    expert[:, 0] = 0
    expert[expert[:, 1] == 0, 1] = 1
    check_ffn(x, experts, scb, expert, weight)


@pytest.mark.parametrize("T", [1, 4, 20])
def test_linear_with_one_huge_outlier_keeps_the_error_small_against_the_row(T):
    rng = np.random.default_rng(6)
    x = rows(rng, T, 500)
    x[:, 13] = 3000.0  # every other activation is rounded to steps of 3000 / 32767
    check_linear(x, weights(rng, 40, 500), np.ones(40, np.float32), 2.5 * TOLERANCE)


@pytest.mark.parametrize("T", [1, 2, 8, 33])
def test_zero_and_denormal_rows(T):
    x = np.zeros((T, 100), np.float32)
    x[T // 2] = 1e-42
    out = np.full((T, 9), np.nan, np.float32)
    cpu.linear(x, weights(np.random.default_rng(0), 9, 100), np.ones(9, np.float32), out)
    assert np.all(np.isfinite(out))
    assert np.abs(out).max() <= 100 * 1e-42 * 1.01
    assert not np.any(np.delete(out, T // 2, axis=0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("T", [1, 4, 33])
def test_a_broken_row_shows_and_spoils_no_other(T, bad):
    rng = np.random.default_rng(1)
    x, q, scb = rows(rng, T, 70), weights(rng, 12, 70), np.ones(12, np.float32)
    good, out = np.empty((T, 12), np.float32), np.empty((T, 12), np.float32)
    cpu.linear(x, q, scb, good)
    x[T - 1, 5] = bad
    cpu.linear(x, q, scb, out)
    assert not np.any(np.isfinite(out[T - 1][q[:, 5] != 0]))
    np.testing.assert_array_equal(out[: T - 1], good[: T - 1])


FFN_SHAPES = [(0, 8, 4, 2, 1), (1, 576, 96, 1, 1), (1, 70, 33, 8, 3), (2, 129, 31, 6, 2), (5, 64, 64, 3, 3)]
FFN_SHAPES += [(8, 100, 44, 4, 4), (30, 50, 75, 5, 2), (70, 96, 33, 2, 1), (150, 65, 47, 7, 3), (4, 260, 161, 6, 3)]


@pytest.mark.parametrize(("T", "D", "F", "E", "K"), FFN_SHAPES)
def test_routed_ffn_equals_the_reference(T, D, F, E, K):
    check_ffn(*make_ffn(np.random.default_rng(T + D), T, D, F, E, K))


@given(T=st.integers(1, 30), D=st.integers(16, 90), F=st.integers(16, 70), E=st.integers(1, 6), data=st.data())
@settings(max_examples=30, deadline=None)
def test_routed_ffn_of_any_shape(T, D, F, E, data):
    K = data.draw(st.integers(1, E))
    check_ffn(*make_ffn(np.random.default_rng(data.draw(st.integers(0, 9))), T, D, F, E, K))


@pytest.mark.parametrize("T", [1, 6, 40])
def test_negative_expert_numbers_add_nothing(T):
    x, experts, scb, expert, weight = make_ffn(np.random.default_rng(2), T, 60, 37, 6, 3)
    expert[:, 1] = -1
    expert[T // 2] = -1
    check_ffn(x, experts, scb, expert, weight)


@pytest.mark.parametrize("named", [slice(None), slice(2)])
@pytest.mark.parametrize("T", [1, 2, 6, 8, 9, 12])
def test_an_expert_named_twice_counts_twice(T, named):
    x, experts, scb, expert, weight = make_ffn(np.random.default_rng(3), T, 60, 37, 4, 3)
    expert[:, named] = 2
    check_ffn(x, experts, scb, expert, weight)


def test_routed_ffn_with_saturated_gates():
    x, experts, scb, expert, weight = make_ffn(np.random.default_rng(3), 3, 60, 37, 4, 2)
    check_ffn(x * np.float32(1e4), experts, scb, expert, weight)


def check_mla(rng, T, H, C, R, start, bf16, scale=0.2, spread=1.0, tolerance=None, spare=3):
    q_latent, q_rope, cache = rows(rng, T, H, C), rows(rng, T, H, R), rows(rng, start + T + spare, C + R)
    q_latent *= np.float32(spread)
    cache[start + T :] = np.nan  # rows that no token may see
    cache = bfloat16(cache) if bf16 else cache
    got, want = np.full((T, H, C), np.nan, np.float32), np.empty((T, H, C))
    cpu.mla_attention(q_latent, q_rope, cache, start, scale, got)
    reference.mla_attention(q_latent, q_rope, cache, start, scale, want)
    assert row_error(got, want) < (tolerance or (FIXED_TOLERANCE if bf16 else TOLERANCE))


MLA_SHAPES = [
    (0, 2, 8, 4, 3),
    (1, 1, 1, 1, 0),
    (1, 16, 64, 16, 300),
    (1, 5, 33, 7, 0),
    (2, 3, 40, 8, 65),
    (8, 4, 19, 3, 130),
]
MLA_SHAPES += [(20, 3, 24, 8, 11), (1, 128, 32, 8, 70), (2, 16, 64, 16, 700)]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("T", "H", "C", "R", "start"), MLA_SHAPES)
def test_mla_attention_equals_the_reference(T, H, C, R, start, bf16):
    check_mla(np.random.default_rng(T + start), T, H, C, R, start, bf16)


@pytest.mark.parametrize(("spread", "tolerance"), [(0.0, FIXED_TOLERANCE), (100.0, 5e-3)])  # scores to 340: near ties
def test_mla_attention_with_flat_and_with_peaked_scores(spread, tolerance):
    check_mla(np.random.default_rng(4), 2, 4, 32, 8, 500, True, spread=spread, tolerance=tolerance)


def check_gqa(rng, T, H, G, d, start, bf16, spread=1.0, tolerance=TOLERANCE):
    q, cache = rows(rng, T, H, d) * np.float32(spread), rows(rng, start + T + 3, 2 * G * d)
    cache[start + T :] = np.nan
    cache = bfloat16(cache) if bf16 else cache
    got, want = np.full((T, H, d), np.nan, np.float32), np.empty((T, H, d))
    cpu.gqa_attention(q, cache, G, start, 0.3, got)
    reference.gqa_attention(q, cache, G, start, 0.3, want)
    assert row_error(got, want) < tolerance


GQA_SHAPES = [
    (0, 2, 1, 8, 3),
    (1, 1, 1, 1, 0),
    (1, 9, 3, 64, 300),
    (2, 6, 2, 17, 64),
    (8, 4, 4, 20, 131),
    (21, 6, 3, 24, 9),
    (1, 2, 2, 16, 31),
    (3, 28, 4, 128, 77),
    (4, 6, 2, 64, 700),
    (7, 8, 2, 48, 2),
]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("T", "H", "G", "d", "start"), GQA_SHAPES)
def test_gqa_attention_equals_the_reference(T, H, G, d, start, bf16):
    check_gqa(np.random.default_rng(T + start), T, H, G, d, start, bf16)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("d", [20, 64])
def test_gqa_attention_with_peaked_scores(d, bf16):
    check_gqa(np.random.default_rng(5), 2, 6, 2, d, 500, bf16, spread=100.0, tolerance=1e-3)


@pytest.mark.parametrize("d", [20, 64])
@pytest.mark.parametrize("column", [0, -1])  # of a key, of a value
def test_gqa_attention_shows_a_visible_row_that_is_no_number(d, column):
    rng = np.random.default_rng(6)
    q, cache, out = rows(rng, 1, 4, d), rows(rng, 40, 4 * d), np.zeros((1, 4, d), np.float32)
    cache[17, column] = np.nan
    cpu.gqa_attention(q, bfloat16(cache), 2, 39, 0.3, out)
    broken = slice(0, 2) if column == 0 else slice(2, 4)
    assert np.isnan(out[0, broken]).any(axis=1).all()
    assert np.isfinite(np.delete(out[0], broken, axis=0)).all()


@settings(max_examples=30, deadline=None)
@given(T=st.integers(0, 9), D=st.integers(1, 70), scale=st.sampled_from([1e-18, 1.0, 1e15]), seed=st.integers(0, 99))
def test_rms_norm_equals_the_reference(T, D, scale, seed):
    rng = np.random.default_rng(seed)
    x, weight = rows(rng, T, D) * np.float32(scale), rows(rng, D)
    got, want = np.full((T, D), np.nan, np.float32), np.empty((T, D))
    cpu.rms_norm(x, weight, 1e-6, got)
    reference.rms_norm(x, weight, 1e-6, want)
    assert row_error(got, want) < 1e-5


def test_weights_may_be_read_only():
    rng = np.random.default_rng(0)
    q, scb = weights(rng, 20, 64), np.ones(20, np.float32)
    q.flags.writeable = False
    check_linear(rows(rng, 1, 64), q, scb)


@pytest.mark.parametrize(
    "call",
    [
        lambda f, i: cpu.linear(f(2, 8), i(4, 9), f(4), f(2, 4)),
        lambda f, i: cpu.linear(f(2, 8), i(4, 8), f(4), f(2, 5)),
        lambda f, i: cpu.routed_ffn(f(1, 8), i(2, 25), f(2, 10), np.zeros((1, 1), np.int64), f(1, 1), f(1, 8)),
        lambda f, i: cpu.routed_ffn(f(1, 8), i(2, 24), f(2, 10), np.full((1, 1), 2), f(1, 1), f(1, 8)),
        lambda f, i: cpu.mla_attention(f(2, 3, 8), f(2, 3, 4), f(5, 12), 4, 1.0, f(2, 3, 8)),
        lambda f, i: cpu.mla_attention(f(2, 3, 8), f(2, 3, 4), f(5, 11), 0, 1.0, f(2, 3, 8)),
        lambda f, i: cpu.gqa_attention(f(1, 3, 8), f(5, 32), 2, 0, 1.0, f(1, 3, 8)),
    ],
)
def test_shapes_that_disagree_are_refused(call):
    with pytest.raises(ValueError, match=r"attention|linear|routed_ffn"):
        call(lambda *s: np.zeros(s, np.float32), lambda *s: np.zeros(s, np.int8))


@pytest.mark.parametrize("size", [1024, 5 * 1024 + 17, 100_000])
def test_the_streaming_read_sees_every_whole_kilobyte(size):
    data = np.zeros(size, np.int8)
    assert cpu.read(data) == 0
    for place in (1023, size // 1024 * 1024 - 8):
        data[:] = 0
        data[place // 8 * 8] = 3
        assert cpu.read(data) == 3


def test_parallel_regions_from_the_disk_find_threads():
    """In a process of its own, where nothing has started any."""
    code = """
import llvmlite.binding as llvm
from localr1.kernels import symbols
symbols.define_symbols()
assert llvm.address_of_symbol("numba_parallel_for")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loops_are_in_one_order_whichever_module_is_imported_first():
    """Code from the disk tells their addresses in the order of the process that compiled it."""
    code = "from localr1.kernels import {}, symbols; print(*symbols.present_loops())"
    orders = {
        subprocess.run([sys.executable, "-c", code.format(first)], check=True, capture_output=True, text=True).stdout
        for first in ("packing", "up_projection_loops", "byte_attention_loops", "few_query_loops")
    }
    assert len(orders) == 1
