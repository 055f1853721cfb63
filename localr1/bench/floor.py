"""What the machine could do: how fast memory is read and matrices are multiplied, and how much of either a model needs.

Owns the ceilings and the model's demands. Decode reads every active weight and the cache once a token, so its floor is
bytes / bandwidth; prefill multiplies, so its floor is operations / the rate of a plain fp32 product. Both ceilings are
sampled between the measurements that they judge, with the same threads, so a machine that slows down slows both.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import torch
from torch import Tensor

from localr1.kernels import cpu
from localr1.model.config import MlaConfig, ModelConfig
from localr1.model.linear import TensorSpec
from localr1.placement.shape import EXPERT, ModelShape

SAMPLE_BYTES = 1 << 30
"""Read at a time at most; as many as a token reads, if those are fewer. Memory that others share is now faster, now
slower: the quickest of some shorter reads is what it did for a moment, up to a fifth more than for a token's time."""

SAMPLE_S = 0.02
"""A sample lasts at least this long. Its fastest call counts: one that waited for a processor says nothing of what the
machine could do."""

SAMPLE_CALLS = 3


class Ceilings:
    """Samples of this machine's speed of reading a model's own bytes and of multiplying."""

    def __init__(self, runs: Sequence[Tensor], active_bytes: int) -> None:
        self._stretches = _endless(runs, min(active_bytes, SAMPLE_BYTES))
        self._left, self._right = torch.randn(512, 1024), torch.randn(1024, 1024)
        self.read_bytes_per_s()
        self.operations_per_s()

    def read_bytes_per_s(self) -> float:
        """Read the next stretches of the weights and do nothing else."""
        return _sample(self._read)

    def operations_per_s(self) -> float:
        """torch's float32 matrix product; a multiplication and an addition are two operations."""
        return _sample(self._multiply)

    def _read(self) -> int:
        stretches = next(self._stretches)
        for stretch in stretches:
            cpu.read(stretch.numpy())
        return sum(stretch.numel() for stretch in stretches)

    def _multiply(self) -> int:
        torch.mm(self._left, self._right)
        return 2 * self._left.numel() * self._right.shape[1]


def _sample(work: Callable[[], int]) -> float:
    """What `work` gets done a second."""
    rates: list[float] = []
    began_s = now_s = time.perf_counter()
    while now_s - began_s < SAMPLE_S or len(rates) < SAMPLE_CALLS:
        start_s, done = now_s, work()
        now_s = time.perf_counter()
        rates.append(done / (now_s - start_s))
    return max(rates)


def _endless(runs: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Stretches of `size` bytes together, each from where the last one ended, over all runs again and again."""
    stretches, left = [], size
    for run in cycle(runs):
        start = 0
        while start < run.numel():
            stretches.append(run[start : start + left])
            start += stretches[-1].numel()
            left -= stretches[-1].numel()
            if left == 0:
                yield stretches
                stretches, left = [], size


def read_bytes(sizes: ModelShape, depth: int, token_cache_bytes: int) -> int:
    """Bytes that one token of decoding must read at a context of `depth` tokens."""
    return sizes.active_bytes + depth * token_cache_bytes


def operations(config: ModelConfig, tensors: dict[str, TensorSpec], sizes: ModelShape, tokens: int, depth: int) -> int:
    """Useful operations of running `tokens` tokens after `depth` others; the head is run for the last one only."""
    matrices = sum(
        math.prod(spec.shape) * (_share(config) if EXPERT.search(name) else 1)
        for name, spec in tensors.items()
        if len(spec.shape) == 2 and not name.startswith(("model.embed_tokens.", "lm_head."))
    )
    seen = tokens * depth + tokens * (tokens + 1) // 2
    attention = config.num_layers * sizes.heads * sizes.score_width * seen
    return int(2 * (matrices * tokens + attention + config.vocab * config.hidden))


def _share(config: ModelConfig) -> float:
    """The part of the routed experts that a token uses."""
    return config.moe.top_k / config.moe.num_experts if config.moe else 0.0


def expanded_values(config: ModelConfig, mla: MlaConfig) -> int:
    """Numbers a token that a cache of keys and values of all heads would keep, over all layers."""
    width = mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim
    return config.num_layers * mla.num_heads * width
