"""A model's parts on the CPU: int8 from a store, or float32 from a checkpoint.

Owns the two `Weights` (see `model.linear`). `StoreWeights` runs on the mapped int8 rows as they lie; `FloatWeights`
is the reference, and what `--dtype float32` runs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from localr1.kernels import cpu
from localr1.model.config import UP_PROJECTIONS
from localr1.model.linear import (
    Embedding,
    FeedForward,
    FusedParts,
    Linear,
    Linears,
)
from localr1.placement.ops import CpuOps
from localr1.weights.checkpoint import Checkpoint
from localr1.weights.store import Store


class StoreWeights:
    """Parts that read a store's int8 rows in place."""

    ops = CpuOps()

    def __init__(self, store: Store) -> None:
        from localr1.placement.fused import FusedLayers  # it knows the banks, which know the float weights here

        self._store = store
        self.fused: FusedParts = FusedLayers(store)

    def tensor(self, name: str) -> Tensor:
        """In float32; what is large, as it lies."""
        tensor = self._store.tensor(name)
        return tensor if name.endswith(UP_PROJECTIONS) else tensor.to(torch.float32)

    def linear(self, prefix: str) -> Linear:
        rows = self._store.int8_rows(prefix)
        weight, scb = rows.weight.numpy(), rows.scb.numpy()
        bias = self.tensor(prefix + ".bias") if prefix + ".bias" in self._store else None

        def apply(x_TD: Tensor, onto_TO: Tensor | None = None) -> Tensor:
            out_TO = torch.empty(x_TD.shape[0], weight.shape[0])
            cpu.linear(x_TD.contiguous().numpy(), weight, scb, out_TO.numpy())
            return added(out_TO, bias, onto_TO)

        return apply

    def linears(self, prefixes: Sequence[str]) -> Linears:
        return one_by_one([self.linear(prefix) for prefix in prefixes])

    def feed_forward(self, prefix: str) -> FeedForward:
        rows = self._store.feed_forwards([prefix])
        experts, scb = rows.weight.numpy(), rows.scb.numpy()

        def apply(x_TD: Tensor, onto_TD: Tensor | None = None) -> Tensor:
            tokens = x_TD.shape[0]
            out_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
            cpu.routed_ffn(
                x_TD.contiguous().numpy(),
                experts,
                scb,
                np.zeros((tokens, 1), dtype=np.int64),
                np.ones((tokens, 1), dtype=np.float32),
                out_TD.numpy(),
            )
            return added(out_TD, onto_TD)

        return apply

    def embedding(self, prefix: str) -> Embedding:
        weight, scb = self._store.int8_rows(prefix)
        q_VD, scb_V = weight.numpy(), scb.numpy()

        def apply(token_T: Tensor) -> Tensor:
            out_TD = torch.empty(len(token_T), q_VD.shape[1])
            cpu.embed(q_VD, scb_V, token_T.numpy(), out_TD.numpy())
            return out_TD

        return apply


class FloatWeights:
    """Parts in float32, straight from a checkpoint: four bytes a parameter."""

    ops, fused = CpuOps(), FusedParts()

    def __init__(self, checkpoint: Checkpoint, block: tuple[int, int] | None = None) -> None:
        self._checkpoint = checkpoint
        self._block = block

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name, self._block).to(torch.float32)

    def linear(self, prefix: str) -> Linear:
        weight = self.tensor(prefix + ".weight")
        bias = self.tensor(prefix + ".bias") if prefix + ".bias" in self._checkpoint else None
        return lambda x_TD, onto_TO=None: added(functional.linear(x_TD, weight, bias), onto_TO)

    def linears(self, prefixes: Sequence[str]) -> Linears:
        return one_by_one([self.linear(prefix) for prefix in prefixes])

    def feed_forward(self, prefix: str) -> FeedForward:
        gate, up, down = (self.linear(f"{prefix}.{name}") for name in ("gate_proj", "up_proj", "down_proj"))
        return lambda x_TD, onto_TD=None: down(functional.silu(gate(x_TD)) * up(x_TD), onto_TD)

    def embedding(self, prefix: str) -> Embedding:
        weight = self.tensor(prefix + ".weight")
        return lambda token_T: weight[token_T]


def added(out: Tensor, *more: Tensor | None) -> Tensor:
    """`out`, to which what there is of the others is added in place."""
    for one in more:
        if one is not None:
            out.add_(one)
    return out


def one_by_one(parts: Sequence[Linear]) -> Linears:
    """Matrices that multiply the same rows, each by itself."""
    return lambda x_TD: tuple(part(x_TD) for part in parts)


def expert_prefixes(layer: int, experts: int) -> Sequence[str]:
    """The Hugging Face names of a layer's routed experts."""
    return [f"model.layers.{layer}.mlp.experts.{expert}" for expert in range(experts)]
