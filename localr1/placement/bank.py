"""The routed experts and where they live.

Owns the `ExpertBank`s (see `model.linear`): whichever is used, the numbers are the same within the kernels' tolerance.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.kernels import cpu
from localr1.model.linear import FeedForward
from localr1.placement.linear import FloatWeights, added, expert_prefixes
from localr1.weights.store import Store


class CpuBank:
    """All experts as int8 in RAM (or in the page cache under the map), computed by the CPU."""

    def __init__(self, store: Store, layers: Iterable[int], experts: int) -> None:
        views = {layer: store.feed_forwards(expert_prefixes(layer, experts)) for layer in layers}
        self._layers = {layer: (rows.weight.numpy(), rows.scb.numpy()) for layer, rows in views.items()}

    def arrays(self, layer: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """A layer's experts [E, 3 D F] and their scales [E, 2 F + D]."""
        return self._layers[layer]

    def run(
        self,
        layer: int,
        hidden_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        beside: FeedForward | None = None,
        onto_TD: Tensor | None = None,
    ) -> Tensor:
        weight, scb = self._layers[layer]
        out_TD = torch.empty(hidden_TD.shape)
        cpu.routed_ffn(
            hidden_TD.contiguous().numpy(),
            weight,
            scb,
            expert_TK.contiguous().numpy(),
            weight_TK.contiguous().numpy(),
            out_TD.numpy(),
        )
        return added(out_TD, None if beside is None else beside(hidden_TD), onto_TD)


class FloatBank:
    """All experts in float32, a matmul each: the reference."""

    def __init__(self, weights: FloatWeights, layers: Iterable[int], experts: int) -> None:
        self._layers = {
            layer: [weights.feed_forward(prefix) for prefix in expert_prefixes(layer, experts)] for layer in layers
        }

    def run(
        self,
        layer: int,
        hidden_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        beside: FeedForward | None = None,
        onto_TD: Tensor | None = None,
    ) -> Tensor:
        out_TD = torch.zeros_like(hidden_TD)
        for expert in sorted(set(expert_TK.flatten().tolist())):
            token, slot = (expert_TK == expert).nonzero(as_tuple=True)
            result = self._layers[layer][expert](hidden_TD[token])
            out_TD.index_add_(0, token, result * weight_TK[token, slot][:, None])
        return added(out_TD, None if beside is None else beside(hidden_TD), onto_TD)
