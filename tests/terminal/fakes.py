"""Streams and conversations that stand in for a terminal and a model."""

import io
import signal
from collections.abc import Callable, Iterator

from localr1.errors import LocalR1Error
from localr1.events import AnswerText, Event, PrefillProgress, TurnEnd
from localr1.options import SamplingOptions
from localr1.terminal.environment import Environment


class Stream(io.StringIO):
    """Text in memory that may claim to be a terminal, with an encoding of choice."""

    def __init__(self, text: str = "", tty: bool = False, encoding: str = "utf-8") -> None:
        super().__init__(text)
        self._tty = tty
        self._encoding = encoding

    def isatty(self) -> bool:
        return self._tty

    @property
    def encoding(self) -> str:
        return self._encoding


def environment(
    stdin: str = "", *, tty: str = "", encoding: str = "utf-8", plain: bool = False, **variables: str
) -> Environment:
    """`tty` names the streams that are terminals: "i", "o", "e", or any of them together."""
    return Environment(
        Stream(stdin, "i" in tty), Stream("", "o" in tty, encoding), Stream("", "e" in tty, encoding), variables, plain
    )


def out(shown_on: Environment) -> str:
    """What is on stdout, but for the marks of live lines, which do not wrap."""
    return shown_on.stdout.getvalue().replace("\x1b[?7l", "").replace("\x1b[?7h", "")


def err(shown_on: Environment) -> str:
    return shown_on.stderr.getvalue()


def turn_end(**changes) -> TurnEnd:
    values = {
        "reason": "end",
        "prompt_tokens": 30,
        "cached_tokens": 0,
        "generated_tokens": 11,
        "reasoning_tokens": 0,
        "prefill_s": 0.5,
        "decode_s": 0.5,
        "context_tokens": 41,
        "context_limit_tokens": 4096,
    }
    return TurnEnd(**(values | changes))


class FakeConversation:
    """Answers with the text asked, or as told; Ctrl-C can be raised between the pieces of an answer."""

    def __init__(self, answers: dict[str, list[Event] | LocalR1Error] | None = None) -> None:
        self.answers = answers or {}
        self.asked: list[str] = []
        self.stops = 0
        self.cleared = 0
        self.history: list[tuple[str, str]] = []
        self.configured: list[tuple] = []
        self.before_piece: Callable[[int], None] = lambda piece: None

    def ask(self, text: str) -> Iterator[Event]:
        self.asked.append(text)
        answer = self.answers.get(text, [AnswerText(f"You said {text!r}.")])
        stops_before = self.stops
        yield PrefillProgress(len(text), len(text))
        if isinstance(answer, LocalR1Error):
            raise answer
        for piece, event in enumerate(answer):
            self.before_piece(piece)
            if self.stops > stops_before:
                yield turn_end(reason="interrupted", generated_tokens=piece)
                return
            yield event
        self.history.append((text, ""))
        yield turn_end()

    def stop(self) -> None:
        self.stops += 1

    def settle(self) -> Iterator[Event]:
        return iter(())

    def go_on(self) -> Iterator[Event]:
        yield AnswerText(" and so on.")
        yield turn_end()

    def clear(self) -> None:
        self.cleared += 1
        self.history.clear()

    def undo(self) -> bool:
        del self.history[-1:]
        return bool(self.history)

    def resume(self, turns) -> None:
        self.history = list(turns)

    def keep(self, path) -> int:
        path.write_text(str(len(self.asked)))
        return 10

    def recall(self, path):
        return 10 * int(path.read_text()), 30

    def context(self) -> tuple[int, int]:
        return 10 * len(self.history), 4096

    def configure(self, sampling, options) -> None:
        self.configured.append((sampling, options))

    def sampling(self):
        return SamplingOptions(temperature=0.6, top_p=0.95, top_k=0, min_p=0.0)


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)
