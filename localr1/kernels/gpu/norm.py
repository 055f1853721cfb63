"""The Triton kernel of the root-mean-square norm: one program a row, read once."""

import triton
import triton.language as tl


@triton.jit
def rms_norm(x_ND, weight_D, out_ND, stride, D, eps, BD: tl.constexpr):  # type: ignore[no-untyped-def]
    """out = x / sqrt(mean(x^2) + eps) * weight; rows of x lie `stride` values apart."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    x = tl.load(x_ND + row * stride + d, mask=d < D, other=0.0)
    scale = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
    weight = tl.load(weight_D + d, mask=d < D, other=0.0)
    tl.store(out_ND + row * D + d, x * scale * weight, mask=d < D)
