"""Whole layers one after another in one call: what `blocks` makes, joined.

Owns the frames of the joined blocks, which may still be called one by one, and the sizes that a call tells them all.
Knows numpy alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localr1.kernels import attention_block as attention
from localr1.kernels import feed_forward_block as feed_forward
from localr1.kernels import stack
from localr1.kernels.blocks import MOST_ROWS, Array, AttentionBlock, FeedForwardBlock, Float, Scratch
from localr1.kernels.compilation import compile_kernel
from localr1.kernels.cpu import cache_words
from localr1.kernels.team import COUNTER_STRIDE, TEAM_NUMBERS

STACK_WEIGHTS = 1 << 28
"""Weights times rows that are read between two moments at which a stack can be stopped: some tens of milliseconds."""


class Stack:
    """Consecutive layers in one call: x += attention(norm(x)), x += feed_forward(norm(x)), and so on, in place."""

    def __init__(self, layers: Sequence[tuple[AttentionBlock, FeedForwardBlock]], scratch: Scratch) -> None:
        self.blocks: list[AttentionBlock | FeedForwardBlock] = [block for layer in layers for block in layer]
        self._layers, self._scratch = layers, scratch
        self._top_k = max(block.top_k for _, block in layers)
        jobs = len(self.blocks)
        self._frames = np.zeros((jobs, max(attention.FRAME, feed_forward.FRAME)), np.int64)
        self._attention, self._feed_forward = self._frames[0::2], self._frames[1::2]
        for block, frame in zip(self.blocks, self._frames, strict=True):
            block.join(frame)
        self._codes = np.zeros(jobs, np.int64)
        self._frame_at = self._frames.ctypes.data + np.arange(jobs) * self._frames.strides[0]
        self._gates, self._teams = np.zeros(jobs * COUNTER_STRIDE, np.int64), np.zeros(2 * TEAM_NUMBERS, np.int64)
        self._frame = np.zeros(stack.FRAME, np.int64)
        self._frame[stack.JOBS], self._frame[stack.CODES] = jobs, self._codes.ctypes.data
        self._frame[stack.FRAMES] = self._frame_at.ctypes.data

    def __call__(self, x_TD: Float, cos_TR: Float, sin_TR: Float, caches: Sequence[Array]) -> NDArray[np.int64]:
        """`caches` are each layer's (see `AttentionBlock`). The experts that each layer's tokens went through,
        [L, T, K]; those of a layer without experts mean nothing. ValueError where shapes disagree."""
        T, S = x_TD.shape[0], len(caches[0])
        if T > MOST_ROWS:
            raise ValueError(f"a stack: {T} rows, at most {MOST_ROWS}")
        for (block, _), cache_SW in zip(self._layers, caches, strict=True):
            block.check(x_TD, cos_TR, cache_SW)
        arrays = [cache_words(cache_SW) for cache_SW in caches]
        experts_LTK = np.empty((len(self._layers), T, self._top_k), np.int64)
        weights_TK = np.empty((T, self._top_k), np.float32)  # of whichever layer is at work
        threads = max(block.threads_for(T, caches[0]) for block in self.blocks)
        self._prepare(T, threads)
        a, f = self._attention, self._feed_forward
        a[:, attention.X] = f[:, feed_forward.X] = x_TD.ctypes.data
        a[:, attention.COS], a[:, attention.SIN] = cos_TR.ctypes.data, sin_TR.ctypes.data
        a[:, attention.CACHE] = [words_SW.ctypes.data for words_SW, _ in arrays]
        a[:, attention.CACHE_ROWS], a[:, attention.CACHE_WORDS] = S, arrays[0][0].shape[1]
        a[:, attention.KIND], a[:, attention.START] = arrays[0][1], S - T
        f[:, feed_forward.EXPERT] = experts_LTK.ctypes.data + np.arange(len(f)) * experts_LTK.strides[0]
        f[:, feed_forward.WEIGHT] = weights_TK.ctypes.data
        compile_kernel("stack")(self._frame, self._scratch.team, self._gates, self._teams, threads)
        return experts_LTK

    def _prepare(self, T: int, threads: int) -> None:
        """Make room for a call of T tokens. A block that was called by itself meanwhile has changed its frame."""
        if not self._codes[0]:
            self._codes[:] = [block.code() for block in self.blocks]
        a, f = self._attention, self._feed_forward
        a[:, attention.TOKENS] = f[:, feed_forward.TOKENS] = T
        a[:, attention.THREADS] = f[:, feed_forward.THREADS] = threads
        room_bytes = max(block.room_bytes(T, threads) for block in self.blocks)
        a[:, attention.ARENA] = f[:, feed_forward.ARENA] = self._scratch.room(room_bytes)
        team_at = self._teams.ctypes.data
        a[:, attention.TEAM], f[:, feed_forward.TEAM] = team_at, team_at + self._teams.nbytes // 2
