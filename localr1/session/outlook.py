"""Will it run here, and how fast: joins a model's shape, this computer and the options into a plan and its forecast.

Owns the joining and the reserves that are left to other programs. Invariant: nothing of the model need be here, and
nothing is loaded of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from localr1 import __version__
from localr1.errors import LocalR1Error, NotFoundError, UnsupportedError, UsageError, typed
from localr1.events import Progress
from localr1.hub import cache as hub_cache
from localr1.hub import catalog
from localr1.hub.shapes import NOT_VERIFIED, SHAPES
from localr1.hub.source import HubRepo, LocalFolder
from localr1.kernels.threads import set_threads
from localr1.model import registry
from localr1.model.config import ModelConfig
from localr1.options import EngineOptions
from localr1.placement.diagnosis import Finding, diagnose, disturbed, to_record
from localr1.placement.forecast import Forecast, choose, pace, reasons
from localr1.placement.hardware import Facts, Hardware, LayerTime, Rates, glance, survey
from localr1.placement.plan import CONTEXT_BYTES, Budget, DoesNotFitError, Hotness, table
from localr1.placement.probe import ROUGH_GPU, System
from localr1.placement.shape import Dtype, KvOption, ModelShape, shape_of
from localr1.quantities import bytes_text, parse_size
from localr1.session.routing import open_routing
from localr1.weights.store import Store

__all__ = ["Finding", "Forecast", "Hardware", "diagnose", "disturbed", "pace", "reasons", "table", "to_record"]

DEFAULT_CONTEXT_TOKENS = 32_768
RESERVED_RAM_BYTES = 1 << 30
RESERVED_VRAM_BYTES = 512 << 20
FORETOLD_TOKENS_PER_S = 300
"""Beyond this much of a token's time is the program's own, to choose and to show it, which is not foretold."""
TRUSTED_TOKENS = 256
"""A history of fewer tokens says nothing about which experts are hot."""

MeasureLayers = Callable[[], Progress[tuple[LayerTime, ...]]]


@dataclass(frozen=True)
class Subject:
    """The model in question."""

    name: str
    shape: ModelShape
    hotness: Hotness | None
    is_here: bool
    notes: tuple[str, ...] = ()


def survey_computer(
    options: EngineOptions, measure_layers: MeasureLayers, *, fresh: bool = False
) -> Progress[Hardware]:
    """This computer, measured if it was not yet."""
    torch.set_num_threads(set_threads(options.threads))
    return (yield from survey(System(hub_cache.home(), __version__, measure_layers), _rates_file(), fresh=fresh))


def glance_at_computer(options: EngineOptions) -> Hardware:
    """This computer, with rough rates where it was not measured yet; in about a tenth of a second."""
    torch.set_num_threads(set_threads(options.threads))
    return glance(System(hub_cache.home(), __version__), _rates_file())


def _rates_file() -> Path:
    return hub_cache.home() / "hardware.json"


def find_subject(model: str | None, options: EngineOptions) -> Subject:
    """The model that is here, else what the catalog or its folder's config.json says. Raises NotFoundError."""
    last = hub_cache.last_used() if model is None else None
    name = model or (last.name if last else "nano")
    source = hub_cache.source_of(name)
    store = last or hub_cache.find_store(source)
    wants_mtp = options.speculate in ("auto", "mtp")
    if store is not None:
        config = registry.read_config(store.folder)
        shape = _shape(config, wants_mtp and registry.has_mtp(config, Store(store.folder)), options.dtype)
        return Subject(name, shape, _hotness(store.folder, config, shape), True)
    if isinstance(source, LocalFolder):
        config = registry.read_config(source.path)
    else:
        config = registry.parse_config(_known_shape(name, source))
    inferred = source.entry is not None and source.entry.name in NOT_VERIFIED
    notes = ("parts of its shape are inferred, not read from its config",) if inferred else ()
    return Subject(name, _shape(config, wants_mtp and config.num_mtp_layers > 0, options.dtype), None, False, notes)


def _known_shape(name: str, source: HubRepo) -> dict[str, object]:
    raw = SHAPES.get(source.entry.name) if source.entry else None
    if raw is None:
        raise NotFoundError(
            f"{name} is not here, and nothing is known of its shape",
            f"`localr1 download {typed(name)} --dry-run` says how large it is",
        )
    return dict(raw)


def _shape(config: ModelConfig, mtp: bool, dtype: Dtype = "int8") -> ModelShape:
    return shape_of(config, registry.expected_tensors(config, mtp), mtp, dtype)


def _hotness(folder: Path, config: ModelConfig, shape: ModelShape) -> Hotness | None:
    routing = open_routing(folder, config)
    if routing is None or routing.history.tokens < TRUSTED_TOKENS:
        return None
    return routing.history.hotness(shape.expert_layers)


def asked_kv(options: EngineOptions) -> KvOption:
    """The cache's rows: the reference's are as exact as the rest of it. Raises UsageError where others are wanted."""
    if options.dtype != "float32":
        return options.kv
    if options.kv != "auto":
        what = f"--dtype float32 keeps its cache in float32, so --kv {options.kv} cannot be"
        raise UsageError(what, "leave one of them out, or use --kv auto")
    return "float32"


def budget_of(options: EngineOptions, facts: Facts, shape: ModelShape, *, what_if: bool = False) -> Budget:
    """What may be used: what was asked for, else what is free but a reserve for other programs.

    Raises UsageError for an amount that makes no sense here; with `what_if` it need not be here. UnsupportedError for
    what the model cannot do.
    """
    context = options.context or min(shape.max_position, DEFAULT_CONTEXT_TOKENS)
    kv = asked_kv(options)
    if kv == "int8" and not shape.latent:
        what = "--kv int8 is made for latent attention, which this model does not have"
        raise UnsupportedError(what, "use --kv bf16")
    if context > shape.max_position:
        raise UnsupportedError(
            f"--context {context:,} is beyond what the model was made for",
            f"its longest context is {shape.max_position:,}",
        )
    return Budget(_vram(options, facts, what_if), _ram(options, facts, what_if), context, kv)


def _ram(options: EngineOptions, facts: Facts, what_if: bool) -> int:
    if options.ram is None:
        return max(0, facts.ram_free_bytes - RESERVED_RAM_BYTES)
    size = parse_size(options.ram, "--ram")
    if size > facts.ram_bytes and not what_if:
        raise UsageError(
            f"--ram {options.ram} is more than there is", f"this computer has {bytes_text(facts.ram_bytes)}"
        )
    return size


def given_vram_bytes(free_bytes: int) -> int:
    """GPU memory that a plan may use: what is free but a reserve, and the driver's context, which a plan counts too."""
    return max(0, free_bytes - RESERVED_VRAM_BYTES + CONTEXT_BYTES)


def _vram(options: EngineOptions, facts: Facts, what_if: bool) -> int:
    if options.dtype == "float32":
        return 0  # the reference runs on the CPU alone
    if options.vram is None:
        return given_vram_bytes(facts.gpu.free_bytes) if facts.gpu and facts.gpu.supported else 0
    size = parse_size(options.vram, "--vram")
    if size and facts.gpu is None and not what_if:
        raise UsageError(f"--vram {options.vram}: there is no GPU that could be used", "see `localr1 doctor`")
    if facts.gpu is not None and size > facts.gpu.total_bytes and not what_if:
        raise UsageError(
            f"--vram {options.vram} is more than there is", f"the GPU has {bytes_text(facts.gpu.total_bytes)}"
        )
    return size


def assume_gpu(options: EngineOptions, hardware: Hardware) -> tuple[Hardware, tuple[str, ...]]:
    """Where GPU memory is asked for and there is no GPU, a common one, and a line that says so."""
    if hardware.rates.gpu is not None or options.vram is None or not parse_size(options.vram, "--vram"):
        return hardware, ()
    note = (
        f"assuming a GPU that reads {ROUGH_GPU.read_bytes_per_s / 1e9:.0f} GB/s and gets "
        f"{ROUGH_GPU.pinned_bytes_per_s / 1e9:.0f} GB/s from RAM: there is none here"
    )
    return replace(hardware, rates=replace(hardware.rates, gpu=ROUGH_GPU)), (note,)


def checked_forecast(shape: ModelShape, budget: Budget, hotness: Hotness | None, rates: Rates) -> Forecast:
    """The plan and its speeds. Raises DoesNotFitError, UnsupportedError for a cache that is made for the CPU."""
    foretold = choose(shape, budget, hotness, rates)
    if foretold.plan.device == "gpu" and foretold.plan.kv == "int8":
        raise UnsupportedError("--kv int8 works on the CPU alone", "use --kv bf16, or --vram 0")
    return foretold


def foresee(subject: Subject, budget: Budget, hardware: Hardware) -> Forecast:
    """As `checked_forecast`; where nothing fits, the error names a setting or the nearest model that would."""
    try:
        return checked_forecast(subject.shape, budget, subject.hotness, hardware.rates)
    except DoesNotFitError as error:
        other = _nearest_fitting(subject, budget, hardware)
        hint = f"{error.hint}; {other}" if other else error.hint
        raise DoesNotFitError(f"{subject.name}: {error.message}", hint, error.longest_context) from None


def _nearest_fitting(subject: Subject, budget: Budget, hardware: Hardware) -> str | None:
    """Says which is the largest smaller model of the catalog that would fit with this context, or all it can hold."""
    sizes = {name: catalog.CATALOG[name].store_bytes for name in SHAPES if name in catalog.CATALOG}
    smaller = [name for name, size in sizes.items() if size < subject.shape.weight_bytes and size < budget.ram_bytes]
    for name in sorted(smaller, key=lambda name: -sizes[name]):
        dtype: Dtype = "int8" if subject.shape.number_bytes == 1 else "float32"
        shape = _shape(registry.parse_config(SHAPES[name]), False, dtype)
        if budget.kv == "int8" and not shape.latent:
            continue
        context = min(budget.context_tokens, shape.max_position)
        try:
            checked_forecast(shape, replace(budget, context_tokens=context), None, hardware.rates)
        except LocalR1Error:
            continue
        lowered = f" with --context {context}" if context < budget.context_tokens else ""
        return f"{name} would fit{lowered}"
    return None


def summary(foretold: Forecast) -> str:
    """One line: what the program takes with a whole conversation, and how fast it is expected to be."""
    chosen = foretold.plan
    places = []
    if chosen.device == "gpu":
        places.append(f"{bytes_text(chosen.gpu_bytes)} on the GPU")
        if chosen.shape.experts:
            places[-1] += f" with {chosen.slots:,} of {chosen.shape.expert_count:,} experts"
    places.append(f"{bytes_text(chosen.ram_bytes)} in RAM")
    if chosen.disk_bytes:
        places.append(f"{bytes_text(chosen.disk_bytes)} read from disk when needed")
    about = "roughly" if foretold.rough or foretold.busy else "about"
    speed = f"{about} {' '.join(pace(foretold.decode_tokens_per_s))}"
    if foretold.decode_tokens_per_s > FORETOLD_TOKENS_PER_S:
        speed = f"over {FORETOLD_TOKENS_PER_S} tokens/s"
    return f"up to {', '.join(places)}; {speed} expected"


def expectation(model: str, options: EngineOptions, placed: Forecast | None) -> str:
    """The line that `chat` begins with: where the model lies and how fast it should be, or why it will be slow.

    `placed` is what was foretold when it was placed on a GPU, whose memory is no longer free.
    """
    if placed is not None:
        return summary(placed)
    try:
        hardware, subject = glance_at_computer(options), find_subject(model, options)
        return summary(foresee(subject, budget_of(options, hardware.facts, subject.shape, what_if=True), hardware))
    except LocalR1Error as error:
        return f"this may be slow or fail: {error.message}; {error.hint}"


def outlook(source: HubRepo, store_bytes: int, options: EngineOptions) -> Iterator[str]:
    """What can be said before anything is downloaded, a line each; what cannot be told is not."""
    hardware = glance_at_computer(options)
    name = source.entry.name if source.entry else source.repo_id
    if source.entry is None or name not in SHAPES:
        ram_bytes = max(0, hardware.facts.ram_free_bytes - RESERVED_RAM_BYTES)
        fits = "fits in" if store_bytes < ram_bytes else "is more than"
        yield f"Here: its {bytes_text(store_bytes)} of weights {fits} the {bytes_text(ram_bytes)} of RAM that are free"
        return
    try:
        subject = find_subject(name, options)
        foretold = foresee(subject, budget_of(options, hardware.facts, subject.shape), hardware)
    except LocalR1Error as error:
        yield f"Here: it will not run well. {error.message}; {error.hint}"
        return
    yield f"Here: {summary(foretold)}"
    yield from foretold.plan.notes
    if foretold.rough:
        yield "(`localr1 doctor` measures this computer for a better guess)"
