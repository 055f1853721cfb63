import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from localr1.cli.start import collected_once, load
from localr1.options import EngineOptions

HEAPS = """
import ctypes, threading
{first}
thread = threading.Thread(target=lambda: bytes(100_000))
thread.start()
thread.join()
ctypes.CDLL(None).malloc_stats()
"""
"""Has glibc tell of its heaps after another thread used memory."""


class Node:
    """Something that only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def looked_at(node: Node) -> bool:
    return any(each is node for each in gc.get_objects())


def test_what_survived_a_collection_is_not_looked_at_again():
    with collected_once():
        kept, dropped = Node(), Node()
        freed = weakref.ref(dropped)
        del dropped
        assert looked_at(kept)
        gc.collect()
        assert freed() is None and not looked_at(kept)
        last = Node()
    assert not looked_at(last)
    new = Node()
    gc.collect()
    assert looked_at(new)


def test_loading_leaves_the_collector_as_it_was_also_when_it_is_stopped(session):
    callbacks = list(gc.callbacks)
    operation = load("nano", EngineOptions())
    next(operation)
    next(operation)
    assert len(gc.callbacks) == len(callbacks) + 1
    operation.close()
    assert gc.callbacks == callbacks and gc.isenabled()
    assert session.calls[0][0] == "load"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_threads_share_one_heap():
    def heaps(first: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", HEAPS.format(first=first)], check=True, capture_output=True, text=True
        )
        return done.stderr.count("Arena ")

    assert heaps("") > 1, "the comparison can fail"
    assert heaps("from localr1.cli.start import share_one_heap; share_one_heap()") == 1
