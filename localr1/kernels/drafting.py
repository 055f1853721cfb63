"""An MTP layer's guesses in one call: the first from pairs of a token and the state before it, and every further one
from the guess before and the state that it left.

Owns the frames of front, attention, feed-forward and head, a set for each guess, and what they leave to each other.
Knows numpy alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localr1.kernels import attention_block as attention
from localr1.kernels import feed_forward_block as feed_forward
from localr1.kernels import head_block, mtp_front
from localr1.kernels.blocks import MOST_ROWS, Array, AttentionBlock, Block, FeedForwardBlock, Float, Scratch
from localr1.kernels.mtp_block import MtpFront
from localr1.kernels.stacked import CachePlace, Jobs, address, team_size
from localr1.kernels.vocabulary_head import HeadBlock

MOST_GUESSES = MOST_ROWS
"""Of one call."""

GUESS_JOBS = 4
"""Front, attention, feed-forward, head."""


class Guesses(NamedTuple):
    """What came of a draft: the tokens, the experts that each one's row went through, [N, K], and the state [1, D] to
    go on with."""

    tokens: list[int]
    expert_NK: NDArray[np.int64]
    carried_1D: Float


class Draft:
    """One MTP layer between its front and the head."""

    def __init__(
        self,
        front: MtpFront,
        layer: tuple[AttentionBlock, FeedForwardBlock],
        head: HeadBlock,
        scratch: Scratch,
        carries_normed: bool,
    ) -> None:
        """`carries_normed`: whether the state behind a guess is normed by the head's norm, or as the layer left it."""
        (self._attention_block, feed), self._scratch = layer, scratch
        self._front_block, self._carries_normed = front, carries_normed
        blocks: list[Block] = [front, *layer, head]
        self._weights = max(block.weights for block in blocks)
        self._jobs = Jobs(blocks * MOST_GUESSES, scratch)
        frames = self._jobs.frames
        self._front, self._attention = frames[::GUESS_JOBS], frames[1::GUESS_JOBS]
        self._feed_forward, self._head = frames[2::GUESS_JOBS], frames[3::GUESS_JOBS]
        self._cache = CachePlace(self._attention)
        hidden = self._attention_block.hidden
        self._tokens, self._state = np.zeros(MOST_ROWS, np.int64), np.empty((MOST_ROWS, hidden), np.float32)
        self._x = np.empty((MOST_ROWS + MOST_GUESSES - 1, hidden), np.float32)  # the pairs' end with the first guess's
        self._normed = np.empty((MOST_GUESSES, hidden), np.float32)
        self._expert = np.zeros((MOST_GUESSES, feed.top_k), np.int64)
        self._best, self._top = np.zeros(MOST_GUESSES, np.int64), np.empty(MOST_GUESSES, np.float32)
        self._ahead = np.arange(MOST_GUESSES)
        self._prepared, self._pairs = (0, 0), 0
        self._write_places()

    def __call__(
        self, tokens: Sequence[int], hidden_TD: Float, cos_SR: Float, sin_SR: Float, cache_SW: Array, count: int
    ) -> Guesses:
        """`count` guesses after T pairs (see `MtpFront`). Their rows, and those of all guesses but the last, are the
        last T + count - 1 of the cache and are written here; `cos` and `sin` are the rotations of their positions.
        ValueError where shapes disagree."""
        T, rows = len(tokens), len(tokens) + count - 1
        if not 1 <= count <= MOST_GUESSES or T > MOST_ROWS:
            raise ValueError(f"a draft: {T} pairs, {count} guesses, at most {MOST_ROWS} and {MOST_GUESSES}")
        self._front_block.check(tokens, hidden_TD)
        self._attention_block.check(self._x[:rows], cos_SR, cache_SW)
        self._tokens[:T], self._state[:T] = tokens, hidden_TD
        self._prepare(T, team_size(T, self._weights, self._attention_block.heads * cache_SW.size))
        self._cache.write(cache_SW[None])
        a, start, row_bytes = self._attention, len(cache_SW) - rows, cos_SR.strides[0]
        a[1:, attention.START] = a[:-1, attention.CACHE_ROWS] = start + T + self._ahead[:-1]
        a[0, attention.START], a[-1, attention.CACHE_ROWS] = start, start + T + MOST_GUESSES - 1
        a[:, attention.COS], a[:, attention.SIN] = address(cos_SR), address(sin_SR)
        a[1:, attention.COS] += (T + self._ahead[:-1]) * row_bytes
        a[1:, attention.SIN] += (T + self._ahead[:-1]) * row_bytes
        self._jobs.run(GUESS_JOBS * count, self._prepared[0])
        carried = self._normed[count - 1 :] if self._carries_normed else self._x[MOST_ROWS + count - 2 :]
        return Guesses(self._best[:count].tolist(), self._expert[:count].copy(), carried[:1].copy())

    def _write_places(self) -> None:
        """What the frames of all calls have in common."""
        x_at = address(self._x[MOST_ROWS - 1 :]) + self._ahead * self._x.strides[0]
        normed_at = address(self._normed) + self._ahead * self._normed.strides[0]
        best_at = address(self._best) + self._ahead * self._best.itemsize
        self._attention[:, attention.X] = self._front[:, mtp_front.OUT] = x_at
        self._feed_forward[:, feed_forward.X] = self._head[:, head_block.X] = x_at
        self._feed_forward[:, feed_forward.EXPERT] = address(self._expert) + self._ahead * self._expert.strides[0]
        self._head[:, head_block.NORMED], self._head[:, head_block.BEST] = normed_at, best_at
        self._head[:, head_block.TOP] = address(self._top) + self._ahead * self._top.itemsize
        self._front[0, mtp_front.TOKEN], self._front[0, mtp_front.STATE] = address(self._tokens), address(self._state)
        self._front[1:, mtp_front.TOKEN] = best_at[:-1]
        self._front[1:, mtp_front.STATE] = (normed_at if self._carries_normed else x_at)[:-1]

    def _prepare(self, T: int, threads: int) -> None:
        """Make room for calls of T pairs."""
        if self._prepared != (threads, self._scratch.at):
            self._jobs.prepare([MOST_ROWS, MOST_ROWS, *[1] * (GUESS_JOBS * MOST_GUESSES - 2)], threads)
            self._prepared, self._pairs = (threads, self._scratch.at), 0
        if self._pairs != T:
            first_at = address(self._x[MOST_ROWS - T :])
            self._front[0, mtp_front.TOKENS] = self._attention[0, attention.TOKENS] = T
            self._front[0, mtp_front.OUT] = self._attention[0, attention.X] = first_at
            self._attention[0, attention.LAST_ONLY] = 1
            self._pairs = T
