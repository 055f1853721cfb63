"""Reads messages: with editing keys, history, completion and a bottom bar, or line by line where that cannot be.

Owns keys and completion. Does not know what commands do. Invariant: a message comes back whole, lines and all, and
Ctrl-D on an empty line raises EOFError, Ctrl-C KeyboardInterrupt; on another line it empties that.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from localr1.options import TerminalOptions
from localr1.terminal.environment import Environment
from localr1.terminal.keyboard import TypedLines

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPress
    from prompt_toolkit.output import Output

QUOTES = '"""'
MENU_ROWS = 5
FEWEST_ROWS = 3
"""The message, the line of facts, and one to spare."""
_PASTE_BEGINS, _PASTE_ENDS = "\x1b[200~", "\x1b[201~"

ReadMessage = Callable[[str], str]
"""Takes what the line holds at first, hands back the message."""


def plain_reader(environment: Environment) -> ReadMessage:
    """Reads a line as it is; three quotation marks open a message of several lines and close it."""
    typed = TypedLines(environment.stdin, environment.stdout)

    def read_line(prompt: str) -> str:
        try:
            return typed.read(prompt)
        except (KeyboardInterrupt, EOFError):
            environment.stdout.write("\n")  # below the line that it ended
            raise

    def read_message(beginning: str) -> str:
        for line in beginning.splitlines():
            environment.status(line, "dim")
        lines = [read_line(environment.glyph("❯ ", "> "))]
        while is_open("\n".join(lines)):
            lines.append(read_line("... "))
        return "\n".join(lines)

    return read_message


def editor(
    environment: Environment,
    options: TerminalOptions,
    commands: Mapping[str, str],
    arguments: Callable[[str], Iterable[str]],
    bar: Callable[[], str],
    typed_ahead: Callable[[], str],
    history_file: Path | None,
    keys: "Input | None" = None,
    screen: "Output | None" = None,
) -> ReadMessage:
    """`commands` are names and descriptions, `arguments` what may follow one; `bar` says what the bottom line shows,
    `typed_ahead` what was typed since the last message.

    `history_file` None keeps the messages of this run only.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.enums import EditingMode
    from prompt_toolkit.input.typeahead import get_typeahead
    from prompt_toolkit.output.color_depth import ColorDepth
    from prompt_toolkit.styles import Style

    arrow = environment.glyph("❯ ", "> ")
    session: PromptSession[str] = PromptSession(
        arrow,
        multiline=True,
        prompt_continuation=lambda width, line, soft: "." * (len(arrow) - 1) + " ",
        key_bindings=_keys(),
        completer=_completer(commands, arguments),
        complete_while_typing=True,
        auto_suggest=AutoSuggestFromHistory(),
        history=_history(history_file),
        enable_history_search=False,
        enable_suspend=True,
        enable_open_in_editor=True,
        search_ignore_case=True,
        editing_mode=EditingMode.VI if options.keys == "vi" else EditingMode.EMACS,
        bottom_toolbar=lambda: _fitted(bar(), environment.size()[0]),
        style=Style.from_dict({"bottom-toolbar": "noreverse dim", "auto-suggestion": "dim"}),
        color_depth=ColorDepth.DEPTH_1_BIT if environment.variables.get("NO_COLOR") else None,
        input=keys,
        output=screen,
    )

    session.app.before_render += lambda app: _leave_room(session, environment)
    interrupts = _Interrupts()

    def read_message(beginning: str) -> str:
        def pre_run() -> None:
            _after_history([*interrupts.keys(), *get_typeahead(session.app.input), *_pressed(typed_ahead())])

        with interrupts.held():
            message = session.prompt(default=beginning, pre_run=pre_run)
        if interrupts.take():
            raise KeyboardInterrupt
        return message

    return read_message


def _leave_room(session: "PromptSession[str]", environment: Environment) -> None:
    """For a menu below the message, as far as the window has it."""
    session.reserve_space_for_menu = max(min(MENU_ROWS, environment.size()[1] - FEWEST_ROWS), 0)


def is_open(text: str) -> bool:
    """Whether three quotation marks at its start still wait for those at its end."""
    stripped = text.strip()
    return stripped.startswith(QUOTES) and (len(stripped) < 2 * len(QUOTES) or not stripped.endswith(QUOTES))


def unquoted(text: str) -> str:
    """The message without the three quotation marks around it."""
    stripped = text.strip()
    if stripped.startswith(QUOTES):
        return stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return stripped


class _Interrupts:
    """Ctrl-C as a signal while the editor is set up or taken down: it waits for the editor to take it, or for its end.

    Or an event loop would be left half made or half closed, which writes a traceback when it is collected.
    """

    def __init__(self) -> None:
        self._waiting = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """The editor takes them by itself while it runs, but on Windows, where they are not held."""
        if sys.platform == "win32":
            yield
            return
        before = signal.signal(signal.SIGINT, self._wait)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def take(self) -> bool:
        """Whether there was one."""
        waiting, self._waiting = self._waiting, False
        return waiting

    def keys(self) -> "list[KeyPress]":
        """The key that it is to the editor, if there was one."""
        from prompt_toolkit.key_binding.key_processor import KeyPress
        from prompt_toolkit.keys import Keys

        return [KeyPress(Keys.SIGINT)] if self.take() else []

    def _wait(self, signal_number: int, frame: object) -> None:
        self._waiting = True


def _fitted(text: str, columns: int) -> str:
    return text if len(text) < columns else text[: max(columns - 2, 0)] + "…"


def _history(file: Path | None) -> "History":
    """Messages of earlier runs, in a file for its owner alone."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        """What the disk refuses is remembered for this run alone."""

        def store_string(self, string: str) -> None:
            with suppress(OSError):
                super().store_string(string)

        def load_history_strings(self) -> "Iterable[str]":
            try:
                return list(super().load_history_strings())
            except OSError:
                return []

    if file is None:
        return InMemoryHistory()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return Kept(str(file))


def _completer(commands: Mapping[str, str], arguments: Callable[[str], Iterable[str]]) -> "Completer":
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        """Names after a slash at the start, then what may follow them."""

        def get_completions(self, document: "Document", event: "CompleteEvent") -> "Iterable[Completion]":
            text = document.text_before_cursor
            if not text.startswith("/") or "\n" in text:
                return
            name, space, rest = text[1:].partition(" ")
            if not space:
                for command, description in commands.items():
                    if command.startswith(name.lower()):
                        yield Completion(f"/{command}", -len(text), display_meta=description)
            elif name in ("read", "export"):
                yield from paths.get_completions(Document(rest, len(rest)), event)
            else:
                for argument in arguments(name):
                    if argument.startswith(rest) and argument != rest:
                        yield Completion(argument, -len(rest))

    return Commands()


def _pressed(typed: str) -> "list[KeyPress]":
    """A paste whose end is still to come ends here."""
    from prompt_toolkit.input.vt100_parser import Vt100Parser

    keys: list[KeyPress] = []
    parser = Vt100Parser(keys.append)
    cut = typed.rfind(_PASTE_BEGINS) > typed.rfind(_PASTE_ENDS)
    parser.feed_and_flush(typed + (_PASTE_ENDS if cut else ""))
    return keys


def _after_history(keys: "list[KeyPress]") -> None:
    """Keys that wait already take effect once the history is there, which an empty message's first drawing would load:
    a search or the arrows would find nothing."""
    from prompt_toolkit.application import get_app

    app = get_app()

    async def feed() -> None:
        app.key_processor.feed_multiple(keys)
        app.key_processor.process_keys()

    app.current_buffer.load_history_if_not_yet_loaded()
    app.create_background_task(feed())  # begun after the loading, which goes through without a pause


def _keys() -> "KeyBindings":
    """Enter sends, or starts another line within three quotation marks; Alt-Enter, which terminals send as Escape and
    Enter, always starts another line."""
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition, completion_is_selected, is_searching
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        if is_open(event.current_buffer.text):
            event.current_buffer.newline(copy_margin=False)
        else:
            event.current_buffer.validate_and_handle()

    @bindings.add("enter", filter=completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @bindings.add("c-c", filter=Condition(lambda: bool(get_app().current_buffer.text)) & ~is_searching)
    def _(event: KeyPressEvent) -> None:
        waiting = event.key_processor.empty_queue()
        event.current_buffer.reset()
        _after_history(waiting)

    @bindings.add("escape", "enter")
    @bindings.add("escape", "c-j")  # typed ahead, before the terminal was set to send Enter as it is
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    return bindings
