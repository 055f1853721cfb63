"""A model's parts on a GPU, placed as planned, and what happens when memory runs out or the GPU fails.

Invariant: no failure of the GPU reaches the user as anything but a LocalR1Error. When memory runs out experts leave
first.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from localr1.errors import LocalR1Error, OutOfMemoryError, UsageError
from localr1.kernels import gpu as kernels
from localr1.kernels.gpu.plain import PlainKernels
from localr1.model import registry
from localr1.model.config import ModelConfig
from localr1.options import EngineOptions
from localr1.placement.bank import CpuBank
from localr1.placement.forecast import Forecast
from localr1.placement.gpu import GpuOps, GpuWeights
from localr1.placement.plan import DoesNotFitError, Expert, Hotness
from localr1.placement.policy import Policy, Slots
from localr1.placement.probe import ROUGH_GPU, nvidia_driver
from localr1.placement.replay import adapted_policy
from localr1.placement.routing_history import RoutingHistory
from localr1.placement.shape import shape_of
from localr1.placement.slots import ColdExperts, ExpertSlots
from localr1.placement.split import Observe, SplitBank
from localr1.quantities import parse_size
from localr1.session.outlook import TRUSTED_TOKENS, budget_of, checked_forecast, given_vram_bytes, glance_at_computer
from localr1.weights.store import Store

MOVED_BYTES_A_STEP = 32 << 20
"""Experts that may start to come in after one forward, beside the next ones."""
SHRINK = 0.9
"""Of the slots, what is tried next where memory is short."""
LEAST_SLOTS = 1

T = TypeVar("T")


@dataclass(frozen=True)
class Placed:
    """What a model on a GPU is made of; `bank` is None without experts."""

    weights: GpuWeights
    bank: SplitBank | None
    device: torch.device
    notes: tuple[str, ...] = ()
    foretold: Forecast | None = None
    """The plan by which it was placed, and its speeds."""


def usable_device(options: EngineOptions) -> torch.device | None:
    """The GPU to use: none where the user wants none, torch has none or no code for it, or it is older than the kernels
    need."""
    if options.vram is not None and parse_size(options.vram, "--vram") == 0:
        return None
    if options.dtype == "float32" or not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(device)
    return device if capability >= kernels.OLDEST and kernels.built_for(capability) else None


def plan_for(config: ModelConfig, mtp: bool, context: int, options: EngineOptions, hotness: Hotness | None) -> Forecast:
    """What `localr1 plan` says, but that no more GPU memory is given than is free beside the reserve.

    Raises as `outlook.checked_forecast`.
    """
    torch.cuda.empty_cache()  # what an engine before this one held
    hardware = glance_at_computer(options)
    shape = shape_of(config, registry.expected_tensors(config, mtp), mtp)
    budget = budget_of(replace(options, context=context), hardware.facts, shape, what_if=True)
    free_bytes, _ = torch.cuda.mem_get_info()
    wanted = parse_size(options.vram, "--vram") if options.vram is not None else free_bytes
    budget = replace(budget, vram_bytes=min(wanted, given_vram_bytes(free_bytes)))
    rates = hardware.rates if hardware.rates.gpu is not None else replace(hardware.rates, gpu=ROUGH_GPU, rough=True)
    return checked_forecast(shape, budget, hotness, rates)


def place_on_gpu(
    config: ModelConfig,
    store: Store,
    mtp: bool,
    context: int,
    options: EngineOptions,
    history: RoutingHistory | None,
) -> tuple[Placed | None, tuple[str, ...]]:
    """The model's parts on the GPU, as planned, and what the user should hear; None where it runs on the CPU.

    Raises UsageError when GPU memory is asked for and there is none to use, OutOfMemoryError when it does not suffice,
    UnsupportedError for a cache that is made for the CPU.
    """
    if options.ram is not None:
        parse_size(options.ram, "--ram")  # refused also where it decides nothing
    device = usable_device(options)
    if device is None:
        if options.vram is not None and parse_size(options.vram, "--vram") and options.dtype != "float32":
            raise UsageError(f"--vram {options.vram}: there is no GPU that could be used", "see `localr1 doctor`")
        return None, _idle_gpus(options)
    hotness = None
    if history is not None and history.tokens >= TRUSTED_TOKENS:
        hotness = history.hotness(registry.expert_layers(config, mtp))
    try:
        foretold = safely(lambda: plan_for(config, mtp, context, options, hotness))
    except DoesNotFitError as error:
        return None, (f"this runs on the CPU and may fail: {error.message}; {error.hint}",)
    plan = foretold.plan
    if plan.device == "cpu":
        return None, plan.notes
    placed = safely(lambda: place(config, store, mtp, device, plan.resident, hotness, history=history))
    return replace(placed, foretold=foretold), placed.notes


def _idle_gpus(options: EngineOptions) -> tuple[str, ...]:
    """What to say of GPUs that the driver shows and nobody uses, unless that was the user's wish."""
    if options.vram is not None or options.dtype == "float32":
        return ()
    _, names = nvidia_driver()
    if not names:
        return ()
    return (f"{', '.join(names)} is not used: `localr1 doctor` says why, --vram 0 that it is meant so",)


def place(
    config: ModelConfig,
    store: Store,
    mtp: bool,
    device: torch.device,
    resident: Sequence[Expert],
    hotness: Hotness | None = None,
    observe: Observe | None = None,
    *,
    history: RoutingHistory | None = None,
    adaptive: bool = True,
) -> Placed:
    """The parts on the device, and as many of the `resident` experts as find room, hottest first.

    With `adaptive` others replace them as the text goes, by the policy that the `history` chooses, which goes on being
    written; `observe` is told choices in its place. Raises OutOfMemoryError when not even the parts that every token
    needs find room.
    """
    ops = GpuOps(device)
    why_plain = ops.kernels.why_plain if isinstance(ops.kernels, PlainKernels) else ""
    notes = (f"the GPU runs plain torch operations, far slower: {why_plain}",) if why_plain else ()
    weights = GpuWeights(store, ops)
    if config.moe is None:
        return Placed(weights, None, device, notes)
    layers, experts = registry.expert_layers(config, mtp), config.moe.num_experts
    cold = ColdExperts(store, layers, experts)
    routes = history.recent() if history is not None else None

    def policy(slots: ExpertSlots) -> Policy:
        moves = max(1, MOVED_BYTES_A_STEP // cold.expert_bytes)
        ruled = Slots(layers, experts, slots.count, moves)
        return adapted_policy(ruled, slots.resident, hotness, routes)

    slots = _slots(cold, device, resident)
    on_cpu = CpuBank(store, layers, experts)
    watching = (history.observe, history.hints, history.foretell) if history is not None else (observe,)
    bank = SplitBank(slots, ops.kernels, on_cpu, policy if adaptive else None, *watching)
    return Placed(weights, bank, device, notes)


def _slots(cold: ColdExperts, device: torch.device, resident: Sequence[Expert]) -> ExpertSlots:
    """As many slots as there are residents, or fewer where the memory turns out to be less."""
    return fitting(len(resident), lambda count: ExpertSlots(cold, count, device, resident))


def fitting(count: int, make: Callable[[int], T]) -> T:
    """What `make` gives with so many slots, or with fewer where memory is less. Raises LocalR1Error."""
    while True:
        with suppress(torch.OutOfMemoryError):
            return translated(partial(make, count))
        count = smaller(count)


def smaller(count: int) -> int:
    """Slots to try when so many found no room. Raises OutOfMemoryError when there is nothing left to give."""
    if count <= LEAST_SLOTS:
        raise OutOfMemoryError(
            "the GPU's memory is full, and no experts are left in it that could make room",
            "use a smaller --context, close other programs that use the GPU, or run on the CPU with --vram 0",
        )
    return max(LEAST_SLOTS, int(count * SHRINK))


def built_with_room(bank: SplitBank | None, build: Callable[[], T]) -> tuple[T, str]:
    """What `build` makes on the device, and what the user should know; while memory is short, experts leave for it.

    Raises LocalR1Error.
    """
    left = ""
    while True:
        with suppress(torch.OutOfMemoryError):
            return translated(build), left
        left = make_room(bank)


def make_room(bank: SplitBank | None) -> str:
    """Have experts leave the GPU; what the user should know of it. Raises OutOfMemoryError if there are none left."""
    count = smaller(bank.slots.count if bank is not None else 0)
    assert bank is not None
    gc.collect()  # an error on the way here may have left a cycle that holds the failed step's tensors
    fitting(count, bank.shrink)
    return f"GPU memory ran short: {bank.slots.count:,} of {bank.slots.cold.total:,} experts stay in it"


def safely(run: Callable[[], T]) -> T:
    """Run; what the device or its driver does wrong becomes a LocalR1Error."""
    try:
        return translated(run)
    except torch.OutOfMemoryError:
        smaller(0)
        raise


def translated(run: Callable[[], T]) -> T:
    """Run; a failing device is a LocalR1Error, memory that runs out is torch's OutOfMemoryError, whoever says it."""
    try:
        return run()
    except (torch.OutOfMemoryError, LocalR1Error):
        raise
    except Exception as error:
        if kernels.out_of_memory(error):
            raise torch.OutOfMemoryError(str(error)) from None
        if (told := _device_error(error)) is None:
            raise
        try:
            raise told from error
        finally:
            del told  # it holds this frame, and the model whose step failed


def _device_error(error: Exception) -> LocalR1Error | None:
    """What to tell the user where Triton, the driver or the device failed; None where it was something else."""
    what = (str(error).splitlines() or [""])[0]
    if kernels.triton_failed(error):
        text = f"Triton failed on this GPU: {type(error).__name__}: {what}"
        return LocalR1Error(text, "install another version of Triton, or run on the CPU with --vram 0")
    if kernels.device_failed(error):
        hint = "start localr1 again; if it happens again, update the driver, or run on the CPU with --vram 0"
        return LocalR1Error(f"the GPU failed: {what}", hint)
    return None


def gpu_bytes() -> tuple[int, int] | None:
    """What of the first GPU's memory is in use, by whatever program, and all of it; None where none can be asked."""
    if torch.cuda.is_available():
        with suppress(RuntimeError):
            free, total = torch.cuda.mem_get_info(0)
            return total - free, total
    return None
