"""How the process begins, and how the session's long operations are called so that something is on the screen while
its heavy imports are still loading.

Owns that all threads share a heap, and what Python's garbage collector may look at meanwhile. A full collection holds
Python's lock while it walks over all objects, half a second in the end and longer on a busy computer, and Ctrl-C is not
heard for as long. What imports and compilations make is kept anyway, so it is frozen; that makes collections during
answers short, too. Invariant: importing this module imports nothing heavy.
"""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from localr1.events import LoadProgress, Notice, Progress
from localr1.options import DownloadOptions, EngineOptions

if TYPE_CHECKING:
    from localr1.session import Engine

STARTING = LoadProgress("starting")
M_ARENA_MAX = -8
"""Of glibc's `mallopt`."""


def share_one_heap() -> None:
    """Let every thread that starts from now on use what others freed, where the C library is one that would give each
    its own heap. Of a prefill of 512 tokens the most memory was 80 MB less."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library's affair
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def load(
    model: str | None, options: EngineOptions, instead_of: "Engine | None" = None, *, foretell: bool = False
) -> "Progress[Engine]":
    """`session.load`, announced before it is imported; with `foretell`, a line of what to expect of the model."""
    yield STARTING
    session = _session()
    with collected_once():
        # Not a variable here: imports leave errors behind that keep this function's variables, and those are frozen.
        return (yield from _foretold(session.load(model, options, instead_of), options if foretell else None))


def _foretold(loading: "Progress[Engine]", options: EngineOptions | None) -> "Progress[Engine]":
    engine = yield from loading
    if options is not None:
        yield Notice(_session().expectation(engine.name, options, engine.foretold))
    return engine


def download(options: DownloadOptions) -> Progress[Path]:
    """`session.download`, announced before it is imported; a model that is here in its newest version needs none."""
    yield STARTING
    from localr1.hub.cache import up_to_date
    from localr1.hub.catalog import resolve

    here = None if options.force else up_to_date(resolve(options.model))
    if here is not None:
        yield Notice(f"{options.model} is already here: {here.folder}")
        return here.folder
    folder: Path = yield from _session().download(options)
    return folder


def _session() -> ModuleType:
    """`localr1.session`, imported without collections, which would find nothing to free."""
    gc.disable()
    try:
        from localr1 import session
    finally:
        gc.freeze()
        gc.enable()
    return session


@contextlib.contextmanager
def collected_once() -> Iterator[None]:
    """Within, a collection looks at what is new since the last one; what is there at the end is never looked at again.

    Reference counts still free it: only what is then part of a cycle stays until the process ends.
    """

    def freeze(phase: str, facts: dict[str, int]) -> None:
        if phase == "stop" and facts["generation"] == 2:
            gc.freeze()

    gc.callbacks.append(freeze)
    try:
        yield
    finally:
        gc.callbacks.remove(freeze)
        gc.freeze()
