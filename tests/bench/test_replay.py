"""Replays of one's own conversations, as `localr1 bench --replay` prints them."""

import json

import numpy as np
import pytest

from localr1.bench.replay import Comparison, compare
from localr1.errors import UsageError
from localr1.events import result_of
from localr1.placement.replay import DEFAULT, POLICIES
from localr1.placement.routes import Routes


def skewed(tokens: int) -> Routes:
    random, weights = np.random.default_rng(0), np.arange(1, 9) ** -1.0
    weights /= weights.sum()
    calls = [(row, random.choice(8, (1, 2), replace=False, p=weights)) for _ in range(tokens) for row in (0, 1)]
    return Routes.of((1, 2), 8, calls)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return result_of(compare(skewed(600)))


def test_every_policy_is_judged_at_every_budget(comparison: Comparison) -> None:
    assert [one.slots for one in comparison.budgets] == [2, 4, 8, 12]
    for one in comparison.budgets:
        assert set(one.policies) == set(POLICIES)
        assert all(hits.accesses == 300 * 4 for hits in one.policies.values())
        assert max(hits.rate for hits in one.policies.values()) <= one.clairvoyant.rate
        assert one.policies["static"].rate <= one.static_optimum.rate <= one.clairvoyant.rate
        assert one.chosen in POLICIES
    rates = [one.clairvoyant.rate for one in comparison.budgets]
    assert rates == sorted(rates)


def test_the_table_and_the_record_say_the_same(comparison: Comparison) -> None:
    section, record = comparison.section(), json.loads(json.dumps(comparison.record()))
    assert section.columns == ("resident", "10 % (2)", "25 % (4)", "50 % (8)", "75 % (12)")
    labels = [row.label for row in section.rows]
    assert labels == [*POLICIES, "best that never moves", "clairvoyant"]
    rate = record["budgets"][1]["policies"][DEFAULT]["rate"]
    assert str(section.rows[labels.index(DEFAULT)].cells[1]).startswith(f"{100 * rate:.1f} %")


def test_too_few_routes_say_nothing() -> None:
    with pytest.raises(UsageError, match="too few"):
        result_of(compare(skewed(20)))
    with pytest.raises(UsageError):
        result_of(compare(Routes.of((1,), 8, ())))
