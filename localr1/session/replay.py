"""Steps of few tokens on a GPU, recorded and replayed, so that the host launches graphs instead of kernels.

Owns when a step is recorded and when a recording may be trusted: it is replayed once beside the eager step, and if it
gives anything else recording is given up for good. A recording belongs to one cache and one number of tokens; where
the step stands lies on the device. The first step of a number of tokens runs eagerly and is recorded at once: of the
few steps by which `decode.depth` learns what a depth costs, only one is not a replay.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.decode.cache import RowCache, Stopped
from localr1.kernels.gpu import out_of_memory
from localr1.model.decoder import Decoder
from localr1.placement.slots import LEAST_ROWS
from localr1.placement.split import SplitBank, call

TOLERANCE = 5e-3


class Recording(Protocol):
    """What records a step (see `placement.graphs.Tape`)."""

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        """Record what `run` does; its result is rewritten by every replay, and may be by another recording's."""
        ...

    def cut(self, host: Callable[[], None]) -> None:
        """A host call at this point of the step."""
        ...

    def replay(self) -> None:
        """Do all of it again."""
        ...


class HeldCache:
    """A `Cache` whose length lies on the device: rows are written where it says, and all rows there are come back."""

    def __init__(self, cache: RowCache, rows: int, device: torch.device) -> None:
        self._cache = cache
        self.length = torch.zeros(1, dtype=torch.int64, device=device)
        self._ahead_T = torch.arange(rows, device=device)
        self._position_T = self._ahead_T.clone()

    def rows(self, layers: range, new: int) -> NDArray[Any]:
        raise TypeError(f"the rows of {layers} lie on {self.length.device}, which only its own kernels can read")

    def append(self, layer: int, row_TW: Tensor) -> Tensor:
        rows_SW = self._cache.layer_rows(layer)
        return rows_SW.index_copy_(0, self._position_T, row_TW.to(rows_SW.dtype))

    def begin_at(self, length: int) -> None:
        """Where the next step of so many tokens stands."""
        self.length.fill_(length)
        torch.add(self._ahead_T, self.length, out=self._position_T)


@dataclass(frozen=True)
class Step:
    """A recorded step: its inputs, its recording, its result."""

    token_T: Tensor
    cache: HeldCache
    recording: Recording
    hidden_TD: Tensor

    def replay(self, token_T: Tensor, length: int) -> Tensor:
        self.token_T.copy_(token_T)
        self.cache.begin_at(length)
        self.recording.replay()
        return self.hidden_TD.clone()


class Replayer:
    """Runs a decoder's steps; `record` makes a recording, `bank` tells it where the host takes part."""

    def __init__(
        self, decoder: Decoder, device: torch.device, bank: SplitBank | None, record: Callable[[], Recording]
    ) -> None:
        self._decoder = decoder
        self._device = device
        self._bank = bank
        self._record = record
        self._cache: RowCache | None = None
        self._steps: dict[int, Step] = {}
        self.given_up = ""
        """Why nothing is recorded any more; empty while recordings may be used."""

    def forward(self, token_T: Tensor, cache: RowCache) -> Tensor:
        """As `Decoder.forward`; raises Stopped when the cache says so."""
        rows = len(token_T)
        if cache is not self._cache:
            self.forget()
            self._cache = cache
        step = self._steps.get(rows)
        if step is not None:
            if cache.should_stop():
                raise Stopped
            return step.replay(token_T, cache.length)
        hidden_TD = self._decoder.forward(token_T, cache)
        if not self.given_up:
            self._try(token_T, cache, hidden_TD)
        return hidden_TD

    @property
    def ready(self) -> bool:
        """Whether a step of any number of tokens can be replayed."""
        return bool(self._steps)

    def forget(self) -> None:
        """Drop all recordings and the memory they hold."""
        self._steps, self._cache = {}, None

    def _try(self, token_T: Tensor, cache: RowCache, wanted_TD: Tensor) -> None:
        """Record this step; keep it if a replay gives what the eager step gave. Nothing is committed by either."""
        self._decoder.rotary.rows(cache.capacity - 1, 1)  # the table does not grow in a recording
        try:
            with self._bank.still() if self._bank is not None else nullcontext():  # or experts move in between
                step = self._recorded(token_T, cache)
                difference = float((step.replay(token_T, cache.length) - wanted_TD).abs().max() / wanted_TD.abs().max())
        except RuntimeError as error:
            if not out_of_memory(error):
                self.given_up = f"a step could not be recorded: {error}"
            elif self._bank is not None and self._bank.slots.count > LEAST_ROWS:
                raise  # experts can make room
            else:
                self.given_up = "there is no memory for a recorded step"
            return
        if difference < TOLERANCE:
            self._steps[len(token_T)] = step
        else:
            self.given_up = f"a recorded step differed from the eager one by {difference:.2g} of its largest value"

    def run_held(self, token_T: Tensor, cache: RowCache) -> tuple[Tensor, HeldCache]:
        """Run a step as it will be recorded; its inputs on the device. Nothing is committed."""
        tokens_T, held = token_T.to(self._device).clone(), HeldCache(cache, len(token_T), self._device)
        held.begin_at(cache.length)
        self._decoder.forward(tokens_T, held)
        return tokens_T, held

    def _recorded(self, token_T: Tensor, cache: RowCache) -> Step:
        tokens_T, held = self.run_held(token_T, cache)  # compiles and loads what no eager step has used
        recording = self._record()
        if self._bank is not None:
            self._bank.cut = recording.cut
        try:
            hidden_TD = recording.record(lambda: self._decoder.forward(tokens_T, held))
        finally:
            if self._bank is not None:
                self._bank.cut = call
        return Step(tokens_T, held, recording, hidden_TD)
