"""What is known of a forward before it begins, in a few bytes: the tokens that it takes in, and what called for them.

Owns hints: the sum of the embeddings of a forward's tokens, and the hidden state after which the first of them was
chosen, each of root mean square 1, folded to at most 256 numbers where the model is wider, in int8. Folding adds up
numbers far apart under fixed random signs, which keeps inner products on average. Knows nothing of experts. A hint
tells much of its tokens, as the routes themselves do: who may read it may as well read the text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.model.linear import Embedding
from localr1.placement.routes import UNIT

MOST_NUMBERS = 256


class Foretold(NamedTuple):
    """A forward that is about to begin: its tokens, and the hidden state [D] after the final norm before them."""

    tokens: Sequence[int]
    hidden_D: Tensor


class Hints:
    """Makes hints for a model of `hidden` numbers a token; `embedding` in RAM."""

    def __init__(self, embedding: Embedding, hidden: int) -> None:
        self._embedding = embedding
        self._sign_D = np.where(np.random.default_rng(0).random(hidden) < 0.5, -1, 1).astype(np.float32)

    def __call__(self, foretold: Sequence[Foretold]) -> NDArray[np.int8]:
        """A hint each, [N, W]."""
        counts = [len(one.tokens) for one in foretold]
        rows_TD = self._embedding(torch.tensor([token for one in foretold for token in one.tokens])).numpy()
        taken_ND = np.add.reduceat(rows_TD, np.cumsum([0, *counts[:-1]]))
        before_ND = torch.stack([one.hidden_D for one in foretold]).cpu().numpy()
        return np.concatenate((self._packed(taken_ND), self._packed(before_ND)), axis=1)

    def _packed(self, x_ND: NDArray[np.float32]) -> NDArray[np.int8]:
        unit_ND: NDArray[np.float32] = x_ND / np.sqrt(np.mean(np.square(x_ND), axis=1, keepdims=True) + 1e-9)
        folds = -(-x_ND.shape[1] // MOST_NUMBERS)
        if folds > 1:
            padded = np.pad(unit_ND * self._sign_D, ((0, 0), (0, folds * MOST_NUMBERS - x_ND.shape[1])))
            unit_ND = padded.reshape(len(x_ND), folds, MOST_NUMBERS).sum(axis=1) / np.sqrt(folds)
        packed: NDArray[np.int8] = np.clip(np.rint(unit_ND * UNIT), -127, 127).astype(np.int8)
        return packed


def hint_width(hidden: int) -> int:
    """Numbers of a hint, for a model of so many a token."""
    return 2 * min(hidden, MOST_NUMBERS)
