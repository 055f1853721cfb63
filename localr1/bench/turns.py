"""Sides of a comparison that take turns, and how a claim's row is told.

Owns the order of turns, forwards and backwards after a round that is dropped, so that a machine whose speed drifts
favours no side; a ratio is taken round by round.
"""

from collections.abc import Callable, Sequence

from localr1.bench.compare import paired_ratio
from localr1.bench.report import Figure, Row
from localr1.bench.speed import decode_along, visit
from localr1.decode.cache import RowCache
from localr1.events import LoadProgress, Progress
from localr1.model.registry import Model

COLUMNS = ("", "ours", "baseline", "better by", "the baseline is")


def take_turns(what: str, calls: Sequence[Callable[[], float]], repeats: int) -> Progress[list[tuple[float, ...]]]:
    """Call each in turn, forwards and backwards, after a round that is dropped; what each returned, round by round."""
    found: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        yield LoadProgress(what, repeat, repeats + 1)
        order = list(range(len(calls)))
        for number in order if repeat % 2 else order[::-1]:
            value = calls[number]()
            if repeat:
                found[number].append(value)
    return [tuple(values) for values in found]


def decode_speed(model: Model, cache: RowCache, tokens: Sequence[int], depth: int, count: int) -> float:
    """Tokens a second of decoding `count` tokens along a text whose first `depth` are in the cache's rows."""
    visit(cache, tokens, depth)
    return 1 / decode_along(model, cache, tokens[depth : depth + count])


def speed_row(label: str, speeds: Sequence[Sequence[float]], baseline: str) -> Row:
    """Ours and the baseline's tokens a second, and the one over the other round by round."""
    ours, theirs = (Figure(tuple(values), "tokens/s", "more") for values in speeds)
    return Row(label, (ours, theirs, paired_ratio(theirs.values, ours.values), baseline))


def byte_figure(count: float) -> Figure:
    return Figure((count,), "B", "less")


def times(ratio: float) -> Figure:
    return Figure((ratio,), "x")
