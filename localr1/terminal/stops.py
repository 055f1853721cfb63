"""What is put aside before Ctrl-Z stops the program, and taken up again when it goes on.

Owns the signal, and how the terminal is written to while it is handled. Does not know what is put aside. Invariant:
what was begun last is put aside first and taken up last.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TextIO


@contextmanager
def aside_while_stopped(aside: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Each Ctrl-Z stops the program within an `aside()` of its own. Only in the main thread, which alone hears
    signals; Windows has none for it."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signal_number: int, frame: object) -> None:
        with aside():
            signal.signal(signal.SIGTSTP, before)
            try:
                signal.raise_signal(signal.SIGTSTP)  # to those that were begun before, then to the system
            finally:
                signal.signal(signal.SIGTSTP, stop)

    before = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def write_past(stream: TextIO, text: str) -> None:
    """Also where the signal came in the middle of a write to the stream, which lets no other through its buffer."""
    with suppress(RuntimeError):
        stream.flush()
    try:
        descriptor = stream.fileno()
    except OSError:  # in memory
        stream.write(text)
    else:
        os.write(descriptor, text.encode())
