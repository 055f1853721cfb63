"""What is made of the GPU benchmark's figures; nothing here ran on a GPU."""

from dataclasses import dataclass

from benchmarks.gpu_goals import goals
from benchmarks.offload import Offloaded


@dataclass(frozen=True)
class Row:
    shape: str
    placement: str
    budget_gib: float
    decode_tokens_per_s: float
    of_floor: float


ROWS = [
    Row("big", "none", 0.0, 5.0, 0.9),
    Row("big", "experts", 6.0, 20.0, 0.5),
    Row("big", "layers", 6.0, 19.0, 0.5),
    Row("big", "experts", 12.0, 40.0, 0.7),
    Row("big", "layers", 12.0, 20.0, 0.7),
    Row("big", "all", 0.0, 90.0, 0.4),
    Row("other", "none", 0.0, 5.0, 0.9),
]


def test_the_budget_nearest_to_eight_is_judged() -> None:
    found = {goal.what: goal for goal in goals(ROWS, [Offloaded("big", 6.0, 4, 27, 1.9)]) if goal.shape == "big"}
    assert [(goal.found, goal.met) for goal in found.values()] == [
        (0.5, False),
        (20 / 19, False),
        (20 / 1.9, True),
        (0.4, False),
    ]
    assert "at 6 GiB" in next(iter(found))


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    open_goals = [goal for goal in goals(ROWS, []) if goal.met is None]
    assert [goal.shape for goal in open_goals] == ["big", "other", "other", "other", "other"]
    assert all("not measured" in str(goal) and str(goal).endswith("open") for goal in open_goals)


def test_a_missed_goal_says_so() -> None:
    assert str(goals(ROWS, [])[0]) == "big: share of the floor at 6 GiB: 0.50, wanted 0.6: MISSED"
