"""The specification of the kernels, in float64 numpy.

Owns what each kernel must compute, in the fewest lines; speed is no concern of it. It knows nothing of threads,
quantized activations or the project. A kernel is right when it agrees with the function of its name here.

Shape suffixes: T new tokens, S cached and new tokens, D inputs, O outputs, E experts, K experts of a token,
F feed-forward, H heads, C latent, R rotary, P its pairs, N nope, G key-value heads, d head size, W width of a cache
row.
"""

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Array = NDArray[np.generic]


def linear(x_TD: Array, q_OD: Array, scb_O: Array, out_TO: Array) -> None:
    """out = x W^T with W = q * scb / 127."""
    out_TO[...] = x_TD.astype(np.float64) @ dequantize(q_OD, scb_O).T


def routed_ffn(
    x_TD: Array, experts_E3M: Array, scb_ES: Array, expert_TK: Array, weight_TK: Array, out_TD: Array
) -> None:
    """out = sum over k of weight * down(silu(gate x) * up x); a negative expert number contributes nothing."""
    D = x_TD.shape[1]
    F = experts_E3M.shape[1] // (3 * D)
    out = np.zeros(x_TD.shape)
    for t, k in np.ndindex(*expert_TK.shape):
        e = int(expert_TK[t, k])
        if e < 0:
            continue
        gate, up, down = np.split(experts_E3M[e], 3)
        scb = scb_ES[e]
        x = x_TD[t].astype(np.float64)
        g = dequantize(gate.reshape(F, D), scb[:F]) @ x
        u = dequantize(up.reshape(F, D), scb[F : 2 * F]) @ x
        out[t] += float(weight_TK[t, k]) * (dequantize(down.reshape(D, F), scb[2 * F :]) @ (g * sigmoid(g) * u))
    out_TD[...] = out


def mla_attention(
    q_latent_THC: Array, q_rope_THR: Array, cache_SW: Array, start: int, scale: float, out_THC: Array
) -> None:
    """Absorbed latent attention (DeepSeek-V2, section 2.1): keys are whole cache rows, values their latent part.

    A cache row is [latent C | rotary key R]; token t sees rows 0 .. start + t.
    """
    T, _, C = q_latent_THC.shape
    cache = widen(cache_SW)
    q_THW = np.concatenate([q_latent_THC, q_rope_THR], axis=2).astype(np.float64)
    for t in range(T):
        seen = cache[: start + t + 1]
        out_THC[t] = softmax(scale * (q_THW[t] @ seen.T)) @ seen[:, :C]


def gqa_attention(q_THd: Array, cache_SW: Array, kv_heads: int, start: int, scale: float, out_THd: Array) -> None:
    """Grouped-query attention: head h reads key-value head h // (H / G). A cache row is [keys G*d | values G*d]."""
    T, H, d = q_THd.shape
    cache = widen(cache_SW)
    for t, h in np.ndindex(T, H):
        g = h // (H // kv_heads)
        seen = cache[: start + t + 1]
        key, value = seen[:, g * d : (g + 1) * d], seen[:, (kv_heads + g) * d : (kv_heads + g + 1) * d]
        out_THd[t, h] = softmax(scale * (key @ q_THd[t, h].astype(np.float64))) @ value


def rms_norm(x_TD: Array, weight_D: Array, eps: float, out_TD: Array) -> None:
    """As `cpu.rms_norm`."""
    x = x_TD.astype(np.float64)
    out_TD[:] = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight_D


def head_product(x_THN: Array, weight_HNO: Array, out_THO: Array) -> None:
    """out = x W, a matrix for every head."""
    out_THO[...] = np.einsum("thn,hno->tho", x_THN.astype(np.float64), weight_HNO.astype(np.float64))


def rotate(x_THR: Array, angle_TP: Array, interleaved: bool) -> Float64:
    """Pairs turned by their angles (RoFormer, section 3.2); neighbours, or R / 2 apart as they always come out."""
    x, P = x_THR.astype(np.float64), angle_TP.shape[1]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :P], x[..., P:])
    cos, sin = np.cos(angle_TP)[:, None], np.sin(angle_TP)[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def route(
    x_TD: Array,
    weight_ED: Array,
    bias_E: Array | None,
    scale: float,
    by_softmax: bool,
    normalize: bool,
    expert_TK: Array,
    weight_TK: Array,
) -> None:
    """The K largest scores, plus bias, of each token, the largest first, and those scores as weights (DeepSeek-V2,
    section 2.2; DeepSeek-V3, section 2.1.2)."""
    logit = x_TD.astype(np.float64) @ weight_ED.astype(np.float64).T
    score = softmax(logit) if by_softmax else sigmoid(logit)
    value = score if bias_E is None else score + bias_E.astype(np.float64)
    expert = np.argsort(-value, axis=1, kind="stable")[:, : expert_TK.shape[1]]
    expert_TK[...] = expert
    weight = np.take_along_axis(score, expert, axis=1)
    weight_TK[...] = scale * (weight / weight.sum(axis=1, keepdims=True) if normalize else weight)


def dequantize(q: Array, scb: Array) -> Float64:
    """Rows of int8 and each row's absolute maximum to float64."""
    return q.astype(np.float64) * (scb.astype(np.float64) / 127.0)[:, None]


def widen(cache: Array) -> Float64:
    """float32, or bfloat16 held as uint16 bits, to float64."""
    if cache.dtype == np.uint16:
        cache = (cache.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return cache.astype(np.float64)


def sigmoid(x: Float64) -> Float64:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def softmax(x: Float64) -> Float64:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Float64 = e / e.sum(axis=-1, keepdims=True)
    return result
