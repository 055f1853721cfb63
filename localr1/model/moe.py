"""A mixture-of-experts feed-forward in three pieces: the router chooses, the bank computes, the shared experts add.

Owns the choice of experts and their weights. Does not know where experts live or in which format: the `ExpertBank`
gives their weighted sum. Routing is float32 throughout, and a correction bias moves choices, never weights. Letters
beyond the folder's legend: J groups of experts, M experts a group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from localr1.model.config import ModelConfig, MoeConfig
from localr1.model.decoder import feed_forward_tensors
from localr1.model.linear import ExpertBank, FeedForward, Route, TensorSpec, Weights


class Router:
    """`x_TD -> (expert_TK int64, weight_TK float32)`, the K in no particular order; by the device's own `route` where
    it has one and there are no groups."""

    def __init__(self, config: MoeConfig, weight_ED: Tensor, bias_E: Tensor | None, route: Route | None = None) -> None:
        self.config = config
        self.weight_ED = weight_ED
        self.bias_E = bias_E
        self.route = route if config.num_groups == 1 else None

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        if self.route is not None:
            rule = self.config.scoring == "softmax", self.config.normalize
            return self.route(x_TD, self.weight_ED, self.bias_E, self.config.top_k, self.config.scale, *rule)
        logit_TE = F.linear(x_TD, self.weight_ED)
        if self.config.scoring == "softmax":
            return self._greedy(logit_TE.softmax(dim=-1))
        return self._bias_corrected(logit_TE.sigmoid())

    def _bias_corrected(self, score_TE: Tensor) -> tuple[Tensor, Tensor]:
        """DeepSeek-V3, section 2.1.2: choose on score + bias, weigh by the bare score."""
        config = self.config
        choice_TE = score_TE if self.bias_E is None else score_TE + self.bias_E
        if config.num_groups > 1:
            choice_TJM = choice_TE.view(len(choice_TE), config.num_groups, -1)
            group_TJ = choice_TJM.topk(2, dim=-1).values.sum(dim=-1)
            choice_TE = keep_best_groups(choice_TE, group_TJ, config.top_k_groups, float("-inf"))
        expert_TK = choice_TE.topk(config.top_k, dim=-1, sorted=False).indices
        weight_TK = score_TE.gather(-1, expert_TK)
        if config.normalize:
            weight_TK = weight_TK / (weight_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return expert_TK, weight_TK * config.scale

    def _greedy(self, score_TE: Tensor) -> tuple[Tensor, Tensor]:
        """DeepSeek-V2, section 2.2: the largest scores, or the largest within the best groups."""
        config = self.config
        if config.topk_method == "group_limited_greedy":
            group_TJ = score_TE.view(len(score_TE), config.num_groups, -1).amax(dim=-1)
            score_TE = keep_best_groups(score_TE, group_TJ, config.top_k_groups, 0.0)
        weight_TK, expert_TK = score_TE.topk(config.top_k, dim=-1, sorted=False)
        return expert_TK, weight_TK * config.scale


def keep_best_groups(value_TE: Tensor, group_TJ: Tensor, keep: int, fill: float) -> Tensor:
    """`value_TE` with `fill` in all but the `keep` best of J equal groups of neighbouring experts."""
    kept_TJ = torch.zeros_like(group_TJ, dtype=torch.bool)
    kept_TJ.scatter_(-1, group_TJ.topk(keep, dim=-1, sorted=False).indices, True)
    dropped_TE = ~kept_TJ.repeat_interleave(value_TE.shape[-1] // group_TJ.shape[-1], dim=-1)
    return value_TE.masked_fill(dropped_TE, fill)


class MixtureOfExperts:
    """The feed-forward of one sparse layer."""

    def __init__(self, layer: int, router: Router, experts: ExpertBank, shared: FeedForward | None) -> None:
        self.layer = layer
        self.router = router
        self.experts = experts
        self.shared = shared

    def __call__(self, x_TD: Tensor, /, onto_TD: Tensor | None = None) -> Tensor:
        expert_TK, weight_TK = self.router(x_TD)
        return self.experts.run(self.layer, x_TD, expert_TK, weight_TK, self.shared, onto_TD)


def build_moe(config: ModelConfig, weights: Weights, experts: ExpertBank, layer: int) -> MixtureOfExperts:
    """The sparse feed-forward of `model.layers.{layer}.mlp`; `config.moe` must be set."""
    moe, prefix = _moe(config), f"model.layers.{layer}.mlp"
    bias_E = weights.tensor(f"{prefix}.gate.e_score_correction_bias") if moe.topk_method == "noaux_tc" else None
    router = Router(moe, weights.tensor(f"{prefix}.gate.weight"), bias_E, weights.ops.route)
    shared = weights.feed_forward(f"{prefix}.shared_experts") if moe.shared_ff else None
    return MixtureOfExperts(layer, router, experts, shared)


def moe_tensors(config: ModelConfig, layer: int) -> dict[str, TensorSpec]:
    """The tensors of one sparse feed-forward, one set an expert."""
    moe, prefix = _moe(config), f"model.layers.{layer}.mlp"
    specs = {f"{prefix}.gate.weight": TensorSpec((moe.num_experts, config.hidden), "float")}
    if moe.topk_method == "noaux_tc":
        specs[f"{prefix}.gate.e_score_correction_bias"] = TensorSpec((moe.num_experts,), "float")
    if moe.shared_ff:
        specs |= feed_forward_tensors(f"{prefix}.shared_experts", config.hidden, moe.shared_ff)
    for expert in range(moe.num_experts):
        specs |= feed_forward_tensors(f"{prefix}.experts.{expert}", config.hidden, moe.expert_ff)
    return specs


def _moe(config: ModelConfig) -> MoeConfig:
    assert config.moe is not None, "a sparse layer of a model without experts"
    return config.moe
