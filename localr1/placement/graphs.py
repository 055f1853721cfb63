"""A step recorded once and replayed: CUDA graphs around everything the device does, host calls between them.

Owns the recording. Whatever a step launches between two host calls becomes one graph; a host call goes through `cut`,
which ends a graph, keeps the call for the replay, and starts the next graph. While a step is recorded nothing runs, on
either side. All graphs share one pool of memory, so a tape must be replayed whole and in order. While something is
recorded torch gives none of its spare memory back to the driver, so it does before.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

T = TypeVar("T")


class Tape:
    """One recorded step; `stream` is for recording alone. Torch has few streams and gives them out again in turn: one
    for each tape would sooner or later be one on which experts are copied, which ends a recording."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls: list[Callable[[], None]] = []

    def record(self, run: Callable[[], T]) -> T:
        """Record what `run` launches; its result holds what each replay computes anew. Raises what `run` raises."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._begin()
            try:
                result = run()
            except BaseException:
                self._abandon()
                raise
            self._end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _abandon(self) -> None:
        """End a recording that failed. If that fails, too, the pool stays marked as being recorded to, and torch would
        give no memory back any more; torch itself has no public way to say that it is not."""
        try:
            self._end()
        except RuntimeError:
            unmark = getattr(torch._C, "_cuda_endAllocateToPool", None)
            if unmark is not None:
                with suppress(RuntimeError):
                    unmark(self._stream.device_index, self._pool)

    def cut(self, host: Callable[[], None]) -> None:
        """In a replay, call `host` here, when all before it was launched."""
        self._end()
        self._calls.append(host)
        self._begin()

    def replay(self) -> None:
        for call in self._calls:
            call()

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def _end(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.capture_end()
            self._calls.append(graph.replay)
