"""The CPU kernels' front door: checks shapes, then runs the fastest loops that this processor has.

Knows numpy arrays alone, C-contiguous ones. Every function writes its result into an array the caller gives, and must
not be called from two threads at once. Weights, scales and caches may be read-only, so a mapped file will do. The
first call of each function compiles it (`localr1.kernels.compilation` does that ahead of time).

Shape suffixes: T new tokens, S cached and new tokens, D inputs, O outputs, E experts, K experts of a token,
F feed-forward, H heads, C latent, R rotary, G key-value heads, d head size, W width of a cache row.
"""

from typing import Any

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray

from localr1.kernels.compilation import compile_kernel
from localr1.kernels.features import BITS

Float = NDArray[np.float32]
Array = NDArray[Any]

CHUNK_TOKENS = 512
"""Tokens of one pass over the weights; more are taken in several, which bounds the memory of a call."""

FIXED_POINT = BITS > 0
"""Whether `mla_attention` multiplies 16-bit integers where a cache holds 8 or 16 bits."""


def linear(x_TD: Float, q_OD: NDArray[np.int8], scb_O: Float, out_TO: Float) -> None:
    """out = x W^T with W = q * scb / 127.

    Reads each weight once per CHUNK_TOKENS tokens. ValueError where shapes disagree.
    """
    (T, D), outputs = x_TD.shape, q_OD.shape[0]
    if q_OD.shape[1] != D or scb_O.shape != (outputs,) or out_TO.shape != (T, outputs):
        raise ValueError(f"linear: x {x_TD.shape}, q {q_OD.shape}, scb {scb_O.shape}, out {out_TO.shape}")
    kernel, threads = compile_kernel("linear"), get_num_threads()
    if T <= CHUNK_TOKENS:
        kernel(x_TD, q_OD, scb_O, out_TO, threads)
        return
    for t in range(0, T, CHUNK_TOKENS):
        kernel(x_TD[t : t + CHUNK_TOKENS], q_OD, scb_O, out_TO[t : t + CHUNK_TOKENS], threads)


def routed_ffn(
    x_TD: Float,
    experts_E3M: NDArray[np.int8],
    scb_ES: Float,
    expert_TK: NDArray[np.int64],
    weight_TK: Float,
    out_TD: Float,
) -> None:
    """out = sum over k of weight * down(silu(gate x) * up x) over each token's K experts.

    `experts[e]` is [gate F*D | up F*D | down D*F], `scb[e]` is [gate F | up F | down D]. A negative expert number
    adds nothing. Each active expert's weights are read once per CHUNK_TOKENS tokens. ValueError where shapes disagree
    or an expert's number is too large.
    """
    (T, D), K, (E, M3) = x_TD.shape, expert_TK.shape[1], experts_E3M.shape
    F = M3 // (3 * D)
    if F * 3 * D != M3 or scb_ES.shape != (E, 2 * F + D) or weight_TK.shape != (T, K) or out_TD.shape != (T, D):
        raise ValueError(
            f"routed_ffn: x {x_TD.shape}, experts {experts_E3M.shape}, scb {scb_ES.shape}, "
            f"expert {expert_TK.shape}, weight {weight_TK.shape}, out {out_TD.shape}"
        )
    if expert_TK.shape[0] != T or (expert_TK.size and int(expert_TK.max()) >= E):
        raise ValueError(f"routed_ffn: expert numbers {expert_TK.shape} for {T} tokens and {E} experts")
    kernel, threads = compile_kernel("routed_ffn"), get_num_threads()
    if T <= CHUNK_TOKENS:
        kernel(x_TD, experts_E3M, scb_ES, expert_TK, weight_TK, out_TD, threads)
        return
    for t in range(0, T, CHUNK_TOKENS):
        part = slice(t, t + CHUNK_TOKENS)
        kernel(x_TD[part], experts_E3M, scb_ES, expert_TK[part], weight_TK[part], out_TD[part], threads)


def rms_norm(x_TD: Float, weight_D: Float, eps: float, out_TD: Float) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight, on one thread: for few rows. ValueError where shapes disagree."""
    if x_TD.shape != out_TD.shape or weight_D.shape != x_TD.shape[1:]:
        raise ValueError(f"rms_norm: x {x_TD.shape}, weight {weight_D.shape}, out {out_TD.shape}")
    compile_kernel("rms_norm")(x_TD, weight_D, eps, out_TD)


def mla_attention(
    q_latent_THC: Float, q_rope_THR: Float, cache_SW: Array, start: int, scale: float, out_THC: Float
) -> None:
    """Absorbed latent attention; a cache row is [latent C | rotary key R], float32 or bfloat16 bits in uint16, or
    int8 as `cache_rows` lays it out.

    Token t sees rows 0 .. start + t. ValueError where shapes disagree or the cache is too short.
    """
    (T, H, C), R, (S, W) = q_latent_THC.shape, q_rope_THR.shape[2], cache_SW.shape
    width = latent_row_bytes(C, R) if cache_SW.dtype == np.int8 else C + R
    if q_rope_THR.shape[:2] != (T, H) or width != W or out_THC.shape != (T, H, C) or not 0 <= start <= S - T:
        raise ValueError(
            f"mla_attention: q {q_latent_THC.shape} {q_rope_THR.shape}, cache {cache_SW.shape}, "
            f"start {start}, out {out_THC.shape}"
        )
    words_SW, halves = cache_words(cache_SW)
    kernel = compile_kernel("mla_attention")
    kernel(q_latent_THC, q_rope_THR, words_SW, halves, start, scale, out_THC, get_num_threads())


def gqa_attention(q_THd: Float, cache_SW: Array, kv_heads: int, start: int, scale: float, out_THd: Float) -> None:
    """Grouped-query attention; a cache row is [keys G*d | values G*d], float32 or bfloat16 bits in uint16.

    Token t sees rows 0 .. start + t. ValueError where shapes disagree or the cache is too short.
    """
    (T, H, d), (S, W) = q_THd.shape, cache_SW.shape
    if 2 * kv_heads * d != W or H % kv_heads or out_THd.shape != (T, H, d) or not 0 <= start <= S - T:
        raise ValueError(
            f"gqa_attention: q {q_THd.shape}, cache {cache_SW.shape}, {kv_heads} key-value heads, "
            f"start {start}, out {out_THd.shape}"
        )
    words_SW, halves = cache_words(cache_SW)
    kernel = compile_kernel("gqa_attention")
    kernel(q_THd, words_SW, halves, kv_heads, start, scale, out_THd, get_num_threads())


def latent_row_bytes(C: int, R: int) -> int:
    """Bytes of a row of int8 latents (see `cache_rows`)."""
    return (C + 1) // 2 * 2 + 2 * R + 4


def read(bytes_N: NDArray[np.int8]) -> int:
    """Read every whole kilobyte once with all threads and do nothing else: how fast this machine's memory can be read.

    Returns a sum, so that the reading cannot be left out.
    """
    return int(compile_kernel("read")(bytes_N, get_num_threads()))


def embed(q_VD: NDArray[np.int8], scb_V: Float, token_T: NDArray[np.int64], out_TD: Float) -> None:
    """out = q[token] * scb[token] / 127, on one thread: for few tokens. ValueError where shapes disagree."""
    if scb_V.shape != q_VD.shape[:1] or out_TD.shape != (token_T.size, q_VD.shape[1]):
        raise ValueError(f"embed: q {q_VD.shape}, scb {scb_V.shape}, {token_T.shape} tokens, out {out_TD.shape}")
    tokens = token_T.tolist()
    if tokens and not 0 <= min(tokens) <= max(tokens) < len(q_VD):
        raise ValueError(f"embed: tokens {token_T} of {len(q_VD)}")
    compile_kernel("embed")(q_VD, scb_V, token_T, out_TD)


def cache_words(cache_SW: Array) -> tuple[NDArray[np.uint16], int]:
    """A cache as 16-bit words, and its kind (see `cache_rows`). ValueError for other types."""
    if cache_SW.dtype == np.uint16:
        return cache_SW, 1
    if cache_SW.dtype == np.int8:
        return cache_SW.view(np.uint16), 0
    if cache_SW.dtype != np.float32:
        raise ValueError(f"a cache holds float32, or bfloat16 bits in uint16, not {cache_SW.dtype}")
    return cache_SW.view(np.uint16), 2
