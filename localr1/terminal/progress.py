"""Shows how far a long operation is, and hands back its result.

Owns how progress events look: bars that disappear when they are done on a terminal, now and then a line elsewhere,
nothing when asked to be quiet. Does not know the operations. Invariant: everything goes to stderr.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from localr1.events import Event, FetchProgress, LoadProgress, Notice, PrefillProgress, Progress, QuantizeProgress
from localr1.quantities import bytes_text, seconds_text
from localr1.terminal.environment import Environment
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

T = TypeVar("T")

_LINE_EVERY_S = 5.0


class Display(Protocol):
    """Takes the events that are neither thoughts nor answers."""

    def show(self, event: Event) -> None: ...

    def close(self) -> None:
        """Leaves the terminal as text needs it; showing may go on afterwards."""


def follow(environment: Environment, operation: Progress[T], quiet: bool = False, display: Display | None = None) -> T:
    """Runs the operation to its end while showing what it reports, on `display` if given; returns its result."""
    display = display or open_display(environment, quiet)
    with closing(operation), closing(display):
        while True:
            try:
                event = next(operation)
            except StopIteration as end:
                result: T = end.value
                return result
            display.show(event)


def open_display(environment: Environment, quiet: bool = False) -> Display:
    """The display that suits the streams: bars, lines, or nothing."""
    if quiet:
        return _NoDisplay()
    if environment.stderr.isatty() and not environment.dumb and not environment.plain:
        return BarDisplay(environment)
    return LineDisplay(environment)


@dataclass(frozen=True)
class Stage:
    """A progress event in the display's terms; `total` 0 means that the length is unknown."""

    kind: str
    label: str
    done: int
    total: int
    amount: str
    lasting: bool  # whether a line about it stays when it is done

    @property
    def complete(self) -> bool:
        return self.done >= self.total


def stage_of(event: Event) -> Stage | None:
    """What a progress event says, ready to be shown; None for events that are not progress."""
    match event:
        case FetchProgress(file=file, done_bytes=done, total_bytes=total):
            amount = f"{bytes_text(done)} of {bytes_text(total)}"
            return Stage("Fetching", f"Fetching {visible(file)}", done, total, amount, True)
        case QuantizeProgress(tensor=tensor, done_bytes=done, total_bytes=total):
            amount = f"{event.done_tensors} of {event.total_tensors} tensors"
            return Stage("Quantizing", f"Quantizing {visible(tensor)}", done, total, amount, True)
        case LoadProgress(stage=stage, done=done, total=total):
            amount = f"{done} of {total}" if total else ""
            return Stage("Loading", visible(stage[:1].upper() + stage[1:]), done, total, amount, False)
        case PrefillProgress(done_tokens=done, total_tokens=total):
            return Stage("Reading", "Reading the prompt", done, total, f"{done} of {total} tokens", False)
    return None


class _NoDisplay:
    def show(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


class _StageDisplay(ABC):
    """Follows the stages: one at a time, each begun once, a lasting one closed by a line when it reached its end."""

    def __init__(self, environment: Environment, clock: Callable[[], float] = time.monotonic) -> None:
        self._environment = environment
        self._clock = clock
        self._stage: Stage | None = None
        self._started_s = 0.0

    def show(self, event: Event) -> None:
        if isinstance(event, Notice):
            if self._stage is not None and self._stage.complete:
                self.close()
            self._erase()
            self._environment.status(event.text)
        elif stage := stage_of(event):
            starts = self._stage is None or self._stage.kind != stage.kind
            if starts:
                self.close()
                self._started_s = self._clock()
            self._stage = stage
            self._draw(stage, starts)

    def close(self) -> None:
        self._erase()
        stage, self._stage = self._stage, None
        if stage is not None and stage.lasting and stage.complete:
            took = seconds_text(self._clock() - self._started_s)
            self._environment.status(f"{stage.kind}: {stage.amount}, done in {took}", "dim")

    @abstractmethod
    def _draw(self, stage: Stage, starts: bool) -> None:
        """Shows how far the stage is; `starts` on its first event."""

    def _erase(self) -> None:  # noqa: B027, only what draws something that moves has something to erase
        """Leaves a clean line for other text."""


class LineDisplay(_StageDisplay):
    """For logs and dumb terminals: a line every few seconds, if it is another one, and at once when a lasting stage
    starts."""

    _shown_s = 0.0
    _shown = ""

    def _draw(self, stage: Stage, starts: bool) -> None:
        now_s = self._clock()
        if starts and not stage.lasting:
            self._shown_s = now_s
            self._shown = ""
        elif starts or now_s - self._shown_s >= _LINE_EVERY_S:
            self._shown_s, before = now_s, self._shown
            self._shown = ": ".join(filter(None, [stage.label, stage.amount]))
            if starts or self._shown != before:
                self._environment.status(self._shown)


class BarDisplay(_StageDisplay):
    """For terminals: one bar at a time, gone when the next stage or some text comes."""

    _bars: "Bars | None" = None

    def _draw(self, stage: Stage, starts: bool) -> None:
        bars = self._bars
        if bars is None:
            bars = _bars(self._environment)
            bars.add_task(stage.label, total=None, amount="")
            bars.start()
            self._bars = bars  # last, since Ctrl-Z may erase them at any moment
        bars.update(
            bars.task_ids[0],
            description=stage.label,
            completed=stage.done,
            total=stage.total or None,
            amount=stage.amount,
        )

    def _erase(self) -> None:
        bars, self._bars = self._bars, None
        if bars is not None:
            bars.stop()


def _bars(environment: Environment) -> "Bars":
    """A row of label, bar, amount and time left; the label gives way first in a narrow window."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=3)),
        BarColumn(bar_width=None, table_column=Column(ratio=2, min_width=6)),
        TextColumn("{task.fields[amount]}", markup=False, table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        console=environment.console(environment.stderr),
        expand=True,
        transient=True,
    )
