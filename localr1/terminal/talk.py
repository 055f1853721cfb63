"""One conversation as the person at the terminal has it: what was said, kept in memory and, if wanted, on disk.

Owns the turns with their thoughts, and that every piece is recorded as it passes. Does not know models or how a turn
is shown. Invariant: `turns`, the file and the conversation's own history tell the same.
"""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Protocol

from localr1.chat.history import Recorder, Said, kept_cache
from localr1.errors import DiskError, LocalR1Error, UsageError
from localr1.events import AnswerText, Event, Notice, ReasoningText, TurnEnd
from localr1.options import ConversationOptions, SamplingOptions
from localr1.quantities import count_text
from localr1.terminal.background import LeftBehind


class Conversation(Protocol):
    """What a conversation must offer to be held here."""

    def ask(self, text: str) -> Iterator[Event]:
        """The events of one turn, TurnEnd last."""

    def go_on(self) -> Iterator[Event]:
        """The same for what is left of the last answer."""

    def stop(self) -> None:
        """Ends the running turn soon; called from a signal handler."""

    def settle(self) -> Iterator[Event]:
        """What still comes of a turn that was left behind, when it has ended. Raises what that raised, and LeftBehind
        when it is stopped again meanwhile."""

    def clear(self) -> None:
        """Forgets all turns."""

    def undo(self) -> bool:
        """Forgets the last turn; whether it knows one before that."""

    def resume(self, turns: list[tuple[str, str]]) -> None:
        """Has these questions and answers as its history."""

    def keep(self, path: Path) -> int:
        """Keeps at `path` what saves reading again what was said, if that is cheap; how many tokens of it."""

    def recall(self, path: Path) -> tuple[int, int]:
        """Takes back what was kept; how many tokens of what was said that spares, and of how many."""

    def context(self) -> tuple[int, int]:
        """Tokens that what was said takes in the next prompt, and how many there is room for."""

    def configure(self, sampling: SamplingOptions, options: ConversationOptions) -> None:
        """Has these settings from the next turn on."""

    def sampling(self) -> SamplingOptions:
        """How tokens are chosen: the settings, and what the model recommends where they are open."""


class Talk:
    """A conversation and its record; `recorder` None keeps nothing."""

    def __init__(
        self, conversation: Conversation, recorder: Recorder | None = None, turns: list[Said] | None = None
    ) -> None:
        self.conversation = conversation
        self.recorder = recorder
        self.turns = turns or []
        self.ends: list[TurnEnd] = []
        self.recalled = ""
        self.untold = ""
        """What is still to be told of a change that could not be recorded."""
        self.context = (0, 0)
        """Tokens that the conversation takes, and may; 0 and 0 where that is not known."""
        self._asked = False
        if self.turns:
            self.move_to(conversation)

    @property
    def last(self) -> Said:
        """The last turn. UsageError when nothing was said yet."""
        if not self.turns:
            raise UsageError("nothing was said yet", "type a message first")
        return self.turns[-1]

    @property
    def last_end(self) -> TurnEnd | None:
        """The figures of the last answer."""
        return self.ends[-1] if self.ends else None

    def ask(self, text: str) -> Iterator[Event]:
        """One turn, recorded as it passes. A question that is refused leaves no trace."""
        self.settle()
        turn, self._asked = Said(text), True
        self.turns.append(turn)
        yield from self._record(lambda recorder: recorder.question(text))
        try:
            yield from self._pass(self.conversation.ask(text), turn)
        except Exception:
            if not turn.answer and not turn.thought:
                self.turns.remove(turn)
                self._change("undo")
            raise

    def go_on(self) -> Iterator[Event]:
        """What is left of the last answer. UsageError where it is complete, however it came to be the last."""
        yield from self._settled()
        if self.last.reason == "end":
            raise UsageError("the answer is complete", "ask for more in your own words, or /retry for another")
        self._asked = False
        yield from self._pass(self.conversation.go_on(), self.last)

    def retry(self) -> Iterator[Event]:
        """The last question once more; where it is refused now, the turn is as it was."""
        turn, before = self.undo(), len(self.turns)
        try:
            yield from self.ask(turn.question)
        except Exception:
            if len(self.turns) == before:
                self.turns.append(turn)
                self._resume(self.conversation)
                yield from self._record(lambda recorder: recorder.turn(turn))
            raise

    def undo(self) -> Said:
        """Forgets the last turn and hands it back."""
        self.settle()
        turn = self.last
        knows_more = self.conversation.undo()
        self.turns.pop()
        if self.turns and not knows_more:  # a context that slides forgot those
            self._resume(self.conversation)
        self._recount()
        self._change("undo")
        return turn

    def clear(self) -> None:
        self.settle()
        self.conversation.clear()
        self.turns.clear()
        self.ends.clear()
        self._recount()
        self._change("clear")

    def move_to(self, conversation: Conversation, model: str = "") -> None:
        """What was said goes on with another model's conversation."""
        self.settle()
        self._resume(conversation)
        self.conversation = conversation
        self._recount()
        if model:
            self._change("model", name=model)

    def set_system(self, system: str | None) -> None:
        self._recount()
        self._change("system", text=system)

    def settle(self) -> None:
        """Waits for a turn that was left behind, and takes in what still came of it."""
        for _ in self._settled():
            pass

    def _settled(self) -> Iterator[Event]:
        """As it comes. A question that failed then, with nothing said, leaves no trace."""
        turn = self.turns[-1] if self.turns else Said("")
        try:
            for event in self.conversation.settle():
                if isinstance(event, TurnEnd):
                    self.context = event.context_tokens, event.context_limit_tokens
                    if event.reason == "end":
                        turn.reason = event.reason
                        yield from self._record(lambda recorder: recorder.end("end", 0))
                else:
                    yield from self._take(event, turn)
        except LeftBehind:
            raise LocalR1Error("what was stopped before is still ending", "try again in a moment") from None
        except Exception:
            if self._asked and self.turns and not turn.answer and not turn.thought:
                self.turns.remove(turn)
                self._change("undo")
        if self.recorder:
            with contextlib.suppress(DiskError):
                self.recorder.flush()

    def _resume(self, conversation: Conversation) -> None:
        conversation.resume([(turn.question, turn.answer) for turn in self.turns])

    def _recount(self) -> None:
        """The conversation is another now, of which no answer has told yet what it takes."""
        self.context = (0, 0)
        if self.turns:
            with contextlib.suppress(LocalR1Error):
                self.context = self.conversation.context()

    def keep(self) -> None:
        """Before the conversation is left: has its cache kept beside its record."""
        if self.recorder and self.recorder.path and not self.recorder.failed:
            with contextlib.suppress(LocalR1Error):
                self.conversation.keep(kept_cache(self.recorder.path))

    def recall(self, path: Path) -> None:
        """Has the cache that was kept beside the record at `path`; `recalled` says in words what came of it."""
        self.recalled = ""
        if not kept_cache(path).exists():
            return
        try:
            spared, tokens = self.conversation.recall(kept_cache(path))
        except LocalR1Error as error:
            self.recalled = f"It will be read again: {error.message}."
        else:
            self.recalled = f"{spared:,} of its {count_text(tokens, 'token')} need not be read again."

    def close(self) -> None:
        if self.recorder:
            self.recorder.close()

    def _change(self, kind: str, **values: str | None) -> None:
        if self.recorder:
            try:
                self.recorder.change(kind, **values)
            except DiskError as error:
                self.untold = f"{error.message}; {error.hint}"

    def _pass(self, events: Iterator[Event], turn: Said) -> Iterator[Event]:
        try:
            for event in events:
                yield from self._take(event, turn)
        finally:
            if self.recorder:
                try:
                    self.recorder.flush()
                except DiskError as error:
                    self.untold = f"{error.message}; {error.hint}"

    def _take(self, event: Event, turn: Said) -> Iterator[Event]:
        """An event of a turn, recorded."""
        if isinstance(event, ReasoningText):
            turn.thought += event.text
            yield from self._record(partial(Recorder.piece, kind="thought", text=event.text))
        elif isinstance(event, AnswerText):
            turn.answer += event.text
            yield from self._record(partial(Recorder.piece, kind="answer", text=event.text))
        elif isinstance(event, TurnEnd):
            self._ended(event, turn)
            yield from self._record(partial(Recorder.end, reason=event.reason, tokens=event.generated_tokens))
        yield event

    def _record(self, write: Callable[[Recorder], None]) -> Iterator[Notice]:
        """Have this written; where it cannot be, say so once and go on without."""
        if self.recorder:
            try:
                write(self.recorder)
            except DiskError as error:
                yield Notice(f"{error.message}; {error.hint}")

    def _ended(self, end: TurnEnd, turn: Said) -> None:
        self.ends.append(end)
        self.context = end.context_tokens, end.context_limit_tokens
        turn.reason = end.reason
        turn.tokens += end.generated_tokens


def as_markdown(turns: list[Said], model: str, system: str | None) -> str:
    """The conversation for reading: questions as quotes, answers as they are, thoughts left out."""
    parts = [f"# {turns[0].question.strip().partition(chr(10))[0][:80]}" if turns else "# (empty)", f"*{model}*"]
    if system:
        parts.append(f"**System:** {system}")
    for turn in turns:
        parts.append("\n".join(f"> {line}".rstrip() for line in turn.question.strip().split("\n")))
        parts.append(turn.answer.strip() or "*(no answer)*")
    return "\n\n".join(parts) + "\n"


def as_json(turns: list[Said], model: str, system: str | None) -> str:
    """The conversation for programs, thoughts included."""
    record = {"model": model, "system": system, "turns": [asdict(turn) for turn in turns]}
    return json.dumps(record, ensure_ascii=False, indent=2) + "\n"


class Leave(KeyboardInterrupt):
    """A second Ctrl-C: not only what goes on is to end, but the program."""


@contextmanager
def stopped_by_ctrl_c(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C stops, a second one raises Leave. Only in a process's main thread."""

    def on_second_interrupt(signal_number: int, frame: object) -> None:
        raise Leave

    def on_interrupt(signal_number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, on_second_interrupt)
        stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, before)
