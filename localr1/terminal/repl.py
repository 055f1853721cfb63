"""The interactive conversation: reads a message, shows the turn, and again.

Owns the loop, the settings in force and what Ctrl-C means: it stops what goes on, and a second one leaves. The slash
commands are in `commands`. Needs of a conversation only what `talk.Conversation` says, so it runs with anything that
yields events. Invariant: an error of one turn ends that turn, never the conversation.
"""

import contextlib
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from localr1.errors import LocalR1Error
from localr1.events import AnswerText, Event, TurnEnd, Typed
from localr1.options import ConversationOptions, SamplingOptions, TerminalOptions
from localr1.quantities import bytes_text, context_text, count_text
from localr1.terminal.editor import editor, plain_reader, unquoted
from localr1.terminal.environment import Environment
from localr1.terminal.files import Attachment
from localr1.terminal.keyboard import TypedAhead
from localr1.terminal.render import pace, show_turn
from localr1.terminal.talk import Conversation, Leave, Talk, stopped_by_ctrl_c
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

_BEGINNING_LINES = 5
_COMMAND = re.compile(r"/([a-z-]*|\?)(?:\s+(.*))?", re.DOTALL | re.IGNORECASE)


@dataclass
class Settings:
    """What is in force from the next turn on."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    conversation: ConversationOptions = field(default_factory=ConversationOptions)
    terminal: TerminalOptions = field(default_factory=TerminalOptions)


@dataclass
class Host:
    """What the program around the conversation offers: its models, and where things are kept.

    `open_model` loads a model, showing how far it is, and gives a new conversation with it under its full name.
    `history_file` None keeps no typed messages, `folder` is that of saved conversations. `tools` show something of a
    model (`plan`, `bench`); `tell` puts an event among those of the running turn; `gpu_bytes` tells what of the GPU's
    memory is in use, and all of it, None without a GPU.
    """

    model: str = ""
    models: Callable[[], list[str]] = list
    open_model: Callable[[str, Settings], tuple[str, Conversation]] | None = None
    folder: Path | None = None
    history_file: Path | None = None
    tools: Mapping[str, Callable[[str], None]] = field(default_factory=dict)
    tell: Callable[[Event], None] = lambda event: None
    gpu_bytes: Callable[[], tuple[int, int] | None] = lambda: None


def answer(
    environment: Environment,
    stop: Callable[[], None],
    events: Iterator[Event],
    options: TerminalOptions,
    thoughts_hint: str = "",
) -> TurnEnd | None:
    """Shows one turn. Ctrl-C stops it, and what was answered stays in the conversation; a second one raises Leave."""
    with stopped_by_ctrl_c(stop):
        return show_turn(environment, events, options, thoughts_hint)


class Repl:
    """One interactive conversation on the environment's terminal."""

    def __init__(
        self,
        environment: Environment,
        talk: Talk,
        settings: Settings | None = None,
        host: Host | None = None,
        *,
        keys: "Input | None" = None,
        screen: "Output | None" = None,
    ) -> None:
        """`keys` and `screen` replace the terminal."""
        self.environment = environment
        self.talk = talk
        self.settings = settings or Settings()
        self.host = host or Host()
        self.attachments: list[Attachment] = []
        self.beginning = ""
        """What the next message begins with, to be edited."""
        self._keys, self._screen = keys, screen
        self._typed = TypedAhead(environment.stdin, environment.stdout, lambda text: self.host.tell(Typed(text)))
        self._interrupted = False

    def run(self) -> None:
        """Returns when the user leaves by Ctrl-D or /exit; raises Leave, or KeyboardInterrupt, by a second Ctrl-C."""
        self._greet()
        read_message = self._reader()
        try:
            while True:
                beginning, self.beginning = self.beginning, ""
                try:
                    text = read_message(beginning)
                except KeyboardInterrupt:
                    if self._interrupted:
                        raise
                    self._interrupted = True
                    self.say("Ctrl-C again leaves.")
                    continue
                except EOFError:
                    self.talk.keep()
                    return
                self._interrupted = False
                try:
                    if self._take(text):
                        self.talk.keep()
                        return
                except Leave:
                    raise
                except KeyboardInterrupt:
                    if self._interrupted:  # the answer had been stopped: this is the second one
                        raise
                    self._interrupted = True
                    self.say("Ctrl-C again leaves.")
                except LocalR1Error as error:
                    self.environment.error(error)
                if self.talk.untold:
                    self.say(self.talk.untold)
                    self.talk.untold = ""
        finally:
            self.talk.close()

    def ask(self, text: str) -> None:
        """One turn, with the files that were read for it."""
        message = "\n\n".join([*(attachment.message() for attachment in self.attachments), text])
        self.attachments.clear()
        self.show(self.talk.ask(message))

    def show(self, events: Iterator[Event]) -> None:
        with contextlib.nullcontext() if self.by_line else self._typed.listening():
            end = answer(self.environment, self._stop, events, self.settings.terminal, "/thoughts shows them")
        self._interrupted = end is not None and end.reason == "interrupted"

    def _stop(self) -> None:
        self._interrupted = True
        self._typed.forget()
        self.talk.conversation.stop()

    @property
    def by_line(self) -> bool:
        """Whether messages are read line by line, as the terminal has them."""
        return self.environment.dumb or self.environment.plain

    def say(self, text: str) -> None:
        """A line of the program's own."""
        self.environment.status(text, "dim")

    def configure(
        self, sampling: SamplingOptions | None = None, conversation: ConversationOptions | None = None
    ) -> None:
        """Other settings from now on; where the conversation refuses them, they stay as they were."""
        settings = self.settings
        sampling, conversation = sampling or settings.sampling, conversation or settings.conversation
        self.talk.conversation.configure(sampling, conversation)
        settings.sampling, settings.conversation = sampling, conversation

    def bar(self) -> str:
        """`nano · context 512/4,096 · 21.4 tokens/s · 1.7 a step · RAM 1.2 GB`."""
        parts = [visible(_short_name(self.host.model))]
        if self.talk.context[1]:
            parts.append(context_text(*self.talk.context))
        if self.talk.last_end is not None:
            parts += pace(self.talk.last_end)
        if (gpu := self.host.gpu_bytes()) is not None:
            parts.append(f"GPU {bytes_text(gpu[0])} of {bytes_text(gpu[1])}")
        parts.append(f"RAM {bytes_text(_memory_bytes())}")
        if self.attachments:
            parts.append("with " + ", ".join(visible(attachment.name) for attachment in self.attachments))
        return " " + self.environment.glyph(" · ", " - ").join(filter(None, parts))

    def _greet(self) -> None:
        self.say(f"{self.host.model}  Type a message; /help lists the commands, Ctrl-D leaves.")
        for turn in self.talk.turns[-1:]:
            count = len(self.talk.turns)
            self.say(f"Resumed after {count} turn{'s' if count > 1 else ''}. {self.talk.recalled}".rstrip())
            self.say(_beginning(f"{self.environment.glyph('❯', '>')} {turn.question.strip()}", self.environment))
            show_turn(self.environment, [AnswerText(turn.answer)], self.settings.terminal)

    def _take(self, text: str) -> bool:
        """Does what the message asks for; True to leave. A path like /usr/bin starts no command."""
        from localr1.terminal.commands import find_command

        match = _COMMAND.fullmatch(text.strip())
        if match:
            command = find_command(match[1].lower())
            return command.run(self, (match[2] or "").strip())
        message = unquoted(text)
        if message or (self.attachments and text.strip()):
            self.ask(message)
        return False

    def _reader(self) -> Callable[[str], str]:
        if self.by_line:
            return plain_reader(self.environment)
        from localr1.terminal.commands import COMMANDS, arguments_of

        descriptions: Mapping[str, str] = {name: command.help for name, command in COMMANDS.items()}
        return editor(
            self.environment,
            self.settings.terminal,
            descriptions,
            lambda name: arguments_of(self, name),
            self.bar,
            self._typed.take,
            self.host.history_file,
            self._keys,
            self._screen,
        )


def _beginning(text: str, environment: Environment) -> str:
    """Its first lines as they are, broken where the window ends, and how many more there are."""
    lines = [part for line in visible(text).split("\n") for part in textwrap.wrap(line, environment.width) or [""]]
    left = len(lines) - _BEGINNING_LINES
    if left > 1:
        lines[_BEGINNING_LINES:] = [f"{environment.glyph('…', '...')} and {count_text(left, 'more line')}"]
    return "\n".join(lines)


def _short_name(model: str) -> str:
    """A repository or folder without those around it."""
    return model.rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def _memory_bytes() -> int:
    """What this process holds in RAM, mapped weights that are resident included."""
    import psutil

    return int(psutil.Process().memory_info().rss)
