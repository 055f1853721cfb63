"""A loaded model: the store's parts, the maths built from them, the tokenizer and the settings in force."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from localr1.chat.template import ChatTemplate
from localr1.chat.tokenizer import Tokenizer
from localr1.decode.cache import RowCache
from localr1.decode.depth import DEEPEST, AutoDepth, FixedDepth
from localr1.decode.draft import Drafter, LookupDrafter, MtpDrafter, MtpGuesses
from localr1.decode.sampling import Sampling
from localr1.decode.speculate import Foretell, Speculation
from localr1.errors import LocalR1Error, NotFoundError, UnsupportedError, typed
from localr1.events import Event, LoadProgress, Notice, Progress
from localr1.hub import cache as hub_cache
from localr1.hub import catalog
from localr1.hub.cache import StoredModel
from localr1.hub.source import LocalFolder
from localr1.kernels import compilation
from localr1.kernels.threads import set_threads
from localr1.model import registry
from localr1.model.config import MlaConfig, ModelConfig
from localr1.model.decoder import Decoder
from localr1.model.linear import ExpertBank, Weights
from localr1.model.mtp import MtpLayer
from localr1.model.registry import Model
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from localr1.placement.bank import CpuBank, FloatBank
from localr1.placement.forecast import Forecast
from localr1.placement.hints import Foretold
from localr1.placement.linear import FloatWeights, StoreWeights
from localr1.placement.shape import KvType, kv_type
from localr1.session.gpu_model import GpuModel, open_on_gpu
from localr1.session.outlook import DEFAULT_CONTEXT_TOKENS, asked_kv
from localr1.session.routing import Routing, open_routing
from localr1.weights.checkpoint import Checkpoint, read_json
from localr1.weights.store import Store

if TYPE_CHECKING:
    from localr1.session.conversation import Conversation

BUILT_IN = "nano"
T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """A loaded model with its tokenizer and template."""

    name: str
    folder: Path
    config: ModelConfig
    model: Model
    tokenizer: Tokenizer
    template: ChatTemplate
    recommended: Sampling
    context_limit: int
    options: EngineOptions
    mtp: MtpGuesses | None
    """What guesses with its MTP layer; None where it has none, or guesses otherwise."""
    weight_bytes: int
    parameters: int
    routing: Routing | None = None
    """What its router chose here, now and before; None without experts."""
    notes: tuple[str, ...] = ()
    """What the user should hear of how it was loaded."""
    depth: AutoDepth = field(default_factory=lambda: AutoDepth(DEEPEST))
    """What guessing costs and gains on this machine; conversations share it, so that only the first tries things."""

    @property
    def kv(self) -> KvType:
        """How its caches keep their rows."""
        latent = isinstance(self.config.attention, MlaConfig)
        return kv_type(asked_kv(self.options), latent, "cpu" if self.on_gpu is None else "gpu")

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of what its caches keep as floats."""
        return torch.float32 if self.kv == "float32" else torch.bfloat16

    @property
    def on_gpu(self) -> GpuModel | None:
        """The model where it is one on a GPU; None where it runs on the CPU alone."""
        return self.model if isinstance(self.model, GpuModel) else None

    @property
    def foretold(self) -> Forecast | None:
        """What was expected when it was placed on a GPU; None where it runs on the CPU alone."""
        return self.on_gpu.foretold if self.on_gpu is not None else None

    @property
    def notice(self) -> str:
        """What the user should know of how it runs by now; empty when all is as it should be."""
        return self.on_gpu.notice if self.on_gpu is not None else ""

    def new_cache(self) -> RowCache:
        """A cache for one conversation."""
        return self._cache(self.config.cache_layers, 0)

    def new_speculation(self) -> Speculation:
        """A drafter for one conversation, as the options want it."""
        drafter: Drafter
        if self.options.speculate == "off":
            return Speculation(foretell=self._foretell)
        if self.mtp is not None and self.options.speculate in ("auto", "mtp"):
            drafter = MtpDrafter(self.mtp, self._cache(1, self.config.num_layers))
        else:
            drafter = LookupDrafter()
        fixed = self.options.draft_tokens
        return Speculation(drafter, FixedDepth(fixed) if fixed else self.depth, self._foretell)

    @property
    def _foretell(self) -> Foretell | None:
        """Who hears of what the next forward takes in: whoever keeps the routing history, and moves experts by it."""
        if self.routing is None or self.routing.history.hints is None:
            return None
        listener = self.routing.history.foretell if self.on_gpu is None else self.on_gpu.foretell
        return lambda tokens, hidden_D: listener(Foretold(tokens, hidden_D))

    def _cache(self, layers: int, first_layer: int) -> RowCache:
        dtype, width, capacity = self.kv_dtype, self.config.cache_width, self.context_limit
        if self.on_gpu is None:
            latent = latent_width(self.config) if self.kv == "int8" else None
            return RowCache(layers, width, capacity, dtype, first_layer, latent=latent)
        device = self.on_gpu.device
        return self.on_gpu.new_cache(lambda: RowCache(layers, width, capacity, dtype, first_layer, device))

    def sampling(self, wanted: SamplingOptions) -> Sampling:
        """The user's settings over the recommended ones."""
        given = {name: getattr(wanted, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        chosen = replace(self.recommended, **{name: value for name, value in given.items() if value is not None})
        return replace(chosen, top_k=int(chosen.top_k), seed=wanted.seed)

    def come_back(self) -> Iterator[Event]:
        """Have the model on the GPU again, where it made way for another."""
        if self.on_gpu is not None and not self.on_gpu.here:
            yield LoadProgress(f"loading {self.name} again")
            self.on_gpu.come_back()

    def with_room(self, run: Callable[[], T]) -> T:
        """Run what needs memory: where a GPU's runs short, again when experts have made room."""
        return run() if self.on_gpu is None else self.on_gpu.with_room(run)

    def converse(self, sampling: SamplingOptions, options: ConversationOptions) -> "Conversation":
        """A new conversation with this model."""
        from localr1.session.conversation import Conversation

        return Conversation(self, sampling, options)


def latent_width(config: ModelConfig) -> int:
    """How many numbers of a cache row are latents. UnsupportedError where rows are keys and values."""
    if not isinstance(config.attention, MlaConfig):
        raise UnsupportedError(
            f"--kv int8 is made for latent attention, which {config.model_type} does not have", "use --kv bf16"
        )
    return config.attention.kv_lora_rank


def load(model: str | None, options: EngineOptions, instead_of: Engine | None = None) -> Progress[Engine]:
    """Open a model that was downloaded (None: the one used last, else the built-in one).

    The engine in whose place it comes makes way on the GPU; if this fails, it comes back when it is used.
    """
    torch.set_num_threads(set_threads(options.threads))
    store = _find_store(model)
    if instead_of is not None and instead_of.on_gpu is not None:
        instead_of.on_gpu.make_way()
    if model is None and store.name == BUILT_IN:
        yield Notice("nano is the small model built into localr1; a real one: localr1 download r1-distill-qwen-7b")
    yield LoadProgress(f"opening {store.name}")
    opened = _open_float32 if options.dtype == "float32" else _open
    engine = opened(store.name, store.folder, options)
    if engine.routing is not None:
        yield from engine.routing.notices()
    yield from map(Notice, engine.notes)
    yield from compile_kernels(engine)
    with suppress(LocalR1Error):  # a home that cannot be written need not keep anybody from talking
        hub_cache.set_last_used(store)
    return engine


def _find_store(model: str | None) -> StoredModel:
    """The store that the user means. Raises NotFoundError when it is not here yet."""
    last = hub_cache.last_used() if model is None else None
    if last is not None:
        return last
    name = model or BUILT_IN
    store = hub_cache.find_store(hub_cache.source_of(name))
    if store is None:
        raise NotFoundError(f"{name} is not here yet", f"get it with: localr1 download {typed(name)}")
    return store


def _open(name: str, folder: Path, options: EngineOptions) -> Engine:
    return assemble(name, folder, registry.read_config(folder), Store(folder), options)


@dataclass(frozen=True)
class Opened:
    """What an engine is made of; `parameters` and `weight_bytes` are of all tensors."""

    model: Model
    mtp: MtpGuesses | None
    weight_bytes: int
    parameters: int
    routing: Routing | None
    notes: tuple[str, ...] = ()


def assemble(name: str, folder: Path, config: ModelConfig, store: Store, options: EngineOptions) -> Engine:
    """A model from a store's int8 rows; tokenizer and template are those of `folder`.

    It goes on the GPU where there is one that has room for it and the options do not say otherwise.
    """
    mtp = _wants_mtp(options) and registry.has_mtp(config, store)
    context = checked_context(name, config, options, mtp)
    routing = open_routing(folder, config)
    history = routing.history if routing is not None else None
    on_cpu = StoreWeights(store)
    if routing is not None:
        routing.hinted(on_cpu.embedding("model.embed_tokens"), config.hidden)
    on_gpu, notes = open_on_gpu(config, store, mtp, context, options, history)
    model: Model
    guesses: MtpGuesses | None
    if on_gpu is not None:
        model, guesses = on_gpu, on_gpu if mtp else None
    else:
        bank: ExpertBank | None = None
        if config.moe is not None and routing is not None:
            bank = routing.counted(CpuBank(store, registry.expert_layers(config, mtp), config.moe.num_experts))
        model, guesses = _built(config, on_cpu, bank, mtp)
    opened = Opened(model, guesses, store.nbytes, store.parameters, routing, notes)
    return _engine(name, folder, config, options, context, opened)


def _open_float32(name: str, folder: Path, options: EngineOptions) -> Engine:
    """The unquantized model, from the checkpoint that the store was made of."""
    store = Store(folder)
    kept_in = store.manifest.get("source_folder")
    origin = Path(kept_in or "")
    if not kept_in or not (origin / "config.json").is_file():
        gone = f"is no longer at {origin}" if kept_in else "was not kept"
        built_in = (entry := catalog.CATALOG.get(name)) is not None and entry.repo_id is None
        get = "" if built_in else f"get it with: localr1 download {typed(name)} --keep-source --force; or "
        raise NotFoundError(f"the float checkpoint of {name} {gone}", f"{get}use --dtype int8")
    files = hub_cache.store_folder(LocalFolder(origin)).name
    if store.manifest["source"] == kept_in and store.manifest["revision"] != files:
        raise NotFoundError(
            f"{origin} is no longer what {name} was made of",
            f"convert it again with: localr1 download {typed(kept_in)}; or use --dtype int8",
        )
    checkpoint = Checkpoint(origin)
    config = registry.read_config(origin)
    mtp = _wants_mtp(options) and registry.has_mtp(config, checkpoint)
    context = checked_context(name, config, options, mtp)
    weights = FloatWeights(checkpoint, config.weight_block_size)
    layers = registry.expert_layers(config, mtp)
    routing, bank = open_routing(folder, config), None
    if config.moe is not None and routing is not None:
        bank = routing.counted(FloatBank(weights, layers, config.moe.num_experts))
    model, guesses = _built(config, weights, bank, mtp)
    opened = Opened(model, guesses, 4 * store.parameters, store.parameters, routing)
    return _engine(name, folder, config, options, context, opened)


def _built(
    config: ModelConfig, weights: Weights, bank: ExpertBank | None, mtp: bool
) -> tuple[Decoder, MtpLayer | None]:
    decoder = registry.build(config, weights, bank)
    return decoder, registry.build_mtp(config, weights, bank, decoder) if mtp else None


def _wants_mtp(options: EngineOptions) -> bool:
    return options.speculate in ("auto", "mtp")


def checked_context(name: str, config: ModelConfig, options: EngineOptions, mtp: bool) -> int:
    """How long a conversation may be; `mtp` tells whether it guesses with an MTP layer. Raises UnsupportedError for
    options that do not fit the model."""
    if options.context is not None and options.context > config.max_position:
        raise UnsupportedError(
            f"--context {options.context:,} is beyond what {name} was made for",
            f"its longest context is {config.max_position:,}",
        )
    if options.speculate == "mtp" and not mtp:
        raise UnsupportedError(f"{name} has no MTP layer", "use --speculate auto, which guesses from the context")
    if asked_kv(options) == "int8":
        latent_width(config)
    return options.context or min(config.max_position, DEFAULT_CONTEXT_TOKENS)


def _engine(
    name: str, folder: Path, config: ModelConfig, options: EngineOptions, context_limit: int, opened: Opened
) -> Engine:
    tokenizer, template = Tokenizer.open(folder), ChatTemplate.open(folder)
    return Engine(
        name=name,
        folder=folder,
        config=replace(config, eos_token_ids=_stop_ids(config, tokenizer, template)),
        model=opened.model,
        tokenizer=tokenizer,
        template=template,
        recommended=_recommended(name, folder),
        context_limit=context_limit,
        options=options,
        mtp=opened.mtp,
        weight_bytes=opened.weight_bytes,
        parameters=opened.parameters,
        routing=opened.routing,
        notes=opened.notes,
    )


def _stop_ids(config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """What ends an answer: what the configs say, and the tokenizer's own end, which fine-tunes' configs may lack."""
    own = tokenizer.token_id(template.end_token) if template.end_token is not None else None
    return tuple(dict.fromkeys((*config.eos_token_ids, *(() if own is None else (own,)))))


def _generation_config(folder: Path) -> dict[str, object]:
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def _recommended(name: str, folder: Path) -> Sampling:
    """Its authors' settings: the catalog's, then `generation_config.json`'s, then R1's."""
    entry, given = catalog.CATALOG.get(name), _generation_config(folder)
    values = {key: given[key] for key in ("temperature", "top_p", "top_k") if isinstance(given.get(key), int | float)}
    if given.get("do_sample") is False:
        values["temperature"] = 0.0
    if entry is not None:
        card = {"temperature": entry.temperature, "top_p": entry.top_p}
        values |= {key: value for key, value in card.items() if value is not None}
    return Sampling(**values)  # type: ignore[arg-type]


def compile_kernels(engine: Engine) -> Iterator[Event]:
    """Have the kernels ready; their first compilation takes a while, so it is shown as what it is."""
    attention = "mla_attention" if isinstance(engine.config.attention, MlaConfig) else "gqa_attention"
    names = ("rms_norm", "linear", "routed_ffn", attention, *compilation.fused(attention, engine.mtp is not None))
    for stage in compilation.compile_all(names):
        yield LoadProgress(*stage)
    if engine.on_gpu is not None:
        yield LoadProgress("getting the GPU's kernels ready")
        engine.on_gpu.warm_up(engine.kv_dtype)
