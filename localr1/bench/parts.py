"""Where the time of a forward goes, part by part.

Owns a twin of a model whose parts are the model's own, each with a stopwatch around it; the model itself is not
touched, so what is measured elsewhere is not disturbed. Invariant: the seconds of all parts are exclusive, so they and
the rest (norms and Python) add up to the whole.
"""

import copy
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from localr1.model.decoder import Decoder, Layer
from localr1.model.linear import ExpertBank, FeedForward
from localr1.model.moe import MixtureOfExperts
from localr1.model.registry import Model
from localr1.session.gpu_model import GpuModel

PARTS = ("attention", "router", "experts", "shared experts", "dense layers", "head")
REST = "norms and Python"


class Stopwatch:
    """Seconds by part; a part that runs inside another is counted once. `settle` waits for work given to a device."""

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        self._settle = settle
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner_s: list[float] = []

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed as `part`."""

        def timed(*arguments: Any) -> Any:
            self._inner_s.append(0.0)
            start_s = time.perf_counter()
            try:
                result = call(*arguments)
                if self._settle is not None:
                    self._settle()
                return result
            finally:
                took_s = time.perf_counter() - start_s
                self.seconds[part] += took_s - self._inner_s.pop()
                if self._inner_s:
                    self._inner_s[-1] += took_s

        return timed


class _TimedBank:
    """An expert bank with a stopwatch; the shared experts that it may run have their own."""

    def __init__(self, bank: ExpertBank, watch: Stopwatch) -> None:
        self._run = watch.around("experts", bank.run)

    def run(
        self,
        layer: int,
        hidden_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        beside: FeedForward | None = None,
        onto_TD: Tensor | None = None,
    ) -> Tensor:
        out_TD: Tensor = self._run(layer, hidden_TD, expert_TK, weight_TK, beside, onto_TD)
        return out_TD


def stopwatch_for(model: Model) -> Stopwatch:
    """One that waits for the GPU where the model runs there."""
    on_gpu = isinstance(model, GpuModel) and model.device.type == "cuda"
    return Stopwatch(torch.cuda.synchronize if on_gpu else None)


def timed_twin(model: Model, watch: Stopwatch) -> Decoder:
    """A decoder of the same parts, whose every forward adds to the stopwatch; on a GPU its steps are not replayed."""
    if isinstance(model, GpuModel):
        model = model.decoder
    assert isinstance(model, Decoder), "a model of another kind needs its own twin"
    twin = model.with_layers([_timed_layer(layer, watch) for layer in model.layers])
    fused = model.head.fused
    if fused is not None:
        fused = fused._replace(logits=watch.around("head", fused.logits))
    twin.head = replace(model.head, product=watch.around("head", model.head.product), fused=fused)
    return twin


def _timed_layer(layer: Layer, watch: Stopwatch) -> Layer:
    feed_forward = layer.feed_forward
    if isinstance(feed_forward, MixtureOfExperts):
        sparse = copy.copy(feed_forward)
        sparse.router = watch.around("router", feed_forward.router)  # type: ignore[assignment]
        sparse.experts = _TimedBank(feed_forward.experts, watch)
        if feed_forward.shared is not None:
            sparse.shared = watch.around("shared experts", feed_forward.shared)
        feed_forward = sparse
    else:
        feed_forward = watch.around("dense layers", feed_forward)
    attention, fused = watch.around("attention", layer.attention), layer.fused
    if fused.attention is not None:
        fused = fused._replace(attention=watch.around("attention", fused.attention))
    if fused.feed_forward is not None:  # router and shared experts included
        sparse_or_dense = "experts" if isinstance(layer.feed_forward, MixtureOfExperts) else "dense layers"
        fused = fused._replace(feed_forward=watch.around(sparse_or_dense, fused.feed_forward))
    return replace(layer, attention=attention, feed_forward=feed_forward, fused=fused)
