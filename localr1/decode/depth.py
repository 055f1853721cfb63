"""How many tokens to guess: the depth of the most expected tokens a second, from what was seen so far.

Owns the choice of the draft depth. It knows costs and luck only: how long steps of 1, 2, ... rows take and how often
the guess at each position was right. Both are tracked as conversations go, since they change with the text, the
context's length and where the experts live.
"""

from collections import deque
from statistics import median
from typing import Protocol

DEEPEST = 7
"""Guesses a step that `AutoDepth` tries at most: 8 rows are the most that run as one step."""
MEMORY = 0.96
"""Weight of the past when a guess is seen to be right or wrong."""
PRIORS = (0.7, 0.3, 0.5, 0.8)
"""How often a guess of each kind (see `Drafter.kind`) is taken to be right before any was seen."""
PRIOR_GUESSES = 2
COST_WINDOW, PACE_WINDOW, KNOWN = 15, 9, 3
FIRST_ROW_SHARE = 0.3
"""What a further row is taken to cost, of a step of one, before any was timed."""
CLEARLY = 1.02
"""A depth this much better than the one in use is switched to."""
FIRST_PROBE_STEPS, LONGEST_PROBE_STEPS, PROBES = 16, 768, 3


class DepthPolicy(Protocol):
    """Decides how many tokens to guess next."""

    def choose(self, kind: int) -> int:
        """The number of guesses for the next step, of guesses of this kind."""
        ...

    def learn(self, kind: int, drafted: int, accepted: int, seconds: float) -> None:
        """What came of a step: `accepted` of `drafted` guesses were right; the time of guessing and verifying."""
        ...


class FixedDepth:
    """Always the same depth (`--draft-tokens`)."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def choose(self, kind: int) -> int:
        return self._depth

    def learn(self, kind: int, drafted: int, accepted: int, seconds: float) -> None:
        """Nothing to learn."""


class Costs:
    """Seconds of a step by its guesses, on a machine that other programs slow down now and then.

    What slows one depth slows all. So the depth in use is the measure: how long its recent steps took (their median,
    since one long step means nothing) is the pace, and another depth's steps count by the pace of the moment.
    """

    def __init__(self, deepest: int) -> None:
        self._seen: list[deque[float]] = [deque(maxlen=COST_WINDOW) for _ in range(deepest + 1)]
        self._typical: list[float | None] = [None] * (deepest + 1)
        self._in_use = self._last = 0
        self._in_a_row = 0
        self._paces: deque[float] = deque(maxlen=PACE_WINDOW)

    def add(self, drafted: int, seconds: float) -> None:
        if not self._paces:
            self._in_use, self._typical[drafted] = drafted, seconds
        if drafted == self._in_use:
            self._paces.append(seconds / (self._typical[drafted] or seconds))
            self._last = drafted
            return
        self._seen[drafted].append(seconds / median(self._paces))
        self._typical[drafted] = typical = median(self._seen[drafted])
        self._in_a_row = self._in_a_row + 1 if drafted == self._last else 1
        self._last = drafted
        if self._in_a_row >= PACE_WINDOW:
            self._in_use = drafted
            self._paces.clear()
            self._paces.append(seconds / typical)

    def fade(self, drafted: int) -> None:
        """What was seen of such steps counts for less than the next few."""
        while len(self._seen[drafted]) >= KNOWN:
            self._seen[drafted].popleft()

    def known(self, drafted: int) -> bool:
        """Whether such steps were timed often enough."""
        return len(self._paces if drafted == self._in_use else self._seen[drafted]) >= KNOWN

    def seconds(self, drafted: int) -> float:
        """Of a step with so many guesses; what was not timed lies on a straight line with its neighbours."""
        cost, shallower = self._typical[drafted], self._typical[drafted - 1] if drafted else 0.0
        if cost is not None and shallower is not None:  # the line's end, without looking for it
            return max(cost, shallower)
        timed = [(depth, cost) for depth, cost in enumerate(self._typical) if cost is not None]
        if len(timed) == 1:
            depth, cost = timed[0]
            timed = [(depth, cost), (depth + 1, cost * (1 + FIRST_ROW_SHARE / (1 + FIRST_ROW_SHARE * depth)))]
        upper = next((place for place, (depth, _) in enumerate(timed) if depth >= drafted and place), len(timed) - 1)
        (low, low_s), (high, high_s) = timed[upper - 1], timed[upper]
        slope = max(0.0, high_s - low_s) / (high - low)
        return low_s + slope * (drafted - low) if drafted >= low else max(low_s - slope * (low - drafted), 0.5 * low_s)


class Luck:
    """How often guesses of one kind are right, by position, those before them being right. A position that was never
    tried is taken to be as lucky as the one before, the first one as `prior`."""

    def __init__(self, prior: float, deepest: int) -> None:
        self._right = [prior] * deepest
        self._guesses = [0] * deepest

    def add(self, drafted: int, accepted: int) -> None:
        for position in range(min(accepted + 1, drafted)):
            if position and not self._guesses[position]:
                self._right[position] = self._right[position - 1]
            self._guesses[position] += 1
            weight = max(1 - MEMORY, 1 / (PRIOR_GUESSES + self._guesses[position]))
            self._right[position] += weight * ((position < accepted) - self._right[position])

    def fade(self) -> None:
        """What was seen counts for little against the next few guesses."""
        self._guesses = [min(guesses, 1) for guesses in self._guesses]

    def tokens(self) -> list[float]:
        """Expected of a step of 0, 1, ... guesses: 1 + a_1 + a_1 a_2 + ..."""
        expected, chain, share = [1.0], 1.0, self._right[0]
        for right, guesses in zip(self._right, self._guesses, strict=True):
            share = right if guesses else share
            chain *= share
            expected.append(expected[-1] + chain)
        return expected


class AutoDepth:
    """The depth of the most expected tokens a second, looked for again and again.

    A few plain steps come first. From time to time, ever more rarely while nothing comes of it, another depth is tried
    for some steps, between steps at the one in use: the deepest, since the way there may lead down and up again, and
    the neighbours. Conversations share one.
    """

    def __init__(self, deepest: int) -> None:
        self._deepest = deepest
        self._costs = Costs(deepest)
        self._luck = [Luck(prior, deepest) for prior in PRIORS]
        self._best = [0] * len(PRIORS)
        self._until_probe = [FIRST_PROBE_STEPS] * len(PRIORS)
        self._probe_steps = [FIRST_PROBE_STEPS] * len(PRIORS)
        self._trials: list[list[int]] = [[] for _ in PRIORS]
        self._probes = 0

    def choose(self, kind: int) -> int:
        """How many tokens to draft for the next step."""
        if not self._costs.known(0):
            return 0
        if self._trials[kind]:
            return self._trials[kind].pop()
        best = self.best(kind)
        if best != self._best[kind]:
            self._best[kind] = best
            self._until_probe[kind] = self._probe_steps[kind] = FIRST_PROBE_STEPS
            if not self._costs.known(best):
                self._trials[kind] = [best] * (KNOWN - 1)
        self._until_probe[kind] -= 1
        if self._until_probe[kind] <= 0:
            self._probe_steps[kind] = min(2 * self._probe_steps[kind], LONGEST_PROBE_STEPS)
            self._until_probe[kind] = self._probe_steps[kind]
            self._try_out(kind, self._other_depth(best), best)
        return best

    def best(self, kind: int) -> int:
        """The depth of the most expected tokens a second; the one in use unless another is clearly better."""
        speeds = [tokens / self._costs.seconds(depth) for depth, tokens in enumerate(self._luck[kind].tokens())]
        best, now = speeds.index(max(speeds)), self._best[kind]
        return best if speeds[best] > CLEARLY * speeds[now] else now

    def learn(self, kind: int, drafted: int, accepted: int, seconds: float) -> None:
        drafted = min(drafted, self._deepest)
        self._costs.add(drafted, seconds)
        self._luck[kind].add(drafted, accepted)

    def _try_out(self, kind: int, other: int, best: int) -> None:
        """Steps at another depth between some of the best; they outweigh what was seen long ago."""
        self._trials[kind] = [other, best] * PROBES
        self._costs.fade(other)
        if best == 0:
            self._luck[kind].fade()

    def _other_depth(self, depth: int) -> int:
        """The next to try."""
        self._probes += 1
        if depth == 0:
            return 1
        wanted = (self._deepest, depth - 1, depth + 1)[self._probes % 3]
        return wanted if wanted <= self._deepest and wanted != depth else depth - 1
