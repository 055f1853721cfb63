"""The model under measurement: loaded, or made of random weights, and loaded again with other options.

Owns how a variant of the same model comes about. Invariant: all variants share the same weights in memory, so a
comparison costs no second copy of them.
"""

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from localr1 import session
from localr1.bench import synthetic
from localr1.bench.synthetic import Shape, SyntheticStore
from localr1.bench.text import text_tokens
from localr1.decode.cache import RowCache
from localr1.events import Progress
from localr1.kernels.threads import set_threads
from localr1.model.registry import expected_tensors
from localr1.options import EngineOptions
from localr1.placement.shape import ModelShape, shape_of
from localr1.session import Engine
from localr1.weights.store import Store

FIRST_TOKENS = 16
"""Run after loading, before the first answer could come."""


@dataclass(frozen=True)
class Start:
    """How long a model took to load, and then to run its first few tokens; `state` says what was in memory before."""

    state: str
    load_s: float
    first_token_s: float


@dataclass(frozen=True)
class Subject:
    """A model to be measured; `shape` is set for a synthetic one."""

    engine: Engine
    store: Store
    shape: Shape | None
    starts: tuple[Start, ...]

    @property
    def label(self) -> str:
        """The model's name; of a folder, its last part, so that a record does not tell where it lies."""
        name = Path(self.engine.name)
        return name.name if name.is_absolute() else self.engine.name

    @property
    def sizes(self) -> ModelShape:
        """Bytes by part, of the main model."""
        config = self.engine.config
        return shape_of(config, expected_tensors(config), mtp=False, dtype=self.engine.options.dtype)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.shape.notes if self.shape else ()

    def tokens(self, count: int) -> list[int]:
        """Text to run on; of a synthetic model, tokens drawn from its whole vocabulary."""
        if self.shape is not None:
            generator = torch.Generator().manual_seed(0)
            return torch.randint(self.shape.config.vocab, (count,), generator=generator).tolist()
        return text_tokens(self.engine.tokenizer, count)

    def variant(self, options: EngineOptions) -> Progress[Engine]:
        """The same model under other options."""
        if self.shape is None:
            return (yield from session.load(self.engine.name, options))
        assert isinstance(self.store, SyntheticStore)
        context = options.context or self.engine.context_limit
        return (yield from synthetic.open_shape(self.shape, self.store, options, context))

    def use_threads(self, engine: Engine) -> None:
        """From now on work with as many threads as this variant asks for."""
        torch.set_num_threads(set_threads(engine.options.threads))


def open_model(name: str | None, options: EngineOptions, cold: bool = False) -> Progress[Subject]:
    """A model that was downloaded; with `cold`, loaded first with none of it in memory, then again."""
    engine, start = yield from _start("as found", session.load(name, options))
    if not cold:
        return Subject(engine, Store(engine.folder), None, (start,))
    folder = engine.folder
    del engine  # what is mapped stays in memory
    gc.collect()
    state = "cold" if forget_files(folder) else "as found"
    engine, first = yield from _start(state, session.load(name, options))
    del engine
    engine, second = yield from _start("warm", session.load(name, options))
    return Subject(engine, Store(engine.folder), None, (first, second))


def _start(state: str, loading: Progress[Engine]) -> Progress[tuple[Engine, Start]]:
    start_s = time.perf_counter()
    engine = yield from loading
    loaded_s = time.perf_counter()
    tokens = text_tokens(engine.tokenizer, FIRST_TOKENS)
    yield from fill_cache(engine, engine.new_cache(), tokens, False)
    return engine, Start(state, loaded_s - start_s, time.perf_counter() - loaded_s)


def forget_files(folder: Path) -> bool:
    """Drop what the system keeps of a folder's files in memory; False where it cannot be told to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def open_synthetic(shape: Shape, options: EngineOptions, context: int) -> Progress[Subject]:
    """A shape with random weights, for `context` tokens. Raises as `synthetic.make_store` does."""
    store = yield from synthetic.make_store(shape, options, context)
    engine, start = yield from _start("in memory", synthetic.open_shape(shape, store, options, context))
    return Subject(engine, store, shape, (start,))


def fill_cache(engine: Engine, cache: RowCache, tokens: Sequence[int], synthetic_rows: bool) -> Progress[None]:
    """Put `tokens` into an empty cache: run them, or, where that would mean nothing, write random rows."""
    if not synthetic_rows:
        from localr1.decode.generate import prefill
        from localr1.decode.speculate import Speculation
        from localr1.events import PrefillProgress

        for item in prefill(engine.model, cache, tokens, Speculation()):
            if isinstance(item, PrefillProgress):
                yield item
        return
    random_rows(cache, engine.config.cache_layers, engine.config.cache_width, tokens)


def random_rows(cache: RowCache, layers: int, width: int, tokens: Sequence[int]) -> None:
    """Write random rows for `tokens`: decoding with them takes as long as with any others."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(tokens), 512):
        part = tokens[start : start + 512]
        for layer in range(layers):
            cache.append(layer, torch.randn(len(part), width, generator=generator))
        cache.commit(part)
