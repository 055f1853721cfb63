"""Keeps what is typed while nobody reads out of the answer: it is not echoed, and waits for the next prompt.

Owns the terminal's echo and its lines. Held over a whole conversation, so that no key, not even Ctrl-D, falls into a
moment between two ways of reading. Invariant: the terminal's settings are put back, whatever happens within.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def unechoed(stdin: TextIO) -> Iterator[None]:
    """Ctrl-C still interrupts. Nothing changes where there is no terminal, or on Windows, which echoes by itself."""
    with _line_mode(stdin, wanted=False):
        yield


@contextmanager
def echoed(stdin: TextIO) -> Iterator[None]:
    """Within `unechoed`, for reading a line that the terminal itself lets a person edit."""
    with _line_mode(stdin, wanted=True):
        yield


@contextmanager
def _line_mode(stdin: TextIO, wanted: bool) -> Iterator[None]:
    if sys.platform == "win32" or not stdin.isatty():
        yield
        return
    import termios

    flags = termios.ECHO | termios.ICANON
    try:
        descriptor = stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, termios.error):
        yield
        return
    within = [*before]
    within[3] = before[3] | flags if wanted else before[3] & ~flags
    termios.tcsetattr(descriptor, termios.TCSANOW, within)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
