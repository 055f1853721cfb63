"""A model on a GPU: its parts placed as planned, its steps replayed, and what happens when memory runs out.

Owns the joining. Invariant: no failure of the GPU reaches the user as anything but a LocalR1Error. When memory runs out
experts leave first, and a forward is tried again: it commits nothing before it is whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from localr1.decode.cache import RowCache
from localr1.errors import LocalR1Error, OutOfMemoryError
from localr1.kernels import gpu as kernels
from localr1.model import registry
from localr1.model.config import ModelConfig
from localr1.model.decoder import Decoder
from localr1.model.linear import Cache
from localr1.options import EngineOptions
from localr1.placement.bank import CpuBank
from localr1.placement.gpu import GpuOps, GpuWeights
from localr1.placement.graphs import Tape
from localr1.placement.plan import Budget, Hotness, PlacementPlan, plan_gpu
from localr1.placement.policy import Decayed, Policy, Slots
from localr1.placement.shape import shape_of
from localr1.placement.sizes import parse_size
from localr1.placement.slots import ColdExperts, ExpertSlots
from localr1.placement.split import FEW, Observe, SplitBank
from localr1.session.replay import Recording, Replayer
from localr1.weights.store import Store

RESERVED_BYTES = 512 << 20
"""GPU memory left to other programs."""
MOVED_BYTES_A_STEP = 32 << 20
"""Experts that may start to come in after one forward, beside the next ones."""
SHRINK = 0.75
LEAST_SLOTS = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Placed:
    """What a GPU engine is made of; `bank` is None without experts."""

    weights: GpuWeights
    bank: SplitBank | None
    device: torch.device
    notes: tuple[str, ...] = ()


def usable_device(options: EngineOptions) -> torch.device | None:
    """The GPU to use: none where the user wants none, torch has none, or it is older than the kernels need."""
    if options.vram is not None and parse_size(options.vram, "--vram") == 0:
        return None
    if options.dtype == "float32" or not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    return device if torch.cuda.get_device_capability(device) >= kernels.OLDEST else None


def plan_for(
    config: ModelConfig, mtp: bool, context: int, options: EngineOptions, hotness: Hotness | None
) -> PlacementPlan | None:
    """The plan for the GPU's memory, which leaves other programs theirs; None when the model has no room there."""
    free_bytes, _ = torch.cuda.mem_get_info()
    wanted = parse_size(options.vram, "--vram") if options.vram is not None else free_bytes
    vram_bytes = max(0, min(wanted, free_bytes - RESERVED_BYTES))
    ram_bytes = parse_size(options.ram, "--ram") if options.ram is not None else psutil.virtual_memory().available
    shape = shape_of(config, registry.expected_tensors(config, mtp), mtp)
    return plan_gpu(shape, Budget(vram_bytes, ram_bytes, context), hotness)


def place(
    config: ModelConfig,
    store: Store,
    mtp: bool,
    device: torch.device,
    resident: tuple[tuple[int, int], ...],
    hotness: Hotness | None = None,
    observe: Observe | None = None,
) -> Placed:
    """The parts on the device, and as many of the `resident` experts as find room, hottest first.

    Raises OutOfMemoryError when not even the parts that every token needs do.
    """
    ops = GpuOps(device)
    notes: tuple[str, ...] = ()
    if device.type == "cuda" and not kernels.has_triton():
        notes = ("Triton is missing, so the GPU runs plain torch operations, far slower: pip install triton",)
    weights = GpuWeights(store, ops)
    if config.moe is None:
        return Placed(weights, None, device, notes)
    layers, experts = registry.expert_layers(config, mtp), config.moe.num_experts
    cold = ColdExperts(store, layers, experts)

    def policy(slots: ExpertSlots) -> Policy:
        moves = max(1, MOVED_BYTES_A_STEP // cold.expert_bytes)
        return Decayed(Slots(layers, experts, slots.count, moves), slots.resident, prior=hotness)

    count = len(resident)
    while True:
        try:
            slots = ExpertSlots(cold, count, device, resident)
            break
        except torch.OutOfMemoryError:
            count = smaller(count)
    return Placed(
        weights, SplitBank(slots, ops.kernels, CpuBank(store, layers, experts), policy, observe), device, notes
    )


def smaller(count: int) -> int:
    """Slots to try when so many found no room. Raises OutOfMemoryError when there is nothing left to give."""
    if count <= LEAST_SLOTS:
        raise OutOfMemoryError(
            "the GPU's memory is full, and no experts are left in it that could make room",
            "use a smaller --context, close other programs that use the GPU, or run on the CPU with --vram 0",
        )
    return max(LEAST_SLOTS, int(count * SHRINK))


class GpuModel:
    """A `Model` on a device: `forward` and `logits` of a decoder, made safe and replayed where that is possible."""

    def __init__(
        self, decoder: Decoder, placed: Placed, record: Callable[[], Recording] | None = Tape, few: int = FEW
    ) -> None:
        self.decoder = decoder
        self.bank = placed.bank
        self.device = placed.device
        self._few = few
        self._replayer = None
        if record is not None:
            self._replayer = Replayer(decoder, placed.device, placed.bank, record)

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def notice(self) -> str:
        """What the user should know of how steps run; empty when all is as it should be."""
        return self._replayer.given_up if self._replayer is not None else ""

    def forward(self, token_T: Tensor, cache: Cache) -> Tensor:
        return self.with_room(lambda: self._forward(token_T, cache))

    def logits(self, hidden_TD: Tensor) -> Tensor:
        return self.with_room(lambda: self.decoder.logits(hidden_TD))

    def _forward(self, token_T: Tensor, cache: Cache) -> Tensor:
        fits = isinstance(cache, RowCache) and cache.length + len(token_T) <= cache.capacity
        if self._replayer is None or len(token_T) > self._few or not fits:
            return self.decoder.forward(token_T, cache)
        assert isinstance(cache, RowCache)
        return self._replayer.forward(token_T, cache)

    def with_room(self, run: Callable[[], T]) -> T:
        """Run; when memory is short make experts leave and run again. Raises LocalR1Error for any other failure."""
        while True:
            try:
                return run()
            except torch.OutOfMemoryError:
                self._make_room()
            except RuntimeError as error:
                if not is_device_error(error):
                    raise
                raise LocalR1Error(
                    f"the GPU failed: {str(error).splitlines()[0]}",
                    "start localr1 again; if it happens again, update the driver, or run on the CPU with --vram 0",
                ) from error

    def _make_room(self) -> None:
        count = smaller(self.bank.slots.count if self.bank is not None else 0)
        assert self.bank is not None
        if self._replayer is not None:
            self._replayer.forget()
        self.bank.shrink(count)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def is_device_error(error: RuntimeError) -> bool:
    """Whether the driver or the device failed, rather than this program."""
    kind = getattr(torch, "AcceleratorError", None)
    return (kind is not None and isinstance(error, kind)) or "CUDA error" in str(error) or "CUDA driver" in str(error)
