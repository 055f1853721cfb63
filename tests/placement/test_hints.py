"""Hints say what a forward takes in: alike inputs have alike hints, in the few bytes that were promised."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.placement.hints import MOST_NUMBERS, Foretold, Hints, hint_width
from localr1.placement.routes import UNIT

VOCAB = 50


def table(hidden: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(hidden).standard_normal((VOCAB, hidden), np.float32))


def hints(hidden: int) -> Hints:
    rows = table(hidden)
    return Hints(lambda token_T: rows[token_T], hidden)


def test_a_narrow_model_s_numbers_are_kept_as_they_are() -> None:
    rows = table(6)
    hidden_D = torch.tensor([2.0, 0.0, 0.0, -2.0, 2.0, 2.0])
    (hint,) = hints(6)([Foretold([3, 7], hidden_D)])
    taken = (rows[3] + rows[7]).numpy()
    wanted = np.rint(UNIT * taken / np.sqrt(np.mean(taken**2)))
    assert hint.dtype == np.int8 and hint[:6].tolist() == wanted.tolist()
    assert hint[6:].tolist() == np.rint(UNIT * hidden_D.numpy() / np.sqrt(16 / 6)).tolist()


def test_nothing_and_too_much_stay_within_a_byte() -> None:
    spike_D = torch.zeros(200)
    spike_D[4] = -1e9
    none, most = hints(200)([Foretold([0], torch.zeros(200)), Foretold([0], spike_D)])
    assert not none[200:].any()
    assert most[200:].tolist() == [-127 if at == 4 else 0 for at in range(200)]


@given(
    hidden=st.sampled_from([5, MOST_NUMBERS, MOST_NUMBERS + 1, 700]),
    tokens=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4), min_size=1, max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_many_at_once_are_those_of_each(hidden: int, tokens: list[list[int]]) -> None:
    make, before = hints(hidden), table(hidden)
    told = [Foretold(some, before[len(some)]) for some in tokens]
    together = make(told)
    assert together.shape == (len(told), hint_width(hidden))
    assert np.array_equal(together, np.concatenate([make([one]) for one in told]))


@pytest.mark.parametrize("place", [0, 300, 699])
def test_every_number_of_a_wide_model_counts(place: int) -> None:
    before_D = table(700)[1]
    other_D = before_D.clone()
    other_D[place] += 5
    one, other = hints(700)([Foretold([2], before_D), Foretold([2], other_D)])
    assert np.array_equal(one[:MOST_NUMBERS], other[:MOST_NUMBERS])
    differing = np.flatnonzero(np.abs(one.astype(int) - other)[MOST_NUMBERS:] > UNIT)
    assert differing.tolist() == [place % MOST_NUMBERS]


def test_folding_keeps_likeness_on_average() -> None:
    """The cosine of 200 pairs that share a common part, after folding eightfold, against before."""
    random, hidden = np.random.default_rng(1), 8 * MOST_NUMBERS
    common = random.standard_normal((200, hidden), np.float32)
    pairs = [0.8 * common + 0.6 * random.standard_normal((200, hidden), np.float32) for _ in range(2)]
    make = hints(hidden)
    one, other = (make([Foretold([0], torch.from_numpy(row)) for row in pair])[:, MOST_NUMBERS:] for pair in pairs)
    one, other = one.astype(np.float64), other.astype(np.float64)
    cosine = (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))
    assert cosine.mean() == pytest.approx(0.64, abs=0.02) and cosine.std() < 0.08
