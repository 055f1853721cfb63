"""A model's parts on a GPU: int8 rows from a store, copied there once.

Owns the device's `Ops` and `Weights` (see `model.linear`). Which kernels run is `kernels.gpu.choose`'s affair. The
device may be the CPU, which runs the same code in torch operations: that is how it is tested without a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localr1.kernels import gpu
from localr1.kernels.gpu import Gated, Kernels, plain
from localr1.model.config import UP_PROJECTIONS, RopeLayout
from localr1.model.linear import (
    Cache,
    Embedding,
    FusedParts,
    Linear,
    Linears,
    Position,
    Route,
)
from localr1.model.rope import Rotation
from localr1.weights.quantize import Int8Rows
from localr1.weights.store import Store


def in_ram(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies in RAM of tensors on one device, for which the host waits once.

    From a GPU they come into page-locked memory, which saves a copy on the way; torch keeps it for the next ones as
    soon as nobody holds these. Meant for little: memory that was page-locked is never given back.
    """
    if not tensors[0].is_cuda:
        return tuple(one.clone() for one in tensors)
    copies = tuple(
        torch.empty(one.shape, dtype=one.dtype, pin_memory=True).copy_(one, non_blocking=True) for one in tensors
    )
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies


class GpuOps:
    """`Ops` of a device with its kernels."""

    def __init__(self, device: torch.device, kernels: Kernels | None = None) -> None:
        self.device = device
        self.kernels = kernels or gpu.choose(device)

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return self.kernels.rms_norm(x, weight_D, eps)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """In the weight's own type."""
        return torch.matmul(x.to(weight.dtype), weight).float()

    def head_product(self, x_THN: Tensor, weight_HNO: Tensor) -> Tensor:
        return self.kernels.head_product(x_THN, weight_HNO)

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
        pairs, cache_SW = layout == "interleaved", cache.room(layer, len(row_TW))
        turns = tables(rotation)
        return self.kernels.latent_front(q_THk, row_TW, norm_C, eps, *turns, pairs, cache_SW, cache.length), cache_SW

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
        pairs, cache_SW = layout == "interleaved", cache.room(layer, len(q_THd))
        turns = tables(rotation)
        return self.kernels.grouped_front(q_THd, k_TGd, v_TGd, *turns, pairs, cache_SW, cache.length), cache_SW

    @property
    def route(self) -> Route:
        return self.kernels.route

    def mla_attention(
        self, q_latent_THC: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, start: Position, scale: float
    ) -> Tensor:
        return self.kernels.mla_attention(q_latent_THC, q_rope_THR, cache_SW, start, scale)

    def latent_rate(self, cache_SW: Tensor) -> float:
        return 0.0

    def gqa_attention(self, q_THd: Tensor, cache_SW: Tensor, kv_heads: int, start: Position, scale: float) -> Tensor:
        return self.kernels.gqa_attention(q_THd, cache_SW, kv_heads, start, scale)


def tables(rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Its tables [T, R]."""
    return rotation.cos_T1R[:, 0], rotation.sin_T1R[:, 0]


@dataclass(frozen=True)
class GpuFeedForward:
    """A gated feed-forward on the device, which a bank there may run with its own experts."""

    gated: Gated
    kernels: Kernels

    def __call__(self, x_TD: Tensor, /, onto_TD: Tensor | None = None) -> Tensor:
        return self.kernels.feed_forward(x_TD, self.gated, onto_TD)


class GpuWeights:
    """Parts whose int8 rows lie on the device, once, however many parts they are of: a tied model's head is its
    embedding, and an MTP layer's head the model's."""

    fused = FusedParts()

    def __init__(self, store: Store, ops: GpuOps) -> None:
        self._store = store
        self._rows: dict[str, Int8Rows] = {}
        self.ops = ops

    def tensor(self, name: str) -> Tensor:
        """In float32; what every token reads as a whole, in the device's 16 bits."""
        dtype = plain.product_dtype(self.ops.device) if name.endswith(UP_PROJECTIONS) else torch.float32
        return self._store.tensor(name).to(self.ops.device, dtype)

    def linear(self, prefix: str) -> Linear:
        (weight, scb), bias, kernel = self._int8_rows(prefix), self._bias(prefix), self.ops.kernels.linear
        return lambda x_TD, onto_TO=None: kernel(x_TD, weight, scb, bias, onto_TO)

    def linears(self, prefixes: Sequence[str]) -> Linears:
        """As one matrix, in one launch."""
        device, kernel = self.ops.device, self.ops.kernels.linear
        parts = [self._store.int8_rows(prefix) for prefix in prefixes]
        weight = torch.cat([one.weight for one in parts]).to(device)
        scb = torch.cat([one.scb for one in parts]).to(device)
        widths, biases = [len(one.scb) for one in parts], [self._bias(prefix) for prefix in prefixes]
        bias = None
        if any(one is not None for one in biases):
            each = zip(biases, widths, strict=True)
            bias = torch.cat([torch.zeros(width, device=device) if one is None else one for one, width in each])
        return lambda x_TD: torch.split(kernel(x_TD, weight, scb, bias), widths, dim=1)

    def _bias(self, prefix: str) -> Tensor | None:
        return self.tensor(prefix + ".bias") if prefix + ".bias" in self._store else None

    def feed_forward(self, prefix: str) -> GpuFeedForward:
        rows, device = self._store.feed_forwards([prefix]), self.ops.device
        return GpuFeedForward(Gated(rows.weight[0].to(device), rows.scb[0].to(device)), self.ops.kernels)

    def embedding(self, prefix: str) -> Embedding:
        (weight, scb), device = self._int8_rows(prefix), self.ops.device
        scale = scb / 127.0

        def apply(token_T: Tensor) -> Tensor:
            token_T = token_T.to(device)
            return weight[token_T].to(torch.float32) * scale[token_T][:, None]

        return apply

    def _int8_rows(self, prefix: str) -> Int8Rows:
        if prefix not in self._rows:
            rows, device = self._store.int8_rows(prefix), self.ops.device
            self._rows[prefix] = Int8Rows(rows.weight.to(device), rows.scb.to(device))
        return self._rows[prefix]
