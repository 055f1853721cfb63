"""Recording without a GPU: a stand-in for CUDA's graphs notes which calls they take in, and in which pool.

Real graphs are in `tests/session/test_cuda.py`.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from localr1.placement.graphs import Recorder, Tape

said: list[str] = []


class Graph:
    """Takes in what is said while it is recorded, and says it again."""

    recorded: "Graph | None" = None

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert Graph.recorded is None and capture_error_mode == "thread_local"
        self.pool, self.words = pool, []
        Graph.recorded = self

    def capture_end(self) -> None:
        Graph.recorded = None

    def replay(self) -> None:
        said.extend(self.words)


class Stream:
    device_index = 0

    def wait_stream(self, other: object) -> None:
        """There is nothing to wait for."""


def launch(word: str) -> None:
    assert Graph.recorded is not None
    Graph.recorded.words.append(word)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    numbers = itertools.count(1)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(numbers)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    said.clear()
    yield Recorder(Stream())  # type: ignore[arg-type]
    Graph.recorded = None


def recorded(recorder: Recorder, run: Callable[[Tape], None]) -> Tape:
    tape = recorder()
    tape.record(lambda: run(tape))
    return tape


def step(tape: Tape) -> None:
    launch("one")
    tape.cut(lambda: said.append("the host"))
    launch("two")
    launch("three")


def test_a_replay_is_the_graphs_with_the_hosts_calls_between_them(recorder: Recorder) -> None:
    tape = recorded(recorder, step)
    assert said == [], "nothing runs while it is recorded"
    tape.replay()
    assert said == ["one", "the host", "two", "three"]


def test_tapes_share_a_pool_as_long_as_one_is_there(recorder: Recorder) -> None:
    first = recorded(recorder, step)
    second = recorded(recorder, step)
    assert first.pool == second.pool
    del first
    assert recorded(recorder, step).pool == second.pool, "of the second's, which is gone now"
    pool = second.pool
    del second
    assert recorder().pool != pool


@pytest.mark.parametrize("ends", [0, 1], ids=["in a cut", "at the end"])
def test_a_recording_whose_end_fails_leaves_its_pool_unmarked(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, ends: int
) -> None:
    """As torch fails to end one that a forbidden call has broken: that call may be noticed by nobody before."""
    left, unmarked = [False] * ends, []

    def fails(graph: Graph) -> None:
        if not left:
            raise RuntimeError("operation failed due to a previous error during capture")
        left.pop()
        Graph.recorded = None

    monkeypatch.setattr(Graph, "capture_end", fails)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: unmarked.append(pool), raising=False)
    with pytest.raises(RuntimeError, match="previous error"):
        recorded(recorder, step)
    assert len(unmarked) == 1


def test_a_tape_that_failed_lends_no_pool(recorder: Recorder) -> None:
    def fail(tape: Tape) -> None:
        raise RuntimeError("no graphs here")

    failed = recorder()
    with pytest.raises(RuntimeError, match="no graphs here"):
        failed.record(lambda: fail(failed))
    assert Graph.recorded is None and recorder().pool != failed.pool
