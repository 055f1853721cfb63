"""Triton kernels between the projections and attention: one launch rotates queries and keys and writes cache rows.

Owns the rotation of a pair, and what a program does of a token: one head's query each, and its row in the cache, whole
(latents) or a key-value head each (grouped-query).

Shape suffixes as in `localr1.kernels.gpu`; k the size of a query head, of which the last R values are rotated.
"""

import triton
import triton.language as tl


@triton.jit
def turn(from_R, to_R, cos_R, sin_R, R, INTERLEAVED: tl.constexpr, BP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rotate R values; a pair is 2 p and 2 p + 1, or p and R / 2 + p, and comes out as the latter. sin is -sin, sin."""
    p = tl.arange(0, BP)
    inside = p < R // 2
    if INTERLEAVED:
        first = tl.load(from_R + 2 * p, mask=inside, other=0.0)
        second = tl.load(from_R + 2 * p + 1, mask=inside, other=0.0)
    else:
        first = tl.load(from_R + p, mask=inside, other=0.0)
        second = tl.load(from_R + R // 2 + p, mask=inside, other=0.0)
    cos = tl.load(cos_R + p, mask=inside, other=0.0)
    sin = tl.load(sin_R + R // 2 + p, mask=inside, other=0.0)
    tl.store(to_R + p, first * cos - second * sin, mask=inside)
    tl.store(to_R + R // 2 + p, second * cos + first * sin, mask=inside)


@triton.jit
def place(start_at, start, token, ON_DEVICE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The cache's row of a new token."""
    if ON_DEVICE:
        return tl.load(start_at) + token
    return start + token


@triton.jit(do_not_specialize=["start"])
def latent(  # type: ignore[no-untyped-def]
    q_THk,
    row_TW,
    norm_C,
    cos_TR,
    sin_TR,
    q_THR,
    cache_SW,
    start_at,
    start,
    q_t,
    row_t,
    H,
    k,
    C,
    R,
    eps,
    INTERLEAVED: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """Program (t, h) rotates head h of token t; (t, H) and (t, H + 1) make the normed latent and the rotated key of its
    row in the cache. Lower case: from one token to the next in memory."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    cos_R = cos_TR + token * R
    sin_R = sin_TR + token * R
    row_W = row_TW + token * row_t
    if head < H:
        turn(q_THk + token * q_t + head * k + k - R, q_THR + (token * H + head) * R, cos_R, sin_R, R, INTERLEAVED, BP)
    else:
        to_W = cache_SW + place(start_at, start, token, ON_DEVICE) * (C + R)
        if head > H:
            turn(row_W + C, to_W + C, cos_R, sin_R, R, INTERLEAVED, BP)
        else:
            c = tl.arange(0, BC)
            x = tl.load(row_W + c, mask=c < C, other=0.0)
            weight = tl.load(norm_C + c, mask=c < C, other=0.0)
            scale = tl.rsqrt(tl.sum(x * x, 0) / C + eps)
            tl.store(to_W + c, x * scale * weight, mask=c < C)


@triton.jit(do_not_specialize=["start"])
def grouped(  # type: ignore[no-untyped-def]
    q_THd,
    k_TGd,
    v_TGd,
    cos_Td,
    sin_Td,
    to_THd,
    cache_SW,
    start_at,
    start,
    q_t,
    k_t,
    v_t,
    H,
    G,
    d,
    INTERLEAVED: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    BP: tl.constexpr,
    BV: tl.constexpr,
):
    """Program (t, h) rotates query head h of token t; program (t, H + g) makes its row's key and value of group g. The
    rest as above."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    cos_d = cos_Td + token * d
    sin_d = sin_Td + token * d
    if head < H:
        turn(q_THd + token * q_t + head * d, to_THd + (token * H + head) * d, cos_d, sin_d, d, INTERLEAVED, BP)
    else:
        group = head - H
        to_d = cache_SW + (2 * place(start_at, start, token, ON_DEVICE) * G + group) * d
        v = tl.arange(0, BV)
        value = tl.load(v_TGd + token * v_t + group * d + v, mask=v < d)
        turn(k_TGd + token * k_t + group * d, to_d, cos_d, sin_d, d, INTERLEAVED, BP)
        tl.store(to_d + G * d + v, value, mask=v < d)
