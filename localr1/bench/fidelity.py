"""How much a setting changes what a model says: next-token distributions against those of a reference, on real text.

Owns the maths of the comparison and what is compared under `--fidelity`. Every window of the text starts afresh, with
the cache each side would use. Guessing ahead is judged by its tokens, which must be the same; the rest by numbers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import psutil
import torch
from torch import Tensor

from localr1.bench.answers import Asking, prompts
from localr1.bench.report import Cell, Figure, Row, Section
from localr1.bench.subject import Subject
from localr1.decode.cache import RowCache
from localr1.errors import LocalR1Error, NotFoundError
from localr1.events import LoadProgress, Progress
from localr1.model import registry
from localr1.model.registry import Model
from localr1.options import BenchOptions, EngineOptions
from localr1.placement.bank import FloatBank
from localr1.placement.linear import FloatWeights
from localr1.session import Engine
from localr1.weights.checkpoint import Checkpoint
from localr1.weights.quantize import dequantize_rows
from localr1.weights.store import Store, scb_name

NEAR_TIE = 0.1
"""Two tokens whose log-probabilities differ by less are as good as equal: a factor of 1.1."""

WINDOW_TOKENS = 256

GUESSING: tuple[Literal["off", "auto"], ...] = ("off", "auto")

COLUMNS = ("mean KL", "largest KL", "same likeliest token", "where it is sure", "perplexity", "reference's")
KERNEL_KL, CACHE_KL = 1e-3, 5e-3
"""The largest mean KL that the kernels' rounding, and another type of cache or place of the weights, may cause."""


@dataclass(frozen=True)
class Divergence:
    """One distribution against a reference, over all positions of a text."""

    tokens: int
    mean_kl: float
    max_kl: float
    top1_agreement: float
    top1_agreement_where_sure: float
    """Of the positions whose two likeliest tokens, by the reference, are no near tie."""
    share_of_near_ties: float
    reference_perplexity: float
    perplexity: float

    def cells(self) -> tuple[Cell, ...]:
        """In the order of COLUMNS."""
        return (
            Figure((self.mean_kl,), "", "less"),
            Figure((self.max_kl,), "", "less"),
            Figure((100 * self.top1_agreement,), "%", "more"),
            Figure((100 * self.top1_agreement_where_sure,), "%", "more"),
            Figure((self.perplexity,), "", "less"),
            Figure((self.reference_perplexity,), ""),
        )


@dataclass(frozen=True)
class Speaker:
    """A model, and how it gets a new cache of its kind."""

    model: Model
    new_cache: Callable[[], RowCache]

    @torch.inference_mode()
    def log_probs(self, tokens: Tensor) -> Tensor:
        """Log-probabilities [T, V] of the next token after each token of a window that starts afresh."""
        hidden_TD = self.model.forward(tokens, self.new_cache())
        return torch.log_softmax(self.model.logits(hidden_TD), dim=-1)


def in_windows(tokens: Sequence[int], size: int = WINDOW_TOKENS) -> list[Sequence[int]]:
    """A long text in parts."""
    return [tokens[first : first + size] for first in range(0, len(tokens), size)]


def divergence(reference: Speaker, other: Speaker, windows: Sequence[Sequence[int]]) -> Divergence:
    """Of `other` from `reference`; each window's first token only sets the scene for the perplexities."""
    kl, same, margin, reference_loss, loss = [], [], [], [], []
    for window in windows:
        part = torch.tensor(window)
        p, q = reference.log_probs(part), other.log_probs(part)
        kl.append((p.exp() * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
        likeliest = p.topk(2, dim=-1).values
        margin.append(likeliest[:, 0] - likeliest[:, 1])
        reference_loss.append(-p[:-1].gather(-1, part[1:, None])[:, 0])
        loss.append(-q[:-1].gather(-1, part[1:, None])[:, 0])
    divergences, agrees, margins = torch.cat(kl), torch.cat(same).float(), torch.cat(margin)
    sure = margins > NEAR_TIE
    return Divergence(
        tokens=len(divergences),
        mean_kl=max(float(divergences.mean()), 0.0),
        max_kl=float(divergences.max()),
        top1_agreement=float(agrees.mean()),
        top1_agreement_where_sure=float(agrees[sure].mean()) if bool(sure.any()) else 1.0,
        share_of_near_ties=float((~sure).float().mean()),
        reference_perplexity=math.exp(float(torch.cat(reference_loss).mean())),
        perplexity=math.exp(float(torch.cat(loss).mean())),
    )


class _Dequantized:
    """A store read as if it were a float checkpoint."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __contains__(self, name: object) -> bool:
        return name in self._store

    def tensor(self, name: str, block: tuple[int, int] | None = None) -> Tensor:
        if name.endswith(".weight") and scb_name(name) in self._store:
            return dequantize_rows(self._store.int8_rows(name.removesuffix(".weight")))
        return self._store.tensor(name)


def dequantized(subject: Subject) -> Model:
    """The store's own numbers as float32 matrices, run by torch: what the int8 kernels must reproduce.

    Four bytes a parameter: raises NotFoundError when there is no room for that.
    """
    needed, free = 4 * subject.engine.parameters, psutil.virtual_memory().available
    if needed > 0.7 * free:
        raise NotFoundError(
            f"float32 needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", "close other programs"
        )
    config = subject.engine.config
    weights = FloatWeights(cast(Checkpoint, _Dequantized(subject.store)))
    bank = FloatBank(weights, config.moe.layers, config.moe.num_experts) if config.moe else None
    return registry.build(config, weights, bank, kernel_rows=0)


def float_source(subject: Subject) -> Progress[Engine]:
    """The unquantized model. Raises NotFoundError when its checkpoint is not at hand, or no room for it."""
    needed, free = 4 * subject.engine.parameters, psutil.virtual_memory().available
    if subject.shape is not None:
        raise NotFoundError("random weights have no float source", "")
    if needed > 0.7 * free:
        raise NotFoundError(f"float32 needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", "")
    return (yield from subject.variant(replace(subject.engine.options, dtype="float32", kv="auto", speculate="off")))


def with_sixteen_bit_rows(subject: Subject) -> Progress[Engine]:
    """The model with cache rows of 16 bits, so that nothing but what is judged differs."""
    if subject.engine.kv == "bf16":
        return subject.engine
    return (yield from subject.variant(replace(subject.engine.options, kv="bf16")))


def compared_tokens(subject: Subject, options: BenchOptions) -> list[int]:
    """The text of a comparison: as long as a prompt."""
    return subject.tokens(min(max(options.prompt_tokens, 2), subject.engine.context_limit))


def fidelity(subject: Subject, options: BenchOptions) -> Progress[Section]:
    """int8 against float32 where the source is at hand, and each setting against the plain path."""
    most = min(4 * options.decode_tokens, subject.engine.context_limit // 2)
    asked = prompts(subject, most)  # where the context is too short for them, that is said at once
    plain = yield from with_sixteen_bit_rows(subject)
    tokens = compared_tokens(subject, options)
    found = _Fidelity(subject, plain, tokens)
    yield from found.against_source()
    found.against_dequantized()
    for label, changed in _variants(subject.engine.options):
        yield from found.variant(label, changed)
    yield from found.guessing(asked, most)
    notes = (
        f"{len(tokens):,} tokens of text, in windows of {WINDOW_TOKENS}",
        f"where it is sure: where the reference's two likeliest tokens differ by more than {NEAR_TIE} nats",
        *found.notes,
    )
    columns = ("setting", *COLUMNS, "verdict")
    return Section("fidelity", "What a setting changes of what the model says", columns, tuple(found.rows), notes)


class _Fidelity:
    """The rows and notes as they come."""

    def __init__(self, subject: Subject, plain: Engine, tokens: list[int]) -> None:
        self.subject = subject
        self.windows = in_windows(tokens)
        self.plain = Speaker(plain.model, plain.new_cache)
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def against_source(self) -> Progress[None]:
        """The whole 8-bit path, as it is shipped, against the unquantized checkpoint."""
        label = "int8 against the float32 source"
        yield LoadProgress("comparing with float32")
        try:
            exact = yield from float_source(self.subject)
        except NotFoundError as error:
            self._not_here(label, f"source not at hand ({error.message})")
            return
        shipped = self.subject.engine
        self.subject.use_threads(shipped)
        speakers = Speaker(exact.model, exact.new_cache), Speaker(shipped.model, shipped.new_cache)
        self.rows.append(Row(label, (*divergence(*speakers, self.windows).cells(), "")))

    def against_dequantized(self) -> None:
        """The kernels alone: the same numbers as float32 matrices."""
        label = "int8 kernels, same weights"
        config, limit = self.subject.engine.config, self.subject.engine.context_limit
        on_cpu = partial(RowCache, config.cache_layers, config.cache_width, limit, torch.bfloat16)
        try:
            reference = Speaker(dequantized(self.subject), on_cpu)
        except NotFoundError as error:
            self._not_here(label, error.message)
            return
        self._same_path(label, divergence(reference, self.plain, self.windows), KERNEL_KL)

    def variant(self, label: str, changed: EngineOptions) -> Progress[None]:
        """Another cache type or placement against the plain path."""
        yield LoadProgress(f"comparing {label}")
        try:
            engine = yield from self.subject.variant(changed)
        except LocalR1Error as error:
            self._not_here(label, error.message)
            return
        self._same_path(label, divergence(self.plain, Speaker(engine.model, engine.new_cache), self.windows), CACHE_KL)

    def guessing(self, asked: list[list[int]], most: int) -> Progress[None]:
        """Answers with guessing ahead must be the same tokens."""
        subject, said = self.subject, []
        for setting in GUESSING:
            yield LoadProgress(f"answering with guessing {setting}")
            engine = yield from subject.variant(replace(_base(subject), speculate=setting))
            said.append(Asking(engine, asked, most, stop=subject.shape is None)().tokens)
        same = said[0] == said[1]
        verdict = f"the same {len(said[0])} tokens" if same else "DIFFERENT TOKENS"
        self.rows.append(Row("guessing ahead", (*[""] * len(COLUMNS), verdict)))

    def _same_path(self, label: str, found: Divergence, tolerance: float) -> None:
        verdict = f"within {tolerance:g}" if found.mean_kl <= tolerance else f"BEYOND {tolerance:g}"
        self.rows.append(Row(label, (*found.cells(), verdict)))

    def _not_here(self, label: str, why: str) -> None:
        self.rows.append(Row(label, (*[""] * len(COLUMNS), "not measured here")))
        self.notes.append(f"{label}: not measured here, {why}")


def _base(subject: Subject) -> EngineOptions:
    return replace(subject.engine.options, draft_tokens=None)


def _variants(options: EngineOptions) -> Iterator[tuple[str, EngineOptions]]:
    """The settings that may change numbers: the cache's type, and the place of the weights where there is a GPU."""
    yield "int8 cache", replace(options, kv="int8")
    if torch.cuda.is_available():
        yield "CPU alone", replace(options, kv="bf16", vram="0")
