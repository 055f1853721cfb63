"""What is wanted of `benchmarks.gpu`'s figures, and whether they reach it.

Owns the goals. Knows no GPU: it reads rows, so that a record can be judged again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

BUDGET_GIB = 8.0
"""The budget, or the one nearest to it, at which placements are judged."""

OF_FLOOR, OF_LAYERS, OF_OFFLOAD, ALL_OF_FLOOR = 0.6, 1.2, 10.0, 0.45


class Baseline(Protocol):
    """A speed of `benchmarks.offload`."""

    @property
    def shape(self) -> str: ...
    @property
    def budget_gib(self) -> float: ...
    @property
    def decode_tokens_per_s(self) -> float: ...


class Measured(Baseline, Protocol):
    """A row of `benchmarks.gpu`."""

    @property
    def placement(self) -> str: ...
    @property
    def of_floor(self) -> float: ...


@dataclass(frozen=True)
class Goal:
    """`found` is None where what it needs was not measured."""

    shape: str
    what: str
    wanted: float
    found: float | None

    @property
    def met(self) -> bool | None:
        return None if self.found is None else self.found >= self.wanted

    def __str__(self) -> str:
        found = "not measured" if self.found is None else f"{self.found:.2f}"
        verdict = {None: "open", True: "met", False: "MISSED"}[self.met]
        return f"{self.shape}: {self.what}: {found}, wanted {self.wanted:g}: {verdict}"


def goals(rows: Sequence[Measured], baselines: Sequence[Baseline]) -> list[Goal]:
    """Each goal of each shape; the baseline counts at the budget at which it was measured."""
    return [goal for shape in dict.fromkeys(row.shape for row in rows) for goal in _of_shape(shape, rows, baselines)]


def _of_shape(shape: str, rows: Sequence[Measured], baselines: Sequence[Baseline]) -> Iterator[Goal]:
    by_placement = {(row.placement, row.budget_gib): row for row in rows if row.shape == shape}
    budgets = [budget for placement, budget in by_placement if placement == "experts"]
    budget = min(budgets, key=lambda one: abs(one - BUDGET_GIB), default=BUDGET_GIB)
    ours, layers = by_placement.get(("experts", budget)), by_placement.get(("layers", budget))
    everything = by_placement.get(("all", 0.0))
    offloaded = next((one for one in baselines if one.shape == shape), None)
    beside = None if offloaded is None else by_placement.get(("experts", offloaded.budget_gib))
    yield Goal(shape, f"share of the floor at {budget:g} GiB", OF_FLOOR, ours and ours.of_floor)
    yield Goal(shape, f"times whole layers at {budget:g} GiB", OF_LAYERS, _ratio(ours, layers))
    yield Goal(shape, "times transformers with accelerate", OF_OFFLOAD, _ratio(beside, offloaded))
    yield Goal(shape, "share of the GPU's floor with all experts", ALL_OF_FLOOR, everything and everything.of_floor)


def _ratio(one: Measured | None, other: Baseline | None) -> float | None:
    return None if one is None or other is None else one.decode_tokens_per_s / other.decode_tokens_per_s
