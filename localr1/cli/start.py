"""Calls the session's long operations so that something is on the screen while its heavy imports are still loading.

Invariant: importing this module imports nothing heavy.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from localr1.events import LoadProgress, Notice, Progress
from localr1.options import DownloadOptions, EngineOptions

if TYPE_CHECKING:
    from localr1.session import Engine

STARTING = LoadProgress("starting")


def load(model: str | None, options: EngineOptions, *, foretell: bool = False) -> "Progress[Engine]":
    """`session.load`, announced before it is imported; with `foretell`, a line of what to expect of the model."""
    yield STARTING
    from localr1 import session

    engine = yield from session.load(model, options)
    if foretell:
        yield Notice(session.expectation(engine.name, options))
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
    from localr1 import session

    return (yield from session.download(options))
