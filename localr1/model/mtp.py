"""Multi-token prediction: the extra layer that guesses the token after next (DeepSeek-V3 report, section 2.2).

Owns one MTP layer's maths. It shares the main model's embedding and head, and keeps a cache of its own, whose row i
belongs to the pair (hidden state of token i, token i + 1). Knows nothing of drafting or verifying
(`decode.speculate`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from localr1.model.config import ModelConfig
from localr1.model.decoder import Decoder, Layer, Norm, build_head
from localr1.model.linear import Cache, Weights

CARRIES_NORMED = ("glm4_moe_lite",)
"""Model types whose MTP layer, fed with its own output, wants it normed by `shared_head.norm`; DeepSeek's as it is."""


class MtpLayer:
    """The MTP layer that follows a decoder's last layer."""

    def __init__(self, config: ModelConfig, weights: Weights, main: Decoder, layer: Layer) -> None:
        prefix = f"model.layers.{config.num_layers}"
        self.config = config
        self.main = main
        self.layer = layer
        self.embedding_norm = Norm(weights, f"{prefix}.enorm.weight", config.norm_eps)
        self.hidden_norm = Norm(weights, f"{prefix}.hnorm.weight", config.norm_eps)
        front = layer.fused.mtp_front  # which holds the projection in a form of its own
        self.eh_proj_DI = weights.tensor(f"{prefix}.eh_proj.weight") if front is None else None
        norm = f"{prefix}.shared_head.norm.weight"
        self.head = build_head(config, weights, norm, layer.fused)
        self.carries_normed = config.model_type in CARRIES_NORMED
        in_one_call = front is not None
        self.fused = weights.fused.draft(config.num_layers, norm, self.carries_normed) if in_one_call else None

    def forward(self, token_T: Tensor, hidden_TD: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """(normed_TD, carried_TD) of T pairs: a token, and the state [D] of the token before it.

        That state is the main model's after its final norm, or, when drafting deeper, what this layer carried.
        Appends T rows to `cache`. `normed_TD` goes to `Decoder.logits` for the token after `token_T`.
        """
        rotation = self.main.rotary.rows(cache.length, len(token_T))
        out_TD = self.layer(self._joined(token_T, hidden_TD), rotation, cache)
        normed_TD = self.head.norm(out_TD)
        return normed_TD, normed_TD if self.carries_normed else out_TD

    def guesses(self, tokens: Sequence[int], hidden_TD: Tensor, cache: Cache, count: int) -> tuple[list[int], Tensor]:
        """The likeliest token after the last pair, and as many of the `count` - 1 after it as the same call gives, each
        from the pair of the one before and the state carried; and the state [1, D] that the last one carries.

        Appends the rows of the pairs given and of those in between. Of the pairs before the last given only their cache
        rows are needed, so no feed-forward runs for them.
        """
        if self.fused is not None and len(tokens) <= self.fused.rows:
            count = min(count, self.fused.most)
            turns = self.main.rotary.arrays(cache.length, len(tokens) + count - 1)
            return self.fused.guesses(tokens, hidden_TD, turns, cache, count)
        token_1, carried_1D = self.step(torch.tensor(tokens), hidden_TD, cache)
        return [int(token_1)], carried_1D

    def step(self, token_T: Tensor, hidden_TD: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """(token_1, carried_1D): the one guess of `guesses` and what it carries, found on the device."""
        rotation = self.main.rotary.rows(cache.length, len(token_T))
        last_1D = self.layer(self._joined(token_T, hidden_TD), rotation, cache, last_only=True)
        normed_1D, token_1, _ = self.head.likeliest(last_1D)
        return token_1, normed_1D if self.carries_normed else last_1D

    def _joined(self, token_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """eh_proj [enorm(embedding) | hnorm(hidden)] of each pair, as many pairs at a time as the fused part takes."""
        front, rows = self.layer.fused.mtp_front, self.layer.fused.rows
        if front is not None:
            starts = range(0, len(token_T), rows)
            parts = [front(token_T[at : at + rows].tolist(), hidden_TD[at : at + rows]) for at in starts]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        assert self.eh_proj_DI is not None, "an MTP layer with neither form of its projection"
        embedded_TD = self.embedding_norm(self.main.embedding(token_T))
        joined_TI = torch.cat((embedded_TD, self.hidden_norm(hidden_TD)), dim=-1)
        return F.linear(joined_TI, self.eh_proj_DI)
