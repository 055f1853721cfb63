"""Whole layers one after another in one call, and the head behind them: what `blocks` makes, joined.

Owns the joined jobs' frames, and the sizes that a call tells them all; most of a frame stays as it is from call to
call of as many tokens. Knows numpy alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray

from localr1.kernels import attention_block as attention
from localr1.kernels import feed_forward_block as feed_forward
from localr1.kernels import head_block, mtp_front, stack
from localr1.kernels.blocks import MOST_ROWS, SMALL_WORK, Array, AttentionBlock, Block, FeedForwardBlock, Float, Scratch
from localr1.kernels.compilation import compile_kernel
from localr1.kernels.cpu import cache_words
from localr1.kernels.team import TEAM_NUMBERS
from localr1.kernels.vocabulary_head import HeadBlock

STACK_WEIGHTS = 1 << 28
"""Weights times rows that are read between two moments at which a stack can be stopped: some tens of milliseconds."""

FRAME = max(attention.FRAME, feed_forward.FRAME, head_block.FRAME, mtp_front.FRAME)


class Likeliest(NamedTuple):
    """What the head made of F rows: the normed rows, each one's likeliest token and its logit."""

    normed_FD: Float
    token_F: NDArray[np.int64]
    logit_F: Float


def address(array: Array) -> int:
    """Of an array's first number; `array.ctypes.data` takes twice as long."""
    at: int = array.__array_interface__["data"][0]
    return at


class Jobs:
    """Blocks whose jobs run one after another in one call, each with a frame of its own."""

    def __init__(self, blocks: Sequence[Block], scratch: Scratch) -> None:
        self._blocks, self._scratch, jobs = blocks, scratch, len(blocks)
        self.frames = np.zeros((jobs, FRAME), np.int64)
        self._codes = np.zeros(jobs, np.int64)
        self._frame_at = self.frames.ctypes.data + np.arange(jobs) * self.frames.strides[0]
        self._gates, self._teams = np.zeros(jobs * stack.GATE_NUMBERS, np.int64), np.zeros(2 * TEAM_NUMBERS, np.int64)
        self._frame = np.zeros(stack.FRAME, np.int64)
        self._frame[stack.CODES], self._frame[stack.FRAMES] = self._codes.ctypes.data, self._frame_at.ctypes.data
        team_at, half_bytes = self._teams.ctypes.data, self._teams.nbytes // 2
        for number, (block, frame) in enumerate(zip(blocks, self.frames, strict=True)):
            block.write_frame(frame, team_at + number % 2 * half_bytes)

    def prepare(self, rows: Sequence[int], threads: int) -> None:
        """Make room for calls of so many rows in each of the first jobs, whose code is compiled by then."""
        blocks = self._blocks[: len(rows)]
        if not self._codes[0]:
            self._codes[:] = [block.code() for block in self._blocks]
        needed = [block.room_bytes(count, threads) for block, count in zip(blocks, rows, strict=True)]
        arena = self._scratch.room(max(needed))
        for block, frame, count in zip(blocks, self.frames[: len(rows)], rows, strict=True):
            block.write_sizes(frame, count, threads, arena)

    def run(self, jobs: int, threads: int) -> None:
        """The first so many."""
        self._frame[stack.JOBS] = jobs
        compile_kernel("stack")(self._frame, self._scratch.team, self._gates, self._teams, threads)


class CachePlace:
    """Where the cache lies, in the frames of consecutive layers' attention."""

    def __init__(self, frames: NDArray[np.int64]) -> None:
        self._frames, self._number = frames, np.arange(len(frames))
        self._written = (0, 0, 0, 0)

    def write(self, cache_LSW: Array) -> None:
        """Another cache than the last time's, perhaps; one for all frames where L is 1."""
        words_LSW, kind = cache_words(cache_LSW)
        stride = words_LSW.strides[0] if len(words_LSW) > 1 else 0
        cache = address(words_LSW), stride, words_LSW.shape[2], kind
        if cache != self._written:
            at, stride, self._frames[:, attention.CACHE_WORDS], self._frames[:, attention.KIND] = self._written = cache
            self._frames[:, attention.CACHE] = at + self._number * stride


class Stack:
    """Consecutive layers in one call: x += attention(norm(x)), x += feed_forward(norm(x)), and so on; where
    there is a head, what it makes of x."""

    def __init__(
        self,
        layers: Sequence[tuple[AttentionBlock, FeedForwardBlock]],
        scratch: Scratch,
        head: HeadBlock | None = None,
    ) -> None:
        middle: list[Block] = [block for layer in layers for block in layer]
        blocks = [*middle, *([head] if head else [])]
        self._layers, self._scratch, self._with_head = layers, scratch, head is not None
        self._top_k = max(block.top_k for _, block in layers)
        self._hidden = layers[0][0].hidden
        self._weights = max(block.weights for block in blocks)
        self._heads = max(block.heads for block, _ in layers)
        self._jobs, self._count = Jobs(blocks, scratch), len(blocks)
        frames, behind = self._jobs.frames, len(middle)
        self._attention, self._feed_forward, self._head = frames[:behind:2], frames[1:behind:2], frames[behind:]
        self._cache = CachePlace(self._attention)
        self._x = np.empty((MOST_ROWS, self._hidden), np.float32)
        self._normed = np.empty_like(self._x)
        self._expert = np.zeros((len(layers), MOST_ROWS * self._top_k), np.int64)
        self._best, self._top = np.empty(MOST_ROWS, np.int64), np.empty(MOST_ROWS, np.float32)
        self._best_at = self._best.ctypes.data
        self._prepared = (0, 0, 0)
        self._write_places()

    def __call__(self, x_TD: Float, cos_TR: Float, sin_TR: Float, cache_LSW: Array) -> NDArray[np.int64]:
        """All layers, without the head; `x_TD` is changed in place. `cache_LSW` are the layers' rows (see
        `AttentionBlock`).

        The experts that each layer's tokens went through, [L, T, K]; those of a layer without experts mean nothing.
        ValueError where shapes disagree."""
        experts_LTK = self._run(x_TD, cos_TR, sin_TR, cache_LSW, self._count - self._with_head)
        x_TD[:] = self._x[: len(x_TD)]
        return experts_LTK

    def likeliest(
        self, x_TD: Float, cos_TR: Float, sin_TR: Float, cache_LSW: Array
    ) -> tuple[NDArray[np.int64], Likeliest]:
        """All layers and the head. ValueError as above."""
        self._head[:, head_block.LOGITS], self._head[:, head_block.BEST] = 0, self._best_at
        experts_LTK, T = self._run(x_TD, cos_TR, sin_TR, cache_LSW, self._count), len(x_TD)
        return experts_LTK, Likeliest(self._normed[:T].copy(), self._best[:T].copy(), self._top[:T].copy())

    def logits(
        self, x_TD: Float, cos_TR: Float, sin_TR: Float, cache_LSW: Array, logits_TV: Float
    ) -> tuple[NDArray[np.int64], Float]:
        """All layers and the head, whose logits are written; the experts and the normed rows. ValueError as above."""
        self._head[:, head_block.LOGITS], self._head[:, head_block.BEST] = address(logits_TV), 0
        experts_LTK = self._run(x_TD, cos_TR, sin_TR, cache_LSW, self._count)
        return experts_LTK, self._normed[: len(x_TD)].copy()

    def _run(self, x_TD: Float, cos_TR: Float, sin_TR: Float, cache_LSW: Array, jobs: int) -> NDArray[np.int64]:
        """Run so many jobs on a copy of x, which is where they leave their rows too."""
        (T, D), (L, S, _) = x_TD.shape, cache_LSW.shape
        if T > MOST_ROWS:
            raise ValueError(f"a stack: {T} rows, at most {MOST_ROWS}")
        if (len(self._layers), self._hidden) != (L, D):
            raise ValueError(f"a stack of {len(self._layers)} layers: x {x_TD.shape}, cache {cache_LSW.shape}")
        self._layers[0][0].check(x_TD, cos_TR, cache_LSW[0])
        threads = team_size(T, self._weights, self._heads * cache_LSW[0].size)
        if self._prepared != (T, threads, self._scratch.at):
            self._jobs.prepare([T] * self._count, threads)
            self._prepared = (T, threads, self._scratch.at)
        self._x[:T] = x_TD
        self._cache.write(cache_LSW)
        a = self._attention
        a[:, attention.COS], a[:, attention.SIN] = address(cos_TR), address(sin_TR)
        a[:, attention.CACHE_ROWS], a[:, attention.START] = S, S - T
        self._jobs.run(jobs, threads)
        return self._expert[:, : T * self._top_k].reshape(L, T, self._top_k).copy()

    def _write_places(self) -> None:
        """What the frames of all calls have in common."""
        x_at, number = self._x.ctypes.data, np.arange(len(self._layers))
        self._attention[:, attention.X] = self._feed_forward[:, feed_forward.X] = self._head[:, head_block.X] = x_at
        self._feed_forward[:, feed_forward.EXPERT] = self._expert.ctypes.data + number * self._expert.strides[0]
        self._head[:, head_block.NORMED] = self._normed.ctypes.data
        self._head[:, head_block.TOP] = self._top.ctypes.data


def team_size(rows: int, weights: int, cache_work: int) -> int:
    """The threads in force, or 1 where the largest job of so many weights has too little to do to wake others."""
    return 1 if rows * max(weights, cache_work) < SMALL_WORK else int(get_num_threads())
