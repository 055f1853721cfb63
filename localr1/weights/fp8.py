"""DeepSeek's FP8 checkpoints: E4M3 weights with one float32 scale a block (128 x 128), ragged at the edges.

Owns the dequantization, w = fp8 * weight_scale_inv block by block (DeepSeek-V3 technical report, section 3.3).
"""

import torch
from torch import Tensor


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """Shape of the scales of a weight [O, I]: one for every block begun."""
    rows, columns = shape
    return -(-rows // block[0]), -(-columns // block[1])


def dequantize_blocks(weight_OI: Tensor, scale_inv: Tensor, block: tuple[int, int], first: int = 0) -> Tensor:
    """A float32 [O, I] of an FP8 [O, I] and its scales [ceil(O / block), ceil(I / block)]. Peak: the result.

    Of a larger matrix, whose scales are given in full, these are the rows from row `first`.
    """
    rows, columns = weight_OI.shape
    result = weight_OI.to(torch.float32)
    scale_inv = scale_inv[first // block[0] : -(-(first + rows) // block[0])]
    row_scales = scale_inv.to(torch.float32).repeat_interleave(block[1], dim=1)[:, :columns]
    for start, row_scale in zip(range(-(first % block[0]), rows, block[0]), row_scales, strict=True):
        result[max(start, 0) : start + block[0]] *= row_scale
    return result
