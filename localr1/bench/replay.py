"""How often each placement policy would have found the chosen experts resident: recorded routes, run again.

Owns the comparison of policies at several budgets against the clairvoyant optimum, and how it is told. The first half
of the routes is the history that residents and priors come from; all figures are of the second half.
"""

from dataclasses import asdict, dataclass
from typing import Any

from localr1.bench.report import Row, Section
from localr1.errors import NotFoundError, UsageError, typed
from localr1.events import LoadProgress, Progress
from localr1.hub import cache as hub_cache
from localr1.model import registry
from localr1.placement.policy import MOVES_A_STEP, Slots
from localr1.placement.replay import (
    POLICIES,
    Hits,
    choose_policy,
    clairvoyant,
    halves,
    static_optimum,
    trial,
)
from localr1.placement.routes import Routes
from localr1.quantities import percent_text
from localr1.session.routing import open_routing

SHARES = (0.1, 0.25, 0.5, 0.75)
LEAST_FORWARDS = 64


@dataclass(frozen=True)
class Budgeted:
    """All policies with the same number of slots."""

    share: float
    slots: int
    policies: dict[str, Hits]
    late: dict[str, Hits]
    """The same where an expert that is moved in arrives a forward later."""
    static_optimum: Hits
    clairvoyant: Hits
    chosen: str

    def of_optimum(self, name: str) -> float:
        """A policy's hit rate over the clairvoyant one."""
        return self.policies[name].rate / self.clairvoyant.rate if self.clairvoyant.rate else 1.0


@dataclass(frozen=True)
class Comparison:
    """What a replay found."""

    layers: int
    experts: int
    forwards: int
    tokens: int
    moves_a_step: int
    budgets: tuple[Budgeted, ...]

    def section(self) -> Section:
        """A table: a row a policy, a column a budget."""
        rows = [Row(name, tuple(_cell(one, name) for one in self.budgets)) for name in POLICIES]
        rows.append(
            Row("best that never moves", tuple(percent_text(one.static_optimum.rate, 1) for one in self.budgets))
        )
        rows.append(Row("clairvoyant", tuple(percent_text(one.clairvoyant.rate, 1) for one in self.budgets)))
        columns = ("resident", *(f"{percent_text(one.share)} ({one.slots})" for one in self.budgets))
        return Section("replay", "Hit rates of recorded routes", columns, tuple(rows), self.notes())

    def notes(self) -> tuple[str, ...]:
        return (
            f"{self.forwards:,} forwards of {self.layers} layers of {self.experts} experts judge, as many before them "
            f"are the history; at most {self.moves_a_step} moves a forward",
            "clairvoyant: knows the future, starts with any residents, takes an expert in only just after a use, moves "
            "as many as it likes, so it is not the policies' own bound; in brackets, the share of its hits",
            "* chosen here, where an expert arrives a forward after it was called for",
        )

    def record(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in asdict(self).items() if name != "budgets"},
            "budgets": [
                {
                    "share": one.share,
                    "slots": one.slots,
                    "chosen": one.chosen,
                    "clairvoyant": asdict(one.clairvoyant) | {"rate": one.clairvoyant.rate},
                    "static_optimum": one.static_optimum.rate,
                    "policies": {
                        name: {
                            "rate": hits.rate,
                            "of_clairvoyant": one.of_optimum(name),
                            "rate_when_late": one.late[name].rate,
                            "moves_a_forward": hits.moves_a_forward,
                        }
                        for name, hits in one.policies.items()
                    },
                }
                for one in self.budgets
            ],
        }


def _cell(one: Budgeted, name: str) -> str:
    mark = " *" if name == one.chosen else ""
    return f"{percent_text(one.policies[name].rate, 1)} ({percent_text(one.of_optimum(name))}){mark}"


def compare(routes: Routes, moves_a_step: int = MOVES_A_STEP) -> Progress[Comparison]:
    """All policies at several budgets. Raises UsageError when there are too few routes."""
    _, after = halves(routes)
    if len(after) < LEAST_FORWARDS:
        raise UsageError(
            f"{2 * len(after)} recorded forwards are too few to judge by, {2 * LEAST_FORWARDS} are needed",
            "talk with the model first: localr1 chat",
        )
    numbers, budgets = len(routes.layers) * routes.experts, []
    for done, share in enumerate(SHARES):
        yield LoadProgress("replaying routes", done, len(SHARES))
        slots = Slots(routes.layers, routes.experts, round(share * numbers), moves_a_step)
        budgets.append(
            Budgeted(
                share,
                slots.count,
                trial(routes, slots),
                trial(routes, slots, late=True),
                static_optimum(after, numbers, slots.count),
                clairvoyant(after, numbers, slots.count),
                choose_policy(routes, slots),
            )
        )
    tokens = sum(forward.tokens for forward in after)
    return Comparison(len(routes.layers), routes.experts, len(after), tokens, moves_a_step, tuple(budgets))


def own_routes(model: str | None) -> Routes:
    """The routes of one's own conversations with a model. Raises NotFoundError where there are none."""
    last = hub_cache.last_used() if model is None else None
    name = model or "nano"
    store = last or hub_cache.find_store(hub_cache.source_of(name))
    if store is None:
        raise NotFoundError(f"{name} is not here yet", f"get it with: localr1 download {typed(name)}")
    routing = open_routing(store.folder, registry.read_config(store.folder))
    if routing is None:
        raise UsageError(f"{store.name} has no routed experts", "choose a mixture of experts, such as v2-lite")
    return routing.history.recent()


def replay_own(model: str | None) -> Progress[Comparison]:
    """What `localr1 bench --replay` prints."""
    return (yield from compare(own_routes(model)))
