"""Which experts should be in GPU memory next: policies that see what is chosen and say what to move.

Owns the policies and the hysteresis they share. Knows no memory and no model: a policy is told choices and answers with
moves, which whoever owns the slots carries out. Invariants: residents never outnumber the slots; a move names an expert
that is not resident and, where no slot is free, one that is.

Every policy keeps one score an expert, over all layers at once, and lets the best that is out replace the worst that
is in:

- `static`: the history's counts; nothing moves.
- `decayed`: counts that fade by a factor a token; an expert comes in at 1.3 times the score of the one that goes, which
  must have stayed a while. The factor makes the policy: near 1 it is a histogram, small it follows the last tokens.
- `recency`: when an expert was used last; one pool of slots over all layers, the least recently used goes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from localr1.placement.plan import Expert
from localr1.placement.routes import Hint

PROMOTE_AT = 1.3
STAY_STEPS = 2
MOVES_A_STEP = 4


@dataclass(frozen=True)
class Move:
    """Copy `promote` into GPU memory, into the slot of `evict`, or into a free one where that is None."""

    promote: Expert
    evict: Expert | None


class Policy(Protocol):
    """Decides what is resident."""

    @property
    def resident(self) -> list[Expert]:
        """The experts that are in GPU memory once all moves were carried out."""
        ...

    def observe(self, layer: int, expert_TK: NDArray[np.integer]) -> None:
        """The choices of one call, [T, K]."""
        ...

    def expect(self, hint: Hint) -> None:
        """What is known of the coming forward, told before `step`."""
        ...

    def step(self, most: int | None = None) -> list[Move]:
        """What to move after a forward: at most `most` moves, by default the policy's own limit."""
        ...


@dataclass(frozen=True)
class Slots:
    """What a policy rules over: the experts of these layers, and the room for `count` of them."""

    layers: tuple[int, ...]
    experts: int
    count: int
    moves_a_step: int = MOVES_A_STEP
    """Moves after one forward; the bytes that may be copied beside it, over those of an expert."""

    @property
    def numbers(self) -> int:
        return len(self.layers) * self.experts

    def expert(self, number: int) -> Expert:
        return self.layers[number // self.experts], number % self.experts

    def number(self, expert: Expert) -> int:
        return self.layers.index(expert[0]) * self.experts + expert[1]


class ScorePolicy:
    """The best scores are resident; subclasses say what a score is. Scores are never negative."""

    promote_at = PROMOTE_AT
    stay_steps = STAY_STEPS

    def __init__(self, slots: Slots, resident: Iterable[Expert] = ()) -> None:
        self.slots = slots
        self._row_of = {layer: row for row, layer in enumerate(slots.layers)}
        self._chosen: list[NDArray[np.int64]] = []
        self._tokens = 0
        self._step = 0
        self.score = np.zeros(slots.numbers)
        self.inside = np.zeros(slots.numbers, bool)
        for expert in list(resident)[: slots.count]:
            self.inside[slots.number(expert)] = True
        self._since = np.full(slots.numbers, -(1 << 40))

    @property
    def resident(self) -> list[Expert]:
        return [self.slots.expert(int(number)) for number in np.flatnonzero(self.inside)]

    def observe(self, layer: int, expert_TK: NDArray[np.integer]) -> None:
        """A layer's choices of a forward; a negative number, where a token found too few experts, is none."""
        row = self._row_of[layer]
        if row == 0:
            self._tokens += len(expert_TK)
        chosen = np.asarray(expert_TK, np.int64).reshape(-1)
        self._chosen.append(chosen[chosen >= 0] + row * self.slots.experts)

    def observe_forward(self, tokens: int, chosen: NDArray[np.int64]) -> None:
        """A whole forward at once, as numbers (`Forward.chosen`)."""
        self._tokens += tokens
        self._chosen.append(chosen)

    def expect(self, hint: Hint) -> None:
        """Of use to policies that have learned what hints tell."""

    def step(self, most: int | None = None) -> list[Move]:
        chosen = np.concatenate(self._chosen) if self._chosen else np.zeros(0, np.int64)
        self._update(chosen, max(self._tokens, 1))
        self._chosen, self._tokens = [], 0
        self._step += 1
        return self._moves(self.slots.moves_a_step if most is None else most)

    def _update(self, chosen: NDArray[np.int64], tokens: int) -> None:
        """Take the choices of a forward of so many tokens into the scores."""

    def _moves(self, most: int) -> list[Move]:
        moves: list[Move] = []
        most = min(most, self.slots.count)
        if most <= 0:
            return moves
        free = self.slots.count - int(self.inside.sum())
        outside = np.where(self.inside, 0.0, self.score)
        coming = _largest(outside, most)
        settled = self.inside & (self._step - self._since >= self.stay_steps)
        going = _largest(np.where(settled, -self.score, -np.inf), most) if free < most else np.zeros(0, np.int64)
        for number in coming:
            evicted = None
            if outside[number] <= 0:
                break
            if free > 0:
                free -= 1
            elif len(going) and settled[going[0]] and self.score[number] > self.promote_at * self.score[going[0]]:
                evicted, going = int(going[0]), going[1:]
                self.inside[evicted] = False
            else:
                break
            self.inside[number] = True
            self._since[number] = self._step
            moves.append(Move(self.slots.expert(int(number)), None if evicted is None else self.slots.expert(evicted)))
        return moves


class Static(ScorePolicy):
    """Residents as they were given: the history's hottest."""

    def _moves(self, most: int) -> list[Move]:
        return []


class Decayed(ScorePolicy):
    """Counts that fade by `decay` a token."""

    def __init__(
        self,
        slots: Slots,
        resident: Iterable[Expert] = (),
        *,
        decay: float = 0.999,
        promote_at: float = PROMOTE_AT,
        stay_steps: int = STAY_STEPS,
        prior: NDArray[np.floating] | None = None,
    ) -> None:
        """`prior`: counts [layers, experts] of a history, worth as much as what fades."""
        super().__init__(slots, resident)
        self.decay, self.promote_at, self.stay_steps = decay, promote_at, stay_steps
        if prior is not None and prior.sum() > 0:
            share = np.asarray(prior, np.float64) / np.maximum(prior.sum(axis=1, keepdims=True), 1e-9)
            self.score = share.reshape(-1) / (1 - decay) if decay < 1 else np.asarray(prior, np.float64).reshape(-1)
        self._score_of_one = self.score.any() and decay < 1

    def _update(self, chosen: NDArray[np.int64], tokens: int) -> None:
        if self._score_of_one and len(chosen):  # the prior is of one expert a layer, and tokens have several
            self.score *= len(chosen) / (tokens * len(self.slots.layers))
            self._score_of_one = False
        kept = self.decay**tokens
        weight = (1 - kept) / (tokens * (1 - self.decay)) if self.decay < 1 else 1.0
        self.score *= kept
        self.score += weight * np.bincount(chosen, minlength=self.slots.numbers)


class Recency(ScorePolicy):
    """The least recently used goes for what was just used."""

    promote_at = 1.0
    stay_steps = 1

    def _update(self, chosen: NDArray[np.int64], tokens: int) -> None:
        self.score[chosen] = self._step + 1


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The places of the largest values, largest first; of equal ones the first."""
    count = min(count, len(values))
    if count < len(values):
        some = np.argpartition(-values, count - 1)[:count]
        some.sort()
    else:
        some = np.arange(len(values))
    return np.asarray(some[np.argsort(-values[some], kind="stable")], np.int64)
