"""The fused layers' front door: weights are checked once, and a call passes a handful of arguments.

Owns the plans: arrays of sizes and addresses that `attention_block`, `feed_forward_block` and `head_block` read, and
references to the arrays that they point into. Knows numpy alone. A layer's block changes the residual rows it is given
in place, for at most `MOST_ROWS` tokens at a time; `cpu`'s functions compute the same in parts.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray

from localr1.kernels import attention_block as attention
from localr1.kernels import feed_forward_block as feed_forward
from localr1.kernels import gqa_block as gqa
from localr1.kernels import mla_block as mla
from localr1.kernels.arena import LINE_BYTES
from localr1.kernels.compilation import KERNELS, compile_kernel, run_job
from localr1.kernels.cpu import cache_words, latent_row_bytes
from localr1.kernels.features import BITS
from localr1.kernels.jit import job_address
from localr1.kernels.packing import FEW
from localr1.kernels.team import TEAM_NUMBERS

Float = NDArray[np.float32]
Array = NDArray[Any]

MOST_ROWS = FEW if BITS else 0
"""Tokens that a block takes at a time; 0 where the processor has no integer vector path."""


SMALL_WORK = 1 << 20
"""Weights times rows of a block below which waking the other threads costs more than it saves."""


class Matrix(NamedTuple):
    """int8 rows, their scales, and a bias."""

    q_OD: NDArray[np.int8]
    scb_O: Float
    bias_O: Float | None = None


class Plan:
    """Sizes and addresses for one layer's calls, and the arrays behind them."""

    def __init__(self, size: int, floats: tuple[float, ...]) -> None:
        self.numbers = np.zeros(size, np.int64)
        self.floats = np.array(floats, np.float64)
        self._kept: list[Array] = []
        self.weights = 0

    def point(self, place: int, array: Array | None, *shape: int) -> None:
        """Write an array's address. ValueError unless it has that shape and lies in one piece."""
        if array is None:
            return
        if array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"a weight of shape {array.shape}, expected {shape} in one piece")
        self._kept.append(array)
        self.weights += array.size
        self.numbers[place] = array.ctypes.data

    def point_matrix(self, place: int, matrix: Matrix, outputs: int, inputs: int) -> None:
        """Write the three addresses of a matrix."""
        self.point(place, matrix.q_OD, outputs, inputs)
        self.point(place + 1, matrix.scb_O, outputs)
        self.point(place + 2, matrix.bias_O, outputs)


@dataclass(frozen=True)
class MlaWeights:
    """One latent attention. `q` is q_proj, or q_a_proj where there is a `q_b`; `kv_b` is float32, or bfloat16 bits."""

    norm_D: Float
    q: Matrix
    q_norm: Float | None
    q_b: Matrix | None
    kv_a: Matrix
    kv_norm_C: Float
    kv_b_HOC: Array
    out: Matrix


@dataclass(frozen=True)
class GqaWeights:
    """One grouped-query attention."""

    norm_D: Float
    q: Matrix
    k: Matrix
    v: Matrix
    q_norm_d: Float | None
    k_norm_d: Float | None
    out: Matrix


class Scratch:
    """One arena for all blocks of a model, as large as the largest call needs, and the team's counters."""

    def __init__(self) -> None:
        self.team = np.zeros(TEAM_NUMBERS, np.int64)
        self._arena = np.empty(LINE_BYTES, np.int8)
        self.at = self._start()

    def room(self, size_bytes: int) -> int:
        """The address `at` of so many bytes, whose contents last until another block is called."""
        if size_bytes > self._arena.size - LINE_BYTES:
            self._arena = np.empty(size_bytes + LINE_BYTES, np.int8)
            self.at = self._start()
        return self.at

    def _start(self) -> int:
        return -(-int(self._arena.ctypes.data) // LINE_BYTES) * LINE_BYTES


class Block:
    """A plan, a frame, and the room that calls of so many tokens need."""

    def __init__(self, kernel: str, places: dict[str, int], plan: Plan, scratch: Scratch) -> None:
        self._kernel, self._plan, self._scratch = kernel, plan, scratch
        self._frame = np.zeros(places["FRAME"], np.int64)
        self._frame[places["PLAN"]] = plan.numbers.ctypes.data
        self._frame[places["FLOATS"]] = plan.floats.ctypes.data
        self._tokens, self._threads, self._arena = places["TOKENS"], places["THREADS"], places["ARENA"]
        self._team = places["TEAM"]
        self._room_bytes: dict[tuple[int, int], int] = {}
        self.weights = plan.weights

    def team_size(self, tokens: int, other_work: int = 0) -> int:
        """The threads in force, or 1 where there is too little to do to wake others."""
        return 1 if tokens * self.weights + other_work < SMALL_WORK else int(get_num_threads())

    def ready(self, tokens: int, threads: int) -> Any:
        """The kernel, once the frame names the room for a call of so many tokens. ValueError for too many."""
        if tokens > MOST_ROWS:
            raise ValueError(f"{self._kernel}: {tokens} rows, at most {MOST_ROWS}")
        kernel = compile_kernel(self._kernel)
        self._frame[self._arena] = self._scratch.room(self.room_bytes(tokens, threads))
        return kernel

    def room_bytes(self, tokens: int, threads: int) -> int:
        """Of the arena, for a call of so many tokens."""
        needed = self._room_bytes.get((tokens, threads))
        if needed is None:
            needed = self._measure(tokens, threads)
            self._room_bytes[tokens, threads] = needed
        return needed

    def write_frame(self, frame: NDArray[np.int64], team_at: int) -> None:
        """Begin a frame of this block's for a stack, whose threads meet at `team_at`."""
        frame[: self._frame.size] = self._frame
        frame[self._team] = team_at

    def write_sizes(self, frame: NDArray[np.int64], tokens: int, threads: int, arena: int) -> None:
        """What calls of so many tokens have in common."""
        frame[self._tokens], frame[self._threads], frame[self._arena] = tokens, threads, arena

    def code(self) -> int:
        """The address of the job's code, compiled by then."""
        compile_kernel(self._kernel)
        return job_address(KERNELS[self._kernel].job)

    def _measure(self, tokens: int, threads: int) -> int:
        frame = self._frame.copy()
        frame[self._tokens], frame[self._threads], frame[self._arena] = tokens, threads, 0
        run_job(self._kernel, frame)
        return int(frame[self._arena])


class AttentionBlock(Block):
    """x += attention(norm(x)), in place; a cache row is an array of one of some `widths`."""

    def __init__(self, kernel: str, plan: Plan, scratch: Scratch, heads: int, widths: tuple[int, ...]) -> None:
        super().__init__(kernel, vars(attention), plan, scratch)
        self.hidden, self.heads, self._widths = int(plan.numbers[attention.HIDDEN]), heads, widths

    def __call__(self, x_TD: Float, cos_TR: Float, sin_TR: Float, cache_SW: Array) -> None:
        """For T tokens, whose rows are the last T of the cache and are written here; `cos` and `sin` are the rotations
        of their positions. The cache is float32, bfloat16 bits, or
        int8 (see `cache_rows`). ValueError where shapes disagree."""
        T, S = x_TD.shape[0], len(cache_SW)
        self.check(x_TD, cos_TR, cache_SW)
        start, threads = S - T, self.team_size(T, T * self.heads * cache_SW.size)
        words_SW, kind = cache_words(cache_SW)
        kernel = self.ready(T, threads)
        kernel(self._frame, self._scratch.team, x_TD, cos_TR, sin_TR, words_SW, kind, start, threads)

    def check(self, x_TD: Float, cos_TR: Float, cache_SW: Array) -> None:
        """ValueError where shapes disagree."""
        T, (S, words) = x_TD.shape[0], cache_SW.shape
        if x_TD.shape[1] != self.hidden or len(cos_TR) != T or S < T or words not in self._widths:
            raise ValueError(f"{self._kernel}: x {x_TD.shape}, cos {cos_TR.shape}, cache {cache_SW.shape}")


def mla_block(
    weights: MlaWeights,
    nope: int,
    rope: int,
    interleaved: bool,
    eps: float,
    latent_eps: float,
    scale: float,
    scratch: Scratch,
) -> AttentionBlock:
    """A latent attention. ValueError where shapes disagree."""
    plan = Plan(mla.MLA_PLAN, (eps, latent_eps, scale))
    heads, outputs, latent = weights.kv_b_HOC.shape
    hidden, value, width = weights.norm_D.size, outputs - nope, heads * (nope + rope)
    rank = 0 if weights.q_b is None else weights.q_b.q_OD.shape[1]
    for place, number in (
        (attention.HIDDEN, hidden),
        (attention.HEADS, heads),
        (attention.INTERLEAVED, interleaved),
        (mla.NOPE, nope),
        (mla.ROPE, rope),
        (mla.VALUE, value),
        (mla.LATENT, latent),
        (mla.Q_RANK, rank),
        (mla.KV_B_HALVES, 1 if weights.kv_b_HOC.dtype == np.uint16 else 2),
    ):
        plan.numbers[place] = number
    plan.point(attention.NORM, weights.norm_D, hidden)
    plan.point_matrix(attention.Q, weights.q, rank or width, hidden)
    if weights.q_b is not None:
        plan.point(mla.Q_NORM, weights.q_norm, rank)
        plan.point_matrix(mla.Q_B, weights.q_b, width, rank)
    plan.point_matrix(mla.KV_A, weights.kv_a, latent + rope, hidden)
    plan.point(mla.KV_NORM, weights.kv_norm_C, latent)
    plan.point(mla.KV_B, weights.kv_b_HOC, heads, outputs, latent)
    plan.point_matrix(attention.OUT, weights.out, hidden, heads * value)
    return AttentionBlock("mla_block", plan, scratch, heads, (latent + rope, latent_row_bytes(latent, rope)))


def gqa_block(
    weights: GqaWeights, heads: int, kv_heads: int, interleaved: bool, eps: float, scale: float, scratch: Scratch
) -> AttentionBlock:
    """A grouped-query attention. ValueError where shapes disagree."""
    plan = Plan(gqa.GQA_PLAN, (eps, eps, scale))
    hidden, head_size = weights.norm_D.size, len(weights.q.q_OD) // heads
    for place, number in (
        (attention.HIDDEN, hidden),
        (attention.HEADS, heads),
        (attention.INTERLEAVED, interleaved),
        (gqa.KV_HEADS, kv_heads),
        (gqa.HEAD_SIZE, head_size),
    ):
        plan.numbers[place] = number
    plan.point(attention.NORM, weights.norm_D, hidden)
    plan.point_matrix(attention.Q, weights.q, heads * head_size, hidden)
    plan.point_matrix(gqa.K, weights.k, kv_heads * head_size, hidden)
    plan.point_matrix(gqa.V, weights.v, kv_heads * head_size, hidden)
    plan.point(gqa.HEAD_Q_NORM, weights.q_norm_d, head_size)
    plan.point(gqa.HEAD_K_NORM, weights.k_norm_d, head_size)
    plan.point_matrix(attention.OUT, weights.out, hidden, heads * head_size)
    return AttentionBlock("gqa_block", plan, scratch, heads, (2 * kv_heads * head_size,))


class Routed(NamedTuple):
    """Routed experts and their router: experts [E, 3 D F], scales [E, 2 F + D], router [E, D], its bias [E]."""

    experts_E3M: NDArray[np.int8]
    scb_ES: Float
    router_ED: Float
    bias_E: Float | None
    top_k: int
    sigmoid: bool
    groups: int
    kept_groups: int
    normalize: bool
    scale: float


class FeedForwardBlock(Block):
    """x += feed_forward(norm(x)), in place."""

    def __init__(
        self, norm_D: Float, eps: float, routed: Routed | None, shared: tuple[Array, Array] | None, scratch: Scratch
    ) -> None:
        """`shared` is ([1, 3 D F] int8, [1, 2 F + D] scales). ValueError where shapes disagree."""
        hidden = norm_D.size
        plan = Plan(feed_forward.FF_PLAN, (eps, routed.scale if routed else 1.0))
        self._hidden, self.top_k = hidden, routed.top_k if routed else 0
        plan.numbers[feed_forward.HIDDEN], plan.numbers[feed_forward.TOP_K] = hidden, self.top_k
        plan.point(feed_forward.NORM, norm_D, hidden)
        if shared is not None:
            ff = shared[0].size // (3 * hidden)
            plan.numbers[feed_forward.SHARED_FF] = ff
            plan.point(feed_forward.SHARED, shared[0], 1, 3 * hidden * ff)
            plan.point(feed_forward.SHARED_SCB, shared[1], 1, 2 * ff + hidden)
        if routed is not None:
            self._point_routed(plan, routed, hidden)
        super().__init__("feed_forward_block", vars(feed_forward), plan, scratch)

    def _point_routed(self, plan: Plan, routed: Routed, hidden: int) -> None:
        experts, ff = len(routed.experts_E3M), routed.experts_E3M.shape[1] // (3 * hidden)
        for place, number in (
            (feed_forward.NUM_EXPERTS, experts),
            (feed_forward.EXPERT_FF, ff),
            (feed_forward.SIGMOID, routed.sigmoid),
            (feed_forward.NUM_GROUPS, routed.groups),
            (feed_forward.KEEP_GROUPS, routed.kept_groups),
            (feed_forward.NORMALIZE, routed.normalize),
        ):
            plan.numbers[place] = number
        plan.point(feed_forward.EXPERTS, routed.experts_E3M, experts, 3 * hidden * ff)
        plan.weights -= (experts - routed.top_k) * 3 * hidden * ff
        plan.point(feed_forward.EXPERTS_SCB, routed.scb_ES, experts, 2 * ff + hidden)
        plan.point(feed_forward.ROUTER, routed.router_ED, experts, hidden)
        plan.point(feed_forward.ROUTER_BIAS, routed.bias_E, experts)

    def __call__(self, x_TD: Float) -> NDArray[np.int64]:
        """The experts that each token went through, [T, K]. ValueError where shapes disagree."""
        T = x_TD.shape[0]
        threads = self.team_size(T)
        if x_TD.shape[1] != self._hidden:
            raise ValueError(f"feed_forward_block: x {x_TD.shape}, expected {self._hidden} columns")
        expert_TK = np.empty((T, self.top_k), np.int64)
        kernel = self.ready(T, threads)
        kernel(self._frame, self._scratch.team, x_TD, expert_TK, threads)
        return expert_TK
