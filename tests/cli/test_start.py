import gc
import weakref
from collections.abc import Iterator

import pytest

from localr1.cli.start import collected_once, load
from localr1.options import EngineOptions


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
