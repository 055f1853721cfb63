"""Recorded routes: which experts were chosen, call by call, in the order of the forwards.

Owns the compact record and its cutting into forwards. Knows no files and no policy. Invariant: the calls of one forward
of the main model are in the order of its layers, so a call of the first layer begins a new forward. With every forward
goes a hint, what was known of it before it began (see `placement.hints`); zeros where nothing was told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ExpertArray = NDArray[np.integer]
Hint = NDArray[np.int8]
UNIT = 32
"""What stands for 1 in a hint."""
NO_HINT = np.zeros(0, np.int8)


@dataclass(frozen=True)
class Routes:
    """Calls one after another: `rows` says which of `layers` each was of, `tokens` how many tokens it had, and
    `chosen` holds their experts, [sum of tokens, top-k]. `hints` has a row for each call of the first layer."""

    layers: tuple[int, ...]
    experts: int
    rows: NDArray[np.uint16]
    tokens: NDArray[np.uint16]
    chosen: NDArray[np.uint16]
    hints: NDArray[np.int8]

    @classmethod
    def of(
        cls,
        layers: tuple[int, ...],
        experts: int,
        calls: Sequence[tuple[int, ExpertArray]],
        hints: NDArray[np.int8] | None = None,
    ) -> "Routes":
        """From (row of the layer, expert_TK) of each call."""
        begun = sum(row == 0 for row, _ in calls)
        chosen = [np.asarray(expert_TK, np.uint16) for _, expert_TK in calls]
        return cls(
            layers,
            experts,
            np.array([row for row, _ in calls], np.uint16),
            np.array([len(one) for one in chosen], np.uint16),
            np.concatenate(chosen) if chosen else np.zeros((0, 1), np.uint16),
            np.zeros((begun, 0), np.int8) if hints is None else hints,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def numbers(self) -> NDArray[np.int64]:
        """The chosen experts as `row * experts + expert`, [sum of tokens, top-k]."""
        rows = np.repeat(self.rows.astype(np.int64), self.tokens)
        return self.chosen.astype(np.int64) + rows[:, None] * self.experts

    def forwards(self) -> Iterator["Forward"]:
        """The calls of each forward together, as flat numbers `row * experts + expert`."""
        ends, flat = np.cumsum(self.tokens, dtype=np.int64), self.numbers()
        begins = np.flatnonzero(self.rows == 0) if len(self) else np.zeros(0, np.int64)
        for first, last, hint in zip(begins, np.append(begins[1:], len(self)), self.hints, strict=False):
            start = int(ends[first] - self.tokens[first])
            yield Forward(int(self.tokens[first]), flat[start : int(ends[last - 1])].reshape(-1), hint)

    def of_layers(self, layers: tuple[int, ...]) -> "Routes":
        """The calls of these layers only, which are the first of ours. ValueError where they are not."""
        if layers != self.layers[: len(layers)]:
            raise ValueError(f"routes of layers {self.layers} hold none of {layers}")
        kept = self.rows < len(layers)
        chosen = self.chosen[np.repeat(kept, self.tokens)]
        return Routes(layers, self.experts, self.rows[kept], self.tokens[kept], chosen, self.hints)

    def newest(self, values: int, hint_bytes: int | None = None) -> "Routes":
        """The last whole forwards that hold at most `values` expert numbers together, and hints of so many bytes."""
        after = np.cumsum(self.tokens[::-1], dtype=np.int64)[::-1] * self.chosen.shape[1]
        begins = np.flatnonzero(self.rows == 0)
        fitting = after[begins] <= values
        if hint_bytes is not None:
            fitting &= np.arange(len(begins), 0, -1) * self.hints.shape[1] <= hint_bytes
        skipped = int((~fitting).sum())
        first = int(begins[skipped]) if skipped < len(begins) else len(self)
        start = int(self.tokens[:first].sum(dtype=np.int64))
        rows, tokens, chosen = self.rows[first:], self.tokens[first:], self.chosen[start:]
        return Routes(self.layers, self.experts, rows, tokens, chosen, self.hints[skipped:])


def joined(parts: Sequence[Routes]) -> Routes:
    """One after another; at least one, all of one model."""
    some = [part for part in parts if len(part)] or parts[:1]
    if len(some) == 1:
        return some[0]
    names = ("rows", "tokens", "chosen", "hints")
    return Routes(
        some[0].layers, some[0].experts, *(np.concatenate([getattr(part, name) for part in some]) for name in names)
    )


@dataclass(frozen=True)
class Forward:
    """What one forward of `tokens` tokens chose; an expert that several tokens chose is there several times."""

    tokens: int
    chosen: NDArray[np.int64]
    hint: Hint = field(default_factory=NO_HINT.copy)

    @property
    def distinct(self) -> NDArray[np.int64]:
        """Each chosen expert once, in the order of the layers."""
        return np.unique(self.chosen)
