"""Replays count what they should, and the clairvoyant bound is the best of all choices of residents."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.placement.learned import Learned, Traces, fit
from localr1.placement.policy import Decayed, Slots
from localr1.placement.replay import (
    DEFAULT,
    POLICIES,
    Hits,
    Past,
    adapted_policy,
    choose_policy,
    clairvoyant,
    make_policy,
    replay,
    static_optimum,
    trial,
)
from localr1.placement.routes import UNIT, Forward, Routes

NUMBERS = 5
chosen = st.sets(st.integers(0, NUMBERS - 1), min_size=1, max_size=3)
forwards = st.lists(
    st.tuples(st.sampled_from((1, 2, 100)), chosen).map(lambda pair: Forward(pair[0], np.array(sorted(pair[1])))),
    max_size=7,
)


def best_by_trying(trace: list[Forward], slots: int) -> int:
    """The most hits over all sequences of resident sets, each made of the one before and what was just chosen."""

    def sets(of: frozenset[int]) -> set[frozenset[int]]:
        return {frozenset(one) for size in range(min(slots, len(of)) + 1) for one in combinations(sorted(of), size)}

    best = dict.fromkeys(sets(frozenset(range(NUMBERS))), 0)
    for forward in trace:
        used = frozenset(forward.chosen.tolist())
        after: dict[frozenset[int], int] = {}
        for held, hits in best.items():
            hits += len(held & used) if forward.tokens <= 8 else 0
            for kept in sets(held | used):
                after[kept] = max(after.get(kept, 0), hits)
        best = after
    return max(best.values())


@given(forwards, st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_clairvoyance_is_the_best_of_all(trace: list[Forward], slots: int) -> None:
    assert clairvoyant(trace, NUMBERS, slots).hits == best_by_trying(trace, slots)


@given(forwards, st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_hindsight_is_the_best_that_never_moves(trace: list[Forward], slots: int) -> None:
    uses = [sum(number in forward.chosen for forward in trace if forward.tokens <= 8) for number in range(NUMBERS)]
    assert static_optimum(trace, NUMBERS, slots).hits == max(
        sum(uses[number] for number in held) for held in combinations(range(NUMBERS), min(slots, NUMBERS))
    )


@given(forwards, st.integers(0, 5), st.sampled_from(sorted(POLICIES)))
@settings(max_examples=100, deadline=None)
def test_no_policy_beats_clairvoyance(trace: list[Forward], slots: int, name: str) -> None:
    """With as many moves as it likes, so that every promotion follows a use."""
    policy = make_policy(name, Slots((0,), NUMBERS, slots, moves_a_step=NUMBERS), [], Past())
    found, bound = replay(policy, trace), clairvoyant(trace, NUMBERS, slots)
    assert found.accesses == bound.accesses
    if name == "recency":
        assert found.hits <= bound.hits
    if slots == NUMBERS:
        assert bound.hits == bound.accesses


def test_a_replay_counts_before_it_tells() -> None:
    trace = [
        Forward(1, np.array([0])),
        Forward(1, np.array([0, 1])),
        Forward(50, np.array([0, 1])),
        Forward(1, np.array([1])),
    ]
    policy = Decayed(Slots((0,), 2, 1), decay=0.5, stay_steps=0, promote_at=1.0)
    assert replay(policy, trace) == Hits(hits=1, accesses=4, moves=2, forwards=4)


def routes(choices: list[int], experts: int = 8) -> Routes:
    return Routes.of((0,), experts, [(0, np.array([[choice]])) for choice in choices])


def test_the_policy_that_fits_the_routes_is_chosen() -> None:
    slots = Slots((0,), 8, 2)
    runs = [number for start in range(200) for number in [start * 5 % 8] * 12]
    assert choose_policy(routes(runs), slots) in ("recency", "decayed 0.8", "learned")
    random = np.random.default_rng(0)
    flat = random.choice(8, 3000, p=[0.3, 0.25, *[0.075] * 6]).tolist()
    assert choose_policy(routes(flat), slots) in ("static", "decayed 0.999", DEFAULT)


@pytest.mark.parametrize("count", [0, 8])
def test_without_evidence_or_a_choice_the_default_stays(count: int) -> None:
    assert choose_policy(routes([1] * 20), Slots((0,), 8, 2)) == DEFAULT
    assert choose_policy(routes([1] * 2000), Slots((0,), 8, count)) == DEFAULT


def test_an_mtp_layer_that_is_not_run_is_left_out() -> None:
    both = Routes.of((1, 2), 4, [(0, np.array([[1, 2]])), (1, np.array([[3, 0]])), (0, np.array([[0, 1]]))])
    main = both.of_layers((1,))
    assert main.rows.tolist() == [0, 0] and main.chosen.tolist() == [[1, 2], [0, 1]]
    with pytest.raises(ValueError, match="hold none"):
        both.of_layers((2,))


def test_what_is_moved_late_is_not_there_at_once() -> None:
    trace = [Forward(1, np.array([0])) for _ in range(4)]
    policies = [Decayed(Slots((0,), 2, 1), stay_steps=0) for _ in range(2)]
    assert replay(policies[0], trace).hits == 3
    assert replay(policies[1], trace, late=True).hits == 2


def test_a_cycle_is_learned_and_no_counting_can_follow_it() -> None:
    cycle = Routes.of((0, 1), 16, [(row, np.array([[(at + 8 * row) % 16]])) for at in range(600) for row in (0, 1)])
    slots = Slots((0, 1), 16, 4, moves_a_step=2)
    found = trial(cycle, slots)
    assert found["learned"].rate > 0.95
    assert max(hits.rate for name, hits in found.items() if name != "learned") < 0.4
    policy = adapted_policy(slots, [], None, cycle)
    assert isinstance(policy, Learned)
    assert isinstance(adapted_policy(slots, [], None, None), Decayed)


def hinted(told: bool) -> Routes:
    """Experts as chance has it; the hint of a forward says which it will be, or nothing."""
    chosen = np.random.default_rng(0).integers(0, 8, 1200)
    hints = UNIT * np.eye(8, dtype=np.int8)[chosen] if told else np.zeros((1200, 8), np.int8)
    return Routes.of((0,), 8, [(0, np.array([[expert]])) for expert in chosen], hints)


def test_what_the_hint_tells_is_learned_and_nothing_else_can_know_it() -> None:
    slots = Slots((0,), 8, 2, moves_a_step=1)
    found, blind = trial(hinted(True), slots), trial(hinted(False), slots)
    assert found["learned"].hits >= found["learned"].accesses - 1, "the first forward alone is not foretold"
    assert (
        max(blind["learned"].rate, found["recency"].rate, trial(hinted(True), slots, late=True)["learned"].rate) < 0.4
    )


def test_a_hint_counts_once() -> None:
    forwards, slots = list(hinted(True).forwards()), Slots((0,), 8, 2)
    policy, untold = (Learned(slots, [], fit(forwards, 1, 8)) for _ in range(2))
    policy.expect(forwards[5].hint)
    for one in (policy, untold):
        one.step()
    assert int(policy.score.argmax()) == forwards[5].chosen[0] and policy.score.max() > 2 * untold.score.max()
    policy.expect(np.full(3, 9, np.int8))  # of another model
    for one in (policy, untold):
        one.step()
    assert np.array_equal(policy.score, untold.score)


def test_wide_models_learn_from_hints_layer_by_layer() -> None:
    """So many experts that each layer has features of its own."""
    experts, random = 128, np.random.default_rng(1)
    chosen = random.integers(0, experts, (700, 4)) % 5
    hints = UNIT * np.eye(5, dtype=np.int8)[chosen].reshape(700, -1)
    calls = [(row, chosen[at, row].reshape(1, 1)) for at in range(700) for row in range(4)]
    routes = Routes.of((0, 1, 2, 3), experts, calls, hints)
    assert len(Traces(4, experts).features()) == 4
    assert trial(routes, Slots(routes.layers, experts, 4, moves_a_step=4))["learned"].rate > 0.98


def test_there_is_nothing_to_learn_from_little() -> None:
    few = [Forward(1, np.array([0]))] * 5
    assert isinstance(make_policy("learned", Slots((0,), 4, 2), [], Past(None, few)), Decayed)
