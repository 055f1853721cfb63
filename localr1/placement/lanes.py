"""A prefill chunk's cold experts: which pass through the device, and how.

Owns the choice and the passage. An expert that passes costs its copy, whatever its tokens; on the CPU it costs by the
token. So those of most tokens pass, as many as let both lanes end at the same time by what each was measured to take,
on this machine with this model, chunk after chunk.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.kernels.gpu import plain
from localr1.placement.slots import ColdExperts, fill, pinned_like
from localr1.weights.quantize import Int8Rows

MEMORY = 0.8
"""Weight of the past when a cost is seen again."""
FIRST_TOKENS = 32
"""Before anything was measured, an expert of this many tokens passes."""
BUFFERS = 2


class Lanes:
    """What an expert's passage costs, and a token's expert on the CPU."""

    def __init__(self) -> None:
        self.stream_s: float | None = None
        self.pair_s: float | None = None

    def streamed(self, tokens_E: NDArray[np.int64]) -> NDArray[np.int64]:
        """The experts that should pass, of those with tokens."""
        order = np.argsort(-tokens_E, kind="stable")
        order = order[tokens_E[order] > 0]
        if self.stream_s is None or self.pair_s is None:
            return order[tokens_E[order] >= FIRST_TOKENS]
        left_pairs = tokens_E.sum() - np.concatenate(([0], np.cumsum(tokens_E[order])))
        longer_s = np.maximum(np.arange(len(order) + 1) * self.stream_s, left_pairs * self.pair_s)
        return order[: int(longer_s.argmin())]

    @contextmanager
    def timing_cpu(self, pairs: int) -> Iterator[None]:
        """Learn what the CPU takes for so many (token, expert) pairs."""
        start_s = time.perf_counter()
        yield
        self.pair_s = blended(self.pair_s, (time.perf_counter() - start_s) / pairs)

    def learn_stream(self, experts: int, seconds: float) -> None:
        self.stream_s = blended(self.stream_s, seconds / experts)


def blended(before: float | None, seen: float) -> float:
    return seen if before is None else MEMORY * before + (1 - MEMORY) * seen


class Streamer:
    """Takes experts through two page-locked buffers and two on the device; one is copied while the last computes."""

    def __init__(self, cold: ColdExperts, device: torch.device) -> None:
        self._cold = cold
        self._device = device
        self._thread = ThreadPoolExecutor(1, "expert-stream")
        self._stages: list[Stage] = []
        self._compute = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def start(
        self,
        layer: int,
        experts: NDArray[np.int64],
        hidden_TD: Tensor,
        expert_TK: NDArray[np.int64],
        weight_TK: Tensor,
    ) -> "Future[tuple[float, Tensor]]":
        """(seconds, weighted sum [T, D] on the device) of these experts, computed in another thread.

        The device must be done with what the inputs came from; for what it was given since nothing waits.
        """
        return self._thread.submit(self._run, layer, experts, hidden_TD, expert_TK, weight_TK)

    def close(self) -> None:
        self._thread.shutdown()

    @torch.inference_mode()
    def _run(
        self,
        layer: int,
        experts: NDArray[np.int64],
        hidden_TD: Tensor,
        expert_TK: NDArray[np.int64],
        weight_TK: Tensor,
    ) -> tuple[float, Tensor]:
        start_s = time.perf_counter()
        with torch.cuda.stream(self._compute):
            if not self._stages:
                self._stages = [Stage(self._cold.rows((layer, 0)), self._device) for _ in range(BUFFERS)]
            sum_TD = torch.zeros_like(hidden_TD)
            chosen = [(expert_TK == expert).nonzero() for expert in experts]
            counts = [len(token) for token, _ in chosen]
            place_2N = torch.from_numpy(np.concatenate(chosen, axis=1)).to(self._device)  # at once: each copy waits
            places = torch.tensor_split(place_2N, np.cumsum(counts)[:-1].tolist(), dim=1)
            for turn, (expert, (token, k)) in enumerate(zip(experts.tolist(), places, strict=True)):
                stage = self._stages[turn % BUFFERS]
                rows = stage.bring(self._cold.rows((layer, expert)))
                part = plain.feed_forward(hidden_TD[token], rows.weight, rows.scb)
                sum_TD.index_add_(0, token, part * weight_TK[token, k][:, None])
                stage.release()
            if self._compute is not None:
                self._compute.synchronize()
        return time.perf_counter() - start_s, sum_TD


class Stage:
    """One page-locked buffer with its twin on the device."""

    def __init__(self, rows: Int8Rows, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._there = Int8Rows(torch.empty_like(rows.weight, device=device), torch.empty_like(rows.scb, device=device))
        if self._cuda:
            self._pinned = pinned_like(rows)
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._copies.wait_stream(torch.cuda.current_stream())  # which the memory may have been used on before
            self._copied, self._released = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(self._copies)

    def bring(self, rows: Int8Rows) -> Int8Rows:
        """The expert on the device; the current stream waits for it, the host only for the buffer's last copy."""
        if not self._cuda:
            self._there.weight.copy_(rows.weight)
            self._there.scb.copy_(rows.scb)
            return self._there
        self._copied.synchronize()
        fill(self._pinned, rows)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._released)
            self._there.weight.copy_(self._pinned.weight, non_blocking=True)
            self._there.scb.copy_(self._pinned.scb, non_blocking=True)
            self._copied.record()
        torch.cuda.current_stream().wait_event(self._copied)
        return self._there

    def release(self) -> None:
        """What the current stream was given so far is the last to read the expert."""
        if self._cuda:
            self._released.record()
