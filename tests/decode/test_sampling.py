"""Each filter does what its paper says, together and alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.decode.sampling import Sampler, Sampling, probabilities
from localr1.errors import LocalR1Error

PLAIN = Sampling(temperature=1.0, top_p=1.0)
LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))


def support(logits: torch.Tensor, **settings: float) -> list[int]:
    return probabilities(logits, Sampling(**{"temperature": 1.0, "top_p": 1.0, **settings})).nonzero()[:, 0].tolist()


def test_no_filter_is_the_softmax() -> None:
    torch.testing.assert_close(probabilities(LOGITS, PLAIN), torch.tensor([0.5, 0.25, 0.15, 0.1]))


def test_temperature_zero_is_the_first_likeliest() -> None:
    assert probabilities(torch.tensor([1.0, 3.0, 3.0]), Sampling(temperature=0)).tolist() == [0, 1, 0]
    assert Sampler(Sampling(temperature=0))(torch.tensor([1.0, 3.0, 3.0])) == 1


def test_a_seed_may_be_any_number() -> None:
    draws = [[Sampler(Sampling(seed=seed))(LOGITS) for _ in range(8)] for seed in (2**64, 2**64, 10**40)]
    assert draws[0] == draws[1]


def test_a_temperature_next_to_zero_is_nearly_greedy() -> None:
    assert probabilities(torch.tensor([1.0, 30.0, -torch.inf]), Sampling(temperature=1e-45)).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, [0]), (0.5, [0]), (0.51, [0, 1]), (0.75, [0, 1]), (0.9, [0, 1, 2]), (0.95, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: list[int]) -> None:
    assert support(LOGITS, top_p=top_p - 1e-6) == kept


def test_top_k_and_min_p() -> None:
    assert support(LOGITS, top_k=2) == [0, 1]
    assert support(LOGITS, min_p=0.29) == [0, 1, 2]


def test_min_p_comes_last() -> None:
    logits_V = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]).log()
    assert kept_of(probabilities(logits_V, Sampling(1.0, top_p=0.7, min_p=0.3))) == [0, 1]


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_of_no_numbers_nothing_is_drawn(temperature: float, bad: float) -> None:
    with pytest.raises(LocalR1Error, match="out of range"):
        Sampler(Sampling(temperature))(torch.tensor([0.0, bad, 1.0]))


def kept_of(probs_V: torch.Tensor) -> list[int]:
    return [int(token) for token in probs_V.nonzero()]


def test_top_p_counts_within_what_top_k_left() -> None:
    assert support(LOGITS, top_k=2, top_p=0.6) == [0]


def test_a_flat_distribution_wider_than_the_first_guess_keeps_its_share() -> None:
    assert len(support(torch.zeros(2000), top_p=0.5)) == 1000


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.floats(-30, 30), min_size=1, max_size=20),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.0, 1.0),
    top_k=st.integers(0, 25),
    min_p=st.floats(0.0, 1.0),
)
def test_always_a_distribution_that_holds_the_likeliest(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    values = torch.tensor(logits)
    probs = probabilities(values, Sampling(temperature, top_p, top_k, min_p))
    assert torch.isclose(probs.sum(), torch.tensor(1.0))
    assert values[probs.argmax()] > values.max() - 1e-4, "of equals, any may be kept"


def test_a_seed_repeats_and_the_frequencies_are_the_probabilities() -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0, seed=7)
    one, two = Sampler(sampling), Sampler(sampling)
    draws = [one(LOGITS) for _ in range(2000)]
    assert draws == [two(LOGITS) for _ in range(2000)]
    share = torch.bincount(torch.tensor(draws), minlength=4) / 2000
    assert (share - torch.tensor([0.5, 0.25, 0.15, 0.1])).abs().max() < 0.04
