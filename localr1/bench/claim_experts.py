"""The fourth claim: what a mixture of experts spares, and what share of its reads a small GPU could serve.

Owns the recording of routes on real text and two tables: the routed experts against a dense layer of the same size,
really run on this machine; and hit rates of the hottest experts within a budget, learned on the first half of the text
and counted on the second, against whole layers and against none. Speeds with a GPU are measured where there is one.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.bench.floor import SAMPLE_S
from localr1.bench.report import Cell, Figure, Row, Section
from localr1.bench.subject import Subject, fill_cache
from localr1.bench.turns import byte_figure, take_turns
from localr1.events import Progress
from localr1.model.config import MoeConfig
from localr1.model.decoder import Decoder
from localr1.model.linear import ExpertBank, FeedForward, Fused
from localr1.model.moe import MixtureOfExperts
from localr1.options import BenchOptions
from localr1.quantities import percent_text

BUDGETS = (0.1, 0.25, 0.5, 0.75)
TITLE = "4. A mixture of experts on a small GPU"

Routes = dict[int, NDArray[np.int64]]
"""The experts [T, K] of each sparse layer, over a text."""


def claim_experts(subject: Subject, options: BenchOptions) -> Progress[list[Section]]:
    """Both tables; a sentence for a model without experts."""
    moe = subject.engine.config.moe
    if moe is None or not moe.layers:
        return [Section("claim experts", TITLE, ("", ""), (), ("this model has no experts",))]
    cost = yield from _cost(subject, options, moe)
    routes = yield from record_routes(subject, min(2 * options.prompt_tokens, subject.engine.context_limit))
    return [cost, _hits(subject, routes, moe)]


def _cost(subject: Subject, options: BenchOptions, moe: MoeConfig) -> Progress[Section]:
    """One token's routed feed-forward over all sparse layers: its own experts against every expert."""
    parts = sparse_parts(subject)
    x_TD = torch.randn(1, subject.engine.config.hidden)
    generator = torch.Generator().manual_seed(0)

    def run(count: int) -> Callable[[], float]:
        def call() -> float:
            weight_TK = torch.full((1, count), 1 / count)
            tokens, start_s = 0, time.perf_counter()
            while time.perf_counter() - start_s < SAMPLE_S:
                for layer, part in parts.items():
                    expert_TK = torch.randperm(moe.num_experts, generator=generator)[None, :count].contiguous()
                    part.experts.run(layer, x_TD, expert_TK, weight_TK)
                tokens += 1
            return (time.perf_counter() - start_s) / tokens

        return call

    active, every = yield from take_turns(
        "running a token's experts and all of them", (run(moe.top_k), run(moe.num_experts)), max(options.repeats, 5)
    )
    size = subject.sizes.expert_bytes * len(parts)
    ratio = Figure(tuple(two / one for one, two in zip(active, every, strict=True)), "x", "more")
    rows = (
        Row("experts a layer", (Figure((float(moe.top_k),), ""), Figure((float(moe.num_experts),), ""), "")),
        Row("bytes read a token", (byte_figure(size * moe.top_k), byte_figure(size * moe.num_experts), _x(moe))),
        Row("time a token", (Figure(active, "s", "less"), Figure(every, "s"), ratio)),
    )
    note = "the routed feed-forwards of all layers at one row, from RAM, on this processor"
    columns = ("routed experts", "those chosen", "all: a dense layer of this size", "spared")
    return Section("claim experts cost", TITLE, columns, rows, (note,))


def sparse_parts(subject: Subject) -> dict[int, MixtureOfExperts]:
    """The mixtures of experts of the main model, by layer."""
    model = subject.engine.model
    assert isinstance(model, Decoder), "a model of another kind has its experts elsewhere"
    parts = ((number, layer.feed_forward) for number, layer in enumerate(model.layers))
    return {number: part for number, part in parts if isinstance(part, MixtureOfExperts)}


class _RecordingBank:
    """An expert bank that notes what it is asked for."""

    def __init__(self, bank: ExpertBank, seen: list[Tensor]) -> None:
        self._bank = bank
        self._seen = seen

    def run(
        self,
        layer: int,
        hidden_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        beside: FeedForward | None = None,
        onto_TD: Tensor | None = None,
    ) -> Tensor:
        self._seen.append(expert_TK.to("cpu"))
        return self._bank.run(layer, hidden_TD, expert_TK, weight_TK, beside, onto_TD)


def record_routes(subject: Subject, tokens: int) -> Progress[Routes]:
    """Run a text of `tokens` and note every layer's experts."""
    model, parts = subject.engine.model, sparse_parts(subject)
    assert isinstance(model, Decoder)
    seen: dict[int, list[Tensor]] = {layer: [] for layer in parts}
    layers = list(model.layers)
    for layer, part in parts.items():
        recording = copy.copy(part)
        recording.experts = _RecordingBank(part.experts, seen[layer])
        layers[layer] = replace(model.layers[layer], feed_forward=recording, fused=Fused())
    engine = replace(subject.engine, model=model.with_layers(layers))
    yield from fill_cache(engine, engine.new_cache(), subject.tokens(tokens), False)
    return {layer: torch.cat(calls).numpy() for layer, calls in seen.items()}


def hit_rates(routes: Routes, experts: int, share: float) -> tuple[float, float, int]:
    """Hits of the hottest experts, hits of whole layers, and the experts that fit, when `share` of all experts do.

    Hotness is counted over the first half of the text; a hit is one (token, expert) of the second half whose expert is
    resident. One budget for all layers: a layer with a few very busy experts gets more of it.
    """
    half = min(len(chosen) for chosen in routes.values()) // 2
    learned = np.stack([np.bincount(chosen[:half].reshape(-1), minlength=experts) for chosen in routes.values()])
    later = np.stack([np.bincount(chosen[half:].reshape(-1), minlength=experts) for chosen in routes.values()])
    count = int(share * learned.size)
    hottest = np.argsort(-learned, axis=None, kind="stable")[:count]
    layers, rest = divmod(count, experts)
    # A layer that fits in part is of no use to a placement of whole layers.
    by_layers = layers / len(routes) if rest or layers else 0.0
    return float(later.reshape(-1)[hottest].sum() / later.sum()), by_layers, count


def _hits(subject: Subject, routes: Routes, moe: MoeConfig) -> Section:
    rows = []
    for share in BUDGETS:
        hottest, layers, count = hit_rates(routes, moe.num_experts, share)
        gain: Cell = Figure((hottest / layers,), "x", "more") if layers else "-"
        cells = (byte_figure(count * subject.sizes.expert_bytes), _percent(hottest), _percent(layers), "0 %", gain)
        rows.append(Row(f"{percent_text(share)} of the experts", cells))
    tokens = min(len(chosen) for chosen in routes.values())
    text = "random tokens through random routers" if subject.shape is not None else "text"
    notes = (
        f"hits: the share of a token's expert reads that the GPU serves; learned on {tokens // 2:,} tokens of {text}, "
        f"counted on the next {tokens - tokens // 2:,}",
        "a dense model of this size has no hot part: its hits are those of whole layers",
        "tokens/s at each budget: "
        + ("--compare vram=0,8GiB" if torch.cuda.is_available() else "not measured here, there is no GPU"),
    )
    columns = ("in GPU memory", "bytes", "hottest experts", "whole layers", "all cold", "hottest / layers")
    return Section("claim experts", f"{TITLE}: what it would serve", columns, tuple(rows), notes)


def _percent(share: float) -> Figure:
    return Figure((round(100 * share, 1),), "%", "more")


def _x(moe: MoeConfig) -> Figure:
    return Figure((moe.num_experts / moe.top_k,), "x", "more")
