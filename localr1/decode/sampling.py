"""From logits to the next token: a ladder of small pure functions.

Owns the order of the filters (temperature, top-k, top-p, min-p) and the random draw, from the distribution that
`probabilities` gives. Of logits that are no numbers nothing is drawn. A constraint says which tokens may come at all;
it is asked before every draw and told what was drawn, so it sees each token that is emitted.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.errors import LocalR1Error

LEAST_TEMPERATURE = 1e-6
"""Lower ones are as good as greedy already, and numbers divided by them would no longer be finite."""

NUCLEUS_GUESS = 256
"""Candidates that top-p looks at first; few distributions need more, and sorting a whole vocabulary is slow."""


@dataclass(frozen=True)
class Sampling:
    """Settings with nothing left open; temperature 0 is greedy, top_k 0 and top_p 1 and min_p 0 filter nothing."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None


def probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """The distribution [V] that sampling draws from; temperature 0 puts all on the (first) likeliest token."""
    if sampling.temperature == 0:
        return torch.zeros_like(logits_V).index_fill_(0, logits_V.argmax(), 1.0)
    probs_V = torch.softmax(logits_V.to(torch.float32) / max(sampling.temperature, LEAST_TEMPERATURE), dim=-1)
    keep_V = torch.ones_like(probs_V, dtype=torch.bool)
    if 0 < sampling.top_k < probs_V.numel():
        keep_V &= _chosen(probs_V, torch.topk(probs_V, sampling.top_k).indices)
    if sampling.top_p < 1.0:
        keep_V &= _nucleus(probs_V * keep_V, sampling.top_p)
    keep_V &= probs_V >= probs_V.max() * sampling.min_p
    probs_V = probs_V * keep_V
    return probs_V / probs_V.sum()


def _nucleus(probs_V: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens, the last of which takes their share of the total to `top_p` or over (arXiv 1904.09751)."""
    target = top_p * probs_V.sum()
    values, indices = torch.topk(probs_V, min(NUCLEUS_GUESS, probs_V.numel()))
    if values.sum() < target:
        values, indices = torch.sort(probs_V, descending=True)
    kept = int((values.cumsum(0) - values < target).sum())
    return _chosen(probs_V, indices[: max(kept, 1)])


def _chosen(probs_V: Tensor, indices: Tensor) -> Tensor:
    return torch.zeros_like(probs_V, dtype=torch.bool).index_fill_(0, indices, True)


class Constraint(Protocol):
    """What the tokens of one answer must keep to."""

    def allowed(self) -> NDArray[np.bool_] | None:
        """Which of the first tokens of the vocabulary may come next, the others may not; None for all."""
        ...

    def take(self, token: int) -> None:
        """This token was drawn."""
        ...


def masked(logits_V: Tensor, allowed: NDArray[np.bool_]) -> Tensor:
    """The logits [V] with minus infinity where a token is not allowed, or has no place in `allowed`."""
    result_V = torch.full_like(logits_V, -torch.inf)
    count = min(len(allowed), len(logits_V))
    keep = torch.from_numpy(allowed[:count]).to(logits_V.device)
    result_V[:count] = torch.where(keep, logits_V[:count], result_V[:count])
    return result_V


class Sampler:
    """Draws tokens; a seed makes the draws repeat. `constraint` is that of the answer under way, if it has one."""

    constraint: Constraint | None = None

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    @property
    def greedy(self) -> bool:
        """Whether the next token is the likeliest one, whatever came before."""
        return self.sampling.temperature == 0 and self.constraint is None

    def __call__(self, logits_V: Tensor) -> int:
        if self.constraint is None:
            return self._draw(logits_V)
        allowed = self.constraint.allowed()
        token = self._draw(logits_V if allowed is None else masked(logits_V, allowed))
        self.constraint.take(token)
        return token

    def _draw(self, logits_V: Tensor) -> int:
        if not math.isfinite(float(logits_V.max())):
            raise LocalR1Error("the model's numbers are out of range: nothing follows", "ask in another way, or /undo")
        if self.sampling.temperature == 0:
            return int(logits_V.argmax())
        return int(torch.multinomial(probabilities(logits_V, self.sampling), 1, generator=self._generator))
