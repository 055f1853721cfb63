"""Steps of few tokens on a GPU, recorded and replayed, so that the host launches graphs instead of kernels.

Owns when a step is recorded and when a recording may be trusted: it is replayed once beside the eager step, and if it
gives anything else recording is given up for good. A recording belongs to one cache and one number of tokens; where
the step stands lies on the device. The first step of a number of tokens runs eagerly and is recorded at once: of the
few steps by which `decode.depth` learns what a depth costs, only one is not a replay.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.decode.cache import RowCache, Stopped
from localr1.kernels.gpu import out_of_memory
from localr1.model.linear import Cache
from localr1.model.rope import RotaryTable
from localr1.placement.slots import LEAST_ROWS
from localr1.placement.split import FEW, SplitBank, call

TOLERANCE = 5e-3

Tensors = tuple[Tensor, ...]
Run = Callable[..., Tensors]
"""`(*inputs, cache) -> results`: a step of T tokens, its inputs of T rows each; nothing in it waits for the device."""


class Recording(Protocol):
    """What records a step (see `placement.graphs.Tape`)."""

    def record(self, run: Callable[[], Tensors]) -> Tensors:
        """Record what `run` does; its results are rewritten by every replay, and may be by another recording's."""
        ...

    def cut(self, host: Callable[[], None]) -> None:
        """A host call at this point of the step."""
        ...

    def replay(self) -> None:
        """Do all of it again."""
        ...


class HeldCache:
    """A `Cache` whose length lies on the device, where the kernels write their rows."""

    def __init__(self, cache: RowCache, device: torch.device) -> None:
        self._cache = cache
        self.length = torch.zeros(1, dtype=torch.int64, device=device)

    def rows(self, layers: range, new: int) -> NDArray[Any]:
        raise TypeError(f"the rows of {layers} lie on {self.length.device}, which only its own kernels can read")

    def append(self, layer: int, row_TW: Tensor) -> Tensor:
        raise TypeError(f"rows of layer {layer} are written by kernels, where {self.length.device} says")

    def room(self, layer: int, new: int) -> Tensor:
        return self._cache.layer_rows(layer)

    def begin_at(self, length: int) -> None:
        """Where the next step stands."""
        self.length.fill_(length)


@dataclass(frozen=True)
class Step:
    """A recorded step: its inputs, its recording, its results."""

    inputs: Tensors
    cache: HeldCache
    recording: Recording
    results: Tensors

    def replay(self, inputs: Tensors, length: int) -> Tensors:
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given)
        self.cache.begin_at(length)
        self.recording.replay()
        return self.results


class Replayer:
    """Runs the steps of `run`, whose positions `rotary` turns; `record` makes a recording, without it none is made.

    `bank` tells a recording where the host takes part. With `every`, all numbers of tokens are recorded as soon as one
    is asked for: where a recording takes little, and one after another would slow many steps.
    """

    def __init__(
        self,
        run: Run,
        rotary: RotaryTable,
        device: torch.device,
        bank: SplitBank | None,
        record: Callable[[], Recording] | None,
        every: bool = False,
    ) -> None:
        self._run = run
        self._rotary = rotary
        self._device = device
        self._bank = bank
        self._record = record
        self._every = every
        self._cache: RowCache | None = None
        self._steps: dict[int, Step] = {}
        self.given_up = ""
        """Why nothing is recorded any more; empty while recordings may be used."""

    def __call__(self, *inputs: Tensor, cache: Cache) -> Tensors:
        """The step's results, to be read or copied before the next one of any replayer; nothing is committed.

        Raises Stopped when the cache says so.
        """
        rows = len(inputs[0])
        room = rows <= FEW and isinstance(cache, RowCache) and cache.length + rows <= cache.capacity
        if self._record is None or not room:
            return self._run(*inputs, cache)
        assert isinstance(cache, RowCache)
        if cache is not self._cache:
            self.forget()
            self._cache = cache
        step = self._steps.get(rows)
        if step is not None:
            if cache.should_stop():
                raise Stopped
            return step.replay(inputs, cache.length)
        if self._every:
            self._try_others(inputs, cache)  # first, since they write to the same rows of the cache
        results = self._run(*inputs, cache)
        self._try(inputs, cache, results)
        return results

    @property
    def ready(self) -> bool:
        """Whether a step of any number of tokens can be replayed."""
        return bool(self._steps)

    @property
    def recordings(self) -> Iterable[Recording]:
        """What is replayed by now."""
        return (step.recording for step in self._steps.values())

    def forget(self) -> None:
        """Drop all recordings and the memory they hold."""
        self._steps, self._cache = {}, None

    def _try(self, inputs: Tensors, cache: RowCache, wanted: Tensors) -> None:
        """Record this step, whose results are `wanted`, unless that was given up. Nothing is committed.

        Raises when memory runs out, where experts can make room.
        """
        if self.given_up:
            return
        try:
            with self._still():
                self._keep(inputs, cache, wanted)
        except RuntimeError as error:
            if not out_of_memory(error):
                self.given_up = f"a step could not be recorded: {error}"
            elif self._bank is not None and self._bank.slots.count > LEAST_ROWS:
                raise
            else:
                self.given_up = "there is no memory for a recorded step"

    def _try_others(self, inputs: Tensors, cache: RowCache) -> None:
        """The same for all other numbers of tokens, with the first row of the inputs over and over; as far as there is
        memory for them."""
        try:
            with self._still():
                for rows in range(1, min(FEW, cache.capacity - cache.length) + 1):
                    if rows not in (*self._steps, len(inputs[0])) and not self.given_up:
                        repeated = tuple(one[:1].repeat(rows, *(1 for _ in one.shape[1:])) for one in inputs)
                        self._keep(repeated, cache, self._run(*repeated, cache))
        except RuntimeError as error:
            if not out_of_memory(error):
                self.given_up = f"a step could not be recorded: {error}"

    def _keep(self, inputs: Tensors, cache: RowCache, wanted: Tensors) -> None:
        """Record a step and keep it if a replay gives what the eager step gave."""
        self._rotary.rows(cache.capacity - 1, 1)  # the table does not grow in a recording
        step = self._recorded(inputs, cache)
        difference = largest_difference(step.replay(inputs, cache.length), wanted)
        if difference < TOLERANCE:
            self._steps[len(inputs[0])] = step
        else:
            self.given_up = f"a recorded step differed from the eager one by {difference:.2g} of its largest value"

    def _still(self) -> AbstractContextManager[None]:
        """Or experts move in between."""
        return self._bank.still() if self._bank is not None else nullcontext()

    def run_held(self, inputs: Tensors, cache: RowCache) -> tuple[Tensors, HeldCache]:
        """Run a step as it will be recorded; its inputs on the device. Nothing is committed."""
        held_inputs = tuple(one.to(self._device).clone() for one in inputs)
        held = HeldCache(cache, self._device)
        held.begin_at(cache.length)
        self._run(*held_inputs, held)
        return held_inputs, held

    def _recorded(self, inputs: Tensors, cache: RowCache) -> Step:
        assert self._record is not None
        held_inputs, held = self.run_held(inputs, cache)  # compiles and loads what no eager step has used
        recording = self._record()
        if self._bank is not None:
            self._bank.cut = recording.cut
        try:
            results = recording.record(partial(self._run, *held_inputs, held))
        finally:
            if self._bank is not None:
                self._bank.cut = call
        return Step(held_inputs, held, recording, results)


def largest_difference(ours: Tensors, theirs: Tensors) -> float:
    """Between numbers that should be the same, as a share of the largest of their tensor; whole numbers are skipped,
    since they are places of the largest of others."""
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.is_floating_point()]
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
