"""Cache rows of latent attention in 8 bits: the latent as int8 with one scale a token, the rotary key as bfloat16.

Owns the layout [latent C int8, one more byte where C is odd | rotary key R bfloat16 | scale float32], which the
compiled kernels read and write too (`kernels.cache_rows`). The latent is normed, so its numbers are of one size and one
scale serves the row; rotary keys are not, and are few. SnapMLA (arXiv 2602.10718) divides rows the same way, with
latents in FP8 and a scale a token, and rotary keys in 16 bits.
"""

import torch
from torch import Tensor


def row_bytes(latent: int, width: int) -> int:
    """Bytes of a row of `width` numbers of which `latent` are int8."""
    return _key_start(latent) + 2 * (width - latent) + 4


def pack_latents(row_TW: Tensor, latent: int) -> Tensor:
    """float32 rows [T, W] as bytes [T, row_bytes] int8."""
    row_TW = row_TW.to(torch.float32)
    packed = torch.zeros(row_TW.shape[0], row_bytes(latent, row_TW.shape[1]), dtype=torch.int8)
    top_T1 = row_TW[:, :latent].abs().amax(dim=1, keepdim=True)
    times_T1 = torch.where(top_T1 > 0, 127.0 / top_T1, torch.zeros_like(top_T1))
    packed[:, :latent] = (row_TW[:, :latent] * times_T1).round().to(torch.int8)
    key_TR = row_TW[:, latent:].to(torch.bfloat16).contiguous().view(torch.int8)
    packed[:, _key_start(latent) : -4] = key_TR
    packed[:, -4:] = (top_T1 / 127.0).contiguous().view(torch.int8)
    return packed


def unpack_latents(packed: Tensor, latent: int, width: int) -> Tensor:
    """The rows [S, W] in float32."""
    # A copy, since a row by itself is in one piece already, wherever its scale begins.
    scale_S1 = packed[:, -4:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    key_SR = packed[:, _key_start(latent) : -4].contiguous().view(torch.bfloat16)
    row_SW = torch.empty(packed.shape[0], width)
    row_SW[:, :latent] = packed[:, :latent].to(torch.float32) * scale_S1
    row_SW[:, latent:] = key_SR.to(torch.float32)
    return row_SW


def _key_start(latent: int) -> int:
    return (latent + 1) // 2 * 2
