"""A model on a GPU: its steps replayed, tried again when memory runs out, and away while another needs the memory.

Owns the joining of its parts (`session.gpu`) with what replays their steps. A forward commits nothing before it is
whole, so it can be tried again when experts have made room.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from localr1.decode.cache import RowCache
from localr1.errors import OutOfMemoryError
from localr1.model import registry
from localr1.model.config import MlaConfig, ModelConfig
from localr1.model.decoder import Decoder, first_highest
from localr1.model.linear import Cache
from localr1.model.mtp import MtpLayer
from localr1.options import EngineOptions
from localr1.placement.gpu import in_ram
from localr1.placement.graphs import Recorder, recording_stream
from localr1.placement.hints import Foretold
from localr1.placement.routing_history import RoutingHistory
from localr1.placement.split import FEW, SplitBank
from localr1.session.gpu import Placed, built_with_room, make_room, place_on_gpu, translated
from localr1.session.replay import Recording, Replayer
from localr1.weights.store import Store

WARM_UP_ROWS = (1, 2, 4, 16)

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """A model's parts on a device; `left` is what the user should know of experts that made room for others."""

    placed: Placed
    decoder: Decoder
    mtp: MtpLayer | None = None
    left: str = ""


def open_on_gpu(
    config: ModelConfig, store: Store, mtp: bool, context: int, options: EngineOptions, history: RoutingHistory | None
) -> "tuple[GpuModel | None, tuple[str, ...]]":
    """The model on the GPU as planned, and what the user should hear; None where it runs on the CPU.

    Raises as `place_on_gpu`.
    """

    def make() -> tuple[Parts | None, tuple[str, ...]]:
        placed, notes = place_on_gpu(config, store, mtp, context, options, history)
        if placed is None:
            return None, notes

        def build() -> tuple[Decoder, MtpLayer | None]:
            decoder = registry.build(config, placed.weights, placed.bank)
            return decoder, registry.build_mtp(config, placed.weights, placed.bank, decoder) if mtp else None

        (decoder, layer), left = built_with_room(placed.bank, build)
        return Parts(placed, decoder, layer, left), notes

    parts, notes = make()
    return (GpuModel(parts, lambda: make()[0]) if parts is not None else None), notes


class _Running:
    """Parts with what replays their steps; `record` None where none is."""

    def __init__(self, parts: Parts, record: Callable[[], Recording] | None) -> None:
        self.parts = parts
        placed, decoder = parts.placed, parts.decoder
        latent = isinstance(decoder.config.attention, MlaConfig)
        if record is None and placed.device.type == "cuda" and placed.weights.ops.kernels.replayable(latent):
            record = Recorder(recording_stream(placed.device))
        rest = decoder.rotary, placed.device, placed.bank, record
        self.step = Replayer(partial(_step, decoder), *rest)
        self.guess = Replayer(parts.mtp.step, *rest, every=True) if parts.mtp is not None else None

    @property
    def replayers(self) -> tuple[Replayer, ...]:
        """Of the decoder's steps, and of the MTP layer's where there is one."""
        return (self.step, self.guess) if self.guess is not None else (self.step,)

    def forget(self) -> None:
        """Give back what recordings hold."""
        for one in self.replayers:
            one.forget()


def _step(decoder: Decoder, token_T: Tensor, cache: Cache) -> tuple[Tensor, ...]:
    """(hidden_TD, logits_TV, best_T, logit_T), all on the device."""
    hidden_TD = decoder.forward(token_T, cache)
    logits_TV = decoder.head.product(hidden_TD)
    return hidden_TD, logits_TV, *first_highest(logits_TV)


class GpuModel:
    """A `Model` on a device: a decoder's steps and its MTP layer's, made safe and replayed where that is possible.

    It may make way for another model; it comes back when it is used again.
    """

    def __init__(
        self,
        parts: Parts,
        again: Callable[[], Parts | None] | None = None,
        record: Callable[[], Recording] | None = None,
    ) -> None:
        """`again` makes the parts once more, None where they no longer fit; without it the model cannot make way."""
        self.config = parts.decoder.config
        self.device = parts.placed.device
        self.foretold = parts.placed.foretold
        """The plan by which it was placed, and its speeds."""
        self.caches: WeakSet[RowCache] = WeakSet()
        """The conversations' on this device."""
        self._again = again
        self._record = record
        self._left = parts.left
        self._running: _Running | None = _Running(parts, record)

    @property
    def here(self) -> bool:
        """Whether its parts are on the device."""
        return self._running is not None

    @property
    def decoder(self) -> Decoder:
        return self._run_by().parts.decoder

    @property
    def bank(self) -> SplitBank | None:
        return self._run_by().parts.placed.bank

    @property
    def replayers(self) -> tuple[Replayer, ...]:
        """Of the decoder's steps, and of the MTP layer's where there is one."""
        return self._run_by().replayers

    @property
    def replays(self) -> bool:
        """Whether steps are replayed by now."""
        return self._running is not None and self._running.step.ready

    @property
    def notice(self) -> str:
        """What the user should know of how steps run; empty when all is as it should be."""
        given_up = [one.given_up for one in self._running.replayers if one.given_up] if self._running else []
        said = [f"the GPU's steps are not replayed: {reason}" for reason in dict.fromkeys(given_up)]
        return "; ".join([*said, self._left] if self._left else said)

    def forward(self, token_T: Tensor, cache: Cache) -> Tensor:
        if len(token_T) > FEW:
            return self.with_room(lambda: self.decoder.forward(token_T, cache))
        return self.with_room(lambda: self._run_by().step(token_T, cache=cache)[0].clone())

    def logits(self, hidden_TD: Tensor) -> Tensor:
        if len(hidden_TD) > FEW:
            return self.with_room(lambda: self.decoder.logits(hidden_TD))
        return self.with_room(lambda: in_ram(self.decoder.head.product(hidden_TD)))[0]

    def step(self, token_T: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        def run() -> tuple[Tensor, Tensor]:
            hidden_TD, logits_TV, *_ = self._run_by().step(token_T, cache=cache)
            return hidden_TD.clone(), in_ram(logits_TV)[0]

        return self.with_room(run)

    def likeliest(self, token_T: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
        """The logits stay on the device."""

        def run() -> tuple[Tensor, ...]:
            hidden_TD, _, *best = self._run_by().step(token_T, cache=cache)
            return hidden_TD.clone(), *in_ram(*best)

        hidden_TD, best_T, logit_T = self.with_room(run)
        return hidden_TD, best_T, logit_T

    def guesses(self, tokens: Sequence[int], hidden_TD: Tensor, cache: Cache, count: int) -> tuple[list[int], Tensor]:
        """As `MtpLayer.guesses`, one at a time."""

        def run() -> tuple[list[int], Tensor]:
            guess = self._run_by().guess
            assert guess is not None, "a model that was made without its MTP layer"
            token_1, carried_1D = guess(torch.tensor(tokens), hidden_TD, cache=cache)
            carried_1D = carried_1D.clone()
            return in_ram(token_1)[0].tolist(), carried_1D

        return self.with_room(run)

    def foretell(self, coming: Foretold) -> None:
        """As `SplitBank.foretell`."""
        if self.bank is not None:
            self.bank.foretell(coming)

    @torch.inference_mode()
    def warm_up(self, dtype: torch.dtype = torch.bfloat16) -> None:
        """Run steps of every size that has kernels of its own, with caches of this type, so that none is compiled in an
        answer."""
        rows = WARM_UP_ROWS if self.device.type == "cuda" else (1,)
        with self.bank.still() if self.bank is not None else nullcontext():
            for count in rows:
                self.with_room(partial(self._warm_up, count, dtype))

    def _warm_up(self, rows: int, dtype: torch.dtype) -> None:
        config, running = self.config, self._run_by()
        cache = RowCache(config.cache_layers, config.cache_width, rows, dtype, 0, self.device)
        token_T = torch.zeros(rows, dtype=torch.int64)
        hidden_TD = self.decoder.forward(token_T, cache)
        self.decoder.logits(hidden_TD)
        if rows > FEW:
            return
        running.step.run_held((token_T,), cache)
        if running.guess is not None:
            cache = RowCache(1, config.cache_width, rows, dtype, config.num_layers, self.device)
            running.guess.run_held((token_T, hidden_TD), cache)

    def new_cache(self, make: Callable[[], RowCache]) -> RowCache:
        """One more cache on the device, by `make`."""
        cache = self.with_room(make)
        self.caches.add(cache)
        return cache

    def with_room(self, run: Callable[[], T]) -> T:
        """Run; when memory is short make experts leave and run again. Raises LocalR1Error for any other failure."""
        while True:
            with suppress(torch.OutOfMemoryError):
                return translated(run)
            self._make_room()  # here, not in a handler, which would hold the failed step's tensors

    def make_way(self) -> None:
        """Give all memory back for another model in its place. What caches held must be read again."""
        running, self._running = self._running, None
        assert self._again is not None, "a model that could not come back"
        if running is not None and running.parts.placed.bank is not None:
            with suppress(RuntimeError):  # of experts on their way, whose place goes
                running.parts.placed.bank.close()
        for cache in self.caches:
            cache.release()

    @torch.inference_mode(False)
    def come_back(self) -> None:
        """Have the parts on the device again, if the model made way. Raises LocalR1Error."""
        if self._running is not None:
            return
        assert self._again is not None
        parts = self._again()
        if parts is None:
            raise OutOfMemoryError(
                "the GPU has no room left for the model that made way for another", "start localr1 again"
            )
        self._left, self._running = parts.left, _Running(parts, self._record)

    def _run_by(self) -> _Running:
        self.come_back()
        assert self._running is not None
        return self._running

    def _make_room(self) -> None:
        running = self._run_by()
        running.forget()
        self._left = make_room(running.parts.placed.bank)
