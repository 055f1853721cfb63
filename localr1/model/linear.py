"""What a model is built from: the contracts between the maths and whoever holds the weights.

Owns the protocols only. The model asks a `Weights` for its parts by their Hugging Face names and never learns whether a
matrix is float or int8, in RAM or in GPU memory; it asks the `Ops` beside them for its inner loops, and an `ExpertBank`
for the routed experts' weighted sum, and never learns on which device they run. Activations are float32 everywhere.

Shape suffixes in this folder: B batch, T new tokens, S all tokens (cached and new), D hidden, O out features, H heads,
G key-value heads, C latent, R rotary, N nope, V value, E experts, K top-k, F feed-forward, W width of a cache row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from localr1.model.config import ModelConfig, RopeLayout
    from localr1.model.rope import Arrays, Rotation


class Linear(Protocol):
    """A matrix."""

    def __call__(self, x_TD: Tensor, /, onto_TO: Tensor | None = None) -> Tensor:
        """x W^T (+ bias), [T, O], and `onto` added, which stays as it is."""
        ...


Linears = Callable[[Tensor], tuple[Tensor, ...]]
"""Several matrices of the same rows, `x_TD -> (y_TO, ...)`; the results may be views of one, of wider rows."""


class FeedForward(Protocol):
    """A gated feed-forward, or a mixture of them."""

    def __call__(self, x_TD: Tensor, /, onto_TD: Tensor | None = None) -> Tensor:
        """down(silu(gate(x)) * up(x)), [T, D], and `onto` added, which stays as it is."""
        ...


Embedding = Callable[[Tensor], Tensor]
"""`token_T -> x_TD`, tokens in RAM, rows on the model's device."""

Position = int | Tensor
"""How many tokens are committed: a number, or one int64 [1] on the device, so that a recorded step can be replayed."""

Route = Callable[[Tensor, Tensor, Tensor | None, int, float, bool, bool], tuple[Tensor, Tensor]]
"""`(x_TD, weight_ED, bias_E, top_k, scale, softmax, normalize) -> (expert_TK, weight_TK)`: see `model.moe.Router`."""

Storage = Literal["int8", "float"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that a checkpoint must hold: its shape, and whether the store keeps it as int8 rows or in float."""

    shape: tuple[int, ...]
    storage: Storage


class Ops(Protocol):
    """The inner loops of one device. Tensors lie on `device`; results are new, contiguous and float32."""

    @property
    def device(self) -> torch.device:
        """Where the model's activations, tables and masks live."""
        ...

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        ...

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x @ weight, or one product for each of the first axis, for a weight that may be kept in 16 bits."""
        ...

    def head_product(self, x_THN: Tensor, weight_HNO: Tensor) -> Tensor:
        """x @ weight, a matrix a head, [T, H, O], perhaps a view; weights as in `product`."""
        ...

    def latent_front(
        self,
        q_THk: Tensor,
        row_TW: Tensor,
        norm_C: Tensor,
        eps: float,
        rotation: "Rotation",
        layout: "RopeLayout",
        cache: "Cache",
        layer: int,
    ) -> tuple[Tensor, Tensor]:
        """(the rotary part of the queries, rotated [T, H, R]; what `Cache.append` gives for rows [rms_norm(latent) C |
        rotated key R]) of queries that end in it, and rows [latent C | rotary key R]; these may be views."""
        ...

    def grouped_front(
        self,
        q_THd: Tensor,
        k_TGd: Tensor,
        v_TGd: Tensor,
        rotation: "Rotation",
        layout: "RopeLayout",
        cache: "Cache",
        layer: int,
    ) -> tuple[Tensor, Tensor]:
        """(rotated queries [T, H, d]; what `Cache.append` gives for rows [rotated keys G*d | values G*d]); as above."""
        ...

    @property
    def route(self) -> "Route | None":
        """A router without groups in few launches; None where there is no such."""
        ...

    def mla_attention(
        self, q_latent_THC: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, start: Position, scale: float
    ) -> Tensor:
        """Absorbed latent attention of contiguous rows, [T, H, C]; token t sees rows 0 .. start + t."""
        ...

    def latent_rate(self, cache_SW: Tensor) -> float:
        """Multiplications that `mla_attention` does, with many rows, in the time of one in a matrix product, for cache
        rows of this type; 0 where it is for few rows only."""
        ...

    def gqa_attention(self, q_THd: Tensor, cache_SW: Tensor, kv_heads: int, start: Position, scale: float) -> Tensor:
        """Grouped-query attention of few contiguous rows, [T, H, d]; token t sees rows 0 .. start + t."""
        ...


class Fused(NamedTuple):
    """Parts of a layer for steps of at most `rows` tokens in one call each, which add to `x_TD` in place; None where
    there is none, and the plain part does it."""

    rows: int = 0
    attention: "Callable[[Tensor, Rotation, Cache], None] | None" = None
    """`x += attention(norm(x))`."""
    feed_forward: "Callable[[Tensor], object] | None" = None
    """`x += feed_forward(norm(x))`."""
    mtp_front: "Callable[[Sequence[int], Tensor], Tensor] | None" = None
    """Of an MTP layer, `(tokens, hidden_TD) -> x_TD`: eh_proj [enorm(embedding) | hnorm(hidden)]."""


class FusedStack(NamedTuple):
    """All layers for steps of at most `rows` tokens in as few calls as may be, and the head in the last of these."""

    rows: int
    run: "Callable[[Tensor, Arrays, Cache], None]"
    """As the layers' fused parts, one after another: changes `x_TD` in place."""
    logits: "Callable[[Tensor, Arrays, Cache], tuple[Tensor, Tensor]]"
    """`run`, then `FusedHead.logits`; what becomes of `x_TD` is not said."""
    likeliest: "Callable[[Tensor, Arrays, Cache], tuple[Tensor, Tensor, Tensor]]"
    """`run`, then `FusedHead.likeliest`; as above."""


class FusedDraft(NamedTuple):
    """An MTP layer's guesses after at most `rows` pairs in one call, at most `most` of them."""

    rows: int
    most: int
    guesses: "Callable[[Sequence[int], Tensor, Arrays, Cache, int], tuple[list[int], Tensor]]"
    """`(tokens, hidden_TD, ..., count) -> (count tokens, state [1, D] behind the last)`: the likeliest token after the
    last pair, the likeliest after that one and the state behind it, and so on. Appends T + count - 1 rows to the cache;
    the rotations are those of as many positions."""


class FusedHead(NamedTuple):
    """The final norm and the vocabulary head of at most `rows` rows in one call. `x_TD` are hidden states before the
    norm; `normed_TD` comes back beside the results, which lie in RAM."""

    rows: int
    logits: "Callable[[Tensor], tuple[Tensor, Tensor]]"
    """`x_TD -> (normed_TD, logits_TV)`."""
    likeliest: "Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]"
    """`x_TD -> (normed_TD, token_T int64, logit_T)`: the first highest logit of each row, without the others."""


class FusedParts:
    """What of a model can be run in one call, with the same numbers within the kernels' tolerance. Here, nothing."""

    def layer(self, config: "ModelConfig", layer: int, experts: "ExpertBank | None") -> Fused:
        """The parts of a layer."""
        return Fused()

    def stack(self, layers: int, norm: str) -> FusedStack | None:
        """The layers 0 .. layers - 1 and the head behind the tensor `norm`, whose parts `layer` and `head` have handed
        out; None where one of them has none."""
        return None

    def draft(self, layer: int, norm: str, carries_normed: bool) -> FusedDraft | None:
        """An MTP layer and the head behind the tensor `norm`, as `stack`; whether the state behind a guess is normed by
        that."""
        return None

    def head(self, config: "ModelConfig", norm: str, head: str) -> FusedHead | None:
        """The norm of the tensor `norm` and the head `head.weight`; None where there is none."""
        return None


class Weights(Protocol):
    """Hands out a model's parts. `prefix` is a tensor's name without `.weight`."""

    @property
    def ops(self) -> Ops:
        """The inner loops of the device that the parts run on."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A small tensor (norm, router, bias), as float32 on the device; the whole name.

        `UP_PROJECTIONS` may be of another float type, which `Ops.product` takes.
        """
        ...

    def linear(self, prefix: str) -> Linear:
        """The matmul of `prefix.weight`, with `prefix.bias` added where the checkpoint has one."""
        ...

    def linears(self, prefixes: Sequence[str]) -> Linears:
        """The same of several matrices that multiply the same rows."""
        ...

    def feed_forward(self, prefix: str) -> FeedForward:
        """The gated feed-forward of `prefix.{gate,up,down}_proj`."""
        ...

    def embedding(self, prefix: str) -> Embedding:
        """The lookup of rows of `prefix.weight`."""
        ...

    @property
    def fused(self) -> FusedParts:
        """What of the model can be run in one call."""
        ...


class ExpertBank(Protocol):
    """The routed experts of all layers, wherever they live."""

    def run(
        self,
        layer: int,
        hidden_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        beside: FeedForward | None = None,
        onto_TD: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum over each token's K experts, [T, D] float32. `expert_TK` int64, `weight_TK` float32.

        `beside` (the shared experts) of the same rows is added; a bank that waits for another processor meanwhile
        computes it. So is `onto`, which stays as it is.
        """
        ...


class Cache(Protocol):
    """One row a token and layer: MLA keeps [latent C | rotary key R], grouped-query keeps [keys G*d | values G*d]."""

    @property
    def length(self) -> Position:
        """Tokens committed. `append` does not change it; only the decode loop does, after a whole forward."""
        ...

    def rows(self, layers: range, new: int) -> "NDArray[Any]":
        """All rows of consecutive layers [L, length + new, W] as an array, the last `new` of each for the caller to
        write: float32, bfloat16 as its bits, or int8 as `kernels.cache_rows` lays it out. Raises ContextError past the
        capacity."""
        ...

    def append(self, layer: int, row_TW: Tensor) -> Tensor:
        """Write T rows after the committed ones and return all rows [S = length + T, W], a view in the cache's dtype
        (float32, bfloat16, or int8 as `model.latent_rows` lays it out)."""
        ...

    def room(self, layer: int, new: int) -> Tensor:
        """All rows [S = length + new, W] of a float cache, the last `new` for the caller to write; where the length is
        on the device, all rows there is room for. Raises as `rows`."""
        ...
