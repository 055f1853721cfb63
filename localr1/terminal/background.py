"""Slow work on a thread of its own, so that whoever sits at the keyboard is never kept waiting.

Owns that thread, and what happens when a person stops work that cannot stop at once (a kernel, a compilation, an
import): it is waited for a moment, then left behind to end by itself. Knows nothing of the work. Invariants: all work
is done on the one thread, a piece at a time and in order; what was left behind ends before anything else begins.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from localr1.errors import LocalR1Error
from localr1.events import AnswerText, Event, PrefillProgress, Progress, ReasoningText, TurnEnd
from localr1.options import ConversationOptions, SamplingOptions

if TYPE_CHECKING:
    from localr1.terminal.talk import Conversation

PATIENCE_S = 0.05
_LOOK_UP_S = 0.5

T = TypeVar("T")


class LeftBehind(Exception):
    """The work was stopped and did not end within `PATIENCE_S`; if it was `begun`, it goes on until it notices."""

    def __init__(self, begun: "_Task | None" = None) -> None:
        super().__init__()
        self.begun = begun


class _End:
    def __init__(self, value: Any) -> None:
        self.value = value


class _Hurry:
    pass


class _Task:
    """An operation under way; `replies` are its events, then an _End or what it raised."""

    def __init__(self, operation: Progress[Any]) -> None:
        self.operation = operation
        self.replies: SimpleQueue[object] = SimpleQueue()
        self.unwanted = False
        self._begun = False
        self._beginning = threading.Lock()

    def leave(self) -> bool:
        """Have it end by itself, and all its replies kept, if it has begun; else it never will."""
        with self._beginning:
            self.unwanted = not self._begun
            return self._begun

    def work(self) -> None:
        with self._beginning:
            self._begun = not self.unwanted
        try:
            while not self.unwanted:
                self.replies.put(next(self.operation))
            self.operation.close()
        except StopIteration as end:
            self.replies.put(_End(end.value))
        except BaseException as error:
            self.replies.put(error)


class Background:
    """Runs operations; the thread ends with the process."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self._thread: _Thread | None = None
        self._current: _Task | None = None

    def run(self, operation: Progress[T]) -> Progress[T]:
        """The operation's events and result. LeftBehind when it does not end soon after `hurry`."""
        task = self._current = _Task(operation)
        if self._thread is None:
            self._thread = _Thread(self._tasks)
            self._thread.start()
        self._tasks.put(task)
        try:
            result: T = yield from self.rest(task)
        except LeftBehind:
            raise
        except BaseException:
            task.unwanted = True
            raise
        return result

    def rest(self, task: "_Task") -> Progress[Any]:
        """What is still to come of a task that was begun by `run`."""
        deadline_s: float | None = None
        while True:
            # Bounded waits, so that Ctrl-C is noticed on Windows too.
            with suppress(Empty):
                reply = task.replies.get(timeout=_LOOK_UP_S if deadline_s is None else PATIENCE_S / 4)
                if isinstance(reply, _End):
                    return reply.value
                if isinstance(reply, BaseException):
                    try:
                        raise reply
                    finally:
                        del reply  # it holds this frame, and whatever failed: a model, perhaps
                if isinstance(reply, _Hurry):
                    deadline_s = deadline_s or time.monotonic() + PATIENCE_S
                else:
                    yield reply  # type: ignore[misc]
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise LeftBehind(task if task.leave() else None)

    def call(self, function: Callable[[], T]) -> T:
        """What the function returns or raises, once what was left behind has ended."""
        operation = self.run(_calling(function))
        try:
            next(operation)
        except StopIteration as end:
            result: T = end.value
            return result
        raise AssertionError("a call has no events")

    @property
    def idle(self) -> bool:
        """Whether what was begun has ended, or ends in a moment."""
        return self._thread is None or self._thread.idle.wait(PATIENCE_S)

    def tell(self, event: Event) -> None:
        """Comes next among the events of the running operation. Called from any thread."""
        if self._current is not None:
            self._current.replies.put(event)

    def hurry(self) -> None:
        """The running operation was told to stop: do not wait much longer for it. Safe in a signal handler."""
        if self._current is not None:
            self._current.replies.put(_Hurry())


class BackgroundConversation:
    """A conversation whose turns are made in the background; stopped, it ends within about `PATIENCE_S`."""

    def __init__(self, conversation: "Conversation", background: Background) -> None:
        self._conversation, self._background = conversation, background
        self._left: _Task | None = None

    def ask(self, text: str) -> Iterator[Event]:
        return self._events(self._conversation.ask(text))

    def go_on(self) -> Iterator[Event]:
        return self._events(self._conversation.go_on())

    def stop(self) -> None:
        self._conversation.stop()
        self._background.hurry()

    def settle(self) -> Iterator[Event]:
        if self._left is not None:
            try:
                yield from self._background.rest(self._left)
            except LeftBehind:
                raise
            except Exception:
                self._left = None
                raise
            self._left = None

    def clear(self) -> None:
        self._background.call(self._conversation.clear)

    def undo(self) -> bool:
        return self._background.call(self._conversation.undo)

    def resume(self, turns: list[tuple[str, str]]) -> None:
        self._background.call(lambda: self._conversation.resume(turns))

    def keep(self, path: Path) -> int:
        """Nothing is kept while work goes on that was left behind, since nobody shall wait for it."""
        return self._background.call(lambda: self._conversation.keep(path)) if self._background.idle else 0

    def recall(self, path: Path) -> tuple[int, int]:
        return self._background.call(lambda: self._conversation.recall(path))

    def context(self) -> tuple[int, int]:
        return self._background.call(self._conversation.context)

    def configure(self, sampling: SamplingOptions, options: ConversationOptions) -> None:
        self._background.call(lambda: self._conversation.configure(sampling, options))

    def sampling(self) -> SamplingOptions:
        return self._conversation.sampling()

    def _events(self, turn: Iterator[Event]) -> Iterator[Event]:
        """The turn's events; where it was left behind, an end that says what was seen of it. LocalR1Error where it was
        not even begun, since what was stopped before had not ended."""
        prompt_tokens = pieces = thoughts = 0
        started_s = time.monotonic()
        prefilled_s: float | None = None
        try:
            for event in self._background.run(_operation(turn)):
                if isinstance(event, PrefillProgress):
                    prompt_tokens = event.total_tokens
                elif isinstance(event, ReasoningText | AnswerText):
                    prefilled_s = prefilled_s or time.monotonic() - started_s
                    pieces += 1
                    thoughts += isinstance(event, ReasoningText)
                yield event
        except LeftBehind as left:
            if left.begun is None:
                raise LocalR1Error("what was stopped before is still ending", "try again in a moment") from None
            self._left = left.begun
            took_s = time.monotonic() - started_s
            prefill_s = took_s if prefilled_s is None else prefilled_s
            yield TurnEnd("interrupted", prompt_tokens, 0, pieces, thoughts, prefill_s, took_s - prefill_s, 0, 0)


def _operation(events: Iterator[Event]) -> Progress[None]:
    yield from events


def _calling(function: Callable[[], T]) -> Progress[T]:
    return function()
    yield


class _Thread(threading.Thread):
    def __init__(self, tasks: SimpleQueue[_Task]) -> None:
        super().__init__(name="background", daemon=True)
        self._tasks = tasks
        self.idle = threading.Event()
        self.idle.set()

    def run(self) -> None:
        while True:
            task = self._tasks.get()
            self.idle.clear()
            task.work()
            self.idle.set()


def is_anything_left_behind() -> bool:
    """Whether work is still going on that Python, taking itself down at the end, must not meet."""
    return any(isinstance(thread, _Thread) and not thread.idle.is_set() for thread in threading.enumerate())
