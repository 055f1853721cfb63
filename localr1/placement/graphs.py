"""A step recorded once and replayed: CUDA graphs around everything the device does, host calls between them.

Owns the recording. Whatever a step launches between two host calls becomes one graph; a host call goes through `cut`,
which ends a graph, keeps the call for the replay, and starts the next graph. While a step is recorded nothing runs, on
either side. All graphs share one pool of memory, so a tape must be replayed whole and in order.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

T = TypeVar("T")


class Tape:
    """One recorded step."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls: list[Callable[[], None]] = []

    def record(self, run: Callable[[], T]) -> T:
        """Record what `run` launches; its result holds what each replay computes anew. Raises what `run` raises."""
        torch.cuda.synchronize()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._begin()
            try:
                result = run()
            except BaseException:
                with suppress(RuntimeError):
                    self._end()
                raise
            self._end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

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
