"""A policy that has learned from recorded routes how soon an expert is used again.

Owns the linear guess: for every expert, the discounted number of its coming uses, from what all layers chose lately
(in a large model, what its own layer chose lately and its neighbours just chose) and from the hint of the forward that
is about to begin. Fitted by ridge regression to a user's own routes. A step costs some tenths of a millisecond for 64
experts a layer; larger layers are not learned (`MOST_EXPERTS`).

Letters: L layers, E experts, F features, W numbers of a hint, N forwards. R is L where each layer learns from features
of its own, 1 where all learn from the same.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from localr1.placement.plan import Expert
from localr1.placement.policy import ScorePolicy, Slots
from localr1.placement.routes import UNIT, Forward, Hint

MOST_EXPERTS = 128
DECAYS = (0.0, 0.6, 0.9, 0.98)
"""Of the traces of uses, a forward: just now, and averages over some two, ten and fifty."""
DISCOUNT = 0.5
"""What a use one forward later is worth less."""
RIDGE = 100.0
MOST_FEATURES = 1024
"""Of all layers' traces together, that each layer learns from."""
DECODE_TOKENS = 8
LEAST_SCORE = 1e-6

Weights = NDArray[np.float32]


class Traces:
    """What was used lately, [decays, L, E], told forward by forward."""

    def __init__(self, layers: int, experts: int) -> None:
        self._trace = np.zeros((len(DECAYS), layers, experts), np.float32)
        self._kept = np.array(DECAYS, np.float32)[:, None, None]

    def add(self, chosen: NDArray[np.int64]) -> None:
        used = np.zeros(self._trace[0].size, np.float32)
        used[chosen] = 1
        self._trace *= self._kept
        self._trace += (1 - self._kept) * used.reshape(self._trace[0].shape)

    def features(self) -> NDArray[np.float32]:
        """[R, F]: all layers' traces where they are few, else the layer's and the last choices of the layers before and
        after it; and a one."""
        now = self._trace[0]
        if self._trace.size <= MOST_FEATURES:
            return np.append(self._trace, np.float32(1))[None]
        none = np.zeros_like(now[:1])
        around = np.concatenate((none, now[:-1])), np.concatenate((now[1:], none))
        return np.concatenate((*self._trace, *around, np.ones((len(now), 1), np.float32)), axis=1)


def fit(forwards: Sequence[Forward], layers: int, experts: int) -> Weights:
    """The weights [R, F + W, L E / R] that best tell the coming uses in these forwards."""
    traces, features = Traces(layers, experts), []
    for forward in forwards:
        traces.add(forward.distinct)
        features.append(traces.features())
    feature_NRF = np.stack(features)
    hint_NW = np.stack([forward.hint for forward in forwards]).astype(np.float32) / UNIT
    next_NW = np.concatenate((hint_NW[1:], np.zeros_like(hint_NW[:1])))
    coming_NRE = _coming(forwards, layers, experts).reshape(*feature_NRF.shape[:2], -1)
    weights = []
    for row in range(feature_NRF.shape[1]):
        x_NF: Weights = np.concatenate((feature_NRF[:, row], next_NW), axis=1)
        gram_FF = x_NF.T @ x_NF + RIDGE * np.eye(x_NF.shape[1], dtype=np.float32)
        weights.append(np.linalg.solve(gram_FF, x_NF.T @ coming_NRE[:, row]))
    return np.stack(weights).astype(np.float32)


def _coming(forwards: Sequence[Forward], layers: int, experts: int) -> NDArray[np.float32]:
    """After each forward, the discounted uses by the decoding forwards that follow, [N, L E]."""
    coming = np.zeros(layers * experts, np.float32)
    found = np.empty((len(forwards), layers * experts), np.float32)
    for at in range(len(forwards) - 1, -1, -1):
        found[at] = coming
        coming *= DISCOUNT
        if forwards[at].tokens <= DECODE_TOKENS:
            coming[forwards[at].distinct] += 1
    return found


class Learned(ScorePolicy):
    """The experts that are guessed to be used soonest and most are resident."""

    stay_steps = 0

    def __init__(self, slots: Slots, resident: Iterable[Expert], weights: Weights) -> None:
        super().__init__(slots, resident)
        self._weights_RFE = weights
        self._traces = Traces(len(slots.layers), slots.experts)
        self._unknown = np.zeros(weights.shape[1] - self._traces.features().shape[1], np.float32)
        self._hint = self._unknown

    def expect(self, hint: Hint) -> None:
        if len(hint) == len(self._unknown):
            self._hint = hint.astype(np.float32) / UNIT

    def _update(self, chosen: NDArray[np.int64], tokens: int) -> None:
        self._traces.add(chosen)
        feature_RF = self._traces.features()
        known_RF = np.concatenate((feature_RF, np.broadcast_to(self._hint, (len(feature_RF), len(self._hint)))), axis=1)
        self._hint = self._unknown
        guess_RE = np.matmul(known_RF[:, None], self._weights_RFE)
        self.score = np.maximum(guess_RE.reshape(-1), LEAST_SCORE).astype(np.float64)
