"""The experts in GPU memory: rows of one slab, the table that finds them, and the copies that bring others in.

Owns residency. Kernels look an expert's row up in `table`, on the device; the CPU's lane asks `row_of`, its twin in
RAM. Both change between forwards only, together: so of a chosen expert exactly one lane computes.

Invariant: a row is written only when no kernel can be reading it. An expert that goes is taken out of the table first;
the copy of the one that comes waits, on a stream of its own, for everything that was launched before that; and the
table names the new one only after the copy has ended.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from localr1.placement.linear import expert_prefixes
from localr1.placement.plan import Expert
from localr1.placement.policy import Move
from localr1.weights.quantize import Int8Rows
from localr1.weights.store import Store

LEAST_ROWS = 1
PIECE_BYTES = 512 << 10
"""Of an expert, copied at once: a layer's sum, which comes back over the same line, waits for one of them at most."""


class ColdExperts:
    """Every expert's int8 rows where the store maps them."""

    def __init__(self, store: Store, layers: Sequence[int], experts: int) -> None:
        self.layers = tuple(layers)
        self.experts = experts
        self._rows = {layer: store.feed_forwards(expert_prefixes(layer, experts)) for layer in layers}

    @property
    def total(self) -> int:
        return len(self.layers) * self.experts

    @property
    def widths(self) -> tuple[int, int]:
        """Weights and scales of one expert."""
        rows = self._rows[self.layers[0]]
        return rows.weight.shape[1], rows.scb.shape[1]

    @property
    def expert_bytes(self) -> int:
        weights, scales = self.widths
        return weights + 4 * scales

    def rows(self, expert: Expert) -> Int8Rows:
        layer, number = expert
        return Int8Rows(self._rows[layer].weight[number], self._rows[layer].scb[number])


@dataclass(frozen=True)
class Arrival:
    """A copy under way into a row."""

    expert: Expert
    row: int
    copied: "Future[None]"


class ExpertSlots:
    """`count` rows of a slab on `device`, filled with the first of `resident`, which come hottest first."""

    def __init__(self, cold: ColdExperts, count: int, device: torch.device, resident: Iterable[Expert] = ()) -> None:
        self.cold = cold
        self.device = device
        self._layer_row = {layer: row for row, layer in enumerate(cold.layers)}
        self._copier = Copier(cold, device)
        self._arrivals: list[Arrival] = []
        self._driven_out: list[Expert] = []
        self.table = torch.full((len(cold.layers), cold.experts), -1, dtype=torch.int32, device=device)
        self.row_of = np.full((len(cold.layers), cold.experts), -1, np.int32)
        self._fill(count, list(resident))

    def _fill(self, count: int, resident: list[Expert]) -> None:
        self._make_slab(max(min(count, self.cold.total), LEAST_ROWS))
        self.count = len(self.slab)
        self._free = list(range(self.count))[::-1]
        for expert in resident[: self.count]:
            row = self._free.pop()
            rows = self.cold.rows(expert)
            self.slab[row].copy_(rows.weight)
            self.scb[row].copy_(rows.scb)
            self.row_of[self._layer_row[expert[0]], expert[1]] = row
        self.table.copy_(torch.from_numpy(self.row_of))
        self.holds_all = bool((self.row_of >= 0).all())
        """Whether every expert of every layer is resident, and so will stay."""

    def _make_slab(self, count: int) -> None:
        weights, scales = self.cold.widths
        self.slab = torch.empty(count, weights, dtype=torch.int8, device=self.device)
        self.scb = torch.empty(count, scales, device=self.device)

    @property
    def resident(self) -> list[Expert]:
        return [(self.cold.layers[row], int(expert)) for row, expert in np.argwhere(self.row_of >= 0)]

    @property
    def nbytes(self) -> int:
        return self.slab.nbytes + self.scb.nbytes

    @property
    def moving(self) -> bool:
        return bool(self._arrivals)

    def layer_row(self, layer: int) -> int:
        """The layer's row in `table` and `row_of`."""
        return self._layer_row[layer]

    @torch.inference_mode()
    def begin(self, moves: Sequence[Move]) -> None:
        """Start to carry out moves, between two forwards; one batch at a time. A move that makes no sense is a bug."""
        assert not self._arrivals, "the last moves are still under way"
        rows: list[int] = []
        for move in moves:
            if move.evict is None:
                rows.append(self._free.pop())
            else:
                row = self._place(move.evict, -1)
                rows.append(row if row >= 0 else self._free.pop())  # one whose copy failed has none
        before = self._copier.everything_launched()
        self._arrivals = [
            Arrival(move.promote, row, self._copier.start(move.promote, self.slab[row], self.scb[row], before))
            for move, row in zip(moves, rows, strict=True)
        ]

    @torch.inference_mode()
    def finish(self, wait: bool = False) -> None:
        """Let the arrivals whose copies have ended take their places, between two forwards; with `wait`, all of them.

        Raises what a copy raised.
        """
        failure = self._let_in(wait)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it holds this frame, and the slots

    def _let_in(self, wait: bool) -> BaseException | None:
        """What the first of the copies that failed raised."""
        ended = [one for one in self._arrivals if wait or one.copied.done()]
        self._arrivals = [one for one in self._arrivals if one not in ended]  # a copy that failed is told of once
        failures = []
        for arrival in ended:
            if (failure := arrival.copied.exception()) is None:
                self._place(arrival.expert, arrival.row)
            else:
                self._free.append(arrival.row)
                failures.append(failure)
        return next(iter(failures), None)

    def shrink(self, count: int) -> None:
        """Give memory back: keep as many experts. ValueError when nothing would change.

        Where the smaller slab finds no room either, which is raised as it comes, no expert is resident until one does.
        """
        if not LEAST_ROWS <= count < self.count:
            raise ValueError(f"{self.count} slots cannot shrink to {count}")
        self.finish(wait=True)
        self._driven_out = (self._driven_out or self.resident)[:count]
        self.holds_all = False
        self.row_of.fill(-1)
        self.table.fill_(-1)
        self._make_slab(0)  # or both slabs would be there at once
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # or the new one would be cut from the old one's memory, and none given back
        self._fill(count, self._driven_out)
        self._driven_out = []

    def close(self) -> None:
        """Let what is under way arrive, and end the copying thread."""
        try:
            self.finish(wait=True)
        finally:
            self._copier.close()

    def _place(self, expert: Expert, row: int) -> int:
        """Name an expert's row, -1 for none, to the kernels and to the CPU; the row it had."""
        at = self._layer_row[expert[0]], expert[1]
        before = int(self.row_of[at])
        self.row_of[at] = row
        self.table[at].fill_(row)  # an assignment would copy from the host, and wait
        return before


class Copier:
    """Copies experts from the map to the device, in a thread and on a stream of its own, through one pinned buffer."""

    def __init__(self, cold: ColdExperts, device: torch.device) -> None:
        self._cold = cold
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, "expert-copies")
        self._pinned: Int8Rows | None = None

    def everything_launched(self) -> "torch.cuda.Event | None":
        """Marks what the current stream was given so far."""
        if not self._cuda:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def start(self, expert: Expert, weight: Tensor, scb: Tensor, before: "torch.cuda.Event | None") -> "Future[None]":
        """Copy an expert to `weight` and `scb` once everything before the mark has ended; done when it is there."""
        return self._thread.submit(self._copy, expert, weight, scb, before)

    def close(self) -> None:
        self._thread.shutdown()

    @torch.inference_mode()
    def _copy(self, expert: Expert, weight: Tensor, scb: Tensor, before: "torch.cuda.Event | None") -> None:
        rows = self._cold.rows(expert)
        if self._stream is None:
            weight.copy_(rows.weight)
            scb.copy_(rows.scb)
            return
        with torch.cuda.stream(self._stream):
            if self._pinned is None:
                self._pinned = pinned_like(rows)
            fill(self._pinned, rows)
            if before is not None:
                self._stream.wait_event(before)
            for start in range(0, len(weight), PIECE_BYTES):
                piece = slice(start, start + PIECE_BYTES)
                weight[piece].copy_(self._pinned.weight[piece], non_blocking=True)
            scb.copy_(self._pinned.scb, non_blocking=True)
            self._stream.synchronize()


def fill(pinned: Int8Rows, rows: Int8Rows) -> None:
    """Copy an expert within RAM, by this thread: torch would share it out among all, beside those that compute."""
    np.copyto(pinned.weight.numpy(), rows.weight.numpy())
    np.copyto(pinned.scb.numpy(), rows.scb.numpy())


def pinned_like(rows: Int8Rows) -> Int8Rows:
    """Page-locked RAM for one expert, from which copies to the device do not make the host wait."""
    return Int8Rows(torch.empty_like(rows.weight).pin_memory(), torch.empty_like(rows.scb).pin_memory())
