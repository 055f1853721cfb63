"""Guessing ahead: a drafter, how many tokens to ask it for, and what came of it.

The depth is what pays on this machine with this text, and 0 when guessing loses.

Owns the choice of the draft depth. It knows costs and luck only: how long steps of 1, 2, ... rows take, how long
drafting takes, and how often the guess at each position was right. All are tracked as the conversation goes, since
they change with the text, the context's length and where the experts live.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from localr1.decode.draft import Drafter

DEEPEST = 3
"""Guesses a step that `AutoDepth` tries at most by default."""
MEMORY = 0.9
"""Weight of the past when a cost or an acceptance is seen again."""
FIRST_PROBE_STEPS, LONGEST_PROBE_STEPS = 64, 512
PROBE_BURST_STEPS = 3


@dataclass
class Average:
    """An exponential average that starts at its first value."""

    value: float | None = None

    def add(self, seen: float) -> None:
        self.value = seen if self.value is None else MEMORY * self.value + (1 - MEMORY) * seen


class Cost(Average):
    """Seconds, of which some are accidents: a compilation, or another program's turn."""

    def add(self, seen: float) -> None:
        if self.value is not None and seen < self.value / 2:
            self.value = seen
        else:
            super().add(seen if self.value is None else min(seen, 2 * self.value))


@dataclass(frozen=True)
class Counts:
    """What guessing amounted to: `steps` forwards emitted `accepted` tokens beyond one each, of `drafted` guesses."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(self.steps - other.steps, self.drafted - other.drafted, self.accepted - other.accepted)


class DepthPolicy(Protocol):
    """Decides how many tokens to guess next."""

    def choose(self) -> int:
        """The number of guesses for the next step."""
        ...

    def learn(self, drafted: int, accepted: int, draft_s: float, step_s: float) -> None:
        """What came of a step: `accepted` of `drafted` guesses were right; the times of guessing and of the forward."""
        ...


class Speculation:
    """A conversation's drafter and its depth policy; without a drafter it guesses nothing, which is plain decoding."""

    def __init__(self, drafter: Drafter | None = None, depth: DepthPolicy | None = None) -> None:
        self._drafter = drafter
        self._depth = depth or FixedDepth(0)
        self.counts = Counts()

    @property
    def needs_hidden(self) -> bool:
        return self._drafter is not None and self._drafter.needs_hidden

    def keep(self, length: int) -> None:
        if self._drafter is not None:
            self._drafter.keep(length)

    def observe(self, tokens: Sequence[int], hidden_TD: Tensor) -> None:
        if self._drafter is not None:
            self._drafter.observe(tokens, hidden_TD)

    def snapshot(self) -> Tensor | None:
        """The drafter's own cache rows, for `restore`; None where there are none."""
        return self._drafter.snapshot() if self._drafter is not None else None

    def restore(self, tokens: Sequence[int], rows_LSW: Tensor | None) -> int:
        """The main cache was given back these tokens; how many of them the drafter can stand by."""
        return self._drafter.restore(tokens, rows_LSW) if self._drafter is not None else len(tokens)

    def guess(self, token: int, most: int) -> list[int]:
        """Guesses of what follows `token`, at most `most`."""
        depth = min(self._depth.choose(), most) if self._drafter is not None else 0
        return self._drafter.draft(token, depth) if self._drafter is not None and depth > 0 else []

    def learn(self, drafted: int, accepted: int, draft_s: float, step_s: float) -> None:
        counts = self.counts
        self.counts = Counts(counts.steps + 1, counts.drafted + drafted, counts.accepted + accepted)
        self._depth.learn(drafted, accepted, draft_s, step_s)


class FixedDepth:
    """Always the same depth (`--draft-tokens` with a named drafter)."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def choose(self) -> int:
        return self._depth

    def learn(self, drafted: int, accepted: int, draft_s: float, step_s: float) -> None:
        """Nothing to learn."""


class AutoDepth:
    """The depth of the most expected tokens a second, looked for again and again.

    Expected tokens of a step at depth k are 1 + a_1 + a_1 a_2 + ... + a_1 .. a_k, with a_i the share of right guesses
    at position i when those before it were right; its time is that of k + 1 rows and of drafting k tokens. A depth
    whose cost is not known yet is tried. From time to time a neighbour of the best depth is tried again; where
    guessing loses, that is a few steps at depth 1, judged afresh, ever more rarely while it keeps losing.
    """

    def __init__(self, deepest: int) -> None:
        self._deepest = deepest
        self._step_s = [Cost() for _ in range(deepest + 1)]
        self._draft_s = [Cost() for _ in range(deepest + 1)]
        self._right = [Average() for _ in range(deepest)]
        self._steps_to_probe = self._probe_steps = FIRST_PROBE_STEPS
        self._burst_left = 0

    def choose(self) -> int:
        """How many tokens to draft for the next step."""
        unknown = next((depth for depth, cost in enumerate(self._step_s) if cost.value is None), None)
        if unknown is not None and self._worth_trying(unknown):
            return unknown
        if self._burst_left:
            self._burst_left -= 1
            return 1
        best = self.best()
        self._steps_to_probe -= 1
        return best if self._steps_to_probe else self._probe(best)

    def best(self) -> int:
        """The depth of the most expected tokens a second, of those whose cost is known."""
        known = [depth for depth, cost in enumerate(self._step_s) if cost.value is not None]
        return max(known, key=self._tokens_per_s)

    def learn(self, drafted: int, accepted: int, draft_s: float, step_s: float) -> None:
        self._step_s[drafted].add(step_s)
        self._draft_s[drafted].add(draft_s)
        for position in range(min(accepted + 1, drafted)):
            self._right[position].add(position < accepted)

    def _probe(self, best: int) -> int:
        if best > 0:
            self._steps_to_probe = self._probe_steps = FIRST_PROBE_STEPS
            return best + 1 if best < self._deepest else best - 1
        self._probe_steps = min(2 * self._probe_steps, LONGEST_PROBE_STEPS)
        self._steps_to_probe = self._probe_steps
        self._burst_left = PROBE_BURST_STEPS - 1
        self._right[0] = Average()
        return 1

    def _worth_trying(self, depth: int) -> bool:
        """Deeper is tried only where one less deep pays."""
        return depth <= 1 or self._tokens_per_s(depth - 1) > self._tokens_per_s(depth - 2)

    def _tokens_per_s(self, depth: int) -> float:
        expected = chain = 1.0
        for right in self._right[:depth]:
            chain *= right.value or 0.0
            expected += chain
        return expected / ((self._step_s[depth].value or 0.0) + (self._draft_s[depth].value or 0.0) + 1e-9)
