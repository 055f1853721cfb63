"""Shows one turn of a conversation as it comes: thoughts, the answer, and a last line of figures.

Owns where each kind of text goes and how the parts are set apart. Does not know how the text is made. Invariants: only
the answer is ever written to a stdout that is not a terminal, and there as it is; what is written to a terminal has
gone through `visible`, so a model cannot drive it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TextIO

from localr1.events import AnswerText, Event, Notice, ReasoningText, ThoughtEnd, TurnEnd, Typed
from localr1.options import TerminalOptions
from localr1.quantities import context_text, count_text, rate_text, thought_line
from localr1.terminal.environment import Environment
from localr1.terminal.progress import Display, open_display
from localr1.terminal.stops import aside_while_stopped
from localr1.terminal.visible import VisibleStream

_WHY_STOPPED = {
    "max_tokens": "stopped by --max-tokens",
    "context": "the context is full",
    "interrupted": "interrupted",
}
_WORTH_SAYING = 1.05
"""Tokens a step below this are those of a model that does not guess."""
_DEFAULTS = TerminalOptions()


class View(Protocol):
    """How the texts of one turn are shown."""

    def thought(self, text: str) -> None: ...

    def end_thought(self, tokens: int, duration_s: float) -> None:
        """The thoughts so far are all there are; may come again after a later thought."""

    def answer(self, text: str) -> None: ...

    def typed(self, text: str) -> None:
        """This is all that was typed while the turn went on."""

    def clear(self) -> None:
        """Takes away what is still to change; it comes again with the next piece."""

    def close(self) -> None:
        """Shows what is left and ends the line; also after an error, and more than once."""


def show_turn(
    environment: Environment,
    events: Iterable[Event],
    options: TerminalOptions = _DEFAULTS,
    thoughts_hint: str = "",
) -> TurnEnd | None:
    """Shows the events of one turn; returns the last one. Also closes what it wrote when an event raises.

    `thoughts_hint` says how to see thoughts that were folded.
    """
    end = None
    display = open_display(environment)
    view = open_view(environment, options, thoughts_hint)

    try:
        with aside_while_stopped(lambda: _cleared(display, view)):
            for event in events:
                if isinstance(event, TurnEnd):
                    end = event
                else:
                    _show(display, view, event)
    finally:
        display.close()
        view.close()
    if end is not None:
        environment.status(statistics_line(environment, end), "dim")
    return end


def _show(display: Display, view: View, event: Event) -> None:
    if isinstance(event, ReasoningText):
        display.close()
        view.thought(event.text)
    elif isinstance(event, ThoughtEnd):
        view.end_thought(event.tokens, event.duration_s)
    elif isinstance(event, AnswerText):
        display.close()
        view.answer(event.text)
    elif isinstance(event, Typed):
        view.typed(event.text)
    else:
        if isinstance(event, Notice):
            view.close()
        display.show(event)


@contextmanager
def _cleared(display: Display, view: View) -> Iterator[None]:
    with suppress(RuntimeError):  # it is being drawn at this moment, which lets no other writing through
        display.close()
    view.clear()
    yield


def open_view(environment: Environment, options: TerminalOptions, thoughts_hint: str = "") -> View:
    """Markdown, redrawn in place, where the terminal can; else the text as it comes."""
    if environment.redraws and not environment.plain:
        from localr1.terminal.rich_view import RichView

        return RichView(environment, options, thoughts_hint=thoughts_hint)
    return PlainView(environment, options)


def pace(end: TurnEnd) -> list[str]:
    """`21.4 tokens/s`, and `1.7 a step` of a model that guesses; what is not known is left out."""
    rate, step = end.decode_tokens_per_s, end.tokens_per_step
    return [rate_text(rate)] * (rate > 0) + [f"{step:.1f} a step"] * (step >= _WORTH_SAYING)


def statistics_line(environment: Environment, end: TurnEnd) -> str:
    """`118 tokens · 21.4 tokens/s · context 512/4,096`, with the reason first when the model did not stop by itself."""
    parts = [_WHY_STOPPED[end.reason]] if end.reason in _WHY_STOPPED else []
    tokens = count_text(end.generated_tokens, "token")
    if end.reasoning_tokens:
        tokens += f" ({end.reasoning_tokens:,} of thought)"
    parts.append(tokens)
    parts += pace(end)
    if end.context_limit_tokens:
        parts.append(context_text(end.context_tokens, end.context_limit_tokens))
    return environment.glyph(" · ", " - ").join(parts)


class PlainView:
    """Text as it comes, thoughts dim; in a pipe the answer alone goes to stdout, the thoughts to stderr."""

    def __init__(self, environment: Environment, options: TerminalOptions) -> None:
        self._environment = environment
        self._hides = options.thoughts == "hide"
        stdout = environment.stdout
        self._thoughts = _Part(environment, stdout if stdout.isatty() else environment.stderr, dim=True)
        self._answer = _Part(environment, stdout, dim=False)

    def thought(self, text: str) -> None:
        if not self._hides:
            self._thoughts.write(text)

    def end_thought(self, tokens: int, duration_s: float) -> None:
        if self._hides:
            self._environment.status(thought_line(tokens, duration_s), "dim")

    def answer(self, text: str) -> None:
        self._thoughts.close(blank_line=True)
        self._answer.write(text)

    def typed(self, text: str) -> None:
        """Not shown: it would stand in the middle of the text."""

    def clear(self) -> None:
        """Nothing of it will change."""

    def close(self) -> None:
        self._thoughts.close()
        self._answer.close()


class _Part:
    """Text of one kind on one stream: no blank lines before it, a line end after it."""

    def __init__(self, environment: Environment, stream: TextIO, dim: bool) -> None:
        self._environment, self._stream = environment, stream
        self._dim = dim and environment.styled(stream)
        # A file gets the answer's own characters; a log of thoughts on stderr is for reading, wherever it goes.
        self._visible = VisibleStream() if dim or stream.isatty() else None
        self._last = ""

    def write(self, text: str) -> None:
        shown = self._visible.push(text) if self._visible else text
        if not self._last:
            shown = shown.lstrip("\r\n")
        if shown:
            self._last = shown[-1]
            self._stream.write(f"\x1b[2m{shown}\x1b[0m" if self._dim else shown)
            self._stream.flush()

    def close(self, blank_line: bool = False) -> None:
        """Ends the line once something was written; later calls do nothing."""
        if not self._last:
            return
        held = self._visible.flush() if self._visible else ""
        line_end = "" if (held or self._last).endswith("\n") else "\n"
        self._stream.write(held + line_end + ("\n" if blank_line else ""))
        self._stream.flush()
        self._last = ""
        if self._stream is self._environment.stdout:
            self._environment.give_way()
