"""Routed experts on both processors at once: those in GPU memory there, the others on the CPU from RAM.

Owns the hand-over of a layer. A step of few rows copies its rows and choices to page-locked RAM; while the device works
on its own experts and the shared ones, which were launched by then, the host computes one weighted sum of the others,
and one copy brings it back. The host waits for the device there and nowhere else, and not at all where all
experts of the model are resident. Between forwards it tells the policy what was chosen and carries out its moves.

Invariant: the lanes' experts are disjoint and together are the chosen ones, since both ask what `slots` says, which
changes between forwards only. So results do not depend on residency beyond the kernels' rounding.

What the host does within a step goes through `cut`, which by default calls it; whoever records a step to replay it puts
his own in its place (see `placement.graphs`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.kernels.gpu import Kernels
from localr1.model.linear import ExpertBank, FeedForward
from localr1.placement.gpu import GpuFeedForward
from localr1.placement.hints import Foretold, Hints
from localr1.placement.lanes import Lanes, Streamer
from localr1.placement.policy import Policy
from localr1.placement.routes import Hint
from localr1.placement.slots import ExpertSlots

FEW = 8
"""Rows of a step that is handed over in page-locked buffers; more are a prefill chunk."""

MakePolicy = Callable[[ExpertSlots], Policy]
Observe = Callable[[int, NDArray[np.int64]], None]
Foretell = Callable[[Foretold], None]
Cut = Callable[[Callable[[], None]], None]


class GpuBank:
    """The experts that have a slot; others add nothing. Alone it serves a model whose experts all have one."""

    def __init__(self, slots: ExpertSlots, kernels: Kernels) -> None:
        self.slots = slots
        self._routed_ffn = kernels.routed_ffn

    def run(
        self,
        layer: int,
        hidden_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        beside: FeedForward | None = None,
        onto_TD: Tensor | None = None,
    ) -> Tensor:
        slots = self.slots
        slot_E = slots.table[slots.layer_row(layer)]
        shared = beside.gated if isinstance(beside, GpuFeedForward) else None
        out_TD = self._routed_ffn(hidden_TD, slots.slab, slots.scb, slot_E, expert_TK, weight_TK, shared, onto_TD)
        return out_TD if beside is None or shared is not None else out_TD.add_(beside(hidden_TD))


class SplitBank:
    """`slots` on the device, `cold` on the CPU, both at once; a policy moves experts, `observe` is told all choices.

    Before a forward `foretell` may be called; the policy gets the hint of it that `hints` makes, and what was foretold
    is passed on when the choices of the forward before have been.
    `make_policy` is asked again when the number of slots changes. With every expert resident the device works alone:
    nothing is told and nothing moves.
    """

    def __init__(
        self,
        slots: ExpertSlots,
        kernels: Kernels,
        cold: ExpertBank,
        make_policy: MakePolicy | None = None,
        observe: Observe | None = None,
        hints: Hints | None = None,
        pass_on: Foretell | None = None,
    ) -> None:
        self.slots = slots
        self.policy = make_policy(slots) if make_policy else None
        self._make_policy = make_policy
        self.cut: Cut = call
        self.lanes = Lanes()
        self._gpu = GpuBank(slots, kernels)
        self.cold = cold
        self._observe = observe
        self._hints = hints
        self._pass_on = pass_on
        self._foretold: Foretold | None = None
        self._hint: Hint | None = None
        self._streamer = Streamer(slots.cold, slots.device)
        self._desk: Desk | None = None
        self._chosen: list[tuple[int, NDArray[np.int64]]] = []
        self._still = False

    def run(
        self,
        layer: int,
        hidden_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        beside: FeedForward | None = None,
        onto_TD: Tensor | None = None,
    ) -> Tensor:
        if self.slots.holds_all:
            return self._gpu.run(layer, hidden_TD, expert_TK, weight_TK, beside, onto_TD)
        if layer == self.slots.cold.layers[0]:
            self.cut(self.turn_over)
        if len(hidden_TD) > FEW:
            return self._many(layer, hidden_TD, expert_TK, weight_TK, beside, onto_TD)
        return self._few(layer, hidden_TD, expert_TK, weight_TK, beside, onto_TD)

    def foretell(self, coming: Foretold) -> None:
        """What the next forward will take in, said before it begins."""
        self._foretold = coming
        if self._hints is not None and self.policy is not None and not self.slots.holds_all:
            self._hint = self._hints([coming])[0]

    @contextmanager
    def still(self) -> Iterator[None]:
        """For forwards that repeat another one, or are about nothing: what they choose is not told, no expert moves."""
        self._still = True
        try:
            yield
        finally:
            self._still = False

    def turn_over(self) -> None:
        """Between two forwards: tell what was chosen, let arrived experts in, start the policy's next moves."""
        if self._still:
            return
        for layer, expert_TK in self._chosen:
            if self._observe is not None:
                self._observe(layer, expert_TK)
            if self.policy is not None:
                self.policy.observe(layer, expert_TK)
        self._chosen = []
        if self._foretold is not None and self._pass_on is not None:
            self._pass_on(self._foretold)
        if self._hint is not None and self.policy is not None:
            self.policy.expect(self._hint)
        self._foretold, self._hint = None, None
        if self.slots.moving:
            self.slots.finish()
        if self.policy is not None and not self.slots.moving:
            moves = self.policy.step()
            if moves:
                self.slots.begin(moves)

    def shrink(self, count: int) -> None:
        """Give GPU memory back: so many slots from now on. Raises as `ExpertSlots.shrink`; then nothing moves."""
        self.policy = None
        self.slots.shrink(count)
        if self._make_policy is not None:
            self.policy = self._make_policy(self.slots)

    def close(self) -> None:
        """End the threads that copy, and wait for what they are at."""
        try:
            self.slots.close()
        finally:
            self._streamer.close()

    def _few(
        self,
        layer: int,
        hidden_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        beside: FeedForward | None,
        onto_TD: Tensor | None,
    ) -> Tensor:
        if self._desk is None:
            self._desk = Desk(hidden_TD.shape[1], expert_TK.shape[1], self.slots.device)
        desk, rows = self._desk, len(hidden_TD)
        desk.put(hidden_TD, expert_TK, weight_TK)
        self.cut(desk.mark)
        out_TD = self._gpu.run(layer, hidden_TD, expert_TK, weight_TK, beside, onto_TD)
        self.cut(partial(self._compute_cold, layer, rows))
        return out_TD + desk.sum_TD[:rows].to(self.slots.device, non_blocking=True)

    def _compute_cold(self, layer: int, rows: int) -> None:
        """The CPU's sum of a layer handed over."""
        desk, row_of = self._desk, self.slots.row_of[self.slots.layer_row(layer)]
        assert desk is not None
        sum_TD = desk.sum_TD[:rows]
        desk.wait()  # by then the sum of the layer before has left, too
        expert_TK = desk.expert_TK[:rows]
        chosen_TK = expert_TK.numpy()
        if self._watched:
            self._chosen.append((layer, chosen_TK.copy()))
        cold_TK = np.where(row_of[chosen_TK] < 0, chosen_TK, -1)
        if cold_TK.max() < 0:
            sum_TD.zero_()
        else:
            experts = torch.from_numpy(cold_TK)
            sum_TD.copy_(self.cold.run(layer, desk.hidden_TD[:rows], experts, desk.weight_TK[:rows]))

    @property
    def _watched(self) -> bool:
        return not self._still and (self.policy is not None or self._observe is not None)

    def _many(
        self,
        layer: int,
        hidden_TD: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        beside: FeedForward | None,
        onto_TD: Tensor | None,
    ) -> Tensor:
        """A prefill chunk: of the cold experts those of many tokens pass through the device, the CPU has the others."""
        # The host waits here, before the device gets work to do meanwhile; so the streamer's inputs are there, too.
        chosen_TK = expert_TK.cpu().numpy()
        ram_TD, ram_TK = hidden_TD.cpu(), weight_TK.cpu()
        out_TD = self._gpu.run(layer, hidden_TD, expert_TK, weight_TK, beside, onto_TD)
        if self._watched:
            self._chosen.append((layer, chosen_TK))
        row_of = self.slots.row_of[self.slots.layer_row(layer)]
        cold_TK = np.where(row_of[chosen_TK] < 0, chosen_TK, -1)
        tokens_E = np.bincount(cold_TK[cold_TK >= 0], minlength=len(row_of))
        streamed = self.lanes.streamed(tokens_E)
        passing = self._streamer.start(layer, streamed, hidden_TD, cold_TK, weight_TK) if len(streamed) else None
        kept_TK = np.where(np.isin(cold_TK, streamed), -1, cold_TK)
        pairs = int((kept_TK >= 0).sum())
        if pairs:
            with self.lanes.timing_cpu(pairs):
                experts = torch.from_numpy(kept_TK)
                sum_TD = self.cold.run(layer, ram_TD, experts, ram_TK)
            out_TD += sum_TD.to(self.slots.device)
        if passing is not None:
            seconds, sum_TD = passing.result()
            self.lanes.learn_stream(len(streamed), seconds)
            out_TD += sum_TD
            if sum_TD.is_cuda:
                sum_TD.record_stream(torch.cuda.current_stream())  # it is of the streamer's stream
        return out_TD


class Desk:
    """Page-locked rows over which the processors hand a layer: what came from the device, and the CPU's sum.

    One set is enough: what is copied to it for the next layer comes, on the device, after what was read from it for
    this one, and the host has read by then.
    """

    def __init__(self, hidden: int, top_k: int, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._event = torch.cuda.Event() if self._cuda else None  # type: ignore[no-untyped-call]
        self.hidden_TD = self._buffer(hidden, torch.float32)
        self.weight_TK = self._buffer(top_k, torch.float32)
        self.expert_TK = self._buffer(top_k, torch.int64)
        self.sum_TD = self._buffer(hidden, torch.float32)

    def _buffer(self, width: int, dtype: torch.dtype) -> Tensor:
        buffer = torch.zeros(FEW, width, dtype=dtype)
        return buffer.pin_memory() if self._cuda else buffer

    def put(self, hidden_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> None:
        """Start to copy a layer's rows and choices here."""
        for buffer, rows in ((self.hidden_TD, hidden_TD), (self.expert_TK, expert_TK), (self.weight_TK, weight_TK)):
            buffer[: len(rows)].copy_(rows, non_blocking=True)

    def mark(self) -> None:
        """What was put is on its way from here on."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until what was put before the mark is here."""
        if self._event is not None:
            self._event.synchronize()


def call(host: Callable[[], None]) -> None:
    """The `cut` of a step that is not recorded."""
    host()
