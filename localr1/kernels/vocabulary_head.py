"""The front door of the final norm and the vocabulary head of few rows, as one call.

Owns the plan that `head_block` reads. Knows numpy alone.
"""

import numpy as np
from numpy.typing import NDArray

from localr1.kernels import head_block as head
from localr1.kernels.blocks import Block, Float, Matrix, Plan, Scratch

NO_ROWS, NO_FLOATS, NO_TOKENS = np.empty((0, 0), np.float32), np.empty(0, np.float32), np.empty(0, np.int64)
"""For results that are not wanted."""


class HeadBlock(Block):
    """logits = head(norm(x)), and the likeliest token of each row."""

    def __init__(self, norm_D: Float, eps: float, matrix: Matrix, scratch: Scratch) -> None:
        """ValueError where shapes disagree."""
        vocab, hidden = matrix.q_OD.shape
        plan = Plan(head.HEAD_PLAN, (eps,))
        self._hidden, self.vocab = hidden, vocab
        plan.numbers[head.HIDDEN], plan.numbers[head.VOCAB] = hidden, vocab
        plan.point(head.NORM, norm_D, hidden)
        plan.point_matrix(head.HEAD, matrix, vocab, hidden)
        super().__init__("head_block", vars(head), plan, scratch)

    def logits(self, x_TD: Float, normed_TD: Float, logits_TV: Float) -> None:
        """Write the normed rows and their logits. ValueError where shapes disagree."""
        if logits_TV.shape != (len(x_TD), self.vocab):
            raise ValueError(f"head_block: x {x_TD.shape}, logits {logits_TV.shape}")
        self._run(x_TD, normed_TD, logits_TV, NO_TOKENS, NO_FLOATS)

    def likeliest(self, x_TD: Float, normed_TD: Float, best_T: NDArray[np.int64], top_T: Float) -> None:
        """Write the normed rows, and of each row's logits the place of the first highest and its value; place 0 where
        the row is not a number. ValueError where shapes disagree."""
        if not best_T.shape == top_T.shape == (len(x_TD),):
            raise ValueError(f"head_block: x {x_TD.shape}, best {best_T.shape}, top {top_T.shape}")
        self._run(x_TD, normed_TD, NO_ROWS, best_T, top_T)

    def _run(self, x_TD: Float, normed_TD: Float, logits_TV: Float, best_T: NDArray[np.int64], top_T: Float) -> None:
        T = len(x_TD)
        if x_TD.shape[1] != self._hidden or normed_TD.shape != x_TD.shape:
            raise ValueError(f"head_block: x {x_TD.shape}, normed {normed_TD.shape}, expected {self._hidden} columns")
        threads = self.team_size(T)
        kernel = self.ready(T, threads)
        kernel(self._frame, self._scratch.team, x_TD, normed_TD, logits_TV, best_T, top_T, threads)
