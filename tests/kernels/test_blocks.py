"""The fused layers against the same layers put together from the float64 specification."""

import numba
import numpy as np
import pytest

from localr1.kernels import blocks, cpu, features, reference
from localr1.kernels.mtp_block import MtpFront
from localr1.kernels.vocabulary_head import HeadBlock
from tests.kernels.latent_rows import latent_bytes, numbers_of
from tests.kernels.test_cpu import bfloat16, row_error, rows, weights

if not blocks.MOST_ROWS:
    pytest.skip("no integer vector path on this processor", allow_module_level=True)

TOLERANCE = 2e-3  # several roundings to 15 bits in a row
BYTE_TOLERANCE = 2e-2 if features.BYTE_PRODUCTS else TOLERANCE  # queries and softmax weights of 8 bits
EPS = 1e-6


def matrix(rng, outputs, inputs, bias=False):
    scb = (rng.uniform(0.5, 2.0, outputs) * 1.7 / np.sqrt(inputs)).astype(np.float32)
    return blocks.Matrix(weights(rng, outputs, inputs), scb, rows(rng, outputs) if bias else None)


def product(x, m):
    out = np.empty((len(x), len(m.q_OD)))
    reference.linear(x, m.q_OD, m.scb_O, out)
    return out if m.bias_O is None else out + m.bias_O


def norm(x, weight):
    out = np.empty(x.shape)
    reference.rms_norm(x, weight, EPS, out)
    return out


def rotations(rng, T, R):
    angle = rng.uniform(0, 6, (T, R // 2))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.hstack((cos, cos)).astype(np.float32), np.hstack((-sin, sin)).astype(np.float32)


def rotate(x_THR, cos, sin, interleaved):
    half = x_THR.shape[2] // 2
    first, second = (x_THR[..., 0::2], x_THR[..., 1::2]) if interleaved else (x_THR[..., :half], x_THR[..., half:])
    swapped = np.concatenate((second, first), 2) * sin[:, None]
    return np.concatenate((first, second), 2) * cos[:, None] + swapped


def cache_of(rng, kind, S, C, W):
    numbers = rows(rng, S, W)
    if kind == "int8":
        return np.stack([latent_bytes(row, C) for row in numbers])
    return bfloat16(numbers) if kind == "bf16" else numbers


MLA_SHAPES = [  # T, start, D, H, N, R, V, C, q rank
    (1, 0, 64, 2, 8, 4, 8, 32, 0),
    (1, 300, 96, 6, 16, 16, 32, 64, 0),
    (2, 70, 70, 3, 7, 6, 5, 33, 19),
    (5, 33, 256, 16, 32, 16, 24, 128, 96),
    (8, 1, 40, 1, 3, 2, 9, 17, 8),
]


@pytest.mark.parametrize("kind", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("T", "start", "D", "H", "N", "R", "V", "C", "rank"), MLA_SHAPES)
def test_latent_attention(T, start, D, H, N, R, V, C, rank, wide, kind):
    rng = np.random.default_rng(T + start + D)
    kv_b = rows(rng, H, N + V, C) / np.float32(np.sqrt(C))
    kv_b = kv_b if wide else bfloat16(kv_b)
    given = blocks.MlaWeights(
        rows(rng, D),
        matrix(rng, rank or H * (N + R), D, bias=True),
        rows(rng, rank) if rank else None,
        matrix(rng, H * (N + R), rank) if rank else None,
        matrix(rng, C + R, D),
        rows(rng, C),
        kv_b,
        matrix(rng, D, H * V, bias=True),
    )
    cache, (cos, sin) = cache_of(rng, kind, start + T, C, C + R), rotations(rng, T, R)
    x, scale = rows(rng, T, D), (N + R) ** -0.5
    block = blocks.mla_block(given, N, R, True, EPS, EPS, scale, blocks.Scratch())
    want, got = x.astype(np.float64), x.copy()
    block(got, cos, sin, cache)

    normed = norm(x, given.norm_D)
    q = product(normed, given.q)
    q = (product(norm(q, given.q_norm), given.q_b) if rank else q).reshape(T, H, N + R)
    row = product(normed, given.kv_a)
    key = rotate(row[:, None, C:], cos, sin, True)[:, 0]
    new = np.hstack((norm(row[:, :C], given.kv_norm_C), key))
    seen = numbers_of(cache, C)
    assert row_error(seen[start:], new) < {"float32": 1e-3, "bf16": 1e-2, "int8": 2e-2}[kind]
    w = reference.widen(kv_b)
    latent = np.empty((T, H, C))
    q_latent = np.einsum("thn,hnc->thc", q[..., :N], w[:, :N])
    reference.mla_attention(q_latent, rotate(q[..., N:], cos, sin, True), seen.astype(np.float32), start, scale, latent)
    out = np.einsum("thc,hvc->thv", latent, w[:, N:]).reshape(T, -1)
    assert row_error(got, want + product(out, given.out)) < (BYTE_TOLERANCE if kind == "int8" else TOLERANCE)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 8, 32])
@pytest.mark.parametrize("kind", ["float32", "bf16", "int8"])
def test_a_latent_that_is_not_finite_shows(kind, at, broken):
    rng, (D, H, N, R, V, C) = np.random.default_rng(at), (64, 2, 8, 4, 8, 33)
    given = blocks.MlaWeights(
        rows(rng, D),
        matrix(rng, H * (N + R), D),
        None,
        None,
        matrix(rng, C + R, D),
        rows(rng, C),
        rows(rng, H, N + V, C),
        matrix(rng, D, H * V),
    )
    given.kv_norm_C[at] = broken
    x, (cos, sin) = rows(rng, 1, D), rotations(rng, 1, R)
    block = blocks.mla_block(given, N, R, True, EPS, EPS, (N + R) ** -0.5, blocks.Scratch())
    block(x, cos, sin, cache_of(rng, kind, 6, C, C + R))
    assert not np.isfinite(x).any()


@pytest.mark.parametrize("kind", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("T", "start", "D", "H", "G", "d", "normed"),
    [
        (1, 0, 48, 2, 1, 8, False),
        (1, 260, 192, 9, 3, 32, True),
        (3, 66, 77, 6, 2, 14, True),
        (8, 5, 256, 8, 8, 16, False),
    ],
)
def test_grouped_query_attention(T, start, D, H, G, d, normed, kind):
    rng = np.random.default_rng(T + start + D)
    given = blocks.GqaWeights(
        rows(rng, D),
        matrix(rng, H * d, D, bias=True),
        matrix(rng, G * d, D, bias=normed),
        matrix(rng, G * d, D),
        rows(rng, d) if normed else None,
        rows(rng, d) if normed else None,
        matrix(rng, D, H * d),
    )
    cache, (cos, sin) = cache_of(rng, kind, start + T, 0, 2 * G * d), rotations(rng, T, d)
    x = rows(rng, T, D)
    got = x.copy()
    blocks.gqa_block(given, H, G, False, EPS, d**-0.5, blocks.Scratch())(got, cos, sin, cache)

    entered = norm(x, given.norm_D)
    q, k = product(entered, given.q).reshape(T, H, d), product(entered, given.k).reshape(T, G, d)
    if normed:
        q, k = norm(q, given.q_norm_d), norm(k, given.k_norm_d)
    new = np.hstack((rotate(k, cos, sin, False).reshape(T, -1), product(entered, given.v)))
    seen = reference.widen(cache)
    assert row_error(seen[start:], new) < (1e-3 if kind == "float32" else 1e-2)
    out = np.empty((T, H, d))
    reference.gqa_attention(rotate(q, cos, sin, False), seen.astype(np.float32), G, start, d**-0.5, out)
    assert row_error(got, x + product(out.reshape(T, -1), given.out)) < TOLERANCE


def route(x, routed):
    """Experts and weights of each token, as `localr1.model.moe` specifies."""
    logit = x @ routed.router_ED.T.astype(np.float64)
    score = reference.sigmoid(logit) if routed.sigmoid else reference.softmax(logit)
    choice = score + (0 if routed.bias_E is None else routed.bias_E)
    T, E = score.shape
    if routed.groups > 1:
        group = np.sort(choice.reshape(T, routed.groups, -1), 2)
        worth = group[:, :, -2:].sum(2) if routed.sigmoid else group[:, :, -1]
        dropped = np.argsort(-worth, 1)[:, routed.kept_groups :]
        for t in range(T):
            for j in dropped[t]:
                choice[t, j * E // routed.groups : (j + 1) * E // routed.groups] = -np.inf
    expert = np.argsort(-choice, 1)[:, : routed.top_k]
    weight = np.take_along_axis(score, expert, 1)
    return expert, weight / (weight.sum(1, keepdims=True) if routed.normalize else 1) * routed.scale


@pytest.mark.parametrize("T", [1, 2, 5, 8])
@pytest.mark.parametrize(
    ("D", "F", "E", "K", "sigmoid", "groups", "shared"),
    [
        (64, 32, 8, 2, True, 1, 32),
        (70, 19, 12, 3, True, 4, 0),
        (130, 33, 9, 4, False, 3, 66),
        (96, 128, 16, 4, False, 1, 50),
        (333, 70, 0, 0, False, 1, 70),
    ],
)
def test_feed_forward(T, D, F, E, K, sigmoid, groups, shared):
    rng = np.random.default_rng(T + D)
    made = [
        (
            weights(rng, n, 3 * D * width),
            (rng.uniform(0.5, 2, (n, 2 * width + D)) * 1.7 / np.sqrt(D)).astype(np.float32),
        )
        for n, width in ((E, F), (1, shared))
    ]
    bias = rows(rng, E) * np.float32(0.1) if sigmoid else None
    keep = max(1, groups - 1)
    routed = blocks.Routed(*made[0], rows(rng, E, D), bias, K, sigmoid, groups, keep, sigmoid, 2.5) if E else None
    weight_D, x = rows(rng, D), rows(rng, T, D)
    block = blocks.FeedForwardBlock(weight_D, EPS, routed, made[1] if shared else None, blocks.Scratch())
    got = x.copy()
    chosen = block(got)

    normed = norm(x, weight_D)
    want, part = x.astype(np.float64), np.empty((T, D))
    if routed:
        expert, weight = route(normed, routed)
        assert [set(row) for row in chosen] == [set(row) for row in expert]
        reference.routed_ffn(normed, *made[0], expert, weight, part)
        want = want + part
    if shared:
        reference.routed_ffn(normed, *made[1], np.zeros((T, 1), np.int64), np.ones((T, 1)), part)
        want = want + part
    assert row_error(got, want) < TOLERANCE


@pytest.mark.parametrize(
    ("T", "D", "V", "bias"), [(1, 64, 50, False), (2, 70, 2049, True), (5, 333, 4100, False), (8, 40, 1, True)]
)
def test_head(T, D, V, bias):
    rng = np.random.default_rng(T + D)
    given, weight_D, x = matrix(rng, V, D, bias), rows(rng, D), rows(rng, T, D)
    block, before = HeadBlock(weight_D, EPS, given, blocks.Scratch()), x.copy()
    normed, logits = np.empty_like(x), np.empty((T, V), np.float32)
    block.logits(x, normed, logits)
    wanted = norm(x, weight_D)
    assert np.array_equal(x, before) and row_error(normed, wanted) < 1e-6
    want = product(wanted, given)
    scale = np.linalg.norm(reference.dequantize(given.q_OD, given.scb_O)) * np.linalg.norm(wanted, axis=1)
    assert np.all(np.linalg.norm(logits - want, axis=1) < TOLERANCE * scale)
    best, top = np.full(T, -9), np.full(T, np.nan, np.float32)
    block.likeliest(x, normed, best, top)
    assert best.tolist() == logits.argmax(1).tolist() and np.array_equal(top, logits.max(1))


def test_the_likeliest_token_is_the_first_of_several_and_a_broken_row_has_none():
    rng = np.random.default_rng(2)
    D, V = 32, 5000
    given, x = matrix(rng, V, D), np.abs(rows(rng, 3, D))
    given.q_OD[[2300, 4990]], given.scb_O[[2300, 4990]] = 127, given.scb_O.max()
    x[1, 3] = np.nan
    normed, best, top = np.empty_like(x), np.zeros(3, np.int64), np.zeros(3, np.float32)
    block = HeadBlock(np.ones(D, np.float32), EPS, given, blocks.Scratch())
    block.likeliest(x, normed, best, top)
    assert best.tolist() == [2300, 0, 2300] and not top[1] > -np.inf
    with pytest.raises(ValueError, match="head_block"):
        block.likeliest(x, normed, best[:2], top)
    with pytest.raises(ValueError, match="columns"):
        block.logits(x[:, 1:].copy(), normed, np.empty((3, V), np.float32))


def test_a_team_of_threads_gives_what_one_thread_gives():
    rng = np.random.default_rng(3)
    D, F, E, K = 256, 512, 8, 3
    experts = weights(rng, E, 3 * D * F), np.full((E, 2 * F + D), 0.1, np.float32)
    routed = blocks.Routed(*experts, rows(rng, E, D), None, K, False, 1, 1, True, 1.0)
    block = blocks.FeedForwardBlock(np.ones(D, np.float32), EPS, routed, None, blocks.Scratch())
    x, results = rows(rng, 4, D), []
    before = numba.get_num_threads()
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            for _ in range(20):
                results.append(x.copy())
                block(results[-1])
    finally:
        numba.set_num_threads(before)
    assert all(np.array_equal(one, results[0]) for one in results)


def test_a_broken_row_spoils_no_other_and_chooses_no_expert():
    rng = np.random.default_rng(5)
    D, F, E = 64, 32, 6
    experts = weights(rng, E, 3 * D * F), np.ones((E, 2 * F + D), np.float32)
    block = blocks.FeedForwardBlock(
        np.ones(D, np.float32),
        EPS,
        blocks.Routed(*experts, rows(rng, E, D), None, 2, True, 1, 1, True, 1.0),
        None,
        blocks.Scratch(),
    )
    x = rows(rng, 3, D)
    good = x.copy()
    block(good)
    x[1, 7] = np.nan
    chosen = block(x)
    assert (chosen[1] == -1).all() and np.isnan(x[1, 7])
    np.testing.assert_allclose(x[[0, 2]], good[[0, 2]], rtol=1e-5)


def test_blocks_refuse_what_they_cannot_do():
    rng = np.random.default_rng(0)
    D, F = 32, 8
    shared = weights(rng, 1, 3 * D * F), np.ones((1, 2 * F + D), np.float32)
    block = blocks.FeedForwardBlock(np.ones(D, np.float32), EPS, None, shared, blocks.Scratch())
    with pytest.raises(ValueError, match="rows"):
        block(rows(rng, blocks.MOST_ROWS + 1, D))
    with pytest.raises(ValueError, match="columns"):
        block(rows(rng, 1, D + 1))
    with pytest.raises(ValueError, match="shape"):
        blocks.FeedForwardBlock(np.ones(D, np.float32), EPS, None, (shared[0], shared[1][:, 1:]), blocks.Scratch())


def test_embedding():
    rng = np.random.default_rng(1)
    q, scb, token = weights(rng, 20, 33), rng.uniform(0.1, 2, 20).astype(np.float32), np.array([3, 19, 0, 3])
    out = np.empty((4, 33), np.float32)
    cpu.embed(q, scb, token, out)
    np.testing.assert_allclose(out, reference.dequantize(q, scb)[token], rtol=1e-6)
    with pytest.raises(ValueError, match="embed"):
        cpu.embed(q, scb, np.array([20]), out[:1])


@pytest.mark.parametrize(("T", "D"), [(1, 64), (2, 192), (8, 33)])
def test_what_an_mtp_layer_begins_with(T, D):
    rng = np.random.default_rng(T)
    embedding, proj = matrix(rng, 50, D), matrix(rng, D, 2 * D)
    e_norm, h_norm = (rng.uniform(0.5, 1.5, D).astype(np.float32) for _ in range(2))
    front = MtpFront(embedding, e_norm, h_norm, proj, EPS, blocks.Scratch())
    tokens, hidden = rng.integers(0, 50, T).tolist(), rows(rng, T, D)
    embedded = reference.dequantize(embedding.q_OD, embedding.scb_O)[tokens]
    wanted = product(np.concatenate((norm(embedded, e_norm), norm(hidden, h_norm)), axis=1), proj)
    assert row_error(front(tokens, hidden), wanted) < TOLERANCE
    with pytest.raises(ValueError, match="tokens"):
        front([50] * T, hidden)
    with pytest.raises(ValueError, match="states"):
        front(tokens, hidden[:, 1:])
