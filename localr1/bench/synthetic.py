"""A model of a catalog entry's shape with random 8-bit weights, to know its speed before downloading it.

Owns the random store, which lies in memory in the very layout of a store on disk. All
weights are distinct, so memory is really read. What such a model says means nothing; nothing here may be called a
measurement of the real model's answers. Memory: the store, its float32 parts and the cache, checked before it is taken.
"""

import math
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from localr1.errors import NotFoundError, OutOfMemoryError, UsageError
from localr1.events import LoadProgress, Progress
from localr1.hub.shapes import NOT_VERIFIED, SHAPES
from localr1.kernels.threads import set_threads
from localr1.model.config import UP_PROJECTIONS, ModelConfig
from localr1.model.linear import TensorSpec
from localr1.model.registry import expected_tensors, parse_config
from localr1.options import EngineOptions
from localr1.placement.shape import bytes_of
from localr1.quantities import count_text
from localr1.session.engine import Engine, assemble, checked_context, compile_kernels
from localr1.weights.file_writer import Slot
from localr1.weights.safetensors_file import TensorInfo
from localr1.weights.store import Store, layout

OVERHEAD_BYTES = 700_000_000
"""What the program itself takes beside weights and cache."""

BLOCK_BYTES = 4 << 20
"""Bytes drawn by one random stream; a thread's working memory."""

SIMULATED_TOKENS = 4096
"""Draws from which it is told how uneven the routes come out."""


@dataclass(frozen=True)
class Shape:
    """What is to be made: a catalog name, its config (perhaps with fewer layers), and how uneven its routes are."""

    name: str
    config: ModelConfig
    all_layers: int
    skew: float

    @property
    def label(self) -> str:
        layers = "" if self.config.num_layers == self.all_layers else f", {count_text(self.config.num_layers, 'layer')}"
        return f"{self.name} (synthetic{layers})"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of figures must know."""
        notes = ["synthetic: random weights in the shape of this model; speeds and bytes only, its words mean nothing"]
        if self.config.num_layers < self.all_layers:
            notes.append(f"{self.config.num_layers} of {self.all_layers} layers, with the whole vocabulary")
        if self.config.moe is not None:
            times = busiest(self.config.moe.num_experts, self.config.moe.top_k, self.skew)
            notes.append(
                f"routes are those of random routers, the r-th expert's row r^-{self.skew:g} long: "
                f"the busiest expert is chosen about {times:.1f} times as often as the average"
            )
        if self.name in NOT_VERIFIED:
            notes.append("parts of this shape are inferred, not read from its config")
        return tuple(notes)


def find_shape(name: str, layers: int | None, skew: float) -> Shape:
    """The shape of a catalog entry. Raises NotFoundError for a name without one, UsageError for too many layers."""
    raw = SHAPES.get(name)
    if raw is None:
        raise NotFoundError(f"there is no shape called {name!r}", f"known shapes: {', '.join(SHAPES)}")
    config = replace(parse_config(raw), num_mtp_layers=0)
    if layers is not None and layers > config.num_layers:
        raise UsageError(f"--layers {layers}: {name} has {config.num_layers}", "ask for fewer, or leave it out")
    return Shape(name, first_layers(config, layers or config.num_layers), config.num_layers, skew)


def first_layers(config: ModelConfig, count: int) -> ModelConfig:
    """The same model with only its first `count` layers."""
    moe = config.moe and replace(config.moe, layers=tuple(layer for layer in config.moe.layers if layer < count))
    return replace(config, num_layers=count, moe=moe)


def needed_bytes(config: ModelConfig, context: int) -> int:
    """RAM that a synthetic model takes: weights, float32 copies of the float ones, a cache in 16 bits, the program."""
    weights = sum(_spec_bytes(name, spec) for name, spec in expected_tensors(config).items())
    return weights + 2 * config.cache_width * config.cache_layers * context + OVERHEAD_BYTES


def _spec_bytes(name: str, spec: TensorSpec) -> int:
    small_float = spec.storage == "float" and not name.endswith(UP_PROJECTIONS)
    return bytes_of(name, spec) + (2 * math.prod(spec.shape) if small_float else 0)


def check_memory(shape: Shape, context: int, available_bytes: int) -> None:
    """Raises OutOfMemoryError, with the number of layers that would fit."""
    needed = needed_bytes(shape.config, context)
    if needed <= available_bytes:
        return
    fitting = _layers_that_fit(shape.config, context, available_bytes)
    raise OutOfMemoryError(
        f"{shape.label} with {context:,} tokens of context needs {needed / 1e9:.1f} GB of RAM, "
        f"{available_bytes / 1e9:.1f} GB are free",
        f"measure fewer layers: --layers {fitting}" if fitting else "not even one layer fits",
    )


def _layers_that_fit(config: ModelConfig, context: int, available_bytes: int) -> int:
    room = available_bytes - needed_bytes(replace(config, num_layers=0, moe=None), context)
    layer_bytes = [2 * config.cache_width * context] * config.num_layers
    for name, spec in expected_tensors(config).items():
        if match := re.match(r"model\.layers\.(\d+)\.", name):
            layer_bytes[int(match[1])] += _spec_bytes(name, spec)
    fitting = 0
    for size in layer_bytes:
        room -= size
        if room < 0:
            break
        fitting += 1
    return fitting


class MemoryFile:
    """The bytes of one store file, in memory, with the interface of a mapped one."""

    def __init__(self, number: int, slots: Sequence[Slot]) -> None:
        self.number = number
        self.tensors: dict[str, TensorInfo] = {}
        position = 0
        for slot in slots:
            self.tensors[slot.name] = TensorInfo(slot.dtype, slot.shape, position, position + slot.nbytes)
            position += slot.nbytes
        self.bytes_N = np.empty(position, np.int8)

    def view(self, start: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        end = start + math.prod(shape) * dtype.itemsize
        return torch.from_numpy(self.bytes_N[start:end]).view(dtype).view(tuple(shape))

    def tensor(self, name: str) -> Tensor:
        info = self.tensors[name]
        return self.view(info.start, info.dtype, info.shape)


class SyntheticStore(Store):
    """A store that was never on a disk. Its tensors are zeros until `fill` has run over all of `blocks`."""

    def __init__(self, config: ModelConfig, skew: float) -> None:
        self._skew = skew
        files = layout(expected_tensors(config), lambda name: torch.bfloat16)
        memory = [MemoryFile(number, slots) for number, slots in enumerate(files.values())]
        self._hold(Path(), {"source": "synthetic"}, memory)

    def blocks(self) -> list[tuple[MemoryFile, int, int]]:
        """The int8 bytes, in blocks: (file, first byte, last byte + 1)."""
        found = []
        for file in self._memory_files():
            begin = min(info.start for info in file.tensors.values() if info.dtype == torch.int8)
            end = file.bytes_N.size
            found += [(file, at, min(at + BLOCK_BYTES, end)) for at in range(begin, end, BLOCK_BYTES)]
        return found

    def fill_floats(self) -> None:
        """Scales that make a matrix's outputs as large as its inputs, norms of one, skewed routers, small random rest.

        Embeddings are as large as what the layers add, so that every token has a hidden state, and routes, of its own.
        """
        generator = torch.Generator().manual_seed(0)
        for file in self._memory_files():
            for name, info in file.tensors.items():
                if name.endswith("embed_tokens.SCB"):
                    _fill_scales(file.tensor(name), 1, generator)
                elif name.endswith("SCB"):
                    _fill_scales(file.tensor(name), file.tensors[name[:-3] + "weight"].shape[-1], generator)
                elif info.dtype != torch.int8:
                    _fill_float(name, file.tensor(name), self._skew, generator)

    def _memory_files(self) -> Iterable[MemoryFile]:
        return (file for file in self._files if isinstance(file, MemoryFile))


def _fill_scales(scb: Tensor, columns: int, generator: torch.Generator) -> None:
    """Uniform int8 has a deviation of 73.6; rows differ a little, as real ones do."""
    scb.copy_((0.8 + 0.4 * torch.rand(scb.shape, generator=generator)) * (127 / 73.6) / columns**0.5)


def _fill_float(name: str, tensor: Tensor, skew: float, generator: torch.Generator) -> None:
    if "norm" in name:
        tensor.fill_(1.0)
    elif name.endswith("mlp.gate.weight"):
        rank_E = 1 + torch.randperm(tensor.shape[0], generator=generator)
        rows = torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5
        tensor.copy_(rows * router_lengths(rank_E, skew)[:, None])
    elif name.endswith("weight"):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5)
    else:
        tensor.zero_()


def router_lengths(rank_E: Tensor, skew: float) -> Tensor:
    """How long the router's row of the expert of each rank is: a longer row's scores vary more and win more often."""
    return rank_E.float() ** -skew


def busiest(experts: int, top_k: int, skew: float) -> float:
    """How often the expert of rank 1 is chosen, over the average, when scores vary as `router_lengths` says."""
    generator = torch.Generator().manual_seed(0)
    score_TE = torch.randn(SIMULATED_TOKENS, experts, generator=generator)
    chosen_TK = (score_TE * router_lengths(torch.arange(1, experts + 1), skew)).topk(top_k, dim=-1).indices
    return float((chosen_TK == 0).sum()) / (SIMULATED_TOKENS * top_k / experts)


def fill(block: tuple[MemoryFile, int, int]) -> None:
    """Random int8 values but -128, the same for the same block whichever thread draws it."""
    file, start, end = block
    stream = np.random.Generator(np.random.SFC64([start, file.number]))
    words = stream.integers(0, 2**64 - 1, (end - start + 7) // 8, np.uint64, endpoint=True)
    np.maximum(words.view(np.int8)[: end - start], -127, out=file.bytes_N[start:end])


def make_store(shape: Shape, options: EngineOptions, context: int) -> Progress[SyntheticStore]:
    """Draw the weights of a model that is to hold `context` tokens. OutOfMemoryError before any memory is taken."""
    if options.dtype != "int8":
        raise UsageError("--shape makes 8-bit weights only", f"leave out --dtype {options.dtype}")
    checked_context(shape.label, shape.config, options, mtp=False)
    check_memory(shape, context, psutil.virtual_memory().available)
    store = SyntheticStore(shape.config, shape.skew)
    blocks = store.blocks()
    with ThreadPoolExecutor(set_threads(options.threads)) as pool:
        for done, _ in enumerate(pool.map(fill, blocks)):
            if done % 64 == 0:
                yield LoadProgress("drawing random weights", done, len(blocks))
    store.fill_floats()
    return store


def open_shape(shape: Shape, store: SyntheticStore, options: EngineOptions, context: int) -> Progress[Engine]:
    """A model of such weights, with nano's tokenizer."""
    torch.set_num_threads(set_threads(options.threads))
    folder = Path(str(resources.files("localr1"))) / "nano"
    engine = assemble(shape.label, folder, shape.config, store, replace(options, context=context))
    yield from compile_kernels(engine)
    return engine
