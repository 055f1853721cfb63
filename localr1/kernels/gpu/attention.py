"""Triton kernels of decode attention: one pass over the cache for all heads that share its rows.

Owns flash-decoding: programs share out the context in a fixed number of splits, each keeps a running softmax, and
`join` weighs their results. The context's length may lie on the device, so that a recorded launch stays right as it
grows. Products take float16 operands (a cache in bfloat16 or float32 is rounded to it) and float32 sums.

Shape suffixes as in `localr1.kernels.gpu`; Z splits. BH heads, BS cached rows, BC, BR and BV columns a block.
"""

import triton
import triton.language as tl


@triton.jit
def span(start_at, start, token, BS: tl.constexpr, ON_DEVICE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first and the last row (exclusive) of this program's split, of the rows that `token` sees."""
    seen = start + token + 1
    if ON_DEVICE:
        seen = tl.load(start_at).to(tl.int32) + token + 1
    rows = tl.cdiv(tl.cdiv(seen, tl.num_programs(0)), BS) * BS
    first = tl.program_id(0) * rows
    return first, tl.minimum(first + rows, seen)


@triton.jit(do_not_specialize=["start"])
def mla(  # type: ignore[no-untyped-def]
    q_THC,
    q_THR,
    cache_SW,
    start_at,
    out_THZC,
    lse_THZ,
    start,
    H,
    C,
    R,
    scale,
    BH: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
    BS: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):
    """Program (z, i, t): split z of token t, for BH heads. Keys are whole rows, values their first C columns."""
    token = tl.program_id(2)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    c = tl.arange(0, BC)
    r = tl.arange(0, BR)
    row = token * H + head
    q_c = tl.load(q_THC + row[:, None] * C + c[None, :], mask=(head[:, None] < H) & (c[None, :] < C), other=0.0)
    q_r = tl.load(q_THR + row[:, None] * R + r[None, :], mask=(head[:, None] < H) & (r[None, :] < R), other=0.0)
    q_c = (q_c * (scale * 1.4426950408889634)).to(tl.float16)  # base-2 exponentials
    q_r = (q_r * (scale * 1.4426950408889634)).to(tl.float16)
    first, last = span(start_at, start, token, BS, ON_DEVICE)
    top = tl.full((BH,), float("-inf"), tl.float32)
    norm = tl.zeros((BH,), tl.float32)
    total = tl.zeros((BH, BC), tl.float32)
    for block in range(first, last, BS):
        s = block + tl.arange(0, BS)
        at = cache_SW + s.to(tl.int64)[:, None] * (C + R)
        latent = tl.load(at + c[None, :], mask=(s[:, None] < last) & (c[None, :] < C), other=0.0).to(tl.float16)
        rotary = tl.load(at + C + r[None, :], mask=(s[:, None] < last) & (r[None, :] < R), other=0.0).to(tl.float16)
        score = tl.dot(q_c, tl.trans(latent)) + tl.dot(q_r, tl.trans(rotary))
        score = tl.where(s[None, :] < last, score, float("-inf"))
        peak = tl.maximum(top, tl.max(score, 1))
        share = tl.exp2(score - peak[:, None])
        fade = tl.exp2(top - peak)
        norm = norm * fade + tl.sum(share, 1)
        total = total * fade[:, None] + tl.dot(share.to(tl.float16), latent)
        top = peak
    if first < last:
        at = (row * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
        store_at = out_THZC + at[:, None] * C + c[None, :]
        tl.store(store_at, total / norm[:, None], mask=(head[:, None] < H) & (c[None, :] < C))
    tl.store(
        lse_THZ + row * tl.num_programs(0) + tl.program_id(0),
        tl.where(norm > 0, top + tl.log2(norm), float("-inf")),
        mask=head < H,
    )


@triton.jit(do_not_specialize=["start"])
def gqa(  # type: ignore[no-untyped-def]
    q_THd,
    cache_SW,
    start_at,
    out_THZd,
    lse_THZ,
    start,
    H,
    G,
    d,
    scale,
    BH: tl.constexpr,
    BV: tl.constexpr,
    BS: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):
    """Program (z, g, t): split z of token t, for the heads of group g."""
    token = tl.program_id(2)
    group = tl.program_id(1)
    per_group = H // G
    mine = tl.arange(0, BH)
    v = tl.arange(0, BV)
    row = token * H + group * per_group + mine
    inside = (mine[:, None] < per_group) & (v[None, :] < d)
    q = tl.load(q_THd + row[:, None] * d + v[None, :], mask=inside, other=0.0)
    q = (q * (scale * 1.4426950408889634)).to(tl.float16)
    first, last = span(start_at, start, token, BS, ON_DEVICE)
    top = tl.full((BH,), float("-inf"), tl.float32)
    norm = tl.zeros((BH,), tl.float32)
    total = tl.zeros((BH, BV), tl.float32)
    for block in range(first, last, BS):
        s = block + tl.arange(0, BS)
        at = cache_SW + s.to(tl.int64)[:, None] * (2 * G * d) + group * d + v[None, :]
        seen = (s[:, None] < last) & (v[None, :] < d)
        key = tl.load(at, mask=seen, other=0.0).to(tl.float16)
        value = tl.load(at + G * d, mask=seen, other=0.0).to(tl.float16)
        score = tl.where(s[None, :] < last, tl.dot(q, tl.trans(key)), float("-inf"))
        peak = tl.maximum(top, tl.max(score, 1))
        share = tl.exp2(score - peak[:, None])
        fade = tl.exp2(top - peak)
        norm = norm * fade + tl.sum(share, 1)
        total = total * fade[:, None] + tl.dot(share.to(tl.float16), value)
        top = peak
    at = row * tl.num_programs(0) + tl.program_id(0)
    if first < last:
        tl.store(out_THZd + at.to(tl.int64)[:, None] * d + v[None, :], total / norm[:, None], mask=inside)
    tl.store(lse_THZ + at, tl.where(norm > 0, top + tl.log2(norm), float("-inf")), mask=mine < per_group)


@triton.jit
def join(part_NZV, lse_NZ, out_NV, V, Z: tl.constexpr, BV: tl.constexpr):  # type: ignore[no-untyped-def]
    """out = the splits' results weighed by their shares of the softmax; program (n, j) makes BV columns of row n."""
    row = tl.program_id(0)
    z = tl.arange(0, Z)
    v = tl.program_id(1) * BV + tl.arange(0, BV)
    lse = tl.load(lse_NZ + row * Z + z)
    share = tl.exp2(lse - tl.max(lse, 0))
    at = part_NZV + (row.to(tl.int64) * Z + z)[:, None] * V + v[None, :]
    part = tl.load(at, mask=(lse[:, None] > float("-inf")) & (v[None, :] < V), other=0.0)
    tl.store(out_NV + row * V + v, tl.sum(part * share[:, None], 0) / tl.sum(share, 0), mask=v < V)
