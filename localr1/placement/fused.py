"""Layers of a store as fused blocks: what steps of a few tokens run on the CPU.

Owns the way from Hugging Face names to `kernels.blocks`. The numbers are those of the plain layers in `model`, within
the kernels' tolerance; so whatever cannot be fused (experts that are not all in RAM) is left to those.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.kernels import blocks
from localr1.kernels.drafting import MOST_GUESSES, Draft
from localr1.kernels.mtp_block import MtpFront
from localr1.kernels.stacked import STACK_WEIGHTS, Stack
from localr1.kernels.vocabulary_head import HeadBlock
from localr1.model.config import GqaConfig, MlaConfig, ModelConfig
from localr1.model.linear import Cache, ExpertBank, Fused, FusedDraft, FusedHead, FusedParts, FusedStack
from localr1.model.mla import LATENT_NORM_EPS, softmax_scale
from localr1.model.rope import Arrays, Rotation
from localr1.placement.bank import CpuBank
from localr1.placement.ops import as_numpy
from localr1.placement.routing_history import CountingBank
from localr1.weights.quantize import round_rows
from localr1.weights.store import Store

Array = NDArray[Any]

Inputs = tuple[Array, Array, Array, Array]
"""What a stack is called with."""


class FusedLayers(FusedParts):
    """The blocks of one model, which share their scratch memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._scratch = blocks.Scratch()
        self._attentions: dict[int, blocks.AttentionBlock] = {}
        self._feed_forwards: dict[int, blocks.FeedForwardBlock] = {}
        self._fronts: dict[int, MtpFront] = {}
        self._heads: dict[str, HeadBlock] = {}
        self._observers: dict[int, Callable[[int, Any], None]] = {}

    def layer(self, config: ModelConfig, layer: int, experts: ExpertBank | None) -> Fused:
        """The parts of a layer that can be fused here."""
        if not blocks.MOST_ROWS:
            return Fused()
        front = self._mtp_front(config, layer) if layer >= config.num_layers else None
        attention, feed_forward = self._attention(config, layer), self._feed_forward(config, layer, experts)
        return Fused(blocks.MOST_ROWS, attention, feed_forward, front)

    def stack(self, layers: int, norm: str) -> FusedStack | None:
        """The layers that `layer` was asked for before, and the head behind `norm` that `head` was. A call runs as many
        as are soon done, so that the cache may stop the step between two."""
        head = self._heads.get(norm)
        if head is None or not all(layer in self._layers() for layer in range(layers)):
            return None
        parts = [self._layers()[layer] for layer in range(layers)]
        whole = [attention.weights + feed_forward.weights for attention, feed_forward in parts]
        starts = [0]
        for layer in range(1, layers):
            if sum(whole[starts[-1] : layer + 1]) > STACK_WEIGHTS:
                starts.append(layer)
        runs = [range(*pair) for pair in zip(starts, [*starts[1:], layers], strict=True)]
        stacks = [(run, Stack([parts[layer] for layer in run], self._scratch)) for run in runs[:-1]]
        last, ending = runs[-1], Stack([parts[layer] for layer in runs[-1]], self._scratch, head)

        def walk(x_TD: Tensor, turns: Arrays, cache: Cache) -> Inputs:
            """All but the last run; what that begins with."""
            x, (cos_TR, sin_TR) = x_TD.numpy(), turns
            for run, stack in stacks:
                self._observe(run, stack(x, cos_TR, sin_TR, cache.rows(run, len(x))))
            return x, cos_TR, sin_TR, cache.rows(last, len(x))

        def run_all(x_TD: Tensor, turns: Arrays, cache: Cache) -> None:
            self._observe(last, ending(*walk(x_TD, turns, cache)))

        def logits(x_TD: Tensor, turns: Arrays, cache: Cache) -> tuple[Tensor, Tensor]:
            logits_TV = torch.empty(len(x_TD), head.vocab)
            expert_LTK, normed_TD = ending.logits(*walk(x_TD, turns, cache), logits_TV.numpy())
            self._observe(last, expert_LTK)
            return torch.from_numpy(normed_TD), logits_TV

        def likeliest(x_TD: Tensor, turns: Arrays, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
            expert_LTK, found = ending.likeliest(*walk(x_TD, turns, cache))
            self._observe(last, expert_LTK)
            normed_TD, token_T, logit_T = map(torch.from_numpy, found)
            return normed_TD, token_T, logit_T

        return FusedStack(blocks.MOST_ROWS, run_all, logits, likeliest)

    def draft(self, layer: int, norm: str, carries_normed: bool) -> FusedDraft | None:
        """An MTP layer between its front and the head behind `norm`, all of which were asked for before."""
        parts, front, head = self._layers().get(layer), self._fronts.get(layer), self._heads.get(norm)
        if parts is None or front is None or head is None:
            return None
        draft, layers = Draft(front, parts, head, self._scratch, carries_normed), range(layer, layer + 1)

        def guesses(
            tokens: Sequence[int], hidden_TD: Tensor, turns: Arrays, cache: Cache, count: int
        ) -> tuple[list[int], Tensor]:
            cache_SW = cache.rows(layers, len(tokens) + count - 1)[0]
            guessed, expert_NK, carried_1D = draft(tokens, hidden_TD.numpy(), *turns, cache_SW, count)
            self._observe(layers, expert_NK[None])
            return guessed, torch.from_numpy(carried_1D)

        return FusedDraft(blocks.MOST_ROWS, MOST_GUESSES, guesses)

    def _layers(self) -> dict[int, tuple[blocks.AttentionBlock, blocks.FeedForwardBlock]]:
        """The layers of which all is fused."""
        return {layer: (self._attentions[layer], part) for layer, part in self._feed_forwards.items()}

    def _observe(self, layers: range, expert_LTK: NDArray[np.int64]) -> None:
        """Have the experts counted that tokens went through."""
        for layer, expert_TK in zip(layers, expert_LTK, strict=True):
            if layer in self._observers:
                self._observers[layer](layer, expert_TK)

    def head(self, config: ModelConfig, norm: str, head: str) -> FusedHead | None:
        """The norm and the vocabulary head."""
        if not blocks.MOST_ROWS:
            return None
        matrix = self._matrix(head)
        block = self._heads[norm] = HeadBlock(self._float(norm), config.norm_eps, matrix, self._scratch)

        def logits(x_TD: Tensor) -> tuple[Tensor, Tensor]:
            normed_TD, logits_TV = torch.empty_like(x_TD), torch.empty(len(x_TD), block.vocab)
            block.logits(x_TD.numpy(), normed_TD.numpy(), logits_TV.numpy())
            return normed_TD, logits_TV

        def likeliest(x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            normed_TD, rows = torch.empty_like(x_TD), len(x_TD)
            token_T, logit_T = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
            block.likeliest(x_TD.numpy(), normed_TD.numpy(), token_T.numpy(), logit_T.numpy())
            return normed_TD, token_T, logit_T

        return FusedHead(blocks.MOST_ROWS, logits, likeliest)

    def _mtp_front(self, config: ModelConfig, layer: int) -> Callable[[Sequence[int], Tensor], Tensor]:
        """What an MTP layer begins with; its projection in int8, since a guess need not be exact."""
        prefix = f"model.layers.{layer}"
        proj = round_rows(self._store.tensor(f"{prefix}.eh_proj.weight"))
        block = self._fronts[layer] = MtpFront(
            self._matrix("model.embed_tokens"),
            self._norm(f"{prefix}.enorm"),
            self._norm(f"{prefix}.hnorm"),
            blocks.Matrix(proj.weight.numpy(), proj.scb.numpy()),
            config.norm_eps,
            self._scratch,
        )
        return lambda tokens, hidden_TD: torch.from_numpy(block(tokens, hidden_TD.numpy()))

    def _attention(self, config: ModelConfig, layer: int) -> Any:
        prefix, norm_D = f"model.layers.{layer}.self_attn", self._norm(f"model.layers.{layer}.input_layernorm")
        interleaved = config.rope.layout == "interleaved"
        if isinstance(config.attention, MlaConfig):
            mla = config.attention
            block = blocks.mla_block(
                self._mla(prefix, mla, norm_D),
                mla.qk_nope_head_dim,
                mla.qk_rope_head_dim,
                interleaved,
                config.norm_eps,
                LATENT_NORM_EPS,
                softmax_scale(config, mla),
                self._scratch,
            )
        else:
            gqa = config.attention
            heads, scale = gqa.num_heads, gqa.head_dim**-0.5
            weights = self._gqa(prefix, gqa, norm_D)
            block = blocks.gqa_block(
                weights, heads, gqa.num_kv_heads, interleaved, config.norm_eps, scale, self._scratch
            )

        self._attentions[layer] = block

        def attend(x_TD: Tensor, rotation: Rotation, cache: Cache) -> None:
            assert rotation.arrays is not None, "rotations of another device"
            cos_TR, sin_TR = rotation.arrays
            x = x_TD.numpy()
            block(x, cos_TR, sin_TR, cache.rows(range(layer, layer + 1), len(x))[0])

        return attend

    def _mla(self, prefix: str, mla: MlaConfig, norm_D: Array) -> blocks.MlaWeights:
        compressed = mla.q_lora_rank is not None
        kv_b = self._store.tensor(f"{prefix}.kv_b_proj.weight")
        kv_b = kv_b if kv_b.dtype in (torch.bfloat16, torch.float32) else kv_b.float()
        return blocks.MlaWeights(
            norm_D,
            self._matrix(f"{prefix}.q_a_proj" if compressed else f"{prefix}.q_proj"),
            self._norm(f"{prefix}.q_a_layernorm") if compressed else None,
            self._matrix(f"{prefix}.q_b_proj") if compressed else None,
            self._matrix(f"{prefix}.kv_a_proj_with_mqa"),
            self._norm(f"{prefix}.kv_a_layernorm"),
            as_numpy(kv_b.view(mla.num_heads, -1, mla.kv_lora_rank)),
            self._matrix(f"{prefix}.o_proj"),
        )

    def _gqa(self, prefix: str, gqa: GqaConfig, norm_D: Array) -> blocks.GqaWeights:
        return blocks.GqaWeights(
            norm_D,
            self._matrix(f"{prefix}.q_proj"),
            self._matrix(f"{prefix}.k_proj"),
            self._matrix(f"{prefix}.v_proj"),
            self._norm(f"{prefix}.q_norm") if gqa.qk_norm else None,
            self._norm(f"{prefix}.k_norm") if gqa.qk_norm else None,
            self._matrix(f"{prefix}.o_proj"),
        )

    def _feed_forward(self, config: ModelConfig, layer: int, experts: ExpertBank | None) -> Any:
        prefix, norm_D = f"model.layers.{layer}.mlp", self._norm(f"model.layers.{layer}.post_attention_layernorm")
        moe = config.moe
        if moe is None or f"{prefix}.gate.weight" not in self._store:
            block = blocks.FeedForwardBlock(norm_D, config.norm_eps, None, self._gated(prefix), self._scratch)
            self._feed_forwards[layer] = block
            return lambda x_TD: block(x_TD.numpy())
        bank, observe = (experts.bank, experts.observe) if isinstance(experts, CountingBank) else (experts, None)
        if not isinstance(bank, CpuBank):
            return None
        biased = moe.topk_method == "noaux_tc"
        routed = blocks.Routed(
            *bank.arrays(layer),
            self._float(f"{prefix}.gate.weight"),
            self._float(f"{prefix}.gate.e_score_correction_bias") if biased else None,
            moe.top_k,
            moe.scoring == "sigmoid",
            moe.num_groups,
            moe.top_k_groups,
            moe.normalize,
            moe.scale,
        )
        shared = self._gated(f"{prefix}.shared_experts") if moe.shared_ff else None
        block = blocks.FeedForwardBlock(norm_D, config.norm_eps, routed, shared, self._scratch)
        self._feed_forwards[layer] = block
        if observe is None:
            return lambda x_TD: block(x_TD.numpy())
        self._observers[layer] = observe
        return lambda x_TD: observe(layer, block(x_TD.numpy()))

    def _matrix(self, prefix: str) -> blocks.Matrix:
        rows = self._store.int8_rows(prefix)
        bias = self._float(f"{prefix}.bias") if f"{prefix}.bias" in self._store else None
        return blocks.Matrix(rows.weight.numpy(), rows.scb.numpy(), bias)

    def _gated(self, prefix: str) -> tuple[Array, Array]:
        rows = self._store.feed_forwards([prefix])
        return rows.weight.numpy(), rows.scb.numpy()

    def _norm(self, prefix: str) -> NDArray[np.float32]:
        return self._float(f"{prefix}.weight")

    def _float(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self._store.tensor(name).to(torch.float32).contiguous().numpy()
        return array
