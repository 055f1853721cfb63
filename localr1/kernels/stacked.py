"""Whole layers one after another in one call, with what comes before and behind them: what `blocks` makes, joined.

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
from localr1.kernels.mtp_block import MtpFront
from localr1.kernels.team import COUNTER_STRIDE, TEAM_NUMBERS
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


class Stack:
    """Consecutive layers in one call: x += attention(norm(x)), x += feed_forward(norm(x)), and so on; where
    there is a head, what it makes of x. `front` writes the x that the layers begin with. With `last_only`, only the
    last row goes beyond the attention of the last layer, which then must be the only one."""

    def __init__(
        self,
        layers: Sequence[tuple[AttentionBlock, FeedForwardBlock]],
        scratch: Scratch,
        head: HeadBlock | None = None,
        front: MtpFront | None = None,
        last_only: bool = False,
    ) -> None:
        if last_only and len(layers) > 1:
            raise ValueError(f"a stack of {len(layers)} layers needs all rows")
        middle: list[Block] = [block for layer in layers for block in layer]
        self._blocks = [*([front] if front else []), *middle, *([head] if head else [])]
        self._layers, self._scratch, self._with_head, self._last_only = layers, scratch, head is not None, last_only
        self._top_k = max(block.top_k for _, block in layers)
        self._made_by, self._hidden = front, layers[0][0].hidden
        self._weights = max(block.weights for block in self._blocks)
        self._heads = max(block.heads for block, _ in layers)
        jobs, first = len(self._blocks), 1 if front else 0
        self._frames = np.zeros((jobs, FRAME), np.int64)
        behind = first + len(middle)
        self._front, self._head = self._frames[:first], self._frames[behind:]
        self._attention, self._feed_forward = self._frames[first:behind:2], self._frames[first + 1 : behind : 2]
        self._codes = np.zeros(jobs, np.int64)
        self._frame_at = self._frames.ctypes.data + np.arange(jobs) * self._frames.strides[0]
        self._gates, self._teams = np.zeros(jobs * COUNTER_STRIDE, np.int64), np.zeros(2 * TEAM_NUMBERS, np.int64)
        self._frame = np.zeros(stack.FRAME, np.int64)
        self._frame[stack.CODES], self._frame[stack.FRAMES] = self._codes.ctypes.data, self._frame_at.ctypes.data
        self._number = np.arange(len(layers))
        self._tokens, self._state = np.zeros(MOST_ROWS, np.int64), np.empty((MOST_ROWS, self._hidden), np.float32)
        self._x, self._normed = np.empty_like(self._state), np.empty_like(self._state)
        self._expert = np.zeros((len(layers), MOST_ROWS * self._top_k), np.int64)
        self._best, self._top = np.empty(MOST_ROWS, np.int64), np.empty(MOST_ROWS, np.float32)
        self._best_at = self._best.ctypes.data
        self._cache = (0, 0, 0, 0)  # where the latest call's lay, the bytes and words of a layer's and a row, the kind
        self._prepared = (0, 0, 0)
        self._write_places()

    def __call__(self, x_TD: Float, cos_TR: Float, sin_TR: Float, cache_LSW: Array) -> NDArray[np.int64]:
        """All layers, without the head; `x_TD` is changed in place. `cache_LSW` are the layers' rows (see
        `AttentionBlock`).

        The experts that each layer's tokens went through, [L, T, K]; those of a layer without experts mean nothing.
        ValueError where shapes disagree."""
        experts_LTK = self._run(x_TD, cos_TR, sin_TR, cache_LSW, len(self._blocks) - self._with_head)
        x_TD[:] = self._x[: len(x_TD)]
        return experts_LTK

    def likeliest(
        self, x_TD: Float, cos_TR: Float, sin_TR: Float, cache_LSW: Array
    ) -> tuple[NDArray[np.int64], Likeliest]:
        """All layers and the head. ValueError as above."""
        self._head[:, head_block.LOGITS], self._head[:, head_block.BEST] = 0, self._best_at
        experts_LTK = self._run(x_TD, cos_TR, sin_TR, cache_LSW, len(self._blocks))
        rows = self._rows_behind(len(x_TD))
        return experts_LTK, Likeliest(self._normed[:rows].copy(), self._best[:rows].copy(), self._top[:rows].copy())

    def logits(
        self, x_TD: Float, cos_TR: Float, sin_TR: Float, cache_LSW: Array, logits_TV: Float
    ) -> tuple[NDArray[np.int64], Float]:
        """All layers and the head, whose logits are written; the experts and the normed rows. ValueError as above."""
        self._head[:, head_block.LOGITS], self._head[:, head_block.BEST] = address(logits_TV), 0
        experts_LTK = self._run(x_TD, cos_TR, sin_TR, cache_LSW, len(self._blocks))
        return experts_LTK, self._normed[: len(x_TD)].copy()

    def front(self, tokens: Sequence[int], hidden_TD: Float) -> Float:
        """What to give the next call as x: the rows [T, D] that the front will then make of T pairs (see `MtpFront`),
        in place of which the call leaves those behind the layers. They hold until the call after that."""
        if self._made_by is None:
            raise ValueError("a stack without a front")
        self._made_by.check(tokens, hidden_TD)
        T = len(tokens)
        self._tokens[:T], self._state[:T] = tokens, hidden_TD
        return self._x[:T]

    def _run(self, x_TD: Float, cos_TR: Float, sin_TR: Float, cache_LSW: Array, jobs: int) -> NDArray[np.int64]:
        """Run so many jobs on a copy of x, which is where they leave their rows too."""
        (T, D), (L, S, _) = x_TD.shape, cache_LSW.shape
        if T > MOST_ROWS:
            raise ValueError(f"a stack: {T} rows, at most {MOST_ROWS}")
        if (len(self._layers), self._hidden) != (L, D):
            raise ValueError(f"a stack of {len(self._layers)} layers: x {x_TD.shape}, cache {cache_LSW.shape}")
        self._layers[0][0].check(x_TD, cos_TR, cache_LSW[0])
        words_LSW, kind = cache_words(cache_LSW)
        small = T * max(self._weights, self._heads * cache_LSW[0].size) < SMALL_WORK
        threads = 1 if small else int(get_num_threads())
        if self._prepared != (T, threads, self._scratch.at):
            self._prepare(T, threads)
        if self._made_by is None:
            self._x[:T] = x_TD
        a, cache = self._attention, (address(words_LSW), words_LSW.strides[0], words_LSW.shape[2], kind)
        if cache != self._cache:
            at, stride, a[:, attention.CACHE_WORDS], a[:, attention.KIND] = self._cache = cache
            a[:, attention.CACHE] = at + self._number * stride
        a[:, attention.COS], a[:, attention.SIN] = address(cos_TR), address(sin_TR)
        a[:, attention.CACHE_ROWS], a[:, attention.START] = S, S - T
        self._frame[stack.JOBS] = jobs
        compile_kernel("stack")(self._frame, self._scratch.team, self._gates, self._teams, threads)
        rows = self._rows_behind(T)
        return self._expert[:, : rows * self._top_k].reshape(L, rows, self._top_k).copy()

    def _rows_behind(self, tokens: int) -> int:
        """How many rows go beyond the last attention."""
        return 1 if self._last_only else tokens

    def _write_places(self) -> None:
        """What the frames of all calls have in common."""
        team_at, half_bytes = self._teams.ctypes.data, self._teams.nbytes // 2
        for number, (block, frame) in enumerate(zip(self._blocks, self._frames, strict=True)):
            block.write_frame(frame, team_at + number % 2 * half_bytes)
        self._attention[:, attention.X] = self._front[:, mtp_front.OUT] = self._x.ctypes.data
        self._feed_forward[:, feed_forward.EXPERT] = self._expert.ctypes.data + self._number * self._expert.strides[0]
        self._head[:, head_block.NORMED], self._head[:, head_block.TOP] = (
            self._normed.ctypes.data,
            self._top.ctypes.data,
        )
        self._front[:, mtp_front.TOKEN], self._front[:, mtp_front.STATE] = (
            self._tokens.ctypes.data,
            self._state.ctypes.data,
        )

    def _prepare(self, T: int, threads: int) -> None:
        """Make room for calls of T tokens."""
        if not self._codes[0]:
            self._codes[:] = [block.code() for block in self._blocks]
        behind = (*(block for _, block in self._layers), *self._blocks[len(self._blocks) - self._with_head :])
        rows = [self._rows_behind(T) if block in behind else T for block in self._blocks]
        needed = [block.room_bytes(count, threads) for block, count in zip(self._blocks, rows, strict=True)]
        arena = self._scratch.room(max(needed))
        for block, frame, count in zip(self._blocks, self._frames, rows, strict=True):
            block.write_sizes(frame, count, threads, arena)
        x_behind_at = self._x[T - self._rows_behind(T) :].ctypes.data
        self._feed_forward[:, feed_forward.X] = self._head[:, head_block.X] = x_behind_at
        self._prepared = (T, threads, arena)
