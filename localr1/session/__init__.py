"""The stages in order: a name becomes a store, a store an engine, an engine a conversation.

Owns the wiring and nothing else: which stage is handed what. Everything long is a generator of events that returns its
result (see `events.Progress`).
"""

from localr1.kernels.threads import unify_openmp
from localr1.session.preload import preload_torch

unify_openmp()  # at import, because it must come before the first import of torch
preload_torch()

from localr1.session.acquire import convert, download  # noqa: E402
from localr1.session.conversation import Conversation  # noqa: E402
from localr1.session.engine import Engine, load  # noqa: E402
from localr1.session.gpu import gpu_bytes  # noqa: E402
from localr1.session.outlook import expectation  # noqa: E402

__all__ = ["Conversation", "Engine", "convert", "download", "expectation", "gpu_bytes", "load"]
