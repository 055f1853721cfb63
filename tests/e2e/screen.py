"""A person at a terminal: runs a command in a real pty, types, and reads what a VT100 shows."""

import os
import signal
import termios
import time
from collections.abc import Mapping

import pexpect
import pyte

ENTER, ALT_ENTER, UP = "\r", "\x1b\r", "\x1b[A"
CTRL_C, CTRL_D, CTRL_E, CTRL_R, CTRL_X, CTRL_Z = "\x03", "\x04", "\x05", "\x12", "\x18", "\x1a"


class ResizableScreen(pyte.HistoryScreen):
    """A screen that keeps its cursor's line when its window changes. Where the window becomes narrower, its lines are
    broken anew, as most terminals do, or cut off if it `reflows` not."""

    reflows = True

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        lines, columns = lines or self.lines, columns or self.columns
        rows: list[dict[int, pyte.screens.Char]] = []
        for y in range(self.cursor.y + 1):
            row = self.buffer[y]
            length = max((x for x in range(self.columns) if row[x].data != " "), default=-1) + 1
            if y == self.cursor.y:
                length = max(length, self.cursor.x)
            start = 0
            while start < max(length, 1):
                end = min(start + columns, length)
                end -= end < length and row[end].data == ""  # the second half of a wide character
                rows.append({x - start: row[x] for x in range(start, end)})
                start = end if self.reflows and length else length + 1
        x = len(rows[-1]) if self.cursor.x else 0
        super().resize(lines, columns)
        gone = max(len(rows) - lines, 0)
        for row in rows[:gone]:
            self.history.top.append(self._row(row))
        self.buffer.clear()
        for y, row in enumerate(rows[gone:]):
            self.buffer[y] = self._row(row)
        self.cursor.y, self.cursor.x = len(rows) - gone - 1, x
        self.dirty.update(range(lines))

    def _row(self, cells: dict[int, pyte.screens.Char]) -> pyte.screens.StaticDefaultDict:
        row = pyte.screens.StaticDefaultDict(self.default_char)
        row.update(cells)
        return row


class Terminal:
    """A command on a terminal of `columns` x `lines`; everything written so far is in `raw`, and shown in `text()`."""

    def __init__(self, command: list[str], variables: Mapping[str, str], columns: int = 80, lines: int = 24) -> None:
        """`XTERM_VERSION` among the variables makes it one that cuts lines off when it becomes narrower."""
        self._screen = ResizableScreen(columns, lines, history=2000)
        self._screen.reflows = "XTERM_VERSION" not in variables
        self._screen.write_process_input = lambda answer: self._child.send(answer)
        self._stream = pyte.Stream(self._screen)
        self.raw = ""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        settings = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "EDITOR": "vi"}
        self._child = pexpect.spawn(
            command[0],
            command[1:],
            dimensions=(lines, columns),
            encoding="utf-8",
            codec_errors="replace",
            env=kept | settings | dict(variables),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
        self._child.delaybeforesend = None
        self._found = self._settings()
        self.left_as_found = False
        """Once it has ended: whether the terminal's echo and line editing are as they were."""

    def _settings(self) -> int:
        return termios.tcgetattr(self._child.child_fd)[3]

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def echoes(self) -> bool:
        return bool(self._settings() & termios.ECHO)

    def write_bytes(self, keys: bytes) -> None:
        """What no keyboard of this terminal's encoding sends."""
        os.write(self._child.child_fd, keys)

    def type(self, keys: str) -> None:
        self._child.send(keys)

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        """Reads until the text is on the screen or in what scrolled off it."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.text():
            assert self.read(), f"it ended before {text!r} came:\n{self.text()}"
            assert time.monotonic() < deadline_s, f"{text!r} did not come in time:\n{self.text()}"

    def leave(self, timeout_s: float = 30) -> int:
        """Reads until the command ends; its exit status."""
        deadline_s = time.monotonic() + timeout_s
        while self.read():
            assert time.monotonic() < deadline_s, f"it does not end:\n{self.text()}"
        self.left_as_found = self._settings() == self._found
        self._child.close()
        return self._child.exitstatus if self._child.exitstatus is not None else -self._child.signalstatus

    def resize(self, columns: int, lines: int) -> None:
        """Between two of the command's writes: what was written before is shown before."""
        os.kill(self.pid, signal.SIGSTOP)
        while self.read(timeout_s=0.05, patient=False):
            pass
        self._screen.resize(lines, columns)
        self._child.setwinsize(lines, columns)
        os.kill(self.pid, signal.SIGCONT)

    def text(self) -> str:
        """What scrolled off the screen and what is on it, without the spaces at the ends of lines."""
        scrolled = ["".join(row[x].data for x in range(self._screen.columns)) for row in self._screen.history.top]
        return "\n".join(line.rstrip() for line in [*scrolled, *self._screen.display]).rstrip()

    def cells(self) -> list[list[pyte.screens.Char]]:
        """The characters on the screen with their styles, row by row."""
        buffer = self._screen.buffer
        return [[buffer[y][x] for x in range(self._screen.columns)] for y in range(self._screen.lines)]

    def plain(self) -> bool:
        """Whether the terminal is as it was: cursor shown, no style left on."""
        return not self._screen.cursor.hidden and self._screen.cursor.attrs == self._screen.default_char

    def read(self, timeout_s: float = 0.2, patient: bool = True) -> bool:
        """Shows what comes within a moment; False when the command has ended, or if not `patient` nothing came."""
        try:
            written = self._child.read_nonblocking(65536, timeout=timeout_s)
        except pexpect.TIMEOUT:
            return patient
        except pexpect.EOF:
            return False
        self.raw += written
        self._stream.feed(written)
        return True

    def close(self) -> None:
        self._child.close(force=True)
