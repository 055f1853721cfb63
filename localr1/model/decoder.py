"""The residual stream every architecture shares: embed, layers, final norm, head.

Owns the order of things in a decoder and their common tensors. Does not know which attention or feed-forward it runs.
`forward` appends one cache row a token and layer and never changes the cache's length: a forward that fails half-way
leaves nothing committed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from localr1.model.config import ModelConfig
from localr1.model.linear import (
    Cache,
    Embedding,
    FeedForward,
    Fused,
    FusedHead,
    FusedStack,
    Linear,
    Ops,
    TensorSpec,
    Weights,
)
from localr1.model.rope import Arrays, RotaryTable, Rotation

RAM = torch.device("cpu")

FINAL_NORM = "model.norm.weight"

Attention = Callable[[Tensor, Rotation, Cache, Tensor], Tensor]
"""`(x_TD, rotation of the T positions, cache, onto_TD) -> onto + y_TD`; appends T rows to its layer of the cache."""


class Norm:
    """Root-mean-square norm over the last axis, in float32, by the tensor `name` of the weights."""

    def __init__(self, weights: Weights, name: str, eps: float) -> None:
        self.weight = weights.tensor(name)
        self.eps = eps
        self.rms_norm = weights.ops.rms_norm

    def __call__(self, x: Tensor) -> Tensor:
        return self.rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True)
class Layer:
    """One pre-norm decoder layer. Few rows go through its fused parts, which change them in place."""

    input_norm: Norm
    attention: Attention
    post_attention_norm: Norm
    feed_forward: FeedForward
    fused: Fused = Fused()

    def __call__(self, x_TD: Tensor, rotation: Rotation, cache: Cache, last_only: bool = False) -> Tensor:
        """The rows of all T tokens; with `last_only` that of the last, the others only leave their cache rows."""
        few = x_TD.shape[0] <= self.fused.rows
        if few and self.fused.attention is not None:
            self.fused.attention(x_TD, rotation, cache)
        else:
            x_TD = self.attention(self.input_norm(x_TD), rotation, cache, x_TD)
        if last_only:
            x_TD = x_TD[-1:]
        if few and self.fused.feed_forward is not None:
            self.fused.feed_forward(x_TD)
            return x_TD
        return self.feed_forward(self.post_attention_norm(x_TD), x_TD)


@dataclass(frozen=True)
class Head:
    """A norm and the vocabulary head behind it. Few rows go through both in one call."""

    norm: Norm
    product: Linear
    fused: FusedHead | None = None

    def logits(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(normed_TD, logits_TV): the hidden states after the norm, and their logits, float32 in RAM."""
        if self.fused is not None and len(x_TD) <= self.fused.rows:
            return self.fused.logits(x_TD)
        normed_TD = self.norm(x_TD)
        return normed_TD, self.product(normed_TD).to(RAM, torch.float32)

    def likeliest(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(normed_TD, token_T, logit_T): each row's likeliest token (the first, where several are) and its logit, found
        on the device, which hands over no others."""
        if self.fused is not None and len(x_TD) <= self.fused.rows:
            return self.fused.likeliest(x_TD)
        normed_TD = self.norm(x_TD)
        return normed_TD, *first_highest(self.product(normed_TD))


def first_highest(logits_TV: Tensor) -> tuple[Tensor, Tensor]:
    """The first highest number of each row, and its value; which of several a GPU's own `max` gives is left open."""
    logit_T, last = logits_TV.amax(dim=-1), logits_TV.shape[-1] - 1
    index_V = torch.arange(last + 1, dtype=torch.int32, device=logits_TV.device)
    return torch.where(logits_TV == logit_T[:, None], index_V, last).amin(dim=-1).long(), logit_T


class Decoder:
    """A whole model for one sequence at a time."""

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        embedding: Embedding,
        layers: list[Layer],
        head: Head,
        stack: FusedStack | None = None,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.layers = layers
        self.head = head
        self.stack = stack
        self.rotary = RotaryTable(config.rope, ops.device)

    def with_layers(self, layers: list[Layer]) -> "Decoder":
        """The same model of these layers instead, each called by itself."""
        twin = copy.copy(self)
        twin.layers, twin.stack = layers, None
        return twin

    def forward(self, token_T: Tensor, cache: Cache) -> Tensor:
        """Hidden states after the final norm, [T, D] float32 on the device, for T tokens from `cache.length` on."""
        return self.head.norm(self._run_layers(token_T, cache))

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Next-token logits, [T, vocab] float32 in RAM, of hidden states that `forward` returned."""
        return self.head.product(hidden_TD).to(RAM, torch.float32)

    def step(self, token_T: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """What `forward` returns for these tokens and the `logits` of that: few tokens take fewer calls so."""
        if self.stack is not None and len(token_T) <= self.stack.rows:
            return self.stack.logits(*self._begin(token_T, cache), cache)
        return self.head.logits(self._run_layers(token_T, cache))

    def likeliest(self, token_T: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` returns for these tokens, and the likeliest next token of each, int64 [T], with its logit
        [T] (the first, where several are): what greedy decoding needs, without the other logits."""
        if self.stack is not None and len(token_T) <= self.stack.rows:
            return self.stack.likeliest(*self._begin(token_T, cache), cache)
        return self.head.likeliest(self._run_layers(token_T, cache))

    def _begin(self, token_T: Tensor, cache: Cache) -> tuple[Tensor, Arrays]:
        """What the stack begins with."""
        return self.embedding(token_T), self.rotary.arrays(cache.length, len(token_T))

    def _run_layers(self, token_T: Tensor, cache: Cache) -> Tensor:
        if self.stack is not None and len(token_T) <= self.stack.rows:
            x_TD, turns = self._begin(token_T, cache)
            self.stack.run(x_TD, turns, cache)
            return x_TD
        x_TD, rotation = self.embedding(token_T), self.rotary.rows(cache.length, len(token_T))
        for layer in self.layers:
            x_TD = layer(x_TD, rotation, cache)
        return x_TD


def build_decoder(config: ModelConfig, weights: Weights, build_layer: Callable[[int], Layer]) -> Decoder:
    """Join the layers that `build_layer` makes with the embedding, the final norm and the head."""
    layers = [build_layer(layer) for layer in range(config.num_layers)]
    head = build_head(config, weights, FINAL_NORM, layers[-1].fused)
    stack = weights.fused.stack(len(layers), FINAL_NORM) if layers[-1].fused.rows else None
    return Decoder(config, weights.ops, weights.embedding("model.embed_tokens"), layers, head, stack)


def build_head(config: ModelConfig, weights: Weights, norm: str, fused: Fused) -> Head:
    """The vocabulary head behind the norm `norm`, in one call where the layers before it (`fused`) are."""
    head = "model.embed_tokens" if config.tied else "lm_head"
    in_one_call = weights.fused.head(config, norm, head) if fused.rows else None
    return Head(Norm(weights, norm, config.norm_eps), weights.linear(head), in_one_call)


def build_layer(
    config: ModelConfig,
    weights: Weights,
    layer: int,
    attention: Attention,
    feed_forward: FeedForward,
    fused: Fused,
) -> Layer:
    """Put the two norms of layer `layer` around its attention and its feed-forward."""
    prefix = f"model.layers.{layer}"
    return Layer(
        Norm(weights, f"{prefix}.input_layernorm.weight", config.norm_eps),
        attention,
        Norm(weights, f"{prefix}.post_attention_layernorm.weight", config.norm_eps),
        feed_forward,
        fused,
    )


def outer_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """The tensors outside the layers; a tied model's head is its embedding."""
    specs = {
        "model.embed_tokens.weight": TensorSpec((config.vocab, config.hidden), "int8"),
        "model.norm.weight": TensorSpec((config.hidden,), "float"),
    }
    if not config.tied:
        specs["lm_head.weight"] = TensorSpec((config.vocab, config.hidden), "int8")
    return specs


def layer_norm_tensors(config: ModelConfig, layer: int) -> dict[str, TensorSpec]:
    """The two norms of a layer."""
    return {
        f"model.layers.{layer}.{name}.weight": TensorSpec((config.hidden,), "float")
        for name in ("input_layernorm", "post_attention_layernorm")
    }


def feed_forward_tensors(prefix: str, hidden: int, ff: int) -> dict[str, TensorSpec]:
    """The three matrices of a gated feed-forward."""
    return {
        f"{prefix}.gate_proj.weight": TensorSpec((ff, hidden), "int8"),
        f"{prefix}.up_proj.weight": TensorSpec((ff, hidden), "int8"),
        f"{prefix}.down_proj.weight": TensorSpec((hidden, ff), "int8"),
    }
