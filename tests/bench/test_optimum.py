"""The rule-bound optimum is the best of all ways to move, tried one by one, and no policy beats it."""

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.bench.optimum import rule_bound
from localr1.placement.policy import Recency, Slots
from localr1.placement.replay import replay
from localr1.placement.routes import Forward

NUMBERS = 4
chosen = st.sets(st.integers(0, NUMBERS - 1), min_size=1, max_size=3)
forwards = st.lists(
    st.tuples(st.sampled_from((1, 2, 100)), chosen).map(lambda pair: Forward(pair[0], np.array(sorted(pair[1])))),
    min_size=1,
    max_size=7,
)


def best_by_trying(trace: list[Forward], slots: int, moves: int, late: bool) -> int:
    """The most hits over all sequences of resident sets of which each takes in at most so many."""
    sets = [frozenset(one) for size in range(slots + 1) for one in combinations(range(NUMBERS), size)]
    best = {(held, held): 0 for held in sets}
    for forward in trace:
        used = frozenset(forward.chosen.tolist()) if forward.tokens <= 8 else frozenset()
        after: dict[tuple[frozenset[int], frozenset[int]], int] = {}
        for (held, there), hits in best.items():
            for new in sets:
                if len(new - held) <= moves:
                    state = new, new & held if late else new
                    after[state] = max(after.get(state, 0), hits + len(there & used))
        best = after
    return max(best.values())


@given(forwards, st.integers(0, 2), st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_is_the_best_of_all(trace: list[Forward], moves: int, late: bool) -> None:
    found = rule_bound(trace, NUMBERS, [1, 2, 3], moves, late=late)
    assert [found[slots].hits for slots in (1, 2, 3)] == [
        best_by_trying(trace, slots, moves, late) for slots in (1, 2, 3)
    ]


@given(st.lists(chosen, min_size=1, max_size=40), st.integers(1, 3), st.integers(1, 2), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_policy_beats_it(uses: list[set[int]], slots: int, moves: int, late: bool) -> None:
    trace = [Forward(1, np.array(sorted(use))) for use in uses]
    policy = Recency(Slots((0,), NUMBERS, slots, moves), [(0, 0)])
    assert replay(policy, trace, late=late).hits <= rule_bound(trace, NUMBERS, [slots], moves, late=late)[slots].hits
