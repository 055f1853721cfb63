"""Policies do what a plain reading of their rules says, and never break the slots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.placement.policy import Decayed, Move, Recency, ScorePolicy, Slots, Static

LAYERS, EXPERTS, TOP_K = (3, 5), 4, 2
ALL = [(layer, expert) for layer in LAYERS for expert in range(EXPERTS)]
call = st.lists(st.permutations(range(EXPERTS)).map(lambda order: order[:TOP_K]), min_size=1, max_size=3)
forward = call.flatmap(
    lambda first: st.tuples(
        st.just(first),
        st.lists(
            st.permutations(range(EXPERTS)).map(lambda order: order[:TOP_K]), min_size=len(first), max_size=len(first)
        ),
    )
)
traces = st.lists(forward, max_size=12)


def run(policy: ScorePolicy, trace: list) -> list[list[Move]]:
    """The moves after each forward, checked against the slots."""
    inside = set(policy.resident)
    moves_of = []
    for calls in trace:
        for layer, chosen in zip(LAYERS, calls, strict=True):
            policy.observe(layer, np.array(chosen))
        moves = policy.step()
        for move in moves:
            assert move.promote not in inside
            if move.evict is None:
                assert len(inside) < policy.slots.count
            else:
                inside.remove(move.evict)
            inside.add(move.promote)
        assert len(moves) <= policy.slots.moves_a_step and len(inside) <= policy.slots.count
        assert inside == set(policy.resident)
        moves_of.append(moves)
    return moves_of


@given(traces, st.integers(0, 9), st.integers(0, 3), st.floats(0.1, 1), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_slots_hold_whatever_comes(trace: list, count: int, moves: int, decay: float, stay: int) -> None:
    slots = Slots(LAYERS, EXPERTS, count, moves)
    run(Decayed(slots, ALL[:2], decay=decay, stay_steps=stay), trace)
    run(Recency(slots, ALL[:2]), trace)
    assert not any(run(Static(slots, ALL[:2]), trace))


@pytest.mark.parametrize("kind", [Decayed, Recency])
def test_an_expert_that_was_not_found_is_nobodys(kind: type[ScorePolicy]) -> None:
    policies = [kind(Slots(LAYERS, EXPERTS, 3), ALL[:3]) for _ in range(2)]
    for policy, none in zip(policies, ([[-1, 1]], [[1]]), strict=True):
        for layer in LAYERS:
            policy.observe(layer, np.array(none))
        policy.step()
    assert np.array_equal(*(policy.score for policy in policies)) and policies[0].resident == policies[1].resident


@given(traces, st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_recency_is_least_recently_used(trace: list, count: int) -> None:
    """Against ages kept in a dictionary, where the limit of moves does not bind."""
    policy = Recency(Slots(LAYERS, EXPERTS, count, moves_a_step=100))
    last: dict[tuple[int, int], int] = {}
    for when, calls in enumerate(trace):
        run(policy, [calls])
        for layer, chosen in zip(LAYERS, calls, strict=True):
            last |= {(layer, expert): when for token in chosen for expert in token}
        ages = sorted(last.values(), reverse=True)
        inside = set(policy.resident)
        assert len(inside) == min(count, len(last))
        oldest = ages[len(inside) - 1]
        assert all(last[expert] >= oldest for expert in inside)
        assert all(expert in inside for expert, at in last.items() if at > oldest)


@given(traces, st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_without_fading_and_hysteresis_the_most_counted_are_inside(trace: list, count: int) -> None:
    policy = Decayed(Slots(LAYERS, EXPERTS, count, 100), decay=1.0, promote_at=1.0, stay_steps=0)
    run(policy, trace)
    counts = dict.fromkeys(ALL, 0)
    for calls in trace:
        for layer, chosen in zip(LAYERS, calls, strict=True):
            for token in chosen:
                for expert in token:
                    counts[layer, expert] += 1
    inside = set(policy.resident)
    worst = min((counts[expert] for expert in inside), default=0)
    assert all(counts[expert] <= worst for expert in ALL if expert not in inside)


def test_an_expert_must_be_clearly_hotter_and_the_other_have_stayed() -> None:
    policy = Decayed(Slots((0,), 3, 1), [(0, 0)], decay=1.0, promote_at=1.3, stay_steps=5)
    seen = [0] * 10 + [1] * 13
    moves = []
    for expert in seen:
        policy.observe(0, np.array([[expert]]))
        moves.append(policy.step())
    assert not any(moves)
    policy.observe(0, np.array([[1]]))
    assert policy.step() == [Move((0, 1), (0, 0))]
    for _ in range(4):
        policy.observe(0, np.full((100, 1), 2))
        assert policy.step() == []
    policy.observe(0, np.full((100, 1), 2))
    assert policy.step() == [Move((0, 2), (0, 1))]


def test_fading_is_by_the_token_whatever_the_chunk() -> None:
    one, many = (Decayed(Slots((0,), 3, 0), decay=0.9) for _ in range(2))
    for _ in range(50):
        one.observe(0, np.array([[1]]))
        one.step()
    many.observe(0, np.full((50, 1), 1))
    many.step()
    assert many.score == pytest.approx(one.score)


def test_a_prior_decides_until_there_is_evidence() -> None:
    prior = np.array([[8.0, 1, 1]])
    policy = Decayed(Slots((0,), 3, 1), [(0, 0)], decay=0.9, stay_steps=0, prior=prior)
    policy.observe(0, np.array([[1]]))
    assert policy.step() == []
    for _ in range(20):
        policy.observe(0, np.array([[1]]))
        policy.step()
    assert policy.resident == [(0, 1)]


def test_a_prior_is_worth_what_fades() -> None:
    policy = Decayed(Slots((0, 1), 8, 4), decay=0.9, prior=np.ones((2, 8)))
    for _ in range(200):
        for layer in (0, 1):
            policy.observe(layer, np.arange(6).reshape(2, 3))
        policy.step()
        assert policy.score.sum() == pytest.approx(2 * 3 / (1 - 0.9))
