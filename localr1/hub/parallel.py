"""Several slow jobs at once, told of as one stream of what happens.

Owns the threads and the queue between them and whoever asks. Knows nothing of files or networks. Invariants: at most
`width` jobs run at a time, they start in order, and after `close` none does anything more.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Thread

from localr1.events import Notice

Job = Callable[[], Generator[int | Notice, None, Path]]
"""Yields how many bytes it has, and notices; returns where the whole is."""

REPORT_EVERY_S = 0.05
LAST_WORDS_S = 1.0
LOOK_UP_S = 0.5


@dataclass(frozen=True)
class Report:
    """What job number `index` says: bytes so far, a notice, the path of the whole, or why it failed."""

    index: int
    news: int | Notice | Path | BaseException


class Parallel:
    """Jobs that run while nobody looks; `next_reports` says what they did and starts more."""

    def __init__(self, jobs: Sequence[Job], width: int, may_start: Callable[[int, bool], bool]) -> None:
        """`may_start(index, idle)` says whether the next job may start now; `idle`: nothing runs or is unreported."""
        self._jobs, self._width, self._may_start = jobs, width, may_start
        self._queue: SimpleQueue[Report] = SimpleQueue()
        self._stop = Flag()
        self._threads: dict[int, Thread] = {}
        self._next = 0

    @property
    def finished(self) -> bool:
        return self._next == len(self._jobs) and not self._threads

    def next_reports(self, wait: bool) -> list[Report]:
        """What happened since the last call; with `wait`, not before there is something to tell."""
        self._start_more(idle=False)
        reports: list[Report] = []
        while not reports and not self.finished:
            if not self._threads and self._queue.empty():
                if not wait:
                    break
                self._start_more(idle=True)
            reports = self._drain(wait)
            self._start_more(idle=False)
            if not wait:
                break
        return reports

    def close(self) -> None:
        """Stop all jobs; one that hangs in the network is left to find out by itself that it is not wanted."""
        self._stop.set()
        deadline_s = time.monotonic() + LAST_WORDS_S
        for thread in self._threads.values():
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _start_more(self, idle: bool) -> None:
        while self._next < len(self._jobs) and len(self._threads) < self._width and self._may_start(self._next, idle):
            thread = Thread(target=self._run, args=(self._next,), daemon=True)
            thread.start()  # first, since a Ctrl-C may come now, and `close` cannot wait for one that never ran
            self._threads[self._next] = thread
            self._next += 1
            idle = False

    def _drain(self, wait: bool) -> list[Report]:
        reports = []
        with suppress(Empty):
            # A bounded wait, so that Ctrl-C is noticed on Windows too.
            reports.append(self._queue.get(timeout=LOOK_UP_S) if wait else self._queue.get_nowait())
            while True:
                reports.append(self._queue.get_nowait())
        for report in reports:
            if isinstance(report.news, Path | BaseException):
                self._threads.pop(report.index).join()
        return reports

    def _run(self, index: int) -> None:
        try:
            told_s = 0.0
            with closing(self._jobs[index]()) as job:
                while not self._stop.is_set():
                    news = next(job)
                    now_s = time.monotonic()
                    if isinstance(news, Notice) or now_s - told_s >= REPORT_EVERY_S:
                        told_s = now_s
                        self._queue.put(Report(index, news))
        except StopIteration as end:
            self._queue.put(Report(index, end.value))
        except BaseException as error:
            self._queue.put(Report(index, error))
