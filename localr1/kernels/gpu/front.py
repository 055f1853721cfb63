"""Triton kernels between the projections and attention: one launch rotates queries and keys and lays out cache rows.

Owns the rotation of a pair, and what a program does of a token: one head's query each, and the row to be cached, whole
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
def latent(  # type: ignore[no-untyped-def]
    q_THk,
    row_TW,
    norm_C,
    cos_TR,
    sin_TR,
    q_THR,
    to_TW,
    H,
    k,
    C,
    R,
    eps,
    INTERLEAVED: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """Program (t, h) rotates head h of token t; (t, H) and (t, H + 1) make the normed latent and the rotated key of its
    row."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    cos_R = cos_TR + token * R
    sin_R = sin_TR + token * R
    if head < H:
        at = token * H + head
        turn(q_THk + at * k + k - R, q_THR + at * R, cos_R, sin_R, R, INTERLEAVED, BP)
    elif head > H:
        at = token * (C + R) + C
        turn(row_TW + at, to_TW + at, cos_R, sin_R, R, INTERLEAVED, BP)
    else:
        c = tl.arange(0, BC)
        latent_C = token * (C + R) + c
        x = tl.load(row_TW + latent_C, mask=c < C, other=0.0)
        weight = tl.load(norm_C + c, mask=c < C, other=0.0)
        scale = tl.rsqrt(tl.sum(x * x, 0) / C + eps)
        tl.store(to_TW + latent_C, x * scale * weight, mask=c < C)


@triton.jit
def grouped(  # type: ignore[no-untyped-def]
    q_THd,
    k_TGd,
    v_TGd,
    cos_Td,
    sin_Td,
    to_THd,
    to_TW,
    H,
    G,
    d,
    INTERLEAVED: tl.constexpr,
    BP: tl.constexpr,
    BV: tl.constexpr,
):
    """Program (t, h) rotates query head h of token t; program (t, H + g) makes its row's key and value of group g."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    cos_d = cos_Td + token * d
    sin_d = sin_Td + token * d
    if head < H:
        at = token * H + head
        turn(q_THd + at * d, to_THd + at * d, cos_d, sin_d, d, INTERLEAVED, BP)
    else:
        group = head - H
        at = token * G + group
        to = to_TW + (2 * token * G + group) * d
        v = tl.arange(0, BV)
        value = tl.load(v_TGd + at * d + v, mask=v < d)
        turn(k_TGd + at * d, to, cos_d, sin_d, d, INTERLEAVED, BP)
        tl.store(to + G * d + v, value, mask=v < d)
