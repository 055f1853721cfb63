"""Guessing ahead: a drafter, how many tokens to ask it for, and what came of it.

Owns what a conversation's guessing adds up to. Which tokens to guess is the drafter's affair (`decode.draft`), how
many the depth policy's (`decode.depth`).
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from localr1.decode.depth import DepthPolicy, FixedDepth
from localr1.decode.draft import Drafter

Foretell = Callable[[Sequence[int], Tensor], None]
"""Told, before each forward of decoding, the tokens that it takes in and the hidden state [D] before them."""


class Counts(NamedTuple):
    """What guessing amounted to: `steps` forwards emitted `accepted` tokens beyond one each, of `drafted` guesses."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(self.steps - other.steps, self.drafted - other.drafted, self.accepted - other.accepted)


class Speculation:
    """A conversation's drafter and its depth policy; without a drafter it guesses nothing, which is plain decoding.

    Whoever prepares for a forward hears of it by `foretell`.
    """

    def __init__(
        self, drafter: Drafter | None = None, depth: DepthPolicy | None = None, foretell: Foretell | None = None
    ) -> None:
        self._drafter = drafter
        self._depth = depth or FixedDepth(0)
        self._foretell = foretell
        self._before_D: Tensor | None = None
        self._kind = 0
        self._put_off_s = 0.0
        self.counts = Counts()

    @property
    def needs_hidden(self) -> bool:
        return self._drafter is not None and self._drafter.needs_hidden

    def keep(self, length: int) -> None:
        if self._drafter is not None:
            self._drafter.keep(length)

    def observe(self, tokens: Sequence[int], hidden_TD: Tensor) -> None:
        if self._foretell is not None and len(tokens):
            self._before_D = hidden_TD[-1]
        if self._drafter is not None:
            self._drafter.observe(tokens, hidden_TD)

    def snapshot(self) -> Tensor | None:
        """The drafter's own cache rows, for `restore`; None where there are none."""
        return self._drafter.snapshot() if self._drafter is not None else None

    def restore(self, tokens: Sequence[int], rows_LSW: Tensor | None) -> int:
        """The main cache was given back these tokens; how many of them the drafter can stand by."""
        return self._drafter.restore(tokens, rows_LSW) if self._drafter is not None else len(tokens)

    def guess(self, token: int, most: int) -> list[int]:
        """Guesses of what follows `token`, at most `most`; the next forward takes in both."""
        guesses = self._guess(token, most)
        if self._foretell is not None and self._before_D is not None:
            self._foretell([token, *guesses], self._before_D)
        return guesses

    def _guess(self, token: int, most: int) -> list[int]:
        drafter, self._put_off_s = self._drafter, 0.0
        if drafter is None or most <= 0:
            return []
        kind = drafter.kind(token)
        if kind is None:
            return []
        self._kind = kind
        depth = min(self._depth.choose(kind), most)
        if depth <= 0:
            return []
        if drafter.behind:
            start_s = time.perf_counter()
            drafter.catch_up()
            self._put_off_s = time.perf_counter() - start_s
        return drafter.draft(token, depth)

    def learn(self, drafted: int, accepted: int, draft_s: float, step_s: float) -> None:
        """What came of the step: `accepted` of `drafted` guesses were right; the times of guessing and of the forward.

        What drafting had put off while nobody asked is no cost of this depth.
        """
        counts = self.counts
        self.counts = Counts(counts.steps + 1, counts.drafted + drafted, counts.accepted + accepted)
        if self._drafter is not None:
            self._depth.learn(self._kind, drafted, accepted, draft_s - self._put_off_s + step_s)
