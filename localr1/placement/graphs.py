"""A step recorded once and replayed: CUDA graphs around everything the device does, host calls between them.

Owns the recording. Whatever a step launches between two host calls becomes one graph; a host call goes through `cut`,
which ends a graph, keeps the call for the replay, and starts the next graph. While a step is recorded nothing runs, on
either side. All graphs of all tapes share one pool of memory, so a tape must be replayed whole and in order, and what a
replay gives be copied before another tape is replayed. While something is recorded torch gives none of its spare memory
back to the driver, so it does before.
"""

import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for the process: cuBLAS keeps a workspace for every stream that it was used on."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


class Recorder:
    """Makes tapes; `stream` is for recording alone. Torch has few streams and gives them out again in turn: one for
    each tape would sooner or later be one on which experts are copied, which ends a recording."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._latest: weakref.ref[Tape] | None = None

    def __call__(self) -> "Tape":
        """A tape to be recorded, in the pool of the one before. That one must be there, and whole: torch takes no pool
        again of which all graphs are gone."""
        before = self._latest() if self._latest is not None else None
        tape = Tape(self._stream, before if before is not None and before.whole else None)
        self._latest = weakref.ref(tape)
        return tape


class Tape:
    """One recorded step, in the pool of the one `beside` it or in a new one."""

    def __init__(self, stream: torch.cuda.Stream, beside: "Tape | None") -> None:
        self.pool: Any = torch.cuda.graph_pool_handle() if beside is None else beside.pool
        self.whole = False
        """Whether it was recorded to its end."""
        self._stream = stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls: list[Callable[[], None]] = []

    def record(self, run: Callable[[], T]) -> T:
        """Record what `run` launches; its result holds what each replay computes anew. Raises what `run` raises."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            try:
                self._begin()
                result = run()
                self._end()
            except BaseException:
                self._abandon()
                raise
        torch.cuda.current_stream().wait_stream(self._stream)
        self.whole = True
        return result

    def _abandon(self) -> None:
        """End a recording that failed. If that fails, too, or was what failed, the pool stays marked as being recorded
        to, and torch would give no memory back any more; torch itself has no public way to say that it is not."""
        graph, self._graph = self._graph, None
        if graph is None:
            return
        try:
            graph.capture_end()
        except RuntimeError:
            unmark = getattr(torch._C, "_cuda_endAllocateToPool", None)
            if unmark is not None:
                with suppress(RuntimeError):
                    unmark(self._stream.device_index, self.pool)

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
        self._graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")

    def _end(self) -> None:
        assert self._graph is not None, "nothing is being recorded"
        self._graph.capture_end()
        self._calls.append(self._graph.replay)
        self._graph = None
