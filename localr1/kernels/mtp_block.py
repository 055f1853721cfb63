"""The front door of what an MTP layer's residual begins with (see `blocks`, whose plans these are too)."""

from collections.abc import Sequence

import numpy as np

from localr1.kernels import mtp_front
from localr1.kernels.blocks import Block, Float, Matrix, Plan, Scratch


class MtpFront(Block):
    """What an MTP layer's residual begins with."""

    def __init__(
        self,
        embedding: Matrix,
        embedding_norm_D: Float,
        hidden_norm_D: Float,
        proj: Matrix,
        eps: float,
        scratch: Scratch,
    ) -> None:
        """`proj` is [D, 2 D]. ValueError where shapes disagree."""
        hidden = embedding_norm_D.size
        plan = Plan(mtp_front.FRONT_PLAN, (eps,))
        self._vocab, self._hidden = len(embedding.q_OD), hidden
        plan.numbers[mtp_front.HIDDEN] = hidden
        plan.point(mtp_front.EMBEDDING, embedding.q_OD, self._vocab, hidden)
        plan.point(mtp_front.EMBEDDING_SCB, embedding.scb_O, self._vocab)
        plan.weights = 0  # of the embedding only the tokens' rows are read
        plan.point(mtp_front.EMBEDDING_NORM, embedding_norm_D, hidden)
        plan.point(mtp_front.HIDDEN_NORM, hidden_norm_D, hidden)
        plan.point_matrix(mtp_front.PROJ, proj, hidden, 2 * hidden)
        super().__init__("mtp_front", vars(mtp_front), plan, scratch)

    def __call__(self, tokens: Sequence[int], hidden_TD: Float) -> Float:
        """The rows [T, D] of T tokens, each with the state before it. ValueError where shapes disagree."""
        self.check(tokens, hidden_TD)
        T = len(tokens)
        x_TD, threads = np.empty((T, self._hidden), np.float32), self.team_size(T)
        kernel = self.ready(T, threads)
        kernel(self._frame, self._scratch.team, np.array(tokens, np.int64), hidden_TD, x_TD, threads)
        return x_TD

    def check(self, tokens: Sequence[int], hidden_TD: Float) -> None:
        """ValueError where shapes disagree, or a token has no embedding."""
        fits = hidden_TD.shape == (len(tokens), self._hidden) and hidden_TD.flags.c_contiguous
        if not fits or not 0 <= min(tokens) <= max(tokens) < self._vocab:
            raise ValueError(f"mtp_front: tokens {tokens} of {self._vocab}, states {hidden_TD.shape}")
