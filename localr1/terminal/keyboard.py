"""Keeps what is typed while nobody reads out of the answer: it is not echoed by the terminal, but heard, so that it can
be shown below the answer, and waits for the next prompt.

Owns the terminal's echo and its lines. Held over a whole conversation, so that no key, not even Ctrl-D, falls into a
moment between two ways of reading. Invariants: the terminal's settings are put back, whatever happens within; what was
heard is handed out once, or forgotten.
"""

import codecs
import os
import re
import select
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TextIO

from localr1.terminal.stops import aside_while_stopped, write_past

_LINES = ("ECHO", "ICANON")


@contextmanager
def unechoed(stdin: TextIO) -> Iterator[None]:
    """Ctrl-C still interrupts. Nothing changes where there is no terminal, or on Windows, which echoes by itself."""
    with _local_modes(stdin, off=_LINES):
        yield


@contextmanager
def echoed(stdin: TextIO) -> Iterator[None]:
    """Within `unechoed`, for reading a line that the terminal itself lets a person edit."""
    with _local_modes(stdin, on=_LINES):
        yield


@contextmanager
def _local_modes(stdin: TextIO, on: Sequence[str] = (), off: Sequence[str] = ()) -> Iterator[None]:
    """Within, these modes of the terminal, by their names in `termios`, are on or off; while Ctrl-Z stops the program
    they are as before."""
    descriptor = _terminal(stdin)
    if sys.platform == "win32" or descriptor is None:
        yield
        return
    import termios

    try:
        before = termios.tcgetattr(descriptor)
    except termios.error:
        yield
        return
    within = [*before]
    for name in on:
        within[3] |= getattr(termios, name)
    for name in off:
        within[3] &= ~getattr(termios, name)

    @contextmanager
    def as_before() -> Iterator[None]:
        now = termios.tcgetattr(descriptor)
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
        yield
        if not _in_background(descriptor):
            termios.tcsetattr(descriptor, termios.TCSANOW, now)

    termios.tcsetattr(descriptor, termios.TCSANOW, within)
    try:
        with aside_while_stopped(as_before):
            yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _terminal(stdin: TextIO) -> int | None:
    """Its descriptor, where it is a terminal whose keys can be read one by one."""
    with suppress(OSError, ValueError):
        if sys.platform != "win32" and stdin.isatty():
            return stdin.fileno()
    return None


def _in_background(terminal: int) -> bool:
    """Whether the terminal is another program's by now, as after `bg`."""
    with suppress(OSError):
        return sys.platform != "win32" and os.tcgetpgrp(terminal) != os.getpgrp()
    return False


_SEQUENCE = re.compile(r"\x1b(\[[0-9;?<]*[ -/]*[@-~]|O.|.)?")
_ENTER = re.compile(r"[\r\n]")
_ERASING = re.compile(r"[\x08\x7f]")
_ERASING_WORD, _ERASING_LINE = "\x17", "\x15"
_CTRL_D = "\x04"
_LONGEST_READ = 65536
_LONGEST_SEEN = 400
_MARK_PASTES, _MARK_NONE = "\x1b[?2004h", "\x1b[?2004l"


class TypedAhead:
    """What is typed while an answer comes; `tell` is given the end of it, for the eye, whenever there is more.

    `tell` is called on a thread of its own. The terminal is asked to mark what is pasted, so that its lines stay one
    message.
    """

    def __init__(self, stdin: TextIO, stdout: TextIO, tell: Callable[[str], None]) -> None:
        self._stdin, self._stdout, self._tell = stdin, stdout, tell
        self._heard = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Nothing is heard where there is no terminal, nor on Windows, where what is typed waits unseen."""
        keys = _terminal(self._stdin)
        if keys is None:
            yield
            return
        ended, end = os.pipe()
        thread = threading.Thread(target=self._listen, args=(keys, ended), name="typed ahead", daemon=True)
        thread.start()
        with ExitStack() as stack:  # a Ctrl-C in one step of its end leaves out no other
            stack.callback(thread.join)
            stack.callback(os.close, end)
            stack.callback(self._write, _MARK_NONE)
            # or Ctrl-C throws away what was written and the terminal has not shown yet
            stack.enter_context(_local_modes(self._stdin, on=("NOFLSH",)))
            self._write(_MARK_PASTES)
            stack.enter_context(aside_while_stopped(self._unmarked))
            yield

    @contextmanager
    def _unmarked(self) -> Iterator[None]:
        write_past(self._stdout, _MARK_NONE)
        yield
        write_past(self._stdout, _MARK_PASTES)

    def take(self) -> str:
        """What was heard since, as it was typed."""
        heard, self._heard = self._heard, ""
        return heard

    def forget(self) -> None:
        self._heard = ""
        self._tell("")

    def _write(self, mode: str) -> None:
        self._stdout.write(mode)
        self._stdout.flush()

    def _listen(self, keys: int, ended: int) -> None:
        """Until the other end of `ended`, which is closed here, is closed."""
        decoder = _decoder(self._stdin)
        with os.fdopen(ended):
            while True:
                ready, _, _ = select.select([keys, ended], [], [])
                if ended in ready:
                    return
                try:
                    typed = os.read(keys, _LONGEST_READ)
                except OSError:  # the terminal is gone
                    return
                if not typed:
                    return
                self._heard += decoder.decode(typed)
                self._tell(seen(self._heard[-_LONGEST_SEEN:]))


class TypedLines:
    """Lines that the terminal itself lets a person edit; within `unechoed`, so that each is echoed while it is read.

    What was typed before comes as it was pressed: several lines in one piece, the last of them open, and with a Ctrl-D
    as a character like others. It is shown when its line is read.
    """

    def __init__(self, stdin: TextIO, stdout: TextIO) -> None:
        self._stdin, self._stdout = stdin, stdout
        self._terminal = _terminal(stdin)
        self._decoder = _decoder(stdin)
        self._left = ""

    def read(self, prompt: str) -> str:
        """The next line without its end. EOFError for a Ctrl-D at its beginning, or the end of the input."""
        with echoed(self._stdin):  # first, for a key that is typed at once upon the prompt
            ahead = bool(self._left) or self._is_waiting()
            self._write(prompt)
            piece = self._left or self._piece()
            line, end, self._left = piece.partition("\n")
            if not piece or line.startswith(_CTRL_D):
                raise EOFError
            if ahead:
                line = seen(line.replace("\t", " "))
                self._write(line + end)
            while not end and (piece := self._piece()):
                rest, end, self._left = piece.partition("\n")
                line += rest
        return line

    def _is_waiting(self) -> bool:
        return self._terminal is not None and bool(select.select([self._terminal], [], [], 0)[0])

    def _piece(self) -> str:
        """A line, or what there is of one that was not ended by Enter; "" for the end."""
        if self._terminal is None:
            return self._stdin.readline()
        while True:
            try:
                keys = os.read(self._terminal, _LONGEST_READ)
            except OSError:  # the terminal is gone
                return ""
            text = self._decoder.decode(keys, final=not keys)
            if text or not keys:
                return text

    def _write(self, text: str) -> None:
        self._stdout.write(text)
        self._stdout.flush()


def _decoder(stdin: TextIO) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder(stdin.encoding or "utf-8")("replace")


_LINE_END = "⏎"


def seen(keys: str) -> str:
    """What of these keys can be seen: characters, less those that were erased, and where lines end."""
    shown: list[str] = []
    for key in _SEQUENCE.sub("", keys):
        if _ERASING.match(key):
            del shown[-1:]
        elif key in (_ERASING_WORD, _ERASING_LINE):
            line = "".join(shown).rpartition(_LINE_END)[2]
            erased = line if key == _ERASING_LINE else line[line.rstrip().rfind(" ") + 1 :]
            del shown[len(shown) - len(erased) :]
        elif _ENTER.match(key):
            shown.append(_LINE_END)
        elif key.isprintable():
            shown.append(key)
    return "".join(shown)
