"""Recorded routes run again under a policy, without a model: how often the chosen expert would have been resident.

Owns the simulation, the clairvoyant bound and the choice of a policy by it. Knows no files.

An access is an expert that a forward chose, once however many of its tokens chose it. What is resident changes only
between forwards. Forwards of more than 8 tokens are prefill: policies learn from them, their accesses are not counted,
since a prefill uses nearly all experts whatever is resident.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from localr1.placement.learned import MOST_EXPERTS, Learned, fit
from localr1.placement.plan import Expert
from localr1.placement.policy import Decayed, Recency, ScorePolicy, Slots, Static
from localr1.placement.routes import Forward, Routes

DECODE_TOKENS = 8
DECAYS = (0.8, 0.9, 0.95, 0.99, 0.999)
"""From following the last five tokens to a histogram of the last thousand."""
DEFAULT = "decayed 0.99"
TRIED_VALUES = 1 << 17
"""Expert numbers of the newest routes that choose the policy: the time of a trial is some tenths of a second."""
LEAST_TOKENS = 512
LEAST_FORWARDS = 128
"""Forwards that can teach a policy something."""
"""Routes of fewer tokens choose no policy."""
CLEARLY_BETTER = 0.01
"""What another policy must gain in hit rate before the default gives way."""


@dataclass(frozen=True)
class Past:
    """What a policy may know of earlier conversations: counts [layers, experts], or None, and their last forwards."""

    counts: NDArray[np.floating] | None = None
    forwards: Sequence[Forward] = ()


Maker = Callable[[Slots, Sequence[Expert], Past], ScorePolicy]
"""(slots, the residents to begin with, what is known) -> a policy"""


@dataclass(frozen=True)
class Hits:
    """Accesses that found their expert resident, and experts moved in meanwhile."""

    hits: int
    accesses: int
    moves: int = 0
    forwards: int = 0

    @property
    def rate(self) -> float:
        return self.hits / self.accesses if self.accesses else 0.0

    @property
    def moves_a_forward(self) -> float:
        return self.moves / self.forwards if self.forwards else 0.0


def replay(policy: ScorePolicy, forwards: Sequence[Forward], *, late: bool = False) -> Hits:
    """What a policy achieves, told each forward's choices after it was counted, and then the next one's hint.

    With `late` an expert that is moved in arrives a forward later, as it does where copying goes on beside the next
    forward; its slot is of no use meanwhile.
    """
    hits = accesses = moves = count = 0
    before = policy.inside.copy()
    for forward, coming in zip_longest(forwards, forwards[1:]):
        if forward.tokens <= DECODE_TOKENS:
            distinct = forward.distinct
            there = policy.inside & before if late else policy.inside
            hits += int(there[distinct].sum())
            accesses += len(distinct)
        before = policy.inside.copy()
        policy.observe_forward(forward.tokens, forward.chosen)
        if coming is not None:
            policy.expect(coming.hint)
        moves += len(policy.step())
        count += 1
    return Hits(hits, accesses, moves, count)


def clairvoyant(forwards: Sequence[Forward], numbers: int, slots: int) -> Hits:
    """The most hits that any choice of residents allows which knows the future, may start with any residents and takes
    an expert in only after a forward that chose it (or not at all), any number of them at a time.

    That is Belady's rule with bypass: of what was resident and what was just chosen, keep the experts that are needed
    soonest. It is optimal because every stretch between two uses of an expert occupies one slot and is worth one hit,
    and dropping the stretch that ends last is optimal for such stretches (Carlisle and Lloyd 1995). A policy that
    promotes later than at a use is not bound by it in principle; in practice none gains by that.
    """
    due, later = _next_uses(forwards, numbers)
    hits = accesses = moves = 0
    held = _soonest(np.arange(numbers), due, slots)
    for forward, next_uses in zip(forwards, later, strict=True):
        distinct = forward.distinct
        due[distinct] = next_uses
        if forward.tokens <= DECODE_TOKENS:
            hits += len(np.intersect1d(distinct, held, assume_unique=True))
            accesses += len(distinct)
        kept = _soonest(np.union1d(held, distinct), due, slots)
        moves += len(np.setdiff1d(kept, held, assume_unique=True))
        held = kept
    return Hits(hits, accesses, moves, len(forwards))


NEVER = 1 << 40


def _soonest(candidates: NDArray[np.int64], due: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    wanted = candidates[due[candidates] < NEVER]
    return wanted[np.argsort(due[wanted], kind="stable")[:slots]]


def _next_uses(forwards: Sequence[Forward], numbers: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """For every expert the forward of its first use that counts, and after each forward those of the ones it chose.

    An expert that a prefill uses first is not worth keeping until then: it can be taken in again after it for nothing.
    """
    due = np.full(numbers, NEVER)
    later = []
    for at in range(len(forwards) - 1, -1, -1):
        distinct = forwards[at].distinct
        later.append(due[distinct])
        due[distinct] = at if forwards[at].tokens <= DECODE_TOKENS else NEVER
    return due, later[::-1]


def static_optimum(forwards: Iterable[Forward], numbers: int, slots: int) -> Hits:
    """The most hits of residents that never change: those used by the most forwards, known in hindsight."""
    counts = np.zeros(numbers, np.int64)
    for forward in forwards:
        if forward.tokens <= DECODE_TOKENS:
            counts[forward.distinct] += 1
    return Hits(int(np.sort(counts)[::-1][:slots].sum()), int(counts.sum()))


def _decayed(decay: float) -> Maker:
    return lambda slots, resident, past: Decayed(slots, resident, decay=decay, prior=past.counts)


def _learned(slots: Slots, resident: Sequence[Expert], past: Past) -> ScorePolicy:
    """A histogram until there is enough to learn from, and for layers too wide to learn."""
    if len(past.forwards) < LEAST_FORWARDS or slots.experts > MOST_EXPERTS:
        return POLICIES[DEFAULT](slots, resident, past)
    return Learned(slots, resident, fit(past.forwards, len(slots.layers), slots.experts))


POLICIES: dict[str, Maker] = {
    "static": lambda slots, resident, past: Static(slots, resident),
    **{f"decayed {decay:g}": _decayed(decay) for decay in DECAYS},
    "recency": lambda slots, resident, past: Recency(slots, resident),
    "learned": _learned,
}


def hottest(slots: Slots, prior: NDArray[np.floating]) -> list[Expert]:
    """The residents to begin with: those of most counts."""
    order = np.argsort(-np.asarray(prior, np.float64).reshape(-1), kind="stable")[: slots.count]
    return [slots.expert(int(number)) for number in order]


def halves(routes: Routes) -> tuple[list[Forward], list[Forward]]:
    """The first half of the forwards, for a prior, and the second, to be judged by."""
    forwards = list(routes.forwards())
    return forwards[: len(forwards) // 2], forwards[len(forwards) // 2 :]


def counted(forwards: Iterable[Forward], layers: int, experts: int) -> NDArray[np.float64]:
    """How often each expert was chosen, [layers, experts]."""
    counts = np.zeros(layers * experts)
    for forward in forwards:
        counts += np.bincount(forward.chosen, minlength=len(counts))
    return counts.reshape(layers, experts)


def trial(routes: Routes, slots: Slots, *, late: bool = False) -> dict[str, Hits]:
    """What each policy achieves on the second half of these routes, knowing the first."""
    before, after = halves(routes)
    past = Past(counted(before, len(routes.layers), routes.experts), before)
    assert past.counts is not None
    resident = hottest(slots, past.counts)
    return {name: replay(make(slots, resident, past), after, late=late) for name, make in POLICIES.items()}


def choose_policy(routes: Routes, slots: Slots) -> str:
    """The policy with the most hits on a user's newest routes.

    The default stays unless another is clearly better, or the routes are too few to tell.
    """
    routes = routes.of_layers(slots.layers).newest(TRIED_VALUES)
    if int(routes.tokens[routes.rows == 0].sum()) < LEAST_TOKENS or not 0 < slots.count < slots.numbers:
        return DEFAULT
    rates = {name: hits.rate for name, hits in trial(routes, slots, late=True).items()}
    best = max(rates, key=lambda name: rates[name])
    return best if rates[best] >= rates[DEFAULT] + CLEARLY_BETTER else DEFAULT


def make_policy(name: str, slots: Slots, resident: Sequence[Expert], past: Past) -> ScorePolicy:
    """The policy of that name over these slots, `resident` in them to begin with."""
    return POLICIES[name](slots, resident, past)


def adapted_policy(
    slots: Slots, resident: Sequence[Expert], counts: NDArray[np.floating] | None, routes: Routes | None
) -> ScorePolicy:
    """The policy that suits a user's newest routes, knowing them."""
    if routes is None or not len(routes):
        return make_policy(DEFAULT, slots, resident, Past(counts))
    newest = routes.of_layers(slots.layers).newest(TRIED_VALUES)
    return make_policy(choose_policy(routes, slots), slots, resident, Past(counts, list(newest.forwards())))
