"""The last lines on the terminal, redrawn in place until they are final.

Owns what is on the screen below the finished text and the few escape sequences that change it. Knows nothing of what
the lines say. Invariants: only lines that changed are written again, each change is one write, nothing above the live
lines is touched, and after `settle` the cursor is at the start of an empty line with no mode or style left on.

A live line takes one row however wide it is: it is written without wrapping, since terminals disagree on how wide some
characters are, and a window may be narrower by now than it says. But most terminals break lines anew when they become
narrower (`reflows`); then the rows of the old drawing are counted as the terminal broke them.
"""

import re
from collections.abc import Callable, Sequence
from typing import TextIO

from localr1.terminal.stops import write_past

_SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")
_AT_ONCE, _DONE = "\x1b[?2026h", "\x1b[?2026l"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"


class LiveLines:
    """Lines at the end of `stream`; `size` tells the window's columns and rows whenever it is asked."""

    def __init__(self, stream: TextIO, size: Callable[[], tuple[int, int]], reflows: bool = True) -> None:
        self._stream = stream
        self._size = size
        self._reflows = reflows
        self._shown: list[str] = []
        self._gone = self._gone_letters = 0
        self._window = (0, 0)

    def draw(self, lines: Sequence[str], scroll: bool = True) -> None:
        """Show these instead of those before. What does not fit in the window scrolls off and counts as final;
        without `scroll` it is left out until there is room or `settle` comes."""
        columns, rows = self._size()
        room = max(rows - 1, 1)
        self._take_size(columns, rows, lines, scroll)
        wanted = list(lines[self._gone :]) if scroll else list(lines[-room:])
        self._change(wanted)
        if scroll and len(wanted) > room:
            self._let_go(wanted[:-room])
            self._shown = self._shown[-room:]

    def settle(self, lines: Sequence[str]) -> None:
        """These are final: they stay, and what is drawn next comes below them."""
        self._take_size(*self._size(), lines, True)
        self._change(list(lines[self._gone :]), ended=True)
        self._shown, self._gone, self._gone_letters = [], 0, 0

    def clear(self) -> None:
        """Leave the terminal to another program, without the live lines; they are drawn again below what that wrote.
        Safe in a signal handler."""
        columns, rows = self._size()
        taken = min(sum(self._heights(columns)), rows)
        self._shown = []
        if taken:
            write_past(self._stream, self._edits(["\0"] * taken, [], 0))

    def _let_go(self, lines: Sequence[str]) -> None:
        """These have scrolled off."""
        self._gone += len(lines)
        self._gone_letters += sum(map(_letters, lines))

    def _take_size(self, columns: int, rows: int, lines: Sequence[str], scroll: bool) -> None:
        """In another window nothing of what is shown is where it was. Rows that it pushed off are gone, too. In another
        width the lines are broken elsewhere, so those are gone whose letters were."""
        if (columns, rows) == self._window:
            return
        heights = self._heights(columns)
        before, self._window = self._window[0], (columns, rows)
        pushed = 0
        while scroll and sum(heights[pushed:]) > rows:
            pushed += 1
        self._let_go(self._shown[:pushed])
        self._shown = ["\0"] * min(sum(heights[pushed:]), rows)
        if columns != before:
            letters, self._gone, self._gone_letters = self._gone_letters, 0, 0
            for line in lines:
                if self._gone_letters == letters or self._gone_letters + _letters(line) > letters:
                    break
                self._let_go([line])

    def _heights(self, columns: int) -> list[int]:
        """Rows of the lines shown, in a window of so many columns."""
        before = self._window[0]
        narrower = self._reflows and columns < before
        return [_rows(line, before, columns) if narrower else 1 for line in self._shown]

    def _change(self, wanted: list[str], ended: bool = False) -> None:
        shown = self._shown
        same = 0
        while same < len(shown) and same < len(wanted) and shown[same] == wanted[same]:
            same += 1
        written = self._edits(shown, wanted, same)
        self._shown = wanted
        if ended and wanted:
            written += "\n"
        if written:
            if not ended:
                written = f"{_NO_WRAP}{written}{_WRAP}"
            if "\r" in written:
                written = f"{_AT_ONCE}{written}{_DONE}"
            self._stream.write(written)
            self._stream.flush()

    def _edits(self, shown: list[str], wanted: list[str], same: int) -> str:
        """What turns the lines shown, with the cursor after the last, into those wanted, of which `same` are alike."""
        if same == len(shown):
            return "".join("\n" + line for line in wanted[same:]) if shown else "\n".join(wanted)
        last = len(shown) - 1
        if same == last and same < len(wanted) and wanted[same].startswith(shown[same]):
            return "\n".join([wanted[same][len(shown[same]) :], *wanted[same + 1 :]])
        up = f"\x1b[{last - same}A" if last > same else ""
        if same < len(wanted):
            first, *rest = wanted[same:]
            if last == same:
                return "\r\x1b[J" + "\n".join(wanted[same:])
            # Of what is erased from the window's first row to its last, tmux keeps a copy above.
            if rest:
                return f"{up}\r\x1b[K{first}\n\x1b[J" + "\n".join(rest)
            return f"{up}\n\x1b[J\x1b[A\r\x1b[K{first}"
        if not wanted:
            return f"{up}\r\x1b[J"
        # Fewer lines than before: the cursor goes after the last that stays.
        return f"{up}\r\x1b[J\x1b[1A\r\x1b[J{wanted[-1]}"


def _letters(line: str) -> int:
    """How many characters of a line are the same however the text is broken: letters and digits."""
    return sum(map(str.isalnum, _SEQUENCE.sub("", line)))


def _rows(line: str, before: int, columns: int) -> int:
    """Rows that a line, cut off at `before` columns, is broken into in `columns`; a wide character is not divided."""
    from rich.cells import cell_len

    rows, used, seen = 1, 0, 0
    for character in _SEQUENCE.sub("", line):
        width = cell_len(character)
        seen += width
        if seen > before:
            break
        if used + width > columns:
            rows, used = rows + 1, 0
        used += width
    return rows
