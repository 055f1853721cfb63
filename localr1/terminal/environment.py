"""What the program talks to: three streams, and what they can show.

Owns the streams and the questions asked of them (is it a terminal, may it be styled, how wide is it, which characters
does it have). Does not know what is shown. Invariant: nothing else in the program looks at `sys.stdin`, `sys.stdout`,
`sys.stderr` or the terminal's environment variables, so a test that passes its own streams controls everything.
"""

import io
import os
import re
import sys
import textwrap
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TextIO, cast

from localr1.errors import LocalR1Error, UsageError
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

Style = Literal["dim", "bold", "red", "yellow"]

_SGR: Mapping[Style, str] = {"dim": "\x1b[2m", "bold": "\x1b[1m", "red": "\x1b[31m", "yellow": "\x1b[33m"}
_RESET = "\x1b[0m"
_UNBROKEN = 1000
_MOMENT_S = 0.05
_OBEY_ESCAPES = 0x0004
"""ENABLE_VIRTUAL_TERMINAL_PROCESSING of a Windows console."""
_WIDTH = 80
_ROWS = 24


@dataclass(frozen=True)
class Environment:
    """The streams of one run of the program, and the variables that say how a terminal wants to be treated.

    `plain`: what was shown is not to be changed, for screen readers and logs.
    """

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    variables: Mapping[str, str] = field(default_factory=dict)
    plain: bool = False

    @classmethod
    def current(cls) -> "Environment":
        """The process's own streams. What they cannot encode is written as escapes instead of failing.

        Pipes and files of Windows are UTF-8, as everywhere else; Python would take the system's old code page.
        """
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                if sys.platform == "win32" and not stream.isatty():
                    stream.reconfigure(encoding="utf-8")
                if stream is not sys.stdin:
                    stream.reconfigure(errors="backslashreplace")
                else:  # what is typed wrongly is seen; what is piped is told of
                    stream.reconfigure(errors="replace" if stream.isatty() else "strict")
        closed = io.StringIO()
        return cls(sys.stdin or closed, sys.stdout or closed, sys.stderr or closed, os.environ)

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked and answered."""
        return self.stdin.isatty() and self.stdout.isatty()

    @property
    def dumb(self) -> bool:
        """A terminal that knows no escape sequences."""
        return self.variables.get("TERM") == "dumb"

    @property
    def redraws(self) -> bool:
        """Whether lines on stdout can be written again in place."""
        return self.stdout.isatty() and not self.dumb and _knows_escapes(self.stdout)

    @property
    def reflows(self) -> bool:
        """Whether the terminal breaks lines anew when its window becomes narrower. Of those in use only xterm, GNU
        screen and the Linux console cut them off."""
        if "TMUX" in self.variables:
            return True
        return "XTERM_VERSION" not in self.variables and not self.variables.get("TERM", "").startswith(
            ("linux", "screen")
        )

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal that shows the answer, 80 x 24 where there is none."""
        try:
            size = os.get_terminal_size(self.stdout.fileno())
        except OSError:
            return _WIDTH, _ROWS
        return size.columns or _WIDTH, size.lines or _ROWS

    @property
    def colours(self) -> Literal["none", "standard", "256", "truecolor"]:
        """How many colours stdout knows."""
        if not self.styled(self.stdout):
            return "none"
        if self.variables.get("COLORTERM", "") in ("truecolor", "24bit"):
            return "truecolor"
        return "256" if "256" in self.variables.get("TERM", "") else "standard"

    @property
    def width(self) -> int:
        """Columns of the terminal that shows the status, 80 where there is none."""
        try:
            return os.get_terminal_size(self.stderr.fileno()).columns or _WIDTH
        except OSError:
            return _WIDTH

    def styled(self, stream: TextIO) -> bool:
        """Whether escape sequences may be written to the stream: a terminal that knows them, and no NO_COLOR."""
        return stream.isatty() and not self.dumb and not self.variables.get("NO_COLOR") and _knows_escapes(stream)

    def glyph(self, preferred: str, plain: str) -> str:
        """`preferred` where both output streams can encode it, else `plain`."""
        try:
            for stream in (self.stdout, self.stderr):
                preferred.encode(stream.encoding or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return plain
        return preferred

    def style(self, text: str, style: Style, stream: TextIO) -> str:
        return f"{_SGR[style]}{text}{_RESET}" if text and self.styled(stream) else text

    def status(self, text: str, style: Style | None = None) -> None:
        """Lines about the program itself, on stderr, so that they never mix with an answer in a pipe.

        A terminal narrower than a line gets it broken between words, as far in as the line begins.
        """
        shown = self._wrapped(visible(text))
        self.stderr.write((self.style(shown, style, self.stderr) if style else shown) + "\n")
        self.stderr.flush()

    def error(self, error: LocalR1Error) -> None:
        """`error: what happened`, and `hint: what to do next`."""
        parts: list[tuple[str, Style, str]] = [("error:", "red", error.message), ("hint:", "bold", error.hint)]
        for label, style, text in parts:
            if text:
                shown = self._wrapped(f"{label} {_one_line(text)}").removeprefix(label)
                self.stderr.write(f"{self.style(label, style, self.stderr)}{shown}\n")
        self.stderr.flush()

    def give_way(self) -> None:
        """What went into a pipe may come back to the terminal by its reader, as with `| cat`: that gets a moment, so
        that it comes before what is said next on stderr. Whether it has come cannot be known."""
        if self.stderr.isatty() and not self.stdout.isatty():
            time.sleep(_MOMENT_S)

    def _wrapped(self, text: str) -> str:
        """Broken between words where stderr is a terminal; a word is never broken, so that it can be copied."""
        if not self.stderr.isatty():
            return text
        return "\n".join(_filled(line, self.width) for line in text.split("\n"))

    def read_piped(self) -> str:
        """Everything on stdin when it is not a terminal, without its last line ends; "" when it is one.

        UsageError when it is not text in the stream's encoding.
        """
        if self.stdin.isatty():
            return ""
        try:
            return self.stdin.read().removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            hint = "convert it first, for example: iconv -f latin1 -t utf-8 FILE | localr1 chat"
            if sys.platform == "win32":
                hint = "save it as UTF-8, or run chcp 65001 first if it comes from another program"
            raise UsageError(
                f"the text on stdin is not {error.encoding}: byte 0x{error.object[error.start]:02x} at {error.start}",
                hint,
            ) from None

    def console(self, stream: TextIO) -> "Console":
        """A rich console on one of the streams, with the same rule for styles; lines in a file are not broken."""
        from rich.console import Console

        return Console(
            file=stream if stream.isatty() else cast(TextIO, _Trimmed(stream)),
            width=None if stream.isatty() else _UNBROKEN,
            force_terminal=stream.isatty() and not self.dumb,
            color_system="auto" if self.styled(stream) else None,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=stream.isatty() and not _knows_escapes(stream),
        )


class _Trimmed:
    """A file that gets lines without the spaces at their ends, which tables are filled up with."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding
        self.flush = stream.flush

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        return self._stream.write(re.sub(r" +(?=\n)", "", text))


def _filled(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip(" "))]
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _knows_escapes(terminal: TextIO) -> bool:
    """Whether escape sequences are obeyed. Consoles of Windows 10 show them as text until they are asked to obey them,
    as they are here; older ones refuse."""
    if sys.platform != "win32":
        return True
    import ctypes
    import msvcrt

    with suppress(OSError, ValueError):
        console, mode = ctypes.c_void_p(msvcrt.get_osfhandle(terminal.fileno())), ctypes.c_uint32()
        kernel = ctypes.WinDLL("kernel32")
        if kernel.GetConsoleMode(console, ctypes.byref(mode)):
            return bool(mode.value & _OBEY_ESCAPES or kernel.SetConsoleMode(console, mode.value | _OBEY_ESCAPES))
    from rich.console import detect_legacy_windows

    return not detect_legacy_windows()
