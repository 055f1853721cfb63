"""The model's inner loops on the CPU: the compiled kernels on torch tensors.

Owns the CPU's `Ops` (see `model.linear`). Tensors are viewed as numpy arrays, never copied.
"""

import torch
from torch import Tensor

from localr1.kernels import cpu
from localr1.kernels.features import BITS, BYTE_PRODUCTS
from localr1.model.config import RopeLayout
from localr1.model.linear import Cache, Position
from localr1.model.rope import Rotation, rotate

KERNEL_VALUES = 1 << 15
"""A norm of at most this many values is done by one thread, without torch's overhead; more are worth sharing out."""

FIXED_POINT_RATE = 2.5 if BITS == 512 else 1.9
"""See `Ops.latent_rate`: measured with 16 to 512 rows after 0 to 4,096 tokens (16,384 where vectors have 256 bits) and
two threads."""

BYTE_RATE = 3.5
"""The same for int8 rows where bytes are multiplied: measured with 256 rows after 256 to 8,000 tokens."""


class CpuOps:
    """`Ops` in RAM."""

    device = torch.device("cpu")
    route = None
    """Steps of few tokens choose in their blocks; for a chunk it hardly matters."""

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        if x.numel() > KERNEL_VALUES:
            return torch.rms_norm(x, weight_D.shape, weight_D, eps)
        x = x.contiguous()
        out = torch.empty_like(x)
        columns = weight_D.shape[0]
        cpu.rms_norm(x.numpy().reshape(-1, columns), weight_D.numpy(), eps, out.numpy().reshape(-1, columns))
        return out

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """In float32: 16-bit weights are widened first, which takes less time than to read them twice as wide."""
        return torch.matmul(x, weight.float())

    def head_product(self, x_THN: Tensor, weight_HNO: Tensor) -> Tensor:
        return self.product(x_THN.transpose(0, 1), weight_HNO).transpose(0, 1)

    def latent_front(
        self,
        q_THk: Tensor,
        row_TW: Tensor,
        norm_C: Tensor,
        eps: float,
        rotation: Rotation,
        layout: RopeLayout,
        cache: Cache,
        layer: int,
    ) -> tuple[Tensor, Tensor]:
        latent_TC, k_pe_TR = row_TW.tensor_split([norm_C.shape[0]], dim=1)
        q_pe_THR = q_THk[..., -k_pe_TR.shape[1] :]
        rotated = rotate(torch.cat((q_pe_THR, k_pe_TR[:, None]), dim=1), rotation, layout)
        row_TW = torch.cat((self.rms_norm(latent_TC, norm_C, eps), rotated[:, -1]), dim=-1)
        return rotated[:, :-1].contiguous(), cache.append(layer, row_TW)

    def grouped_front(
        self,
        q_THd: Tensor,
        k_TGd: Tensor,
        v_TGd: Tensor,
        rotation: Rotation,
        layout: RopeLayout,
        cache: Cache,
        layer: int,
    ) -> tuple[Tensor, Tensor]:
        heads = q_THd.shape[1]
        rotated = rotate(torch.cat((q_THd, k_TGd), dim=1), rotation, layout)
        row_TW = torch.cat((rotated[:, heads:], v_TGd), dim=1).flatten(1)
        return rotated[:, :heads].contiguous(), cache.append(layer, row_TW)

    def mla_attention(
        self, q_latent_THC: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, start: Position, scale: float
    ) -> Tensor:
        out_THC = torch.empty_like(q_latent_THC)
        cpu.mla_attention(
            q_latent_THC.numpy(), q_rope_THR.numpy(), as_numpy(cache_SW), int(start), scale, out_THC.numpy()
        )
        return out_THC

    def latent_rate(self, cache_SW: Tensor) -> float:
        if not cpu.FIXED_POINT or cache_SW.dtype == torch.float32:
            return 0.0
        return BYTE_RATE if BYTE_PRODUCTS and cache_SW.dtype == torch.int8 else FIXED_POINT_RATE

    def gqa_attention(self, q_THd: Tensor, cache_SW: Tensor, kv_heads: int, start: Position, scale: float) -> Tensor:
        out_THd = torch.empty_like(q_THd)
        cpu.gqa_attention(q_THd.numpy(), as_numpy(cache_SW), kv_heads, int(start), scale, out_THd.numpy())
        return out_THd


def as_numpy(x: Tensor) -> cpu.Array:
    """The same memory as a numpy array; bfloat16 as its bits (uint16)."""
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
