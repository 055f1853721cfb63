"""Shows a download: the whole and each file that is coming, the quantizing beside them, speed and time left.

Owns how a DownloadPlan and the events of a fetch that is converted meanwhile look: bars on a terminal, now and then a
line elsewhere, JSON for programs. Does not know where the bytes come from. Invariant: only JSON goes to stdout.
"""

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from localr1.events import DownloadPlan, Event, FetchProgress, LoadProgress, Notice, QuantizeProgress
from localr1.quantities import bytes_text, percent_text, seconds_text
from localr1.terminal.environment import Environment
from localr1.terminal.progress import Display, open_display
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_LINE_EVERY_S = 5.0
_SPEED_OVER_S = 15.0
_SPEED_AFTER_S = 1.0
_STILL_S = 3.0
_NARROW = 64
"""Columns below which there is no room for bars: names and shares say it."""


def open_transfer_display(environment: Environment, *, quiet: bool = False, as_json: bool = False) -> Display:
    """The display that suits the streams and the options."""
    if as_json:
        return JsonDisplay(environment)
    if quiet:
        return open_display(environment, quiet=True)
    if environment.stderr.isatty() and not environment.dumb:
        return TransferBars(environment)
    return TransferLines(environment)


def plan_lines(plan: DownloadPlan) -> Iterator[str]:
    """What a download is going to do, for a person."""
    missing, total = bytes_text(plan.fetch_bytes), bytes_text(plan.total_bytes)
    fetch = f"{missing} to fetch" + (f" (of {total}; the rest is here)" if missing != total else "")
    yield f"{plan.model} at {plan.revision[:12]}: {plan.files} files, {fetch}"
    kept = "the 16-bit files are kept" if plan.keeps_source else "the 16-bit files go as they are converted"
    yield f"The 8-bit store takes about {bytes_text(plan.store_bytes)}; {kept}"
    for disk in plan.disks:
        yield f"Disk: needs about {bytes_text(disk.needed_bytes)}, {bytes_text(disk.free_bytes)} free ({disk.folder})"
    yield f"Licence: {plan.licence or 'not stated'}"
    if plan.gated:
        yield "Gated: ask for access on its page, then log in with `hf auth login`"
    yield from plan.outlook


class JsonDisplay:
    """One JSON object a line for every event, `event` naming its kind."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def show(self, event: Event) -> None:
        self.write({"event": type(event).__name__, **dataclasses.asdict(event)})

    def write(self, record: dict[str, object]) -> None:
        self._environment.stdout.write(json.dumps(record) + "\n")
        self._environment.stdout.flush()

    def close(self) -> None:
        pass


class Speed:
    """Bytes a second over the last seconds; 0 while there is too little to tell."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, done_bytes: int) -> None:
        now_s = self._clock()
        self._samples.append((now_s, done_bytes))
        while now_s - self._samples[0][0] > _SPEED_OVER_S:
            self._samples.popleft()

    @property
    def bytes_per_s(self) -> float:
        if not self._samples:
            return 0.0
        (first_s, first_bytes), (last_s, last_bytes) = self._samples[0], self._samples[-1]
        if last_s - first_s < _SPEED_AFTER_S:
            return 0.0
        return max(last_bytes - first_bytes, 0) / (last_s - first_s)


class _TransferDisplay(ABC):
    """Remembers the last word of each part, and ends with a line for each part that reached its end."""

    def __init__(self, environment: Environment, clock: Callable[[], float] = time.monotonic) -> None:
        self._environment = environment
        self._narrow = environment.width < _NARROW
        self._clock = clock
        self._started_s = clock()
        self._total: FetchProgress | None = None
        self._files: dict[str, FetchProgress] = {}
        self._moved_s: dict[str, float] = {}
        self._quantized: QuantizeProgress | None = None
        self._stage: LoadProgress | None = None
        self._speed = Speed(clock)
        self._first_bytes = 0

    def show(self, event: Event) -> None:
        match event:
            case Notice(text=text):
                self._erase()
                self._environment.status(text)
                return
            case FetchProgress():
                if self._total is None:
                    self._first_bytes, self._started_s = event.done_bytes, self._clock()
                self._total, self._stage = event, None
                self._files[event.file] = event
                self._moved_s[event.file] = self._clock()
                if event.file_done_bytes >= event.file_total_bytes:
                    del self._files[event.file]
                self._speed.add(event.done_bytes)
            case QuantizeProgress():
                self._quantized, self._stage = event, None
            case LoadProgress():
                self._stage = event
            case _:
                return
        self._draw()

    def close(self) -> None:
        self._erase()
        took = seconds_text(self._clock() - self._started_s)
        total, quantized = self._total, self._quantized
        self._total = self._quantized = None
        if total is not None and total.done_bytes >= total.total_bytes > self._first_bytes:
            self._environment.status(f"Fetched {bytes_text(total.done_bytes - self._first_bytes)} in {took}", "dim")
        if quantized is not None and quantized.done_tensors >= quantized.total_tensors:
            self._environment.status(f"Quantized {quantized.total_tensors} tensors, done after {took}", "dim")

    def _amount(self) -> str:
        """Of the whole download: how much of how much, how fast, how long still."""
        assert self._total is not None
        done_bytes, total_bytes = self._total.done_bytes, self._total.total_bytes
        parts = [self._part(done_bytes, total_bytes)]
        speed = self._speed.bytes_per_s
        if speed > 0 and done_bytes < total_bytes:
            parts += [] if self._narrow else [f"{bytes_text(int(speed))}/s"]
            parts += [f"{seconds_text((total_bytes - done_bytes) / speed)} left"]
        return ", ".join(parts)

    def _part(self, done_bytes: int, total_bytes: int) -> str:
        if self._narrow:
            return percent_text(done_bytes / max(total_bytes, 1))
        return f"{bytes_text(done_bytes)} of {bytes_text(total_bytes)}"

    @abstractmethod
    def _draw(self) -> None:
        """Shows how far everything is."""

    def _erase(self) -> None:  # noqa: B027, only what draws something that moves has something to erase
        """Leaves a clean line for other text."""


class TransferLines(_TransferDisplay):
    """For logs and dumb terminals: a line every few seconds."""

    _shown_s = -_LINE_EVERY_S

    def _draw(self) -> None:
        now_s = self._clock()
        if now_s - self._shown_s < _LINE_EVERY_S:
            return
        parts = []
        if self._total is not None and self._total.done_bytes < self._total.total_bytes:
            parts.append(f"Fetching: {self._amount()}")
        if self._quantized is not None:
            parts.append(f"Quantizing: {self._quantized.done_tensors} of {self._quantized.total_tensors} tensors")
        if not parts and self._stage is not None and self._stage.total:
            parts.append(f"{_title(self._stage)}: {self._stage.done} of {self._stage.total}")
        if parts:
            self._shown_s = now_s
            self._environment.status("; ".join(parts))


class TransferBars(_TransferDisplay):
    """For terminals: a bar for the whole, one for each file that is coming, one for the quantizing. In a narrow window
    shares stand in place of bars."""

    def __init__(self, environment: Environment, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(environment, clock)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def _draw(self) -> None:
        if self._bars is None:
            self._bars = _bars(self._environment, with_bars=not self._narrow)
            self._bars.start()
        shown = {}
        if self._total is not None and self._total.done_bytes < self._total.total_bytes:
            shown["Fetching"] = (self._total.done_bytes, self._total.total_bytes, self._amount())
        moving = [file for name, file in self._files.items() if self._clock() - self._moved_s[name] < _STILL_S]
        for file in moving:
            amount = self._part(file.file_done_bytes, file.file_total_bytes)
            name = file.file.removesuffix(".safetensors") if self._narrow else file.file
            shown["  " + visible(name)] = (file.file_done_bytes, file.file_total_bytes, amount)
        if self._quantized is not None and self._stage is None:
            part = self._quantized
            shown["Quantizing"] = (part.done_bytes, part.total_bytes, f"{part.done_tensors} of {part.total_tensors}")
        if self._stage is not None and not moving:
            shown[_title(self._stage)] = (self._stage.done, self._stage.total, "")
        for label in self._tasks.keys() - shown.keys():
            self._bars.remove_task(self._tasks.pop(label))
        for label, (done, total, amount) in shown.items():
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=total or None, amount=amount)
            self._bars.update(self._tasks[label], completed=done, total=total or None, amount=amount)

    def _erase(self) -> None:
        bars, self._bars = self._bars, None
        self._tasks.clear()
        if bars is not None:
            bars.stop()


def _title(stage: LoadProgress) -> str:
    return visible(stage.stage[:1].upper() + stage.stage[1:])


def _bars(environment: Environment, with_bars: bool) -> "Bars":
    """Rows of label, bar and amount; the label gives way first."""
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    bar = [BarColumn(bar_width=None, table_column=Column(ratio=2, min_width=6))] if with_bars else []
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=3)),
        *bar,
        TextColumn("{task.fields[amount]}", markup=False, table_column=Column(no_wrap=True)),
        console=environment.console(environment.stderr),
        expand=True,
        transient=True,
    )
