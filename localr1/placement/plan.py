"""Where a model's parts go on this machine: what every token needs first, then the hottest experts.

Owns the arithmetic of memory, as a pure function; no torch, no measuring. In GPU memory go, in this order, the
non-expert weights, the cache of the context, the workspace, and as many experts as are left room for, hottest first
over all layers. The other experts go to RAM, and what has no room there stays in the mapped file on disk.

Invariants: a plan never exceeds its budget; with more GPU memory no expert loses its place; every weight is in exactly
one of GPU memory, RAM and disk.

A worked example: a model of 4 experts of 10 MB in 2 layers, 100 MB of other weights, no cache and a workspace of 60 MB,
with 200 MB of GPU memory: 200 - 100 - 60 leaves 40, so the 4 hottest of the 8 experts are resident, and the other
40 MB are in RAM.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localr1.errors import OutOfMemoryError
from localr1.placement.shape import Device, KvOption, KvType, ModelShape, kv_type
from localr1.quantities import bytes_text, percent_text

Expert = tuple[int, int]
"""(layer, expert), by the layer's number in the model."""
Hotness = NDArray[np.floating]
"""Counts or shares [expert layers, experts] of how often each expert was chosen."""

DEFAULT_SKEW = 0.6
"""Without a history: the hottest share f of a layer's experts is taken to get f ** 0.6 of its tokens (1: all alike)."""
CHUNK_TOKENS = 512
USEFUL_CONTEXT_TOKENS = 4096
"""A shorter context is not worth recommending for a place on the GPU."""
PROGRAM_BYTES = 600 << 20
"""RAM of the program itself: Python, torch, the kernels."""
CUDA_BYTES = 512 << 20
"""GPU memory that the driver's context, its libraries and their workspaces take."""
CONTEXT_BYTES = 300 << 20
"""Of those, the context's: it is there already when the driver is asked what is free, the others come later."""
STREAMED_EXPERTS = 16
"""GPU memory of so many experts is left for prefill: two pass through buffers (`placement.lanes`), the rest is for what
their products widen and for what the allocator cannot use. A reserve; what is taken was not measured."""
RECORDED_ROWS = 8
"""Steps of at most so many tokens are recorded, one recording for each number of tokens (`placement.split.FEW`)."""
CONTEXT_SPLITS = 64
"""Parts of the context that the attention kernels keep a result of at a time (`kernels.gpu.fused.FusedKernels`)."""
PIECE_BYTES, SMALL_PIECES_BYTES = 20 << 20, 4 << 20
"""From the driver torch gets memory for tensors of up to 10 MiB in pieces of 20 MiB, in pieces of 2 MiB for those of up
to 1 MiB, and for larger ones as much as they are (its CUDACachingAllocator)."""
RECORDED_LAYER_BYTES = 512 << 10
"""What the driver is taken to keep of a layer, or of the head, in a recording: 16 KiB for each of some 30 kernels and
copies. PyTorch's documentation of CUDAGraph trees knows 64 KiB each of drivers before 550 and no number of later ones.
Not measured."""


@dataclass(frozen=True)
class Budget:
    """What may be used: GPU memory (0: none), RAM, and the conversation that must fit."""

    vram_bytes: int
    ram_bytes: int
    context_tokens: int
    kv: KvOption = "auto"


@dataclass(frozen=True)
class PlacementPlan:
    """What was decided, in bytes; `resident` are the experts in GPU memory, hottest first."""

    shape: ModelShape
    budget: Budget
    device: Device
    """Where all but the experts is computed."""
    resident: tuple[Expert, ...]
    dense_bytes: int
    """Non-expert weights, wherever they are."""
    cache_bytes: int
    workspace_bytes: int
    program_bytes: int
    ram_experts: int
    """Experts whose place is in RAM; what is neither there nor on the GPU is read from disk when it is needed."""
    ram_room: int
    """Experts that RAM has room for."""
    shares: tuple[float, float, float]
    """Of the chosen experts, the shares expected in GPU memory, in RAM and on disk."""
    measured: bool
    """Whether the shares come from a history; otherwise from DEFAULT_SKEW."""
    notes: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Experts that have room in GPU memory."""
        return len(self.resident)

    @property
    def kv(self) -> KvType:
        """The cache's rows."""
        return kv_type(self.budget.kv, self.shape.latent, self.device)

    @property
    def disk_experts(self) -> int:
        return self.shape.expert_count - self.slots - self.ram_experts

    @property
    def resident_bytes(self) -> int:
        return self.slots * self.shape.expert_bytes

    @property
    def gpu_bytes(self) -> int:
        """GPU memory in use; never more than the budget's."""
        if self.device == "cpu":
            return 0
        return self.dense_bytes + self.cache_bytes + self.workspace_bytes + self.resident_bytes

    @property
    def ram_bytes(self) -> int:
        """RAM in use, experts in the page cache included; never more than the budget's."""
        other = self.dense_bytes + self.cache_bytes + self.workspace_bytes if self.device == "cpu" else 0
        return other + self.program_bytes + self.ram_experts * self.shape.expert_bytes

    @property
    def disk_bytes(self) -> int:
        """Weights that are read from the mapped file whenever they are needed."""
        return self.disk_experts * self.shape.expert_bytes

    @property
    def hit_rate(self) -> float:
        """Of the chosen experts, the share expected in GPU memory."""
        return self.shares[0]


class DoesNotFitError(OutOfMemoryError):
    """A model that cannot work within the budget; `longest_context` is the one that could, 0 if none."""

    def __init__(self, message: str, hint: str, longest_context: int) -> None:
        super().__init__(message, hint)
        self.longest_context = longest_context


def plan(shape: ModelShape, budget: Budget, hotness: Hotness | None = None) -> PlacementPlan:
    """The placement for a budget; with GPU memory that all but the experts fits into, on the GPU, else on the CPU.

    Raises DoesNotFitError when what every token needs has no room in RAM either.
    """
    on_gpu = plan_gpu(shape, budget, hotness)
    return on_gpu if on_gpu is not None else plan_cpu(shape, budget, hotness)


def plan_gpu(
    shape: ModelShape, budget: Budget, hotness: Hotness | None = None, most: int | None = None
) -> PlacementPlan | None:
    """The placement with a GPU, of at most `most` experts; None when all else does not fit into its memory."""
    needs = _needs(shape, budget, "gpu")
    left_bytes = budget.vram_bytes - needs.total - gpu_workspace_bytes(shape)
    if left_bytes < 0 or budget.vram_bytes <= 0 or budget.ram_bytes < PROGRAM_BYTES:
        return None
    slots = min(left_bytes // shape.expert_bytes, shape.expert_count) if shape.expert_bytes else 0
    notes: tuple[str, ...] = ()
    if most is not None and most < slots:
        notes = (f"{slots - most:,} more experts would fit, but the CPU is fast enough to take its part",)
        slots = most
    return _plan("gpu", shape, budget, hotness, slots, needs.workspace + gpu_workspace_bytes(shape), notes)


def plan_cpu(shape: ModelShape, budget: Budget, hotness: Hotness | None = None) -> PlacementPlan:
    """The placement on the CPU alone. Raises DoesNotFitError."""
    needs = _needs(shape, budget, "cpu")
    if needs.total + PROGRAM_BYTES > budget.ram_bytes:
        raise _misfit(shape, budget, needs)
    notes = []
    if budget.vram_bytes > 0:
        needed = _needs(shape, budget, "gpu").total + gpu_workspace_bytes(shape)
        what = "the model" if not shape.experts else "what every token needs"
        given = bytes_text(budget.vram_bytes)
        notes.append(f"CPU only: {what} takes {bytes_text(needed)} of GPU memory, {given} given")
        fitting = budget.context_tokens + (budget.vram_bytes - needed) // _token_bytes(shape, budget, "gpu")
        if fitting >= USEFUL_CONTEXT_TOKENS and budget.kv != "int8":
            notes.append(f"with --context {fitting // 1024 * 1024} it would fit on the GPU")
    return _plan("cpu", shape, budget, hotness, 0, needs.workspace, tuple(notes))


def _plan(
    device: Device,
    shape: ModelShape,
    budget: Budget,
    hotness: Hotness | None,
    slots: int,
    workspace_bytes: int,
    notes: tuple[str, ...] = (),
) -> PlacementPlan:
    needs = _needs(shape, budget, device)
    in_ram = needs.total + PROGRAM_BYTES if device == "cpu" else PROGRAM_BYTES
    room = (budget.ram_bytes - in_ram) // shape.expert_bytes if shape.expert_bytes else 0
    ram_experts = min(room, shape.expert_count - slots)
    order, share = ranked(shape, hotness)
    return PlacementPlan(
        shape=shape,
        budget=budget,
        device=device,
        resident=tuple(order[:slots]),
        dense_bytes=needs.dense,
        cache_bytes=needs.cache,
        workspace_bytes=workspace_bytes,
        program_bytes=PROGRAM_BYTES,
        ram_experts=ram_experts,
        ram_room=room,
        shares=(
            float(share[slots]),
            float(share[slots + ram_experts] - share[slots]),
            float(1 - share[slots + ram_experts]),
        ),
        measured=hotness is not None,
        notes=notes,
    )


@dataclass(frozen=True)
class _Needs:
    dense: int
    cache: int
    workspace: int

    @property
    def total(self) -> int:
        return self.dense + self.cache + self.workspace


def _token_bytes(shape: ModelShape, budget: Budget, device: Device) -> int:
    """Of the cache."""
    return shape.cache_bytes(1, kv_type(budget.kv, shape.latent, device))


def _needs(shape: ModelShape, budget: Budget, device: Device) -> _Needs:
    cache_bytes = budget.context_tokens * _token_bytes(shape, budget, device)
    return _Needs(shape.always_bytes + shape.embedding_bytes, cache_bytes, activation_bytes(shape))


def activation_bytes(shape: ModelShape) -> int:
    """Buffers of one prefill chunk: hidden states, queries and the widest feed-forward, and attention's own 128 MiB."""
    return 4 * (CHUNK_TOKENS * _row_width(shape) + 2 * shape.vocab) + (128 << 20)


def _row_width(shape: ModelShape) -> int:
    """Numbers that a token's row takes at a time, in a layer."""
    return 8 * shape.hidden + 2 * shape.heads * shape.score_width


def gpu_workspace_bytes(shape: ModelShape) -> int:
    """GPU memory beside the buffers of a prefill chunk."""
    return CUDA_BYTES + stream_bytes(shape) + recording_bytes(shape)


def stream_bytes(shape: ModelShape) -> int:
    """GPU memory that is left for prefill's streaming of experts that are not resident."""
    return min(STREAMED_EXPERTS, shape.expert_count) * shape.expert_bytes


def recording_bytes(shape: ModelShape) -> int:
    """GPU memory of recorded steps: a bound by how it is allocated, not a measurement.

    Recordings share a pool, from which nothing else is served while one of them is there (`placement.graphs`), and one
    is made for each number of tokens that a step has had. A layer gives its tensors back to the pool before the next
    one asks, and a step before another is recorded; so the pool holds a layer's tensors of one step. Nearly all of them
    are what attention finds in the parts of the context, float32, with queries and sums of the same width. But where
    they are more than a piece of the allocator's, a smaller step's memory is of no use to a larger one. Of the head,
    every recording keeps its logits, in pieces that others' tensors no longer fit in, and as much again and a byte is
    taken to find the largest. cuBLAS's workspace, which the first recording takes into the pool, is in CUDA_BYTES.
    """
    value_width = shape.cache_values - shape.cache_float_values if shape.latent else shape.score_width // 2
    row_bytes = 4 * ((CONTEXT_SPLITS + 4) * shape.heads * value_width + _row_width(shape))
    steps = [rows * row_bytes for rows in range(1, RECORDED_ROWS + 1)]
    pool_bytes = PIECE_BYTES + SMALL_PIECES_BYTES + sum(size for size in steps if size > PIECE_BYTES)
    logits_bytes = sum(range(1, RECORDED_ROWS + 1)) * 4 * shape.vocab
    head_bytes = PIECE_BYTES + logits_bytes + RECORDED_ROWS * 5 * shape.vocab
    parts = shape.layers + 1 + bool(shape.mtp_bytes)
    return pool_bytes + head_bytes + RECORDED_ROWS * parts * RECORDED_LAYER_BYTES


def ranked(shape: ModelShape, hotness: Hotness | None) -> tuple[list[Expert], NDArray[np.float64]]:
    """All experts, hottest first, and the share of choices that the first n get, n = 0 .. all.

    Counts are taken with one more for every expert, so that a short history is not believed too much. Without counts
    the order is by number, alike in all layers. ValueError when the counts are not this model's.
    """
    count, layers, experts = shape.expert_count, len(shape.expert_layers), shape.experts
    if not count:
        return [], np.ones(1)
    if hotness is None:
        order = [(layer, expert) for expert in range(experts) for layer in shape.expert_layers]
        return order, (np.arange(count + 1) / max(count, 1)) ** DEFAULT_SKEW
    if hotness.shape != (layers, experts):
        raise ValueError(f"hotness of shape {hotness.shape} for {layers} layers of {experts} experts")
    smoothed = np.asarray(hotness, np.float64) + 1.0
    chance = smoothed / smoothed.sum()
    flat = np.argsort(-chance.T.reshape(-1), kind="stable")
    order = [(shape.expert_layers[index % layers], int(index // layers)) for index in flat]
    share = np.concatenate(([0.0], np.cumsum(chance.T.reshape(-1)[flat])))
    return order, np.minimum(share, 1.0)


def _misfit(shape: ModelShape, budget: Budget, needs: _Needs) -> DoesNotFitError:
    token_bytes = _token_bytes(shape, budget, "cpu")
    left_bytes = budget.ram_bytes - PROGRAM_BYTES - needs.dense - needs.workspace
    longest = max(0, left_bytes) // token_bytes if token_bytes else 0
    needed_bytes = needs.total + PROGRAM_BYTES
    parts = f"{bytes_text(needs.dense)} of weights that every token reads, {bytes_text(needs.cache)} of cache"
    return DoesNotFitError(
        f"this needs {bytes_text(needed_bytes)} of RAM ({parts}), {bytes_text(budget.ram_bytes)} may be used",
        f"--context {longest} fits" if longest >= 512 else "choose a smaller model, or free memory",
        longest if longest >= 512 else 0,
    )


def table(chosen: PlacementPlan) -> Iterator[tuple[str, str, str]]:
    """Part, bytes and place, a row each, for a person."""
    place = "GPU" if chosen.device == "gpu" else "RAM"
    shape = chosen.shape
    yield "weights that every token needs", bytes_text(chosen.dense_bytes), place
    yield f"a conversation of {chosen.budget.context_tokens:,} tokens", bytes_text(chosen.cache_bytes), place
    yield "working memory", bytes_text(chosen.workspace_bytes), place
    places: Sequence[tuple[str, int, float]] = (
        ("GPU", chosen.slots, chosen.shares[0]),
        ("RAM", chosen.ram_experts, chosen.shares[1]),
        ("disk", chosen.disk_experts, chosen.shares[2]),
    )
    for where, count, share in places:
        if count:
            part = f"{count:,} of {shape.expert_count:,} experts, for {percent_text(share)} of their work"
            label = part if count < shape.expert_count else f"all {count:,} experts"
            yield label, bytes_text(count * shape.expert_bytes), where
    yield "the program itself", bytes_text(chosen.program_bytes), "RAM"
